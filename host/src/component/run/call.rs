//! One call of a guest, within its deadline.

use std::{fmt, fmt::Write as _, pin::pin, time::Duration};

use tokio::time::{Instant, timeout_at};
use wasmtime::{FrameInfo, Trap, WasmBacktrace, component::ResourceTableError};

use crate::{
    component::run::{
        host::MAX_HANDLES,
        output::{Output, line},
        system::is_out_of_memory,
        ticker::Ticker,
    },
    metrics::Blame,
    tenant::turns::TurnShare,
};

/// Frames of a trap's backtrace that are shown.
const MAX_FRAMES: usize = 8;
/// Most bytes of a function's name, before and after it is demangled.
const MAX_NAME: usize = 512;

/// How the functions' names begin that carry a Rust panic out, from where it is raised to where the guest is ended.
const PANIC_FUNCTIONS: [&str; 12] = [
    "core::",
    "std::",
    "alloc::",
    "<core::",
    "<std::",
    "<alloc::",
    "__rust",
    "__rg_oom",
    "__rdl_oom",
    "rust_begin_unwind",
    "rust_panic",
    "panic_abort::",
];

/// How long what a guest writes to its standard error waits for the call's end: if the call fails, it is in the line
/// that says so.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How much longer a call may take than its deadline. A guest that is past it traps by itself, so that its stack is
/// known, once it has its turn or has waited for what cannot be cut short.
const GRACE: Duration = Duration::from_millis(20);

/// What wasmtime says when the component model's tables are full.
const HANDLES_FULL: &str = "store handle limit exceeded";

/// How a guest's call failed. Its instance must not be used again.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Why, and what the log says besides: where it happened, and what the guest wrote.
    #[error("{}{}", .0, .1)]
    Trap(String, String),
    /// The deadline, and what the log says besides.
    #[error("no answer within {} ms{}", .0.as_millis(), .1)]
    Deadline(Duration, String),
    /// Why, and what the log says besides.
    #[error("cannot be instantiated: {}{}", .0, .1)]
    Instantiate(String, String),
    #[error("holds more than {MAX_HANDLES} handles: drop those that are no longer needed")]
    Handles,
    #[error("no memory for an instance: the tenant has all that memory-total allows")]
    Memory,
    #[error("no room for an instance: the tenant's instances have as many memory mappings as they may")]
    Mappings,
    #[error(
        "the system has no more memory or memory mappings for the relay; raise its address space (`ulimit -v`, \
         LimitAS= of systemd) or vm.max_map_count, or lower limits.instances in relay.toml"
    )]
    HostMemory,
    #[error("no place for an instance within {} ms: the tenant, or the host, has as many as it may", .0.as_millis())]
    Busy(Duration),
}

impl Broken {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Trap(..) | Self::Handles => "trap",
            Self::Deadline(..) => "deadline",
            Self::Instantiate(..) => "instantiate",
            Self::Busy(_) => "busy",
            Self::Memory | Self::Mappings => "memory",
            Self::HostMemory => "host_memory",
        }
    }

    pub fn blame(&self) -> Blame {
        match self {
            Self::Busy(_) | Self::Memory | Self::Mappings | Self::HostMemory => Blame::HostFailed,
            _ => Blame::GuestBroke,
        }
    }

    /// The cause alone, for those who do not read the tenant's log.
    pub fn cause(&self) -> String {
        match self {
            Self::Trap(why, _) => why.clone(),
            Self::Deadline(deadline, _) => Self::Deadline(*deadline, String::new()).to_string(),
            Self::Instantiate(why, _) => Self::Instantiate(why.clone(), String::new()).to_string(),
            broken => broken.to_string(),
        }
    }

    /// Adds what the guest wrote to its standard error in the call. For an exception that nobody caught, the trap alone
    /// says only that the guest gave up.
    pub fn saying(mut self, stderr: &Output) -> Self {
        if let Self::Trap(_, more) | Self::Deadline(_, more) = &mut self {
            let words = stderr.words();
            if !words.is_empty() {
                more.push_str(", having written: ");
                more.push_str(&line(&words));
            }
        }
        self
    }
}

/// Runs a call, in its tenant's turns, to its end or its deadline. Host calls count. Returns how long it took, too.
///
/// What the guest writes to `stderr` waits for the caller to say how the call has ended, but not for long.
pub async fn within<T>(
    deadline: Duration,
    ticker: &Ticker,
    share: &TurnShare,
    stderr: &Output,
    call: impl Future<Output = wasmtime::Result<T>>,
) -> Result<(T, Duration), Broken> {
    let _calling = ticker.calling();
    let mut call = pin!(share.take(call));
    let due = Instant::now() + deadline;
    let mut look = due - deadline + MAX_WAIT;
    loop {
        // What was written shortly before the deadline is for the line about it.
        let until = if look < due { look } else { due + GRACE };
        match timeout_at(until, call.as_mut()).await {
            Ok((Ok(value), time)) => return Ok((value, time)),
            Ok((Err(error), _)) => return Err(failed(&error, deadline)),
            Err(_) if until < due => {
                stderr.release();
                look += MAX_WAIT;
            }
            Err(_) => return Err(Broken::Deadline(deadline, String::new())),
        }
    }
}

fn failed(error: &wasmtime::Error, deadline: Duration) -> Broken {
    if is_out_of_memory(error) {
        return Broken::HostMemory;
    }
    let cause = error.root_cause();
    let trap = cause.downcast_ref();
    // A panic ends the guest by this trap.
    let stack = || stack(error, trap == Some(&Trap::UnreachableCodeReached));
    if trap == Some(&Trap::Interrupt) {
        return Broken::Deadline(deadline, stack());
    }
    let words = cause.to_string();
    if matches!(cause.downcast_ref(), Some(ResourceTableError::Full)) || words.contains(HANDLES_FULL) {
        return Broken::Handles;
    }
    Broken::Trap(line(&words), stack())
}

/// Names the functions in which a call failed, innermost first. `may_be_panic`: those that only carry a panic out are
/// left out.
fn stack(error: &wasmtime::Error, may_be_panic: bool) -> String {
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let functions: Vec<_> = frames.iter().filter_map(FrameInfo::func_name).map(function).collect();
    // The guest chooses its functions' names, so they are cleaned as its other text.
    line(&shown(&functions, may_be_panic))
}

/// A function's name as its author wrote it, cut where it is too long: a short one may stand for a mebibyte.
fn function(name: &str) -> String {
    let name = name.get(..name.floor_char_boundary(MAX_NAME)).unwrap_or_default();
    let mut written = Cut(String::new());
    // An error says that there is no more room.
    let _ = write!(written, "{:#}", rustc_demangle::demangle(name));
    written.0
}

/// Takes as much as a function's name may have.
struct Cut(String);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(MAX_NAME - self.0.len());
        self.0.push_str(text.get(..end).unwrap_or_default());
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

fn shown(functions: &[String], may_be_panic: bool) -> String {
    let is_of_panic =
        |function: &str| function == "abort" || PANIC_FUNCTIONS.iter().any(|prefix| function.starts_with(prefix));
    let own = functions.iter().position(|function| !is_of_panic(function));
    // A stack of nothing else is shown as it is.
    let first = own.filter(|_| may_be_panic).unwrap_or(0);
    let mut text = String::new();
    for (nth, function) in functions.iter().skip(first).take(MAX_FRAMES).enumerate() {
        text.push_str(if nth == 0 { " in " } else { " < " });
        text.push_str(function);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_of(functions: &[&str]) -> String {
        shown(&functions.iter().map(|function| (*function).to_owned()).collect::<Vec<_>>(), true)
    }

    #[test]
    fn a_panics_stack_begins_with_the_tenants_own_function() {
        let panic = ["__rustc::__rust_start_panic", "std::panicking::panic_with_hook", "__rustc::rust_begin_unwind"];
        let unwrap = ["core::panicking::panic_fmt", "<core::option::Option<T>>::unwrap"];
        let own = ["rust_prices::parse", "core::ops::function::FnOnce::call_once", "rust_prices::main"];
        assert_eq!(
            shown_of(&[&panic[..], &unwrap[..], &own[..]].concat()),
            " in rust_prices::parse < core::ops::function::FnOnce::call_once < rust_prices::main"
        );
        assert_eq!(shown_of(&["abort", "abort_trade", "main"]), " in abort_trade < main");
        assert_eq!(shown_of(&panic[1..]), " in std::panicking::panic_with_hook < __rustc::rust_begin_unwind");
        let busy = ["core::str::from_utf8", "rust_prices::parse"].map(str::to_owned);
        assert_eq!(shown(&busy, false), " in core::str::from_utf8 < rust_prices::parse", "no panic");
        assert_eq!(shown_of(&[]), "");
        assert_eq!(shown_of(&["a"; 20]).matches('a').count(), MAX_FRAMES);
    }

    #[test]
    fn a_short_name_that_stands_for_a_mebibyte_is_cut() {
        // Each argument is a tuple of the one before it, twice, by the place where that stands. `_` is zero.
        let (mut path, mut before) = ("IC1aThhE".to_owned(), "IC1a".len());
        for _ in 0..30 {
            let place = path.len();
            let reference = format!("B{}_", in_base_62(before - 1));
            path.push_str(&format!("T{reference}{reference}E"));
            before = place;
        }
        let name = format!("_R{path}E");
        assert!(name.len() < MAX_NAME && format!("{:#}", rustc_demangle::demangle(&name)).len() > 900_000);
        assert_eq!(function(&name).len(), MAX_NAME);
        assert_eq!(function("prices::parse"), "prices::parse");
    }

    /// Digits, small letters, capitals (RFC 2603).
    fn in_base_62(number: usize) -> String {
        let digits: Vec<char> = ('0'..='9').chain('a'..='z').chain('A'..='Z').collect();
        let last = digits[number % 62].to_string();
        if number < 62 { last } else { in_base_62(number / 62) + &last }
    }

    #[test]
    fn the_cause_of_a_failure_leaves_the_stack_and_the_guests_words_out() {
        let more = || " in prices::parse, having written: hush".to_owned();
        for (broken, whole, cause) in [
            (Broken::Trap("unreachable".into(), more()), "unreachable in prices", "unreachable"),
            (Broken::Deadline(MAX_WAIT, more()), "within 1000 ms in prices", "no answer within 1000 ms"),
            (Broken::Instantiate("no".into(), more()), "instantiated: no in prices", "cannot be instantiated: no"),
        ] {
            assert!(broken.to_string().contains(whole) && broken.to_string().ends_with("hush"), "{broken}");
            assert_eq!(broken.cause(), cause);
        }
        assert_eq!(Broken::Handles.cause(), Broken::Handles.to_string());
    }
}

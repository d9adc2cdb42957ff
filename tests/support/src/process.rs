//! The real program, as a child process.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tokio::sync::mpsc;

use super::{
    place::{program, temporary},
    until, within,
};

/// A child process that ends with the test.
pub struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    log: Arc<Mutex<String>>,
}

/// The program with these arguments, without the variables of the tests' environment that change what it does. What it
/// compiles without a `relay.toml` is shared by all tests, as in [`Folder::shared_cache`](super::tenant::Folder).
pub fn command(arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).env_remove("EDGE_RELAY_LOG").env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(variable).env_remove(variable.to_lowercase());
    }
    command.env("XDG_CACHE_HOME", user_caches());
    command.stdin(Stdio::null());
    command
}

/// The folder of caches of the user who runs the program in tests.
pub fn user_caches() -> PathBuf {
    temporary().join("caches")
}

/// The same command, limited to this many open files.
pub fn with_file_limit(command: &Command, files: u32) -> Command {
    with_limit(command, &format!("ulimit -n {files}"))
}

/// The same command, limited to this many bytes of address space.
pub fn with_memory_limit(command: &Command, bytes: usize) -> Command {
    with_limit(command, &format!("ulimit -v {}", bytes >> 10))
}

/// The same command, with a terminal for its output and its errors.
pub fn on_terminal(command: &Command) -> Command {
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).map(quoted).collect();
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]).stdin(Stdio::null());
    with_environment(terminal, command)
}

/// A word of a shell's command line.
fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"))
}

fn with_limit(command: &Command, limit: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{limit}; exec \"$0\" \"$@\"")).stdin(Stdio::null());
    wrapped(shell, command)
}

/// A command that `wrapper` runs, which takes it as its last arguments.
pub fn wrapped(mut wrapper: Command, command: &Command) -> Command {
    wrapper.arg(command.get_program()).args(command.get_args());
    with_environment(wrapper, command)
}

/// A command, with what another one changes of its environment.
fn with_environment(mut command: Command, other: &Command) -> Command {
    for (name, value) in other.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Runs the program until it ends by itself.
pub async fn run(arguments: &[impl AsRef<OsStr>]) -> Output {
    output(command(arguments)).await
}

/// Runs a command until it ends by itself.
pub async fn output(mut command: Command) -> Output {
    within("the command's end", tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap()
}

/// Formats what a command printed, for an assertion's message.
pub fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\nstdout: {}\nstderr: {}", output.status, text(&output.stdout), text(&output.stderr))
}

impl Process {
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let filled = Arc::clone(&log);
        thread::spawn(move || {
            let (mut stderr, mut line) = (BufReader::new(stderr), Vec::new());
            // Only whole lines, so that a search never finds half a line.
            while let Ok(1..) = stderr.read_until(b'\n', &mut line) {
                filled.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { child, lines, log }
    }

    /// Returns the next line on stdout. `None`: stdout is closed.
    pub async fn line(&mut self) -> Option<String> {
        within("a line on stdout, or its end", self.lines.recv()).await
    }

    /// Reads the first line, which must begin with `listening`. Returns the addresses in it.
    pub async fn listening(&mut self) -> Vec<(String, std::net::SocketAddr)> {
        let line = match self.line().await {
            Some(line) => line,
            None => panic!("ended before it listened: {}", self.log()),
        };
        let addresses = line.strip_prefix("listening ").unwrap_or_else(|| panic!("first line on stdout: {line}"));
        addresses
            .split(' ')
            .map(|pair| {
                let (name, address) = pair.split_once('=').unwrap();
                (name.to_owned(), address.parse().unwrap())
            })
            .collect()
    }

    /// Writes a line to its stdin, which must be a pipe.
    pub fn tell(&mut self, line: &str) {
        let written = self.child.stdin.as_mut().expect("stdin is a pipe").write_all(format!("{line}\n").as_bytes());
        assert!(written.is_ok(), "it has ended: {}", self.log());
    }

    /// Returns all of stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of the log with all these words.
    pub async fn logged(&self, words: &[&str]) -> String {
        until(format!("a line logged with {words:?}"), async || {
            let log = self.log();
            let found = log.lines().map(unquoted).find(|line| words.iter().all(|word| line.contains(word)));
            found.ok_or_else(|| log.clone())
        })
        .await
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process has ended.
    pub async fn end(&mut self) -> ExitStatus {
        until("the process's end", async || self.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())).await
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that the process ever had resident, in bytes.
    pub fn peak_memory(&self) -> usize {
        self.memory("VmHWM:")
    }

    /// The memory that the process has resident now, in bytes.
    pub fn resident_memory(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// The addresses that the process has mapped now, in bytes.
    pub fn address_space(&self) -> usize {
        self.memory("VmSize:")
    }

    /// The memory of its own that the process may write to now, in bytes.
    pub fn writable_memory(&self) -> usize {
        self.memory("VmData:")
    }

    /// Lets the process have no more of a resource than this. `None`: as much as the tests may have.
    pub fn limit(&self, resource: Resource, most: Option<usize>) {
        let maximum = getrlimit(resource).maximum;
        let current = most.map(|most| most as u64).or(maximum);
        prlimit(Some(Pid::from_child(&self.child)), resource, Rlimit { current, maximum }).unwrap();
    }

    /// How many memory mappings the process has now.
    pub fn mappings(&self) -> usize {
        std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap().lines().count()
    }

    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- stderr of the program:\n{}---", self.log());
        }
    }
}

/// A line of the log with its values as they were before they were quoted.
fn unquoted(line: &str) -> String {
    line.replace("\\\"", "\"").replace("\\\\", "\\")
}

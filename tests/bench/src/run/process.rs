//! Processes that this one starts: their output, what they have used, and their end.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, set_parent_process_death_signal, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};

use crate::{
    arguments::Arguments,
    failure::{Context, Failure},
};

pub struct Process {
    name: String,
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    log: PathBuf,
}

/// The cores that a process may use.
#[derive(Clone, Copy)]
pub enum Cores {
    All,
    First,
    /// All but the first, if there are others.
    Others,
}

/// What a process and its children have used.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// User and system, in µs.
    pub cpu: f64,
    /// Resident bytes without files' pages: programs and libraries are shared with other processes that come and go.
    /// Memory that processes share counts once.
    pub resident: f64,
    /// Resident bytes of files: programs, libraries, and compiled code that is mapped.
    pub mapped: f64,
    /// The most that was ever resident, files' pages included, summed over the processes that still run.
    pub peak: f64,
}

impl Process {
    /// Starts `command` through `bench leash`, so that it ends with this process. Its standard error goes to a file in
    /// `folder`.
    pub fn start(name: &str, command: &Command, folder: &Path) -> Result<Self, Failure> {
        Self::start_on(Cores::All, name, command, folder)
    }

    /// Starts a process that must run on one core only, or leave that core alone.
    pub fn start_on(cores: Cores, name: &str, command: &Command, folder: &Path) -> Result<Self, Failure> {
        let log = folder.join(format!("{name}.log"));
        let mut leashed = Command::new(std::env::current_exe().context("this program's own path")?);
        leashed.arg("leash").arg(cores.name()).arg(command.get_program()).args(command.get_args());
        leashed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        leashed.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        leashed.stderr(File::create(&log).context(log.display())?);
        let mut child = leashed.spawn().context(name)?;
        let stdin = child.stdin.take().context("standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("standard output")?);
        let (said, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Ok(Self { name: name.to_owned(), child, stdin, lines, log })
    }

    /// Waits for a line that starts with `begin`. Returns its rest.
    pub fn line(&self, begin: &str, patience: Duration) -> Result<String, Failure> {
        let until = Instant::now() + patience;
        loop {
            let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.with_context(|| format!("{} has not said `{begin}` ({})", self.name, self.last_words()))?;
            if let Some(rest) = line.strip_prefix(begin) {
                return Ok(rest.trim().to_owned());
            }
        }
    }

    /// The last line of the process's standard error.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("no words").to_owned()
    }

    /// Sends an empty line to the process's standard input.
    pub fn tell(&mut self) -> Result<(), Failure> {
        self.stdin.write_all(b"\n").context(&self.name)
    }

    pub fn usage(&self) -> Result<Usage, Failure> {
        let mut usage = Usage::default();
        for id in self.family() {
            usage.cpu += cpu_of(Path::new(&format!("/proc/{id}/stat")))?;
            usage.resident += kibibytes(id, "smaps_rollup", &["Pss_Anon:", "Pss_Shmem:"])?;
            usage.mapped += kibibytes(id, "smaps_rollup", &["Pss_File:"])?;
            usage.peak += kibibytes(id, "status", &["VmHWM:"])?;
        }
        Ok(usage)
    }

    /// How many files are open.
    pub fn files(&self) -> Result<usize, Failure> {
        self.count("fd")
    }

    pub fn threads(&self) -> Result<usize, Failure> {
        self.count("task")
    }

    fn count(&self, folder: &str) -> Result<usize, Failure> {
        let path = format!("/proc/{}/{folder}", self.child.id());
        Ok(fs::read_dir(&path).context(path)?.count())
    }

    /// The CPU time of the threads with this name, in µs.
    pub fn cpu_of_threads(&self, name: &str) -> Result<f64, Failure> {
        let folder = format!("/proc/{}/task", self.child.id());
        let mut cpu = 0.0;
        for thread in fs::read_dir(&folder).with_context(|| folder.clone())?.flatten() {
            let path = thread.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with(name)) {
                cpu += cpu_of(&path.join("stat"))?;
            }
        }
        Ok(cpu)
    }

    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process without id")?;
        kill_process(id, signal).context(&self.name)
    }

    /// The process and its children (nginx's workers).
    fn family(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|id| id.parse().ok());
        [id].into_iter().chain(children).collect()
    }
}

impl Drop for Process {
    /// Ends the process before its children: nginx would replace a child that ended.
    fn drop(&mut self) {
        for id in self.family() {
            if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                let _ = kill_process(id, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

impl Cores {
    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::First => "first",
            Self::Others => "others",
        }
    }

    /// Binds this process to these cores.
    fn keep_to(cores: &str) -> Result<(), Failure> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let mut set = CpuSet::new();
        match cores {
            "first" => set.set(0),
            "others" if count > 1 => (1..count).for_each(|core| set.set(core)),
            _ => return Ok(()),
        }
        sched_setaffinity(None, &set).context("sched_setaffinity")
    }
}

/// `bench leash CORES PROGRAM ARGUMENT…` becomes that program, which ends when the process that started it does.
/// However the benchmark ends, no server stays behind.
pub fn leash(mut arguments: Arguments) -> Result<(), Failure> {
    Cores::keep_to(&arguments.word::<String>("its cores")?)?;
    let program: String = arguments.word("a program")?;
    set_parent_process_death_signal(Some(Signal::TERM)).context("prctl")?;
    Err(Command::new(&program).args(arguments.rest()).exec()).context(program)
}

/// Raises the limit of open files: a server has one for each client.
pub fn allow_many_files() -> Result<(), Failure> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("the limit of open files")
}

/// The CPU time of a process or a thread, from its file `stat`.
fn cpu_of(path: &Path) -> Result<f64, Failure> {
    let stat = fs::read_to_string(path).with_context(|| path.display())?;
    // Fields are counted after the name, which may have spaces: proc_pid_stat(5), fields 14 and 15.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).with_context(|| path.display())?;
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64)
}

/// The sum of these lines of a process's file, in bytes.
fn kibibytes(id: u32, file: &str, names: &[&str]) -> Result<f64, Failure> {
    let path = format!("/proc/{id}/{file}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let value = |name| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    let mut kibibytes = 0.0;
    for name in names {
        kibibytes += value(name).with_context(|| path.clone())?.parse::<f64>().with_context(|| path.clone())?;
    }
    Ok(kibibytes * 1024.0)
}

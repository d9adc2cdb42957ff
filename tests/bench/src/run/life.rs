//! The life of a relay with tenants that are unused most of the time. It is started without compiled code and with it.
//! Each tenant is used once, left alone until it has no instance and no upstream, and used again.

use std::{fs, path::Path, thread, time::Duration};

use super::{
    host::{Folder, Host},
    languages::Components,
    partner::Partner,
    place::Place,
    process::Cores,
    visit::{Visit, visit},
};
use crate::failure::{Context, Failure};

/// How long unused instances and upstreams stay: the least that the configuration allows for upstreams.
const IDLE: Duration = Duration::from_secs(1);
/// Longer than both take to go, one after the other.
const GONE: Duration = Duration::from_secs(4);
/// Time from the start to the first look at what the relay holds.
const SETTLE: Duration = Duration::from_secs(2);

/// How many tenants, and what they have.
pub struct Tenants<'a> {
    pub count: usize,
    pub components: &'a Components,
    /// Whether each has code of its own: files with different content that do the same.
    pub apart: bool,
    /// How many of them are used again after they were idle.
    pub again: usize,
}

pub struct Life {
    /// Seconds to the line `listening`, with nothing compiled and with everything compiled.
    pub cold: f64,
    pub warm: f64,
    /// Bytes of compiled code on disk.
    pub compiled: u64,
    /// Before the first use.
    pub started: Level,
    /// When the first tenant has an instance of each role.
    pub in_use: Level,
    /// When all tenants were used and have no instance and no upstream any more.
    pub idle: Level,
    /// The first use of each tenant since the start.
    pub first: Vec<Visit>,
    /// The first use of some tenants since they were idle.
    pub again: Vec<Visit>,
}

/// What a relay holds at one moment.
#[derive(Clone, Copy)]
pub struct Level {
    pub resident: f64,
    /// Resident bytes of files, compiled code among them.
    pub mapped: f64,
    pub files: usize,
    pub threads: usize,
}

/// Runs on all cores, or on one.
pub fn live(tenants: &Tenants<'_>, cores: Cores, place: &Place) -> Result<Life, Failure> {
    let partner = Partner::new()?;
    let folder = Folder::new("life", place)?;
    let names: Vec<_> = (0..tenants.count).map(|nth| format!("t{nth:04}")).collect();
    for name in &names {
        tenants.write(name, &partner, &folder)?;
    }
    let cold = folder.serve(cores, place)?.took.as_secs_f64();
    let host = folder.serve(cores, place)?;
    thread::sleep(SETTLE);
    let started = Level::of(&host)?;
    let used = |name: &String| visit(name, &host, &partner);
    let (one, others) = names.split_first().context("no tenants")?;
    let mut first = vec![used(one)?];
    let in_use = Level::of(&host)?;
    for name in others {
        first.push(used(name)?);
    }
    thread::sleep(GONE);
    let idle = Level::of(&host)?;
    let again = names.iter().take(tenants.again).map(used).collect::<Result<_, _>>()?;
    thread::sleep(GONE);
    nothing_is_left(&host)?;
    Ok(Life { cold, warm: host.took.as_secs_f64(), compiled: folder.compiled(), started, in_use, idle, first, again })
}

impl Tenants<'_> {
    fn write(&self, name: &str, partner: &Partner, folder: &Folder) -> Result<(), Failure> {
        let mut files = Vec::new();
        let mut roles = String::new();
        for (role, path) in self.components {
            let file = path.file_name().and_then(|file| file.to_str()).context("a file's name")?;
            roles += &format!("{role} = \"{file}\"\n");
            if files.contains(&file) {
                continue;
            }
            files.push(file);
            match self.apart {
                true => folder.write(name, file, &marked(path, name)?)?,
                false => folder.link(name, file, path)?,
            }
        }
        let idle = IDLE.as_secs();
        let manifest = format!(
            "name = \"{name}\"\n[[upstream]]\nname = \"feed\"\nurl = \"ws://{}/\"\nconnect = \"on-demand\"\n\
             linger = \"{idle}s\"\n[components]\n{roles}[channels.\"prices\"]\n[limits]\ninstance-idle = \"{idle}s\"\n",
            partner.address
        );
        folder.manifest(name, &manifest)
    }
}

/// Adds a custom section to a component (WebAssembly core specification, section 5.5.3), which changes its content but
/// not what it does.
fn marked(path: &Path, mark: &str) -> Result<Vec<u8>, Failure> {
    let mut code = fs::read(path).context(path.display())?;
    let length = u8::try_from(mark.len()).context("a mark's length")?;
    code.extend([0, length + 1, length]);
    code.extend_from_slice(mark.as_bytes());
    Ok(code)
}

impl Level {
    fn of(host: &Host) -> Result<Self, Failure> {
        let usage = host.process.usage()?;
        let (files, threads) = (host.process.files()?, host.process.threads()?);
        Ok(Self { resident: usage.resident, mapped: usage.mapped, files, threads })
    }
}

/// Called after everything was measured, since the answer itself takes memory.
fn nothing_is_left(host: &Host) -> Result<(), Failure> {
    let live = host.metric_with("edge_relay_upstream_state", "state=\"live\"")?;
    let left = [host.metric("edge_relay_guest_instances")?, live];
    let [instances, upstreams] = left;
    let none = (left == [0.0, 0.0]).then_some(());
    none.with_context(|| format!("tenants that nobody uses have {instances} instances and {upstreams} upstreams"))
}

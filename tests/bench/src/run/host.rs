//! A relay that serves tenants with code, from a folder that a scenario fills.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    time::{Duration, Instant},
};

use super::{
    place::Place,
    process::{Cores, Process},
    sample::LONG,
};
use crate::failure::{Context, Failure};

const RELAY: &str = include_str!("../../relay/relay.toml");
/// Where compiled code is kept if relay.toml does not say so.
const CACHE: &str = "data/cache";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The folder that a relay serves.
pub struct Folder(PathBuf);

pub struct Host {
    pub process: Process,
    pub clients: SocketAddr,
    pub api: SocketAddr,
    admin: SocketAddr,
    /// From the program's start to its line `listening`.
    pub took: Duration,
}

impl Folder {
    /// Makes an empty folder, in the place of an older one.
    pub fn new(name: &str, place: &Place) -> Result<Self, Failure> {
        let _ = fs::remove_dir_all(place.scratch.join(name));
        let relay = place.write(&format!("{name}/relay.toml"), RELAY)?;
        let folder = relay.parent().context("a file without a folder")?.to_owned();
        let tenants = folder.join("tenants");
        fs::create_dir(&tenants).context(tenants.display())?;
        Ok(Self(folder))
    }

    /// Writes or replaces a tenant's manifest.
    pub fn manifest(&self, tenant: &str, text: &str) -> Result<(), Failure> {
        self.write(tenant, "tenant.toml", text.as_bytes())
    }

    pub fn write(&self, tenant: &str, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.0.join("tenants").join(tenant);
        fs::create_dir_all(&path).context(path.display())?;
        fs::write(path.join(name), bytes).context(path.display())
    }

    /// Gives a tenant a file that other tenants have too. It is on the disk once.
    pub fn link(&self, tenant: &str, name: &str, file: &Path) -> Result<(), Failure> {
        let path = self.0.join("tenants").join(tenant);
        fs::create_dir_all(&path).context(path.display())?;
        fs::hard_link(file, path.join(name)).context(file.display())
    }

    /// Bytes of compiled code on disk.
    pub fn compiled(&self) -> u64 {
        let entries = fs::read_dir(self.0.join(CACHE)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
    }

    pub fn serve(&self, cores: Cores, place: &Place) -> Result<Host, Failure> {
        let mut command = Command::new(&place.relay);
        command.arg("serve").arg("--config").arg(self.0.join("relay.toml"));
        let begin = Instant::now();
        let process = Process::start_on(cores, "relay", &command, &place.scratch)?;
        let listening = process.line("listening ", LONG)?;
        let took = begin.elapsed();
        Ok(Host {
            process,
            clients: field(&listening, "clients=")?,
            api: field(&listening, "api=")?,
            admin: field(&listening, "admin=")?,
            took,
        })
    }
}

impl Host {
    /// The sum of a metric's values over all labels.
    pub fn metric(&self, name: &str) -> Result<f64, Failure> {
        self.metric_with(name, "")
    }

    /// The sum of those of its series that have this label.
    pub fn metric_with(&self, name: &str, label: &str) -> Result<f64, Failure> {
        let text = get(self.admin, "/metrics")?;
        let lines = text.lines().filter(|line| line.contains(label)).filter_map(|line| line.strip_prefix(name));
        let values = lines.filter(|rest| rest.starts_with(['{', ' '])).filter_map(|rest| rest.rsplit(' ').next());
        Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum())
    }

    /// Waits until a metric is at least `value`.
    pub fn reaches(&self, name: &str, value: f64) -> Result<(), Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            let is = self.metric(name)?;
            if is >= value {
                return Ok(());
            }
            let waits = (Instant::now() < until).then_some(());
            waits.with_context(|| format!("{name} is {is}, not {value} ({})", self.process.last_words()))?;
        }
    }
}

/// The body of an answer, which must have the status 200. It has a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Result<String, Failure> {
    let mut socket = connect(address)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).context(path)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).context(path)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{path}: no answer"))?;
    let good = head.starts_with("HTTP/1.1 200 ").then_some(());
    good.with_context(|| format!("{path}: {} {body}", head.lines().next().unwrap_or_default()))?;
    Ok(body.to_owned())
}

/// A blocking socket with a time limit.
pub fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = TcpStream::connect(address).context(address)?;
    socket.set_read_timeout(Some(PATIENCE)).context("a socket")?;
    socket.set_nodelay(true).context("a socket")?;
    Ok(socket)
}

/// The value of a name in a line of `name=value`.
fn field(line: &str, name: &str) -> Result<SocketAddr, Failure> {
    let value = line.split_whitespace().find_map(|field| field.strip_prefix(name)).context(line)?;
    SocketAddr::from_str(value).context(value)
}

//! An HTTP proxy: tinyproxy, as Debian has it.

use std::{fs, net::Ipv4Addr, process::Command};

use tokio::net::TcpStream;

use super::{loopback, process::Process, skip::need, tenant::Folder, until};

/// A running proxy that lets everyone connect to everything.
pub struct Proxy {
    address: Ipv4Addr,
    folder: Folder,
    _process: Process,
}

/// It listens at an address of its own, so that any port is free.
const PORT: u16 = 8888;

impl Proxy {
    /// Starts one. `None`: there is none on this machine, and the test is skipped.
    pub async fn start(more: &str) -> Option<Self> {
        need("tinyproxy")?;
        let (address, folder) = (loopback(), Folder::empty());
        let log = folder.path("proxy.log");
        let settings = format!("Port {PORT}\nListen {address}\nTimeout 60\nMaxClients 100\nLogLevel Connect\n");
        folder.write("proxy.conf", format!("{settings}LogFile \"{}\"\n{more}\n", log.display()));
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(folder.path("proxy.conf"));
        let process = Process::spawn(command);
        until("the proxy's listener", async || match TcpStream::connect((address, PORT)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
        .await;
        Some(Self { address, folder, _process: process })
    }

    pub fn url(&self) -> String {
        format!("http://{}:{PORT}", self.address)
    }

    /// How often it was asked to connect there.
    pub fn asked(&self, to: &str) -> usize {
        let log = fs::read_to_string(self.folder.path("proxy.log")).unwrap_or_default();
        log.matches(&format!("CONNECT {to} ")).count()
    }
}

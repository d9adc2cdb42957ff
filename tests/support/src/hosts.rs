//! Names that lead where a test says: the relay runs with its own `/etc/hosts`.

use std::{net::IpAddr, process::Command, sync::LazyLock};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{process::wrapped, skip::skipped, tenant::Folder};

/// The file's name in the relay's folder.
const FILE: &str = "hosts";

/// Whether a program may have its own files here. The test is skipped if not.
pub fn can_be_set() -> Option<()> {
    static CAN: LazyLock<bool> = LazyLock::new(|| {
        let tried = Command::new("unshare").args(["-m", "true"]).output();
        tried.is_ok_and(|output| output.status.success())
    });
    if *CAN { Some(()) } else { skipped("the right to run `unshare -m`") }
}

/// Writes the file, while the relay runs, too.
pub fn set(folder: &Folder, names: &[(&str, IpAddr)]) {
    let lines: Vec<_> = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
    folder.write(FILE, format!("127.0.0.1 localhost\n{}", lines.concat()));
}

/// The same command, with the folder's file in the place of `/etc/hosts`.
pub fn with_hosts(command: &Command, folder: &Folder) -> Command {
    let mut unshare = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    unshare.args(["-m", "sh", "-c", script]).arg(folder.path(FILE));
    wrapped(unshare, command)
}

/// A listener whose queue is full, so that the system drops the SYNs of everyone else.
pub struct Deaf {
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Deaf {
    pub async fn at(address: IpAddr, port: u16) -> Self {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((address, port).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        let short = std::time::Duration::from_millis(200);
        while let Ok(Ok(stream)) = tokio::time::timeout(short, TcpStream::connect((address, port))).await {
            queued.push(stream);
        }
        Self { _listener: listener, _queued: queued }
    }
}

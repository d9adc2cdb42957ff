//! Where the relay listens: one address, several, IPv4 and IPv6.

use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

use rustix::io::Errno;
use support::{
    machine::{Refusal, can_refuse, refusing},
    partner::Partner,
    raw::Raw,
    relay::{Relay, http, status},
    skip::skipped,
    tenant::Folder,
    within,
};
use tokio::net::TcpStream;

/// Ports that are free on all addresses, below those that the system gives to clients (`ip_local_port_range`).
fn ports() -> Option<[u16; 3]> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return skipped("IPv6");
    }
    let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    let next = || first + NEXT.fetch_add(1, Ordering::Relaxed);
    let free = || std::iter::repeat_with(next).find(|port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).is_ok());
    Some([(); 3].map(|()| free().unwrap()))
}

/// A relay with these listeners. `{0}` to `{2}` are the ports.
async fn relay(ports: [u16; 3], listen: &str, partner: &Partner, more: &str) -> Relay {
    let folder = Folder::new("").tenant("t", &partner.url(), more);
    let mut listen = listen.to_owned();
    for (nth, port) in ports.iter().enumerate() {
        listen = listen.replace(&format!("{{{nth}}}"), &port.to_string());
    }
    let config = std::fs::read_to_string(folder.config()).unwrap();
    let (before, rest) = config.split_once("[listen]\n").unwrap();
    let (_, after) = rest.split_once("[limits]\n").unwrap();
    folder.write("relay.toml", format!("{before}[listen]\n{listen}\n[limits]\n{after}"));
    Relay::serve(folder).await
}

async fn healthy(address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    if TcpStream::connect(address).await.is_err() {
        return false;
    }
    let (head, _) = within("an answer", http(address, "GET /healthz HTTP/1.0\r\n\r\n")).await;
    status(&head) == 200
}

#[tokio::test]
async fn a_listener_has_one_address_or_several() {
    let Some(ports) = ports() else { return };
    let partner = Partner::start().await;
    let listen = "clients = [\"127.0.0.1:{0}\", \"[::1]:{0}\"]\napi = { address = [\"0.0.0.0:{1}\", \"[::]:{1}\"] }\n\
        admin = { address = \"[::]:{2}\" }";
    let relay = relay(ports, listen, &partner, "").await;
    assert_eq!(relay.clients.to_string(), format!("127.0.0.1:{}", ports[0]), "the first is shown");
    for port in ports {
        for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            assert!(healthy(&address).await, "{address}");
        }
    }
    let other = format!("127.0.0.2:{}", ports[0]);
    assert!(!healthy(&other).await);
}

/// A client that comes by IPv4 to a listener of both is the same one in limits.
#[tokio::test]
async fn an_address_is_the_same_by_both_families() {
    let Some(ports) = ports() else { return };
    let partner = Partner::start().await;
    let listen = "clients = \"[::]:{0}\"\napi = \"127.0.0.1:{1}\"\nadmin = \"127.0.0.1:{2}\"";
    let _relay = relay(ports, listen, &partner, "[limits]\nclients-per-address = 1").await;
    let port = ports[0];
    let connect = async |address: String| {
        let address: SocketAddr = address.parse().unwrap();
        Raw::try_upgrade(TcpStream::connect(address).await.unwrap(), address, "/t").await
    };
    let _four = connect(format!("127.0.0.1:{port}")).await.ok().unwrap();
    let _six = connect(format!("[::1]:{port}")).await.ok().unwrap();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let refused = connect(address).await.err().unwrap();
        assert_eq!(status(&refused), 429, "{refused}");
    }
}

#[tokio::test]
async fn without_options_that_a_socket_may_lack_clients_are_served() {
    let Some(()) = can_refuse() else { return };
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "");
    let refusals =
        [libc::TCP_NOTSENT_LOWAT, libc::TCP_NODELAY].map(|option| Refusal::tcp_option(option, Errno::NOPROTOOPT));
    let relay = Relay::serve_by(folder, |command| refusing(command, &refusals)).await;
    for option in ["TCP_NOTSENT_LOWAT", "TCP_NODELAY"] {
        relay.logged(&["WARN", option, "refuses a socket option"]).await;
    }
    let mut peer = partner.accept().await;
    let mut client = relay.client("/t").await;
    peer.text("served").await;
    assert_eq!(client.text().await, "served");
}

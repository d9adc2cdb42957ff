//! A running relay, seen as its operator sees it.

use std::{
    net::SocketAddr,
    ops::{Deref, DerefMut},
    process::Command,
};

use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    client::Client,
    hosts::with_hosts,
    http::Http,
    process::{Process, command, with_file_limit},
    tenant::Folder,
    until, within,
};

pub struct Relay {
    process: Process,
    pub clients: SocketAddr,
    api: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    /// The configuration, kept for as long as the relay may read it.
    folder: Option<Folder>,
}

impl Relay {
    /// Starts `edge-relay serve` with the folder's configuration.
    pub async fn serve(folder: Folder) -> Self {
        Self::serve_with(folder, &[]).await
    }

    /// Starts `edge-relay serve` with variables in its environment.
    pub async fn serve_with(folder: Folder, environment: &[(&str, &str)]) -> Self {
        let mut command = serve(&folder);
        command.envs(environment.iter().copied());
        Self::start(Process::spawn(command), Some(folder)).await
    }

    /// Starts `edge-relay serve` with the folder's own file of hosts.
    pub async fn serve_with_hosts(folder: Folder) -> Self {
        let command = with_hosts(&serve(&folder), &folder);
        Self::start(Process::spawn(command), Some(folder)).await
    }

    /// Starts `edge-relay serve` where the system allows it few open files.
    pub async fn serve_with_files(folder: Folder, files: u32) -> Self {
        let command = with_file_limit(&serve(&folder), files);
        Self::start(Process::spawn(command), Some(folder)).await
    }

    /// Starts `edge-relay serve` by a command that is made of the usual one.
    pub async fn serve_by(folder: Folder, made: impl FnOnce(Command) -> Command) -> Self {
        let command = made(serve(&folder));
        Self::start(Process::spawn(command), Some(folder)).await
    }

    /// Starts `edge-relay pass` to an upstream, with more arguments.
    pub async fn pass(upstream: &str, more: &[&str]) -> Self {
        let fixed = ["pass", "--upstream", upstream, "--listen", "127.0.0.1:0"];
        Self::start(Process::spawn(command(&[&fixed[..], more].concat())), None).await
    }

    async fn start(mut process: Process, folder: Option<Folder>) -> Self {
        let addresses = process.listening().await;
        let address = |wanted| addresses.iter().find(|(name, _)| name == wanted).map(|(_, address)| *address);
        let (clients, api, admin) = (address("clients").unwrap(), address("api"), address("admin"));
        let names: Vec<_> = addresses.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names == ["clients"] || names == ["clients", "api", "admin"], "{addresses:?}");
        Self { process, clients, api, admin, folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.clients)
    }

    /// Connects a client, and waits until it has its place in the channels' logs. It gets all that is published from
    /// now on.
    pub async fn client(&self, path: &str) -> Client {
        let mut client = Client::connect(&self.url(path)).await;
        client.settle().await;
        client
    }

    /// Ends the relay with this signal, and returns its folder.
    pub async fn end_with(mut self, signal: Signal) -> Folder {
        self.process.signal(signal);
        self.process.end().await;
        self.folder.unwrap()
    }

    /// The folder with its configuration.
    pub fn folder(&self) -> &Folder {
        self.folder.as_ref().expect("the relay has a configuration")
    }

    /// The address where the API listens.
    pub fn api(&self) -> SocketAddr {
        self.api.expect("the relay has an API listener")
    }

    /// Opens a connection to the API.
    pub async fn http(&self) -> Http {
        Http::connect(self.api()).await
    }

    /// Sends a GET to the API listener. Returns status and body.
    pub async fn api_get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let (head, body) = within(path, http(self.api(), &request)).await;
        (status(&head), body)
    }

    /// The address where admin listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("the relay has an admin listener")
    }

    /// Sends a GET to the admin listener. Returns status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let (head, body) = within(path, http(self.admin(), &request)).await;
        (status(&head), body)
    }

    pub async fn ready(&self) -> Value {
        let (status, body) = self.get("/readyz").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// What `/readyz` says of each tenant, with the word for each upstream's state alone.
    pub async fn states(&self) -> Value {
        let mut tenants = self.ready().await["tenants"].take();
        for tenant in tenants.as_object_mut().unwrap().values_mut() {
            for upstream in tenant["upstreams"].as_object_mut().unwrap().values_mut() {
                *upstream = upstream["state"].take();
            }
        }
        tenants
    }

    /// Returns the sum of a metric's series that have all these labels, or 0 if there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (status, body) = self.get("/metrics").await;
        assert_eq!(status, 200, "{body}");
        let wanted: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let value = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (own, labels) = series.split_once('{').unwrap_or((series, ""));
            let fits = own == name && wanted.iter().all(|wanted| labels.contains(wanted.as_str()));
            fits.then(|| value.parse::<f64>().unwrap())
        };
        body.lines().filter_map(value).sum()
    }

    /// Waits until a metric has at least this value.
    pub async fn metric_reaches(&self, name: &str, labels: &[(&str, &str)], least: f64) -> f64 {
        until(format!("{name}{labels:?} of {least}"), async || {
            let value = self.metric(name, labels).await;
            if value >= least { Ok(value) } else { Err(value.to_string()) }
        })
        .await
    }

    /// Waits until a metric has this value.
    pub async fn metric_is(&self, name: &str, labels: &[(&str, &str)], wanted: f64) {
        until(format!("{name}{labels:?} of {wanted}"), async || {
            let value = self.metric(name, labels).await;
            if value == wanted { Ok(()) } else { Err(value.to_string()) }
        })
        .await;
    }

    /// Waits until an upstream was lost, or could not be reached, this many times for this reason.
    pub async fn upstream_failed(&self, reason: &str, times: f64) {
        self.metric_reaches("edge_relay_upstream_failures_total", &[("reason", reason)], times).await;
    }

    /// Waits until this many clients were closed for this reason.
    pub async fn clients_closed(&self, reason: &str, times: f64) {
        self.metric_reaches("edge_relay_clients_closed_total", &[("reason", reason)], times).await;
    }
}

impl Deref for Relay {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Relay {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn serve(folder: &Folder) -> Command {
    command(&["serve".as_ref(), "--config".as_ref(), folder.config().as_os_str()])
}

/// Sends a request unchanged, and reads until the connection ends. Returns the answer's head and body.
pub async fn http(address: SocketAddr, request: impl AsRef<str>) -> (String, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_ref().as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not an HTTP answer: {answer:?}"));
    (head.to_owned(), body.to_owned())
}

pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

//! The demonstration's page in a real browser, and what its listener answers.

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::Value;
use support::{
    browser::{Browser, Seen},
    chaos::Chaos,
    process::{Process, command, run, shown},
    relay::{http, status},
    tenant::Folder,
    within,
};
use tokio::net::TcpListener;

/// An address that other programs on this machine are unlikely to use, so that the port is still free after an outage.
const OWN_ADDRESS: &str = "127.94.3.1:0";

/// A running `edge-relay demo`.
struct Demo {
    process: Process,
    page: SocketAddr,
    /// The folder for its files, which stay behind if it is killed.
    _files: Folder,
}

impl Demo {
    async fn start(arguments: &[&str]) -> Self {
        let files = Folder::empty();
        let mut command = command(&[&["demo"], arguments].concat());
        command.env("TMPDIR", files.path(""));
        let mut process = Process::spawn(command);
        let line = process.line().await.unwrap_or_else(|| panic!("it has ended: {}", process.log()));
        let url = line.strip_prefix("page").unwrap_or_else(|| panic!("first line on stdout: {line}")).trim_start();
        let page = url.strip_prefix("http://").and_then(|rest| rest.strip_suffix('/')).unwrap().parse().unwrap();
        Self { process, page, _files: files }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.page)
    }

    /// Sends a request. Returns the answer's status, its head in lower case, and its body.
    async fn ask(&self, request: &str) -> (u16, String, String) {
        let request = format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let (head, body) = within(&request, http(self.page, &request)).await;
        (status(&head), head.to_lowercase(), body)
    }

    async fn addresses(&self) -> Value {
        let (status, _, body) = self.ask("GET /addresses").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// Waits until the prices and their charts move.
async fn prices_move(browser: &mut Browser) {
    browser.sees("document.body.dataset.state === 'live'").await;
    browser.sees("document.querySelectorAll('[data-product]').length === 8").await;
    browser.value(&format!("globalThis.before = {PRICES}, globalThis.lines = {LINES}, null")).await;
    browser.sees(&format!("{PRICES}.every((price, nth) => price !== before[nth])")).await;
    browser.sees(&format!("{LINES}.every((line, nth) => line !== lines[nth] && line.split('L').length > 3)")).await;
}

const PRICES: &str = "[...document.querySelectorAll('[data-product] .price')].map((price) => price.textContent)";
const LINES: &str = "[...document.querySelectorAll('[data-product] .line')].map((line) => line.getAttribute('d'))";

/// Checks that the page requested nothing from other machines, and that nothing is wrong with it.
fn assert_clean(seen: &Seen) {
    assert!(seen.urls.iter().any(|url| url.starts_with("ws://")), "{:#?}", seen.urls);
    for url in &seen.urls {
        assert!(["http://127.", "ws://127.", "data:"].iter().any(|start| url.starts_with(start)), "{url}");
    }
    assert!(seen.faults.is_empty(), "{:#?}", seen.faults);
}

#[tokio::test]
async fn prices_move_and_nothing_comes_from_elsewhere() {
    let Some(mut browser) = Browser::start().await else { return };
    let demo = Demo::start(&[]).await;
    browser.open(&demo.url()).await;
    prices_move(&mut browser).await;
    browser.picture("desktop-live").await;
    let seen = browser.seen().await;
    assert_clean(&seen);
    assert!(seen.failed.is_empty(), "{:#?}", seen.failed);
    // The page's policy would not allow such a request either.
    let refused = "new Promise((done) => {
        addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
        fetch('http://localhost:9/').catch(() => {});
    })";
    assert_eq!(browser.value(refused).await, "connect-src");
}

#[tokio::test]
async fn it_shows_what_the_api_answers() {
    let Some(mut browser) = Browser::start().await else { return };
    let demo = Demo::start(&[]).await;
    browser.open(&demo.url()).await;
    browser.sees("document.body.dataset.api === 'answering'").await;
    browser.sees("JSON.parse(document.getElementById('answer').textContent)['BTC-USD'] > 0").await;
    browser.sees("document.getElementById('api-status').textContent.startsWith('200 OK in ')").await;
}

#[tokio::test]
async fn an_open_page_comes_back_with_the_relay() {
    let Some(mut browser) = Browser::start().await else { return };
    let demo = Demo::start(&["--listen", OWN_ADDRESS]).await;
    browser.open(&demo.url()).await;
    prices_move(&mut browser).await;
    browser.value("globalThis.notReloaded = true").await;

    let page = demo.page.to_string();
    demo.process.signal(Signal::KILL);
    drop(demo);
    browser.sees("document.body.dataset.state === 'offline'").await;
    browser.sees("document.getElementById('state').textContent === 'Offline'").await;
    browser.picture("desktop-offline").await;

    let demo = Demo::start(&["--listen", &page]).await;
    assert_eq!(demo.page.to_string(), page);
    prices_move(&mut browser).await;
    browser.picture("desktop-again").await;
    assert_eq!(browser.value("notReloaded").await, true);
    // The outage is not counted as a fault of the page.
    assert_clean(&browser.seen().await);
}

#[tokio::test]
async fn a_page_whose_network_was_cut_gets_all_that_it_missed() {
    let Some(mut browser) = Browser::start().await else { return };
    let demo = Demo::start(&[]).await;
    let clients = demo.addresses().await["clients"].as_str().unwrap().to_owned();
    let relay = clients.strip_prefix("ws://").unwrap().split('/').next().unwrap().to_owned();
    // An address that the page may connect to.
    let mut chaos = Chaos::start_at("127.0.0.1:0".parse().unwrap(), relay.parse().unwrap()).await;
    // Leads the page's WebSockets through the proxy, and keeps what they bring.
    let script = "globalThis.got = [];
        globalThis.WebSocket = class extends WebSocket {
            constructor(url) {
                super(url.replace('RELAY', 'PROXY'));
                this.addEventListener('message', (message) => got.push(message.data));
            }
        };";
    browser.before_pages(&script.replace("RELAY", &relay).replace("PROXY", &chaos.address.to_string())).await;
    browser.open(&demo.url()).await;
    prices_move(&mut browser).await;
    for round in 1..=3 {
        chaos.refuse().await;
        chaos.cut();
        browser.sees("document.body.dataset.state === 'offline'").await;
        let got = browser.value("got.length").await.as_u64().unwrap();
        chaos.accept().await;
        browser.sees("document.body.dataset.state === 'live'").await;
        let recovered = browser.value("document.body.dataset.recovered").await;
        assert_ne!(recovered, "", "round {round}: publications are lost");
        browser.sees(&format!("got.length > {got} + {}", recovered.as_str().unwrap())).await;
    }
    browser.sees("document.getElementById('detail').textContent.includes('reconnected 3 times, nothing lost')").await;
    let got = browser.value("got").await;
    let got: Vec<&str> = got.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let (_, page) =
        http(relay.parse().unwrap(), "GET /market/channels/prices?limit=1000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    let published: Vec<&str> = page["publications"]
        .as_array()
        .unwrap()
        .iter()
        .map(|publication| publication["data"].as_str().unwrap())
        .collect();
    // All that was published between the first and the last arrived once and in order. A price may come back, so the
    // first one's text alone does not say where that is.
    let is_part = published.windows(got.len()).any(|part| part == got);
    assert!(is_part, "{got:?} is no part of {published:?}");
}

#[tokio::test]
async fn it_fits_a_telephone() {
    let Some(mut browser) = Browser::start().await else { return };
    let demo = Demo::start(&[]).await;
    browser.screen(360, 740, true).await;
    browser.open(&demo.url()).await;
    prices_move(&mut browser).await;
    browser.picture("phone-live").await;
    assert_eq!(browser.value("innerWidth").await, 360);
    let widest = "Math.max(document.documentElement.scrollWidth, \
        ...[...document.body.querySelectorAll('*')].map((element) => element.getBoundingClientRect().right))";
    assert!(browser.value(widest).await.as_f64().unwrap() <= 360.0);
    // The cards stand one below the other, each wide enough to read.
    let cards = "[...document.querySelectorAll('[data-product]')].map((card) => card.getBoundingClientRect())";
    let stacked = format!(
        "{cards}.every((card, nth, all) => card.width > 300 && card.height > 80 && \
            (nth === 0 || card.top >= all[nth - 1].bottom))"
    );
    assert_eq!(browser.value(&stacked).await, true);
    let shown = "[...document.querySelectorAll('[data-product]')].every((card) => card.checkVisibility())";
    assert_eq!(browser.value(shown).await, true);
}

#[tokio::test]
async fn its_listener_answers_with_the_page_and_the_relays_addresses() {
    let demo = Demo::start(&[]).await;
    let (status, head, body) = demo.ask("GET /").await;
    assert_eq!(status, 200);
    assert!(body.starts_with("<!DOCTYPE html>"), "{body:.100}");
    let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    for header in
        ["content-type: text/html; charset=utf-8", "cache-control: no-store", "x-content-type-options: nosniff"]
    {
        assert!(head.lines().any(|line| line == header), "no {header}: {head}");
    }

    let addresses = demo.addresses().await;
    let clients = addresses["clients"].as_str().unwrap();
    assert!(clients.starts_with("ws://127.0.0.1:") && clients.ends_with("/market"), "{clients}");

    let (status, head, body) = demo.ask("HEAD /").await;
    assert_eq!((status, body.as_str()), (200, ""), "{head}");
    let (status, _, body) = demo.ask("GET /page.html").await;
    assert_eq!(status, 404);
    assert!(body.contains(r#""code":"not_found""#), "{body}");
    let (status, head, body) = demo.ask("POST /addresses").await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: get, head") && body.contains(r#""code":"method""#), "{head}\n{body}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = listener.local_addr().unwrap();
    let output = run(&["demo", "--listen", &taken.to_string()]).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(output.stdout.is_empty() && shown.contains(&format!("cannot listen on {taken}: ")), "{shown}");
}

//! Fifty swaps in a row under load: a thousand clients, and two thousand messages a second.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::process::Signal;
use support::{crowd::Crowd, guests, partner::Partner, relay::Relay, tenant::Folder, until};
use tokio::time::{MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite::Message;

use super::{manifest, swapped};

const CLIENTS: usize = 1000;
const SWAPS: u16 = 50;
/// Messages in a burst, which makes two thousand a second.
const AT_A_TIME: usize = 20;
const EVERY: Duration = Duration::from_millis(10);
/// The size of a payload such as `00000000 code-0000 0000 0000`.
const PAYLOAD: usize = 28;

#[tokio::test]
async fn fifty_swaps_in_a_row_cost_nobody_a_message() {
    let mut partner = Partner::start().await;
    // Pings would come between the messages that clients compare.
    let folder = Folder::new("ping-interval = \"1h\"");
    let tenant =
        |version: u16| manifest(&partner, &format!("{version:04}"), "client = \"client.wasm\"\napi = \"api.wasm\"");
    folder.write("tenants/t/tenant.toml", tenant(0));
    folder.write("tenants/t/filter.wasm", guests::versioned(0));
    folder.copy(guests::handler(), "tenants/t/client.wasm");
    folder.copy(guests::api(), "tenants/t/api.wasm");
    let relay = Relay::serve(folder).await;
    let manifests: Vec<_> = (0..=SWAPS).map(tenant).collect();
    let mut peer = partner.accept().await;
    let crowd = Crowd::connect(relay.clients, "/t?channel=out", CLIENTS, PAYLOAD);
    let mut asking = relay.client("/t?channels=").await;
    let mut http = relay.http().await;

    let over = AtomicBool::new(false);
    let send = async {
        let mut pace = interval(EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            let burst: Vec<_> = (0..AT_A_TIME).map(|_| Message::text(format!("{:08}", crowd.number()))).collect();
            sent += burst.len();
            peer.burst(burst).await;
        }
        sent
    };
    let swap = async {
        for version in 1..=SWAPS {
            relay.folder().write("tenants/t/filter.wasm", guests::versioned(version));
            relay.folder().write("tenants/t/tenant.toml", &manifests[usize::from(version)]);
            relay.signal(Signal::HUP);
            swapped(&relay, "t", "applied", version.into()).await;
            // On a busy machine the next version may come before this one had a message.
            let before = crowd.everybody_has().unwrap();
            until("messages of this version", async || match crowd.everybody_has() {
                Ok(has) if has >= before + 2 * AT_A_TIME => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
        over.store(true, Ordering::Relaxed);
    };
    // The other roles are swapped too. Questions to them are answered, in order.
    let ask = async {
        let mut asked = 0;
        while !over.load(Ordering::Relaxed) {
            asking.send(Message::text(format!("reply {asked}"))).await;
            assert_eq!(asking.text().await, asked.to_string());
            assert_eq!(http.get("/t/status?is=200").await.status(), 200);
            asked += 1;
        }
        asked
    };
    let (sent, (), asked) = tokio::join!(send, swap, ask);

    until(format!("{sent} messages at every client"), async || match crowd.everybody_has() {
        Ok(has) if has == sent => Ok(()),
        Ok(has) => Err(format!("{has} messages")),
        Err(wrong) => panic!("{wrong}"),
    })
    .await;
    // A payload names the version of the code, of its start and of its settings. The three are always the same, and
    // never older than before.
    let mut versions: Vec<_> = crowd.payloads(0).iter().map(|payload| payload[9..].to_owned()).collect();
    assert!(versions.is_sorted(), "an older version has filtered after a newer one");
    versions.dedup();
    for version in &versions {
        let digits = &version[5..9];
        assert_eq!(version, &format!("code-{digits} {digits} {digits}"), "a mix of versions");
    }
    assert!(versions.len() >= usize::from(SWAPS), "{SWAPS} swaps, and clients saw {} versions", versions.len());
    eprintln!("{sent} messages to {CLIENTS} clients, {} versions, {asked} questions", versions.len());
    for nothing in
        ["clients_closed_total", "guest_lost_total", "guest_failures_total", "epochs_total", "clients_lagged_total"]
    {
        assert_eq!(relay.metric(&format!("edge_relay_{nothing}"), &[]).await, 0.0, "{nothing}");
    }
    assert_eq!(partner.connections(), 1);
}

//! Order: among one client's messages, and among the actions after one message.

use futures_util::future::join_all;
use support::client::Client;
use tokio_tungstenite::tungstenite::Message;

use super::{HOLD, RELEASE, ask, failures, keep_busy, relay};

#[tokio::test]
async fn each_client_gets_its_replies_in_order_while_another_is_served_slowly() {
    const CLIENTS: usize = 6;
    const MESSAGES: usize = 400;
    let relay = relay("client-call = \"60s\"\nclient-queue = 1000").await;
    let mut slow = relay.client("/t").await;
    keep_busy(&relay, &mut slow, HOLD).await;
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(relay.client("/t").await);
    }
    join_all(clients.iter_mut().enumerate().map(async |(who, client)| {
        for nth in 0..MESSAGES {
            client.send(Message::text(format!("reply {who}:{nth}"))).await;
        }
        for nth in 0..MESSAGES {
            assert_eq!(client.text().await, format!("{who}:{nth}"));
        }
    }))
    .await;
    for client in &mut clients {
        client.has_no_more().await;
    }
    slow.has_no_more().await;
    slow.send(Message::text("reply at last")).await;
    assert_eq!(ask(&mut clients[0], RELEASE).await, "released");
    assert_eq!(slow.text().await, "at");
    assert_eq!(slow.text().await, "last");
    assert_eq!(failures(&relay, "guest_broke", "deadline").await, 0.0);
}

#[tokio::test]
async fn a_message_waits_for_the_one_before_it_though_instances_are_free() {
    let relay = relay("client-call = \"10s\"").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    client.send(Message::text("hold key\nset order first")).await;
    client.send(Message::text("get order")).await;
    client.has_no_more().await;
    assert_eq!(ask(&mut other, RELEASE).await, "released");
    assert_eq!(client.text().await, "first");
}

#[tokio::test]
async fn what_a_handler_does_comes_in_its_order() {
    let relay = relay("").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t?channels=busy").await;
    for round in 0..100 {
        // The actions use a channel without subscribers, one that another client follows, and the client's own.
        let fresh = format!("fresh-{round}");
        let said = format!(
            "publish {fresh} 0\nsubscribe {fresh}\npublish {fresh} 1\nreply 2\npublish main 3\npublish {fresh} 4\n\
             reply 5\nsubscribe busy\npublish busy 6\nreply 7\nunsubscribe busy\npublish busy never\nreply 8\n\
             unsubscribe {fresh}\npublish {fresh} never\npublish main 9"
        );
        client.send(Message::text(said)).await;
        let mut came = Vec::new();
        for _ in 0..9 {
            came.push(client.text().await);
        }
        // Order holds within a channel. These two publications belong to two channels, and went out together.
        came[2..4].sort();
        assert_eq!(came, ["1", "2", "3", "4", "5", "6", "7", "8", "9"], "round {round}");
        assert_eq!(other.text().await, "6");
        assert_eq!(other.text().await, "never");
    }
    client.has_no_more().await;
}

#[tokio::test]
async fn a_publication_behind_a_subscription_arrives_however_busy_the_channel_is() {
    const ROUNDS: usize = 200;
    let relay = relay("").await;
    let mut others = [relay.client("/t").await, relay.client("/t").await];
    let mut client = relay.client("/t?channels=").await;
    let mut busy = relay.client("/t?channels=").await;
    for round in 0..ROUNDS {
        busy.send(Message::text("publish-many main 50")).await;
        client.send(Message::text(format!("subscribe main\npublish main {round}\nunsubscribe main\nreply over"))).await;
        let mut own = 0;
        loop {
            match client.text().await {
                text if text == "over" => break,
                text if text == round.to_string() => own += 1,
                // A publication of the busy client.
                text => assert_eq!(text, ""),
            }
        }
        assert_eq!(own, 1, "round {round}");
        for other in &mut others {
            while other.text().await != round.to_string() {}
        }
    }
}

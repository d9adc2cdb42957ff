//! The actions that a handler may return after a message.

use support::{
    guests,
    partner::Partner,
    raw::{CLOSE, FIN, Raw, TEXT, frame},
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{CLIENT, ask, failures, relay, texts};

/// Sends commands on a new connection. Returns the code and the reason of the close frame.
async fn told(relay: &Relay, command: &str) -> (u16, String) {
    let mut raw = Raw::connect(relay.clients, "/t").await;
    raw.send(&frame(FIN | TEXT, command.as_bytes())).await;
    let close = raw.frame_but_pings().await.expect("a close frame");
    raw.try_send(&frame(FIN | CLOSE, &close.payload)).await;
    raw.ended().await;
    (close.close_code(), String::from_utf8(close.payload[2..].to_vec()).unwrap())
}

#[tokio::test]
async fn replies_go_unchanged_to_the_client_that_asked() {
    let relay = relay("").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    assert_eq!(ask(&mut client, "reply one two three").await, "one");
    assert_eq!(client.text().await, "two");
    assert_eq!(client.text().await, "three");
    // A plain WebSocket has no calls, so their results come as replies.
    assert_eq!(ask(&mut client, "result of nothing").await, "of nothing");
    for binary in [vec![], vec![0xFF, 0, 0x80], vec![1; 60_000]] {
        client.send(Message::binary(binary.clone())).await;
        assert!(client.message().await == Message::binary(binary));
    }
    assert_eq!(ask(&mut client, "reply \u{1F980}").await, "\u{1F980}");
    other.has_no_more().await;
    client.has_no_more().await;
    relay.metric_reaches("edge_relay_client_replies_total", &[("tenant", "t")], 6.0).await;
}

#[tokio::test]
async fn an_error_is_a_text_with_code_and_message() {
    let relay = relay("").await;
    let mut client = relay.client("/t").await;
    assert_eq!(
        ask(&mut client, "error 4001 say \"please\"\treply fine").await,
        r#"{"error":{"code":4001,"message":"say \"please\"\treply fine"}}"#
    );
    assert_eq!(ask(&mut client, "error 0 ").await, r#"{"error":{"code":0,"message":""}}"#);
    assert_eq!(ask(&mut client, "error 4294967295 x").await, r#"{"error":{"code":4294967295,"message":"x"}}"#);
    assert_eq!(failures(&relay, "guest_said_no", "error").await, 3.0);
}

#[tokio::test]
async fn publications_reach_all_followers_and_a_wrong_channel_is_counted() {
    let relay = relay("").await;
    let mut client = relay.client("/t?channel=a").await;
    let mut follows = relay.client("/t?channel=a&channel=b").await;
    assert_eq!(ask(&mut client, "publish b 1\npublish  nowhere\npublish a 2").await, "2");
    assert_eq!(texts(&mut follows).await, ["1", "2"]);
    let refused = [("tenant", "t"), ("reason", "channel_name")];
    // Publications are counted after clients have got them.
    relay.metric_is("edge_relay_publications_refused_total", &refused, 1.0).await;
    assert_eq!(ask(&mut client, "reply fine").await, "fine");
}

#[tokio::test]
async fn subscriptions_begin_and_end_where_the_handler_says() {
    let relay = relay("").await;
    let mut client = relay.client("/t?channels=").await;
    let mut publisher = relay.client("/t?channels=").await;
    let said = "publish news 1\nreply done";
    assert_eq!(ask(&mut publisher, said).await, "done");
    // Subscribing twice is subscribing once.
    assert_eq!(ask(&mut client, "subscribe news\nsubscribe news\nsubscribe more\nreply in").await, "in");
    assert_eq!(ask(&mut publisher, "publish news 2\nreply done").await, "done");
    assert_eq!(client.text().await, "2");
    // `on-subscribe` denies `private…`. It is not asked about a subscription that the handler itself makes.
    assert_eq!(ask(&mut client, "subscribe private-1\nasked").await, "");
    assert_eq!(ask(&mut publisher, "publish private-1 3\nreply done").await, "done");
    assert_eq!(client.text().await, "3");
    assert_eq!(ask(&mut client, "unsubscribe news\nunsubscribe never\nsubscribers news").await, "1");
    assert_eq!(ask(&mut client, "subscribers news").await, "0");
    assert_eq!(ask(&mut publisher, "publish news 4\npublish more 5\nreply done").await, "done");
    assert_eq!(client.text().await, "5");
    client.has_no_more().await;
}

#[tokio::test]
async fn the_channels_a_client_keeps_go_on_when_it_leaves_one() {
    let relay = relay("").await;
    for left in 0..4 {
        let mut client = relay.client("/t?channels=c0,c1,c2,c3").await;
        let mut other = relay.client("/t?channels=c0,c1,c2,c3").await;
        assert_eq!(ask(&mut client, &format!("unsubscribe c{left}\nreply left")).await, "left");
        for nth in 0..4 {
            assert_eq!(ask(&mut other, &format!("publish c{nth} {nth}")).await, nth.to_string());
            if nth != left {
                assert_eq!(client.text().await, nth.to_string());
            }
        }
        // A second channel is left, wherever its cursor stands by now.
        let next = (left + 1) % 4;
        assert_eq!(ask(&mut client, &format!("unsubscribe c{next}\nreply left")).await, "left");
        for nth in 0..4 {
            assert_eq!(ask(&mut other, &format!("publish c{nth} {nth}")).await, nth.to_string());
            if nth != left && nth != next {
                assert_eq!(client.text().await, nth.to_string());
            }
        }
        client.has_no_more().await;
    }
}

#[tokio::test]
async fn a_channel_that_may_not_be_followed_is_counted_and_nothing_else_happens() {
    let folder = Folder::new("").handled("t", guests::handler(), "[channels.\"news\"]");
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t?channels=").await;
    let long = "x".repeat(256);
    let said = format!("subscribe other\nsubscribe \nsubscribe {long}\nsubscribe news\npublish news 1\nreply fine");
    assert_eq!(ask(&mut client, &said).await, "1");
    assert_eq!(client.text().await, "fine");
    assert_eq!(failures(&relay, "host_failed", "channel").await, 3.0);
}

#[tokio::test]
async fn a_client_follows_64_channels_and_not_one_more() {
    let relay = relay("").await;
    let mut client = relay.client("/t?many=63").await;
    assert_eq!(ask(&mut client, "subscribe news\nreply in").await, "in");
    // Channels that the client already has do not count again.
    client.send(Message::text("subscribe news\nsubscribe many-0\npublish news 1\npublish many-62 2")).await;
    assert_eq!(texts(&mut client).await, ["1", "2"]);
    // One channel is left, and another followed.
    assert_eq!(ask(&mut client, "unsubscribe many-7\nsubscribe other\npublish other 3").await, "3");
    client.send(Message::text("subscribe one-too-many")).await;
    assert_eq!(client.rest().await, (vec![], Some(CloseCode::Policy)));
    relay.clients_closed("channels", 1.0).await;
}

#[tokio::test]
async fn a_disconnect_comes_behind_the_replies_before_it() {
    let relay = relay("").await;
    let mut client = relay.client("/t").await;
    client.send(Message::text("reply one two\npublish main three\ndisconnect 4000 enough\nreply never")).await;
    let expected = ["one", "two", "three"].map(Message::text).to_vec();
    assert_eq!(client.rest().await, (expected, Some(CloseCode::Library(4000))));
    relay.clients_closed("handler", 1.0).await;
    assert_eq!(told(&relay, "disconnect 4000 enough").await, (4000, "enough".to_owned()));
}

#[tokio::test]
async fn close_codes_are_those_that_may_be_sent() {
    let relay = relay("").await;
    for code in [1000, 1001, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4999] {
        assert_eq!(told(&relay, &format!("disconnect {code} x")).await.0, code);
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        assert_eq!(told(&relay, &format!("disconnect {code} x")).await.0, 1008, "{code}");
    }
    relay.logged(&["WARN", "guest.role=client", "field=close.code code=65535"]).await;
    assert_eq!(relay.log().lines().filter(|line| line.contains("field=close.code")).count(), 11);
    // A control frame has no more room. The reason is cut between two characters.
    let (code, reason) = told(&relay, &format!("disconnect 4000 {}", "\u{e9}".repeat(100))).await;
    assert_eq!((code, reason), (4000, "\u{e9}".repeat(61)));
    assert_eq!(told(&relay, "disconnect 4000 ").await, (4000, String::new()));
}

#[tokio::test]
async fn a_client_is_disconnected_by_its_id_from_anywhere_in_its_tenant() {
    let folder = Folder::new("").handled("t", guests::handler(), "").handled("u", guests::handler(), "");
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    let mut victim = relay.client("/t").await;
    let mut stranger = relay.client("/u").await;
    let (own, others) = (ask(&mut victim, "id").await, ask(&mut stranger, "id").await);
    for wrong in ["", "1", "g0000000000000000000000000000000", "000000000000000000000000000000000"] {
        let answer = ask(&mut client, &format!("kick {wrong} 4000 x")).await;
        assert!(answer.starts_with("Err(") && answer.contains("32 hexadecimal digits"), "{wrong}: {answer}");
    }
    // The ids of another tenant's client, of no client, and of no client on a shard that does not exist.
    for id in [&others, "00000000000000000000000000000000", "ffffffffffffffffffffffffffffffff"] {
        assert_eq!(ask(&mut client, &format!("kick {id} 4000 x")).await, "Ok(())", "{id}");
    }
    assert_eq!(ask(&mut stranger, "reply undisturbed").await, "undisturbed");
    assert_eq!(ask(&mut victim, "reply undisturbed").await, "undisturbed");
    assert_eq!(ask(&mut client, &format!("kick {own} 4001 out")).await, "Ok(())");
    assert_eq!(victim.rest().await, (vec![], Some(CloseCode::Library(4001))));
    relay.clients_closed("handler", 1.0).await;
    // The client has already left.
    assert_eq!(ask(&mut client, &format!("kick {own} 4001 out")).await, "Ok(())");
    // A client may also end itself.
    let itself = ask(&mut client, "id").await;
    client.send(Message::text(format!("kick {itself} 70 out"))).await;
    assert_eq!(client.rest().await.1, Some(CloseCode::Policy));
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 2.0);
}

#[tokio::test]
async fn frames_go_to_the_upstream_of_that_name() {
    let mut partner = Partner::start().await;
    let down = "[[upstream]]\nname = \"down\"\nurl = \"ws://127.0.0.1:9/\"";
    let more = format!("[[upstream]]\nname = \"feed\"\nurl = \"{}\"\n{down}", partner.url());
    let relay = Relay::serve(Folder::new("").handled("t", guests::handler(), &more)).await;
    let mut peer = partner.accept().await;
    let mut client = relay.client("/t").await;
    relay.metric_reaches("edge_relay_upstream_state", &[("upstream", "feed"), ("state", "live")], 1.0).await;
    assert_eq!(ask(&mut client, "upstream feed one\nupstream feed two\nreply sent").await, "sent");
    assert_eq!(peer.next_text().await, "one");
    assert_eq!(peer.next_text().await, "two");
    assert_eq!(ask(&mut client, "upstream other x\nupstream down x\nreply fine").await, "fine");
    assert_eq!(failures(&relay, "host_failed", "upstream").await, 2.0);
    // What the partner sends goes to the channels, as without a handler.
    peer.text("hello").await;
    assert_eq!(client.text().await, "hello");
    peer.was_sent_nothing().await;
}

#[tokio::test]
async fn what_one_call_knows_is_in_the_state_for_the_next() {
    let relay = relay("").await;
    let mut writes = relay.client("/t").await;
    let mut reads = relay.client("/t").await;
    for nth in 0..50 {
        assert_eq!(ask(&mut writes, &format!("set key {nth}\nreply set")).await, "set");
        assert_eq!(ask(&mut reads, "get key").await, nth.to_string());
    }
}

#[tokio::test]
async fn actions_over_the_limit_are_cut_off() {
    const MOST: usize = 10_000;
    let relay = relay("").await;
    let mut client = relay.client("/t").await;
    client.send(Message::text(format!("count {}", MOST + 5))).await;
    for nth in 0..MOST {
        assert_eq!(client.text().await, nth.to_string());
    }
    assert_eq!(ask(&mut client, "reply next").await, "next");
    assert_eq!(failures(&relay, "guest_broke", "actions").await, 1.0);
    relay.logged(&["WARN", "tenant.name=t", "actions=10005"]).await;
    client.send(Message::text(format!("publish-many elsewhere {MOST}"))).await;
    relay.metric_reaches("edge_relay_publications_total", &[("tenant", "t")], MOST as f64).await;
    assert_eq!(failures(&relay, "guest_broke", "actions").await, 1.0);
    assert_eq!(relay.metric("edge_relay_guest_lost_total", &CLIENT).await, 0.0);
}

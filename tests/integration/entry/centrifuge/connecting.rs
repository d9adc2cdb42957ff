//! How a client connects, and how it is disconnected.

use rustix::process::Signal;
use serde_json::json;
use support::javascript::JavaScript;

use super::{ask, connect, handled, in_node, in_page, last, start, url};

in_node!(
    a_handler_gets_token_and_data,
    a_client_that_is_not_let_in_stays_out,
    a_handler_that_breaks_is_asked_again,
    a_client_that_is_disconnected_stays_or_comes_back_as_the_code_says,
    pings_keep_a_connection,
    the_relays_end_is_told,
    protobuf_is_not_available,
    the_sdk_brings_another_token_when_its_time_is_over,
    a_token_that_is_not_taken_ends_the_connection,
);
in_page!(a_handler_gets_token_and_data, pings_keep_a_connection);

async fn a_handler_gets_token_and_data(mut sdk: JavaScript) {
    let relay = handled("").await;
    let options = json!({ "token": "open sesame", "data": { "a": [1, "b"] } });
    connect(&mut sdk, &url(&relay, "?identity=ada"), options).await;
    let request = ask(&mut sdk, "request").await;
    let lines: Vec<_> = request.as_str().unwrap().lines().collect();
    let wanted = ["identity=ada", "127.0.0.1", "Transport::Centrifuge", r#"Some("open sesame")"#];
    assert_eq!(lines[1..5], wanted, "{request}");
    assert_eq!(lines[5], format!("{:?}", Some(r#"{"a":[1,"b"]}"#)), "{request}");
    assert_eq!(ask(&mut sdk, "whoami").await, "ada");
    let id = ask(&mut sdk, "id").await;
    assert_eq!(last(&mut sdk, "connected", "client, transport").await, json!([id, "websocket"]));
    relay.metric_is("edge_relay_clients", &[], 1.0).await;
    sdk.value("client.disconnect()").await;
    relay.metric_is("edge_relay_clients", &[], 0.0).await;
}

async fn a_client_that_is_not_let_in_stays_out(mut sdk: JavaScript) {
    let relay = handled("").await;
    start(&mut sdk, &url(&relay, "?reject=401"), json!({})).await;
    sdk.sees("all('disconnected').length === 1").await;
    let why = last(&mut sdk, "disconnected", "code, reason").await;
    assert_eq!(why, json!([401, "told to say 401"]));
    assert_eq!(sdk.value("all('connecting').length").await, 1);
}

async fn a_handler_that_breaks_is_asked_again(mut sdk: JavaScript) {
    let relay = handled("").await;
    start(&mut sdk, &url(&relay, "?trap"), json!({})).await;
    relay.metric_reaches("edge_relay_guest_failures_total", &[("tenant", "t"), ("role", "client")], 3.0).await;
    assert_eq!(sdk.value("client.state").await, "connecting");
}

async fn a_client_that_is_disconnected_stays_or_comes_back_as_the_code_says(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    sdk.value("client.send('disconnect 4000 come again')").await;
    sdk.sees("all('connected').length === 2").await;
    assert_eq!(last(&mut sdk, "connecting", "code, reason").await, json!([4000, "come again"]));
    // A reply before the disconnect is still sent.
    sdk.value("client.send('reply farewell\\ndisconnect 4501 for good')").await;
    sdk.sees("all('disconnected').length === 1").await;
    assert_eq!(last(&mut sdk, "message", "data").await, json!(["farewell"]));
    assert_eq!(last(&mut sdk, "disconnected", "code, reason").await, json!([4501, "for good"]));
}

async fn pings_keep_a_connection(mut sdk: JavaScript) {
    let relay = handled("ping-interval = \"2s\"").await;
    // Without a ping within 4 s the client would leave. Without a pong the relay would close it.
    connect(&mut sdk, &url(&relay, ""), json!({ "maxServerPingDelay": 2000 })).await;
    sdk.value("new Promise((done) => setTimeout(done, 9000))").await;
    assert_eq!(sdk.value("[all('connecting').length, client.state]").await, json!([1, "connected"]));
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
    assert_eq!(ask(&mut sdk, "reply fine").await, "fine");
}

async fn the_relays_end_is_told(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    relay.end_with(Signal::TERM).await;
    sdk.sees("all('connecting').length >= 2").await;
    assert_eq!(sdk.value("all('connecting')[1].code").await, 3001);
    assert_eq!(sdk.value("all('connecting')[1].reason").await, "shutdown");
}

async fn protobuf_is_not_available(mut sdk: JavaScript) {
    let relay = handled("").await;
    let address = json!(url(&relay, ""));
    sdk.value(&format!("start({address}, {{}}, CentrifugeProtobuf)")).await;
    sdk.sees("all('disconnected').length === 1").await;
    assert_eq!(last(&mut sdk, "disconnected", "code, reason").await, json!([3508, "not available"]));
    // Other SDKs may ask for this.
    let other = json!(url(&relay, "?format=protobuf"));
    let closed = format!(
        "new Promise((done) => {{ new WebSocket({other}).onclose = ({{ code, reason }}) => done([code, reason]); }})"
    );
    assert_eq!(sdk.value(&closed).await, json!([3508, "not available"]));
}

async fn the_sdk_brings_another_token_when_its_time_is_over(mut sdk: JavaScript) {
    let relay = handled("").await;
    let url = json!(url(&relay, ""));
    sdk.value("globalThis.asked = 0; null").await;
    sdk.value(&format!("start({url}, {{ token: 'for 1', getToken: async () => (asked += 1, 'for 100') }})")).await;
    sdk.value("client.ready()").await;
    sdk.sees("asked === 1").await;
    assert_eq!(ask(&mut sdk, "reply still here").await, "still");
    assert_eq!(sdk.value("[all('connecting').length, client.state]").await, json!([1, "connected"]));
}

async fn a_token_that_is_not_taken_ends_the_connection(mut sdk: JavaScript) {
    let relay = handled("").await;
    let url = json!(url(&relay, ""));
    sdk.value(&format!("start({url}, {{ token: 'for 1', getToken: async () => 'not any more' }})")).await;
    sdk.sees("all('disconnected').length === 1").await;
    assert_eq!(last(&mut sdk, "disconnected", "code, reason").await, json!([3500, "any more"]));
    relay.metric_is("edge_relay_clients", &[], 0.0).await;
}

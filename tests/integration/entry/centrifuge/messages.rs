//! What a client says to the tenant's handler, and what comes back.

use serde_json::json;
use support::javascript::JavaScript;

use super::{ask, connect, handled, in_node, in_page, url};

in_node!(
    a_call_is_answered_by_a_result_or_an_error,
    a_message_is_answered_by_messages,
    what_is_published_reaches_all_or_is_refused,
    presence_is_not_available,
    commands_may_come_together,
    a_handler_that_breaks_costs_the_call,
);
in_page!(
    a_call_is_answered_by_a_result_or_an_error,
    a_message_is_answered_by_messages,
    what_is_published_reaches_all_or_is_refused,
    commands_may_come_together,
);

async fn a_call_is_answered_by_a_result_or_an_error(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    assert_eq!(sdk.value("client.rpc('result', { a: [1, 'b\\n'] })").await, json!({ "data": { "a": [1, "b\n"] } }));
    // A result that is not JSON comes as a string.
    assert_eq!(sdk.value("client.rpc('result', 'of this')").await, json!({ "data": "of this" }));
    let refused = sdk.value("refused(client.rpc('error', '4001 say please'))").await;
    assert_eq!(refused, json!({ "code": 4001, "message": "say please" }));
    // The call's other actions arrive too.
    assert_eq!(sdk.value("client.rpc('reply', 'meanwhile\\nresult 7')").await, json!({ "data": 7 }));
    assert_eq!(sdk.value("all('message').map(({ data }) => data)").await, json!(["meanwhile"]));
}

async fn a_message_is_answered_by_messages(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    sdk.value("client.send('reply one {\"two\":2} 3')").await;
    sdk.sees("all('message').length === 3").await;
    let data = sdk.value("all('message').map((message) => message.data)").await;
    assert_eq!(data, json!(["one", { "two": 2 }, 3]));
    // A message has no reply to carry an error, so the error is a message.
    let error = ask(&mut sdk, "error 4001 say please").await;
    assert_eq!(error, json!({ "error": { "code": 4001, "message": "say please" } }));
    // Bytes arrive marked as bytes.
    let flood = ask(&mut sdk, "flood 1 3").await;
    assert_eq!(flood, json!({ "base64": "BwcH" }));
}

async fn what_is_published_reaches_all_or_is_refused(mut sdk: JavaScript) {
    let relay = handled("").await;
    let mut plain = relay.client("/t?channel=news").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    sdk.value("follow('news')").await;
    sdk.value("client.publish('news', { hello: 'all' })").await;
    assert_eq!(plain.text().await, r#"{"hello":"all"}"#);
    sdk.sees("published('news').length === 1").await;
    assert_eq!(sdk.value("published('news')").await, json!([{ "hello": "all" }]));
    sdk.value("subscriptions.news.publish('again')").await;
    assert_eq!(plain.text().await, r#""again""#);
    let refused = sdk.value("refused(client.publish('private-x', 1))").await;
    assert_eq!(refused, json!({ "code": 403, "message": "private-x is private" }));
}

async fn presence_is_not_available(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    for call in ["client.presence('a')", "client.presenceStats('a')"] {
        let refused = sdk.value(&format!("refused({call})")).await;
        assert_eq!(refused, json!({ "code": 108, "message": "not available" }), "{call}");
    }
}

async fn commands_may_come_together(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    let together = "(() => {
        client.startBatching();
        const calls = [...Array(50).keys()].map((nth) => client.rpc('result', nth));
        calls.push(refused(client.presence('a')), refused(client.rpc('error', '4001 no')));
        client.send('reply said');
        client.stopBatching();
        return Promise.all(calls);
    })()";
    let mut answers: Vec<_> = (0..50).map(|nth| json!({ "data": nth })).collect();
    answers.push(json!({ "code": 108, "message": "not available" }));
    answers.push(json!({ "code": 4001, "message": "no" }));
    assert_eq!(sdk.value(together).await, json!(answers));
    sdk.sees("all('message').length === 1").await;
}

async fn a_handler_that_breaks_costs_the_call(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    assert_eq!(sdk.value("refused(client.rpc('trap', null)).then(({ code }) => code)").await, 100);
    let told = ask(&mut sdk, "trap").await;
    assert_eq!(told["error"]["code"], 100, "{told}");
    assert_eq!(sdk.value("client.rpc('result', 'fine')").await, json!({ "data": "fine" }));
    assert_eq!(sdk.value("all('connecting').length").await, 1);
}

//! Which channels a client follows, and what it can ask about their past.

use serde_json::{Value, json};
use support::{guests, javascript::JavaScript, partner::Partner, probe::Probe, relay::Relay, tenant::Folder};

use super::{ask, connect, handled, in_node, in_page, last, url};

in_node!(
    a_client_follows_what_it_is_allowed,
    the_handler_begins_and_ends_subscriptions,
    keys_are_tags_and_the_snapshot_comes_first,
    history_is_read_in_pages,
);
in_page!(a_client_follows_what_it_is_allowed, the_handler_begins_and_ends_subscriptions);

async fn a_client_follows_what_it_is_allowed(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    sdk.value("follow('news', { data: { why: 'fun' } })").await;
    assert_eq!(ask(&mut sdk, "asked").await, r#"news={"why":"fun"} "#);
    let subscribed = last(&mut sdk, "subscribed", "recoverable, positioned, wasRecovering, recovered").await;
    assert_eq!(subscribed, json!([true, true, false, false]));
    sdk.value("client.publish('news', 1)").await;
    sdk.sees("published('news').length === 1").await;
    assert_eq!(
        last(&mut sdk, "publication", "channel, data, offset, from").await,
        json!(["news", 1, 1, "subscription"])
    );

    sdk.value("(subscriptions.news.unsubscribe(), null)").await;
    sdk.value("client.publish('news', 2)").await;
    assert_eq!(ask(&mut sdk, "subscribers news").await, 0);
    sdk.value("(subscriptions.news.subscribe(), subscriptions.news.ready())").await;
    sdk.value("client.publish('news', 3)").await;
    sdk.sees("published('news').at(-1) === 3").await;

    let refused = sdk.value("refused(follow('private-x'))").await;
    assert!(refused["code"].is_number(), "{refused}");
    assert_eq!(last(&mut sdk, "unsubscribed", "code, reason").await, json!([103, "private-x is private"]));
    assert_eq!(sdk.value("client.state").await, "connected");
}

async fn the_handler_begins_and_ends_subscriptions(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, "?channels=a,b"), json!({})).await;
    sdk.sees("all('subscribed').length === 2").await;
    let begun = sdk.value("all('subscribed').map(({ channel, from }) => channel + ' ' + from).sort()").await;
    assert_eq!(begun, json!(["a server", "b server"]));
    ask(&mut sdk, "publish a 1\nsubscribe c\nsubscribe private\npublish c 2\nreply done").await;
    sdk.sees("all('publication').length === 2").await;
    assert_eq!(sdk.value("[published('a'), published('c')]").await, json!([[1], [2]]));
    assert_eq!(last(&mut sdk, "publication", "offset, from").await, json!([1, "server"]));
    ask(&mut sdk, "unsubscribe a\npublish a 3\nreply done").await;
    sdk.sees("all('unsubscribed', 'a').length === 1").await;
    assert_eq!(sdk.value("published('a')").await, json!([1]));
    // The handler can also end a subscription that the client has asked for.
    sdk.value("follow('own')").await;
    ask(&mut sdk, "unsubscribe own\nreply done").await;
    sdk.sees("all('unsubscribed', 'own').length === 1").await;
    assert_eq!(last(&mut sdk, "unsubscribed", "code").await, json!([2000]));
}

async fn keys_are_tags_and_the_snapshot_comes_first(mut sdk: JavaScript) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), "")).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for (key, text) in [("x", "1"), ("y", "2"), ("x", "3")] {
        assert_eq!(probe.ask(&format!("publish-key c {key} {text}")).await, "Ok(())");
    }
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    sdk.value("follow('c')").await;
    sdk.sees("published('c').length === 2").await;
    assert_eq!(probe.ask("publish-key c y 4").await, "Ok(())");
    assert_eq!(probe.ask("remove c x").await, "Ok(())");
    sdk.sees("published('c').length === 4").await;
    let heard = sdk.value("all('publication').map(({ data, offset, tags }) => [data, offset, tags])").await;
    let key = |key: &str| json!({ "key": key });
    let removed = json!({ "key": "x", "remove": "true" });
    assert_eq!(heard, json!([[2, 2, key("y")], [3, 3, key("x")], [4, 4, key("y")], ["x is gone", 5, removed]]));
}

async fn history_is_read_in_pages(mut sdk: JavaScript) {
    let relay = handled("").await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    sdk.value("follow('news')").await;
    let publish: Vec<_> = (1..=10).map(|number| format!("publish news {number}")).collect();
    ask(&mut sdk, &format!("{}\nreply done", publish.join("\n"))).await;
    let mut read = async |options: Value| {
        sdk.value(&format!(
            "subscriptions.news.history({options}).then(({{ publications, epoch, offset }}) => {{
                globalThis.epoch = epoch;
                return [publications.map((publication) => publication.data), offset];
            }}, ({{ code }}) => code)"
        ))
        .await
    };
    // As the protocol has it: without a limit there are no publications, only the position. A limit of -1 is no limit.
    assert_eq!(read(json!({})).await, json!([[], 10]));
    assert_eq!(read(json!({ "limit": -1 })).await, json!([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 10]));
    assert_eq!(read(json!({ "limit": 3 })).await, json!([[1, 2, 3], 10]));
    assert_eq!(read(json!({ "limit": 3, "reverse": true })).await, json!([[10, 9, 8], 10]));
    let epoch = sdk.value("epoch").await;
    let mut read = async |offset: u64, more: &str| {
        let since = json!({ "offset": offset, "epoch": epoch });
        let call = format!("subscriptions.news.history({{ since: {since}, {more} }})");
        sdk.value(&format!("refused({call}.then(({{ publications }}) => publications.map(({{ data }}) => data)))"))
            .await
    };
    assert_eq!(read(4, "limit: 3").await, json!({ "value": [5, 6, 7] }));
    assert_eq!(read(4, "limit: -1").await, json!({ "value": [5, 6, 7, 8, 9, 10] }));
    assert_eq!(read(10, "limit: 3").await, json!({ "value": [] }));
    assert_eq!(read(4, "limit: 3, reverse: true").await, json!({ "value": [3, 2, 1] }));
    let refused =
        sdk.value("refused(subscriptions.news.history({ since: { offset: 4, epoch: 'other' }, limit: 3 }))").await;
    assert_eq!(refused, json!({ "code": 112, "message": "unrecoverable position" }));
}

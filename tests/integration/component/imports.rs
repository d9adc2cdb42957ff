//! What components may do besides returning publications: state, channels, upstreams.

use support::{guests, partner::Partner, probe::Probe, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn state_is_kept_in_buckets() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), "")).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe
        .check(&[
            ("get default a", "Ok(None)"),
            ("set default a one", "Ok(())"),
            ("get default a", "one"),
            ("get other a", "Ok(None)"),
            ("set default b two", "Ok(())"),
            ("keys default", r#"Ok(["a", "b"])"#),
            ("swap default a b", "Ok(())"),
            ("get default a", "two"),
            ("exists default a", "Ok(true)"),
            ("delete default a", "Ok(())"),
            ("exists default a", "Ok(false)"),
            ("delete default a", "Ok(())"),
            ("clear default a b", "Ok(())"),
            ("keys default", "Ok([])"),
            ("add default n 40", "Ok(40)"),
            ("add default n 2", "Ok(42)"),
            ("get default n", "42"),
            ("set BAD a one", "Err(Error::NoSuchStore)"),
        ])
        .await;
}

#[tokio::test]
async fn state_is_shared_within_a_tenant_outlives_connections_and_is_apart_from_others() {
    let (mut first, mut second, mut stranger) =
        (Partner::start().await, Partner::start().await, Partner::start().await);
    let more = format!("[[upstream]]\nname = \"more\"\nurl = \"{}\"", second.url());
    let folder = Folder::new("").filtered("t", &first.url(), guests::probe(), &more).filtered(
        "u",
        &stranger.url(),
        guests::probe(),
        "",
    );
    let relay = Relay::serve(folder).await;
    let mut by_first = Probe::new(&relay, &mut first, "t").await;
    by_first.check(&[("set default a one", "Ok(())")]).await;
    let mut by_stranger = Probe::new(&relay, &mut stranger, "u").await;
    by_stranger.check(&[("get default a", "Ok(None)"), ("keys default", "Ok([])")]).await;
    drop(by_first);
    let mut by_second = Probe::new(&relay, &mut second, "t").await;
    by_second.check(&[("get default a", "one")]).await;
    let mut by_first = Probe::new(&relay, &mut first, "t").await;
    by_first.check(&[("get default a", "one")]).await;
}

#[tokio::test]
async fn over_its_quota_a_guest_is_told_and_nothing_changes() {
    let mut partner = Partner::start().await;
    let limits = "[limits]\nstate = \"4KiB\"\nstate-keys = 2";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), limits)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.check(&[("set default a one", "Ok(())"), ("set other b two", "Ok(())")]).await;
    assert!(probe.ask("set default c three").await.contains("full: 2 keys"));
    assert!(probe.ask("fill default a 5000").await.contains("full: 4096 bytes"));
    probe.check(&[("get default a", "one"), ("delete default a", "Ok(())"), ("set default c three", "Ok(())")]).await;
}

#[tokio::test]
async fn channels_are_published_to_read_and_counted() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), "")).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.check(&[("latest news", "None"), ("subscribers news", "0")]).await;
    let mut news = relay.client("/t?channel=news").await;
    let mut both = relay.client("/t?channel=news&channel=answers").await;
    probe.check(&[("subscribers news", "2"), ("publish news hello", "Ok(())")]).await;
    assert_eq!(news.text().await, "hello");
    probe.check(&[("latest news", "Some(Frame::Text(\"hello\"))")]).await;
    assert!(probe.ask("publish  hello").await.contains("1 refused, the first because a channel's name"));
    both.text().await;
    both.send(Message::Close(None)).await;
    relay.clients_closed("client", 1.0).await;
    probe.check(&[("subscribers news", "1"), ("subscribers answers", "1")]).await;
}

#[tokio::test]
async fn publications_of_one_call_are_limited() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), "")).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.check(&[("many news 10000", "Ok(())")]).await;
    assert!(probe.ask("many news 10005").await.contains("5 refused, the first because one call makes more"));
    assert_eq!(relay.metric("edge_relay_publications_refused_total", &[("reason", "count")]).await, 5.0);
    // The two answers, and the publications that were taken of the two calls.
    assert_eq!(relay.metric_reaches("edge_relay_publications_total", &[], 20_002.0).await, 20_002.0);
}

#[tokio::test]
async fn logs_that_nobody_reads_stay_within_the_tenants_bytes() {
    const CHANNELS: usize = 100;
    const LOGS: usize = 1 << 20;
    const TEXT: usize = 64 << 10;
    let mut partner = Partner::start().await;
    let limits = "[limits]\nlogs = \"1MiB\"";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), limits)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let text = "x".repeat(TEXT);
    let mut refused = 0;
    for nth in 0..CHANNELS {
        let answer = probe.ask(&format!("publish unread-{nth} {text}")).await;
        refused += usize::from(answer != "Ok(())");
        assert!(answer == "Ok(())" || answer.contains("reached their limit of bytes"), "{answer}");
    }
    let counted = relay.metric("edge_relay_publications_refused_total", &[("reason", "bytes")]).await;
    assert_eq!(counted, refused as f64);
    // The other channels were dropped to make room, or refused.
    let mut kept = 0;
    for nth in 0..CHANNELS {
        kept += usize::from(probe.ask(&format!("latest unread-{nth}")).await != "None");
    }
    assert!(kept <= LOGS / TEXT, "{kept} logs of {TEXT} bytes are kept");
}

#[tokio::test]
async fn logs_that_are_read_fill_up_and_go_on() {
    const CHANNELS: usize = 40;
    const LOGS: usize = 1 << 20;
    const TEXT: usize = 64 << 10;
    let mut partner = Partner::start().await;
    let limits = "[limits]\nlogs = \"1MiB\"";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), limits)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let channels: Vec<_> = (0..CHANNELS).map(|nth| format!("channel=read-{nth}")).collect();
    let mut reader = relay.client(&format!("/t?{}", channels.join("&"))).await;
    let text = |nth: usize| format!("{nth}:{}", "x".repeat(TEXT));
    let mut taken = Vec::new();
    for nth in 0..CHANNELS {
        if probe.ask(&format!("publish read-{nth} {}", text(nth))).await == "Ok(())" {
            assert!(reader.text().await == text(nth), "text {nth}");
            taken.push(nth);
        }
    }
    // Channels with readers are not dropped, and there is not room for all.
    assert!((1..=LOGS / TEXT).contains(&taken.len()), "{taken:?}");
    let refused = [("tenant", "t"), ("reason", "bytes")];
    let refused = relay.metric("edge_relay_publications_refused_total", &refused).await;
    assert_eq!(refused, (CHANNELS - taken.len()) as f64);
    // A channel with a log goes on, and drops its own oldest publications.
    for round in CHANNELS..2 * CHANNELS {
        probe.check(&[(&format!("publish read-0 {}", text(round)), "Ok(())")]).await;
        assert!(reader.text().await == text(round), "text {round}");
    }
    reader.has_no_more().await;
}

#[tokio::test]
async fn upstreams_are_sent_to_and_asked_for_their_state() {
    let (mut partner, down) = (Partner::start().await, "ws://127.0.0.1:9/");
    let more = format!("[[upstream]]\nname = \"down\"\nurl = \"{down}\"");
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), &more)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe
        .check(&[
            ("status feed", "Ok(State::Live) 0"),
            ("status down", "Ok(State::Connecting) 0"),
            ("send feed hello", "Ok(())"),
        ])
        .await;
    assert_eq!(probe.peer.next_text().await, "hello");
    let large = format!("send feed {}", "x".repeat((1 << 20) + 1));
    for (command, error) in [
        ("status other", "unknown"),
        ("send down hello", "disconnected"),
        ("send other hello", "unknown"),
        (&large, "too-large"),
    ] {
        let answer = probe.ask(command).await;
        assert!(answer.starts_with("Err") && answer.contains(error), "{answer}");
    }
}

#[tokio::test]
async fn a_setting_or_secret_that_is_not_there_is_logged_once_by_its_name() {
    let folder = Folder::new("").api("t", "").api("u", "[settings]\ngreeting = \"hello\"");
    let relay = Relay::serve(folder).await;
    let mut http = relay.http().await;
    for _ in 0..3 {
        assert!(http.get("/t/imports").await.body.ends_with("Ok(None)"));
        assert!(http.get("/u/imports").await.body.ends_with("Ok(Some(\"hello\"))"));
    }
    let line = relay.logged(&["asks for a setting that is not there", "setting.name=greeting"]).await;
    assert!(line.contains("tenant.name=t") && line.contains("guest.role=api"), "{line}");
    assert_eq!(relay.log().lines().filter(|line| line.contains("setting.name=")).count(), 1);
}

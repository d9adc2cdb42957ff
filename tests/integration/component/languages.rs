//! Mistakes in code of other languages: an exception that nothing catches is in the log, in the language's own words.

use serde_json::json;
use support::{
    client::Client,
    guests,
    languages::{self, Language},
    partner::Partner,
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio_tungstenite::tungstenite::{self, Message};

/// How many bytes the log has of what a guest wrote before it broke.
const MAX_WORDS: usize = 4 << 10;
/// The longest line that says that a guest broke: the guest's words, and everything else.
const LONGEST_LINE: usize = MAX_WORDS + (2 << 10);

/// Words in the line about an exception whose text is long. The guest writes it in lines of 4 KiB.
const SHOUT: &str = "xxxxxx";

/// What a language says about each mistake in `tests/guests/exceptions`.
struct Said {
    no_length: &'static [&'static str],
    odd_token: &'static [&'static str],
    not_json: &'static [&'static str],
    no_function: &'static [&'static str],
    no_idea: &'static [&'static str],
}

#[tokio::test]
async fn javascripts_exceptions_are_in_the_log() {
    let said = Said {
        no_length: &["cannot read property 'length' of undefined", "at onFrames (/app.js:"],
        odd_token: &["the token is odd", "at onConnect (/app.js:"],
        not_json: &["in JSON at position 1", "at onMessage (/app.js:"],
        no_function: &["noSuchFunction is not defined", "at handle (/app.js:"],
        no_idea: &["no idea what tick is", "at onSchedule (/app.js:"],
    };
    exceptions_are_in_the_log(Language::JavaScript, said).await;
}

#[tokio::test]
async fn pythons_exceptions_are_in_the_log() {
    let said = Said {
        no_length: &["AttributeError: 'NoneType' object has no attribute 'length'", "app.py\", line ", "in on_frames"],
        odd_token: &["TypeError: the token is odd", "app.py\", line ", "in on_connect"],
        not_json: &["JSONDecodeError: Expecting property name", "app.py\", line ", "in on_message"],
        no_function: &["NameError: name 'no_such_function' is not defined", "app.py\", line ", "in handle"],
        no_idea: &["Exception: no idea what tick is", "app.py\", line ", "in on_schedule"],
    };
    exceptions_are_in_the_log(Language::Python, said).await;
}

/// Breaks every role. Its callers learn no more than about any other component that breaks.
async fn exceptions_are_in_the_log(language: Language, said: Said) {
    let Some(component) = languages::exceptions(language) else { return };
    let mut partner = Partner::start().await;
    let roles = ["filter", "client", "api", "job"].map(|role| format!("{role} = \"app.wasm\"")).join("\n");
    let schedule = "[[schedule]]\nname = \"tick\"\nevery = \"100ms\"";
    let manifest = format!("[components]\n{roles}\n{schedule}");
    let folder = Folder::new("").tenant("t", &partner.url(), &manifest);
    folder.copy(&component, "tenants/t/app.wasm");
    let relay = Relay::serve(folder).await;
    let broke = async |role: &str, words: &[&str]| {
        let role = format!("guest.role={role}");
        let line =
            relay.logged(&[&["WARN", "component call failed", "tenant.name=t", role.as_str()], words].concat()).await;
        assert!(line.len() < LONGEST_LINE, "{} bytes", line.len());
        let twice = |other: &str| other.contains("guest.stream=stderr") && other.contains(words[0]);
        assert!(!relay.log().lines().any(twice), "{}", relay.log());
    };

    broke("job", said.no_idea).await;
    let mut peer = partner.accept().await;
    peer.text("anything").await;
    broke("filter", said.no_length).await;

    assert_eq!(status_of(&relay, "/t?token=broken").await, 500);
    broke("client", said.odd_token).await;
    assert_eq!(relay.log().lines().filter(|line| line.contains(said.odd_token[0])).count(), 1);
    // An exception that the WIT names is not a mistake.
    assert_eq!(status_of(&relay, "/t?token=refused").await, 402);
    let mut client = relay.client("/t").await;
    client.send(Message::text("{nope")).await;
    let answer = json!({ "error": { "code": 100, "message": "the message could not be handled" } });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&client.text().await).unwrap(), answer);
    broke("client", said.not_json).await;

    let answer = relay.http().await.get("/t/anything").await;
    assert_eq!(answer.envelope(), (500, "api_broke".to_owned()));
    broke("api", said.no_function).await;

    // The log has a part of the long text, and no line that looks like the host's.
    until("a shout in the log", async || {
        peer.text("shout").await;
        let found = relay.log().lines().any(|line| line.contains(SHOUT));
        if found { Ok(()) } else { Err("none yet".to_owned()) }
    })
    .await;
    let log = relay.log();
    assert!(log.lines().all(|line| line.len() < LONGEST_LINE));
    assert!(!log.contains('\x1b') && log.lines().all(|line| line.starts_with("20") && !line.starts_with("2021-")));
}

async fn status_of(relay: &Relay, path: &str) -> u16 {
    match Client::try_connect(&relay.url(path)).await.err() {
        Some(tungstenite::Error::Http(answer)) => answer.status().as_u16(),
        other => panic!("{path}: {other:?}"),
    }
}

#[tokio::test]
async fn a_guest_that_breaks_is_logged_with_the_words_of_that_call_alone() {
    let mut partner = Partner::start().await;
    let settings = "[settings]\nmode = \"last-words\"\nmatch = \"now trap\"";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::hostile(), settings)).await;
    let mut peer = partner.accept().await;
    peer.text("all is well").await;
    relay.logged(&["stderr", "all is well"]).await;
    peer.text("now trap").await;
    let line = relay.logged(&["component call failed", "having written: now trap"]).await;
    assert!(!line.contains("all is well"), "{line}");
    let twice = |line: &str| line.contains("guest.stream=stderr") && line.contains("now trap");
    assert!(!relay.log().lines().any(twice), "{}", relay.log());
}

#[tokio::test]
async fn what_a_long_call_writes_is_logged_while_it_goes_on() {
    let mut partner = Partner::start().await;
    let settings = "[settings]\nmode = \"report-and-loop\"\n[limits]\nfilter-call = \"1m\"";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::hostile(), settings)).await;
    let mut peer = partner.accept().await;
    peer.text("first\nsecond").await;
    relay.logged(&["guest.stream=stderr", "second"]).await;
    let log = relay.log();
    let written: Vec<_> = log.lines().filter(|line| line.contains("guest.stream=stderr")).collect();
    assert!(written.len() == 2 && written[0].ends_with("first") && written[1].ends_with("second"), "{written:?}");
}

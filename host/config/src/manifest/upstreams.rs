//! `[[upstream]]`.

use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc, time::Duration};

use http::header::HeaderName;
use toml::de::DeValue;

use crate::{
    Credential, HeaderNames, Overflow, PartnerUrl, Subprotocols, TlsConfig, UpstreamConfig,
    document::{Table, Value, quote},
    grants::Reach,
    header_value,
    names::{is_host, name},
    pem::{PemError, certificates, private_key},
    secrets::{SecretFile, Secrets, Source},
};

/// Below the range a quiet feed would seem dead; above it nobody would notice a dead one.
const IDLE_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The shortest is a second, since a reconnect takes some time, too. Above the range nobody waits for it.
const DATA_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// Each message is held whole in memory, and twice while it is filtered.
const MAX_MESSAGE: RangeInclusive<u64> = 1 << 10..=64 << 20;

/// Below the range each reload of a page would be a new connection for the partner; above it the connection may as well
/// stay for good.
const LINGER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// Most entries of `query`.
const MAX_PARAMETERS: usize = 64;

/// Reads every `[[upstream]]`. There may be at most `most`.
pub(super) fn upstreams(listed: Vec<Value<'_>>, most: usize, secrets: &Secrets<'_>) -> Vec<UpstreamConfig> {
    let mut names = BTreeSet::new();
    if let Some(value) = listed.get(most) {
        let count = listed.len();
        value.problem(format!(
            "is one upstream too many: there are {count}, and limits.upstreams is {most}; remove some, or write a higher \
             limit"
        ));
    }
    let tables = listed.into_iter().take(most).filter_map(|value| value.table("a table, headed [[upstream]]"));
    tables.filter_map(|table| upstream(table, &mut names, secrets)).collect()
}

fn upstream(mut table: Table<'_>, names: &mut BTreeSet<String>, secrets: &Secrets<'_>) -> Option<UpstreamConfig> {
    let name = table.require("name", "name = \"feed\"").and_then(|value| {
        let claim = name(&value)?;
        if !names.insert(claim.value.clone()) {
            value.problem(format!("{} is another upstream's name; give each its own", quote(&claim.value)));
        }
        Some(Arc::from(claim.value))
    });
    let reach = secrets.tenant.map_or(Reach::Listed(Vec::new()), |tenant| secrets.allowed.reach(tenant));
    let url = table.require("url", "url = \"wss://feed.example.com/stream\"").and_then(|value| url(&value, &reach));
    let headers = headers(table.section("headers"), secrets);
    let query = query(table.section("query"), secrets);
    let subprotocols = subprotocols(&mut table);
    let compression = table.take("compression").and_then(|value| value.flag()).unwrap_or(false);
    let has_tls = url.as_ref().is_none_or(PartnerUrl::is_secure);
    let tls = table.take("tls").map(|value| tls(value, has_tls, secrets)).unwrap_or_default();
    let idle_timeout = table.duration("idle-timeout", &IDLE_TIMEOUT).unwrap_or(UpstreamConfig::IDLE_TIMEOUT);
    let data_timeout = table.duration("data-timeout", &DATA_TIMEOUT);
    let overflow = table.take("overflow").and_then(|value| overflow(&value)).unwrap_or_default();
    let max_message = table.size("max-message", &MAX_MESSAGE).unwrap_or(UpstreamConfig::MAX_MESSAGE);
    let linger = linger(&mut table);
    table.finish();
    Some(UpstreamConfig {
        name: name?,
        url: url?,
        headers,
        query,
        subprotocols,
        compression,
        tls,
        reach,
        idle_timeout,
        data_timeout,
        overflow,
        max_message,
        linger,
    })
}

/// The URL. An address in it must be one that the tenant may connect to; where a name leads is looked at each time.
fn url(value: &Value<'_>, reach: &Reach) -> Option<PartnerUrl> {
    let url = PartnerUrl::parse(value.str()?).map_err(|error| value.problem(error.to_string())).ok()?;
    if let Ok(address) = url.host()
        && let Err(refused) = reach.check(address)
    {
        value.problem(refused.to_string());
    }
    Some(url)
}

fn overflow(value: &Value<'_>) -> Option<Overflow> {
    match value.str()? {
        "wait" => Some(Overflow::Wait),
        "drop" => Some(Overflow::Drop),
        other => {
            value.problem(format!("{} is not known; write \"wait\" or \"drop\"", quote(other)));
            None
        }
    }
}

/// How long an upstream that is connected on demand stays connected after its last client. `None`: it is always
/// connected.
fn linger(table: &mut Table<'_>) -> Option<Duration> {
    let connect = table.take("connect");
    let linger = table.take("linger");
    match connect.as_ref().map(Value::str) {
        Some(Some("on-demand")) => {
            return Some(linger.and_then(|value| value.duration(&LINGER)).unwrap_or(UpstreamConfig::LINGER));
        }
        None | Some(Some("always")) => {
            if let Some(value) = linger {
                value.problem("needs connect = \"on-demand\"; write that too, or remove it");
            }
        }
        Some(Some(other)) => {
            let message = format!("{} is not known; write \"always\" or \"on-demand\"", quote(other));
            connect.iter().for_each(|value| value.problem(message.as_str()));
        }
        Some(None) => {}
    }
    None
}

fn headers(table: Table<'_>, secrets: &Secrets<'_>) -> Vec<(HeaderName, Credential)> {
    let mut names = HeaderNames::default();
    let mut headers = Vec::new();
    for (name, value) in table.entries() {
        match names.add(&name) {
            Ok(name) => {
                let check = |text: &str| header_value(text).map(drop);
                headers.extend(credential(value, secrets, check).map(|value| (name, value)));
            }
            Err(why) => value.problem(why),
        }
    }
    headers
}

fn query(table: Table<'_>, secrets: &Secrets<'_>) -> Vec<(String, Credential)> {
    let mut query = Vec::new();
    for (nth, (name, value)) in table.entries().enumerate() {
        if nth >= MAX_PARAMETERS {
            value.problem(format!("is one parameter too many; write at most {MAX_PARAMETERS}"));
            break;
        }
        // Whatever it is, it is percent-encoded.
        query.extend(credential(value, secrets, |_| Ok(())).map(|value| (name, value)));
    }
    query
}

/// A value: written out, `{ env = "NAME" }` or `{ file = "PATH" }`. `check` says what is wrong with a value. Problems do
/// not repeat it.
fn credential(
    value: Value<'_>,
    secrets: &Secrets<'_>,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Option<Credential> {
    if let DeValue::String(text) = &value.value {
        return match check(text) {
            Ok(()) => Some(Credential::Plain(text.to_string())),
            Err(why) => {
                value.problem(why);
                None
            }
        };
    }
    let (source, secret, credential) =
        match Source::read(value, "a string, { env = \"VARIABLE\" } or { file = \"PATH\" }")? {
            Source::Env(variable) => {
                let secret = secrets.variable(&variable)?;
                (variable, secret.clone(), Credential::Secret(secret))
            }
            Source::File(file) => {
                let (secret, kept) = secrets.kept_file(&file)?;
                (file, secret, Credential::File(kept))
            }
        };
    if let Err(why) = check(secret.reveal()) {
        source.problem(format!("{} {why}", source.str()?));
        return None;
    }
    Some(credential)
}

/// `[upstream.tls]`.
fn tls(value: Value<'_>, has_tls: bool, secrets: &Secrets<'_>) -> TlsConfig {
    let place = value.place.clone();
    let Some(mut table) = value.table("a table, headed [upstream.tls]") else { return TlsConfig::default() };
    if !has_tls {
        place.problem("needs a URL that begins with wss://; write that, or remove it");
    }
    let roots = pem_file(&mut table, "roots", secrets, |file| certificates(file).map(drop));
    let certificate = pem_file(&mut table, "certificate", secrets, |file| certificates(file).map(drop));
    let key = pem_file(&mut table, "key", secrets, |file| private_key(file).map(drop));
    let server_name = table.take("server-name").and_then(|value| {
        let text = value.str()?;
        if !is_host(text.strip_suffix('.').unwrap_or(text)) {
            value.problem(format!("{} is not a host name; write for example \"feed.example.com\"", quote(text)));
            return None;
        }
        Some(text.to_ascii_lowercase())
    });
    let certificate = match (certificate, key) {
        (Some(Some(certificate)), Some(Some(key))) => Some((certificate, key)),
        (Some(_), None) | (None, Some(_)) => {
            table.place.problem("has a certificate without a key, or a key without a certificate; write both");
            None
        }
        _ => None,
    };
    table.finish();
    TlsConfig { roots: roots.flatten(), certificate, server_name }
}

/// A PEM file that must be in order now, and is read anew for each connection. `Some(None)`: it is not.
fn pem_file(
    table: &mut Table<'_>,
    key: &'static str,
    secrets: &Secrets<'_>,
    check: impl FnOnce(&[u8]) -> Result<(), PemError>,
) -> Option<Option<SecretFile>> {
    let value = table.take(key)?;
    let opened = secrets.kept_pem(&value);
    Some(opened.and_then(|(content, file)| match check(&content) {
        Ok(()) => Some(file),
        Err(why) => {
            value.problem(format!("{} {why}", quote(value.str()?)));
            None
        }
    }))
}
/// The subprotocols of WebSockets: those that a partner is offered, or that clients are answered.
pub(super) fn subprotocols(table: &mut Table<'_>) -> Vec<String> {
    let listed = table.take("subprotocols").and_then(|value| value.array("an array of names in quotes"));
    let mut all = Subprotocols::default();
    for value in listed.iter().flatten() {
        if let Some(text) = value.str()
            && let Err(why) = all.add(text)
        {
            value.problem(format!("{} {why}", quote(text)));
        }
    }
    all.into_offered()
}

//! A tenant's `tenant.toml`.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use toml::de::DeValue;

use crate::{
    Bounds, ScheduleConfig, TenantConfig, TenantLimits, UpstreamConfig,
    document::{Document, Problems, Table, Value, quote},
    grants::{Folder, Grants, real_path},
    held::HeldFolder,
    manifest::{
        channels::{channel, origin},
        components::{Components, Home},
        grants::grants,
        upstreams::{subprotocols, upstreams},
    },
    names::{Claim, host, is_reserved, name, path},
    secrets::Secrets,
    tenants::MANIFEST,
};

mod channels;
mod components;
mod grants;
mod upstreams;

/// Most host names of one tenant.
const MAX_HOSTS: usize = 256;

/// Below the range a job is a loop. A year is longer than hosts run.
const EVERY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(365 * 24 * 3600);
const AFTER: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(365 * 24 * 3600);

/// Below the range a collection is of no use. The top is a century.
const KEEP: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(36_525 * 24 * 3600);

/// At 0 every message is compressed. Hardly any message is larger than the top of the range.
const COMPRESS_ABOVE: RangeInclusive<u64> = 0..=1 << 20;
/// A message is compressed once for all clients, so long ones cost next to nothing more. Shorter messages hardly get
/// shorter.
const DEFAULT_COMPRESS_ABOVE: usize = 64;

/// What a manifest claims for its tenant alone. This is known even when other parts of the manifest are wrong.
#[derive(Default)]
pub(super) struct Claims {
    pub(super) name: Option<Claim>,
    pub(super) path: Option<Claim>,
    pub(super) hosts: Vec<Claim>,
}

/// Reads a manifest and its claims. Components and secrets are looked for in the folder of `file`, which is `held`.
/// `secrets` returns the value of an environment variable. `bounds` are what the operator allows.
pub(super) fn read(
    text: &str,
    file: &Path,
    held: &HeldFolder,
    bounds: &Bounds,
    secrets: &dyn Fn(&str) -> Option<String>,
) -> (Claims, Result<TenantConfig, Problems>) {
    let document = Document::of_tenant(file, text);
    let (claims, config) = match document.parse() {
        Ok(root) => tenant(root, file, held, bounds, secrets),
        Err(_) => (Claims::default(), None),
    };
    (claims, document.conclude(config))
}

fn tenant(
    mut root: Table<'_>,
    file: &Path,
    held: &HeldFolder,
    bounds: &Bounds,
    secrets: &dyn Fn(&str) -> Option<String>,
) -> (Claims, Option<TenantConfig>) {
    let claims = claims(&mut root, bounds);
    let folder = file.parent().unwrap_or(Path::new(""));
    let tenant = claims.name.as_ref().map(|name| name.value.as_str());
    let secrets = Secrets { tenant, folder, held, allowed: &bounds.allowed, read: secrets };
    let listed = root.take("upstream").and_then(|value| value.array("an array of tables, each headed [[upstream]]"));
    let listed = listed.unwrap_or_default();
    let has_upstream = !listed.is_empty();
    let limits = TenantLimits::read(root.section("limits"), &bounds.caps);
    let upstreams = upstreams(listed, limits.upstreams, &secrets);
    let components = root.section("components");
    let listed = root.take("schedule");
    let components = Components::read(components, Home { folder, held }, has_upstream, listed.as_ref());
    let schedules = listed.map(schedules).unwrap_or_default();
    root.renamed("cors", "`origins`, and holds for WebSockets too: only pages of these origins are let in");
    let origins = root.take("origins").and_then(|value| {
        let place = value.place.clone();
        let listed = value.array("an array of origins in quotes")?;
        if listed.is_empty() {
            place.problem("lists no origin; list some, or remove it: then all pages are let in");
        }
        Some(listed)
    });
    let origins = origins.unwrap_or_default().iter().filter_map(origin).collect();
    let subprotocols = subprotocols(&mut root);
    let compress_above = root.take("compression").and_then(compression);
    let channels = root.section("channels").entries().filter_map(|(pattern, value)| channel(pattern, value)).collect();
    let keep = root.section("records").entries().filter_map(|(name, value)| kept(name, value)).collect();
    let settings: Vec<_> =
        root.section("settings").entries().filter_map(|(key, value)| Some((key, setting(&value)?))).collect();
    // The manifest may be a link into one of the tenant's folders.
    let manifest = held.file(Path::new(MANIFEST)).and_then(|manifest| Ok(real_path(&manifest)?));
    // One that is gone can be in no granted folder; what comes in its place is read anew.
    if let Err(error) = &manifest
        && !error.is_not_found()
    {
        root.place.problem(format!("cannot be looked at again ({error}); leave the file in its place"));
    }
    let code: BTreeSet<_> = manifest.iter().chain(components.files()).collect();
    let code: Vec<_> = code.into_iter().collect();
    let grants = Arc::new(grants(root.section("grants"), &secrets, &settings, &code));
    let kept = upstreams.iter().flat_map(UpstreamConfig::files).map(|file| file.path());
    let own: Vec<_> =
        code.iter().map(|file| file.as_path()).chain(grants.files.iter().map(PathBuf::as_path)).chain(kept).collect();
    refuse_hard_links(&root, &grants, &own);
    root.finish();

    let Components { dial, filter, client, api, job, named } = components;
    let config = claims.name.as_ref().zip(claims.path.as_ref()).map(|(name, path)| TenantConfig {
        name: name.value.as_str().into(),
        folder: folder.into(),
        home: held.id().ok(),
        real_folder: held.real_path().unwrap_or_default(),
        hosts: claims.hosts.iter().map(|host| host.value.clone()).collect(),
        path: path.value.clone(),
        upstreams,
        dial,
        filter,
        client,
        api,
        job,
        named,
        schedules,
        origins,
        subprotocols,
        compress_above,
        channels,
        keep,
        settings,
        grants,
        limits,
    });
    (claims, config)
}

/// No guest may write what its tenant is made of. A file with several hard links may have one in a folder that guests
/// write to, if that is on the same device.
fn refuse_hard_links(root: &Table<'_>, grants: &Grants, own: &[&Path]) {
    for file in own {
        let found = match file.metadata() {
            Ok(found) => found,
            Err(error) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                root.place.problem(format!("{} cannot be looked at ({error}); leave it in its place", quote(&name)));
                continue;
            }
        };
        let writable = |folder: &&Folder| folder.write && folder.device().is_ok_and(|device| device == found.dev());
        if let Some(folder) = grants.folders.iter().find(writable).filter(|_| found.nlink() > 1) {
            root.place.problem(format!(
                "{} has {} hard links, and guests may write to {}, where one of them may be; copy the file",
                quote(&file.file_name().unwrap_or_default().to_string_lossy()),
                found.nlink(),
                folder.path.display()
            ));
        }
    }
}

/// What a tenant claims for itself: its name, its host names and its path.
fn claims(root: &mut Table<'_>, bounds: &Bounds) -> Claims {
    let name = root.require("name", "name = \"market\"").and_then(|value| name(&value));
    let listed = root.take("hosts").and_then(|value| value.array("an array of host names in quotes"));
    let allowed = |value: &Value<'_>| {
        let host = host(value)?;
        if name.as_ref().is_some_and(|name| !bounds.allowed.has_host(&name.value, &host.value)) {
            let host = quote(&host.value);
            value.problem(format!("{host} is the operator's to give; list it in relay.toml: grants.hosts = [{host}]"));
        }
        Some(host)
    };
    if let Some(value) = listed.iter().flatten().nth(MAX_HOSTS) {
        value.problem(format!("lists too many host names; write at most {MAX_HOSTS}"));
    }
    let hosts: Vec<Claim> = listed.into_iter().flatten().take(MAX_HOSTS).filter_map(|value| allowed(&value)).collect();
    let path = match root.take("path") {
        Some(value) => path(&value),
        None if !hosts.is_empty() => Some(Claim { value: "/".into(), line: hosts.first().and_then(|host| host.line) }),
        None => name.as_ref().and_then(|name| {
            let value = format!("/{}", name.value);
            if is_reserved(&value) {
                let own = format!("{value} is a door of the tenant at '/', or the host's; write another path");
                root.place.problem(own);
                return None;
            }
            Some(Claim { value, line: name.line })
        }),
    };
    Claims { name, path, hosts }
}

/// Reads every `[[schedule]]`.
fn schedules(listed: Value<'_>) -> Vec<ScheduleConfig> {
    let listed = listed.array("an array of tables, each headed [[schedule]]").unwrap_or_default();
    let mut names = BTreeSet::new();
    let tables = listed.into_iter().filter_map(|value| value.table("a table, headed [[schedule]]"));
    tables.filter_map(|table| schedule(table, &mut names)).collect()
}

/// Reads `compression`. Its presence turns compression on.
fn compression(value: Value<'_>) -> Option<usize> {
    let mut table = value.table("a table, such as { above = 64 }")?;
    let above = table.size("above", &COMPRESS_ABOVE).unwrap_or(DEFAULT_COMPRESS_ABOVE);
    table.finish();
    Some(above)
}

fn schedule(mut table: Table<'_>, names: &mut BTreeSet<String>) -> Option<ScheduleConfig> {
    let name = table.require("name", "name = \"summary\"").and_then(|value| {
        let claim = name(&value)?;
        if !names.insert(claim.value.clone()) {
            value.problem(format!("{} is another schedule's name; give each its own", quote(&claim.value)));
        }
        Some(Arc::from(claim.value))
    });
    table.expect("every", "every = \"5m\"");
    let every = table.duration("every", &EVERY);
    let after = table.duration("after", &AFTER).or(every);
    table.finish();
    Some(ScheduleConfig { name: name?, every: every?, after: after? })
}

/// How long a collection's records are kept.
fn kept(name: String, value: Value<'_>) -> Option<(String, Duration)> {
    let mut table = value.table("a table, headed [records.\"summaries\"]")?;
    table.expect("keep", "keep = \"30d\"");
    let keep = table.duration("keep", &KEEP);
    table.finish();
    Some((name, keep?))
}

/// A setting as text; a number keeps its spelling. The parser accepts `0x` as an integer, so the check is made here.
fn setting(value: &Value<'_>) -> Option<String> {
    let (text, valid) = match &value.value {
        DeValue::String(text) => (text.to_string(), true),
        DeValue::Boolean(flag) => (flag.to_string(), true),
        DeValue::Integer(number) => (number.to_string(), i64::from_str_radix(number.as_str(), number.radix()).is_ok()),
        DeValue::Float(number) => (number.to_string(), true),
        _ => {
            value.mismatch("a string, an integer, a float or a boolean");
            return None;
        }
    };
    if !valid {
        value.problem("is not an integer of 64 bits; correct it, or write it in quotes");
    }
    valid.then_some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::{
        Credential, Overflow,
        grants::{Allowed, AllowedNetwork},
    };

    /// A manifest with every key but `components.filter`, which is tested in `relay.rs`.
    const GOOD: &str = r##"name = "my-market"
path = "/"

[[upstream]]
name = "feed"
url = "wss://feed.example.com:443/stream?depth=5"
headers = { Authorization = { env = "MY_MARKET__TOKEN" }, X-Client = "edge" }
subprotocols = ["v2.json", "v1"]
idle-timeout = "5s"
max-message = "1MiB"

[[upstream]]
name = "other"
url = "ws://127.0.0.1:9000"
connect = "on-demand"
linger = "1s"

[channels."prices*"]
log = "64KiB"

[channels.all]

[settings]
text = "a\tb"
whole = 1_000
hex = 0x1F
float = 1.50
flag = true

[limits]
memory = "128MiB"
filter-call = "250ms"
client-message = 125
api-call = "1h"
api-instances = 1
api-queue = 2
api-body = 0
"##;

    fn environment(variable: &str) -> Option<String> {
        match variable {
            "MY_MARKET__TOKEN" => Some("Bearer hunter2".into()),
            "MY_MARKET__EMPTY" => Some(String::new()),
            "MY_MARKET__LINES" | "OTHER__TOKEN" | "MY_MARKET__A__B" | "PATH" => Some("hunter2\n".into()),
            _ => None,
        }
    }

    fn parsed(text: &str) -> Result<TenantConfig, Problems> {
        let held = HeldFolder::open(Path::new(".")).unwrap();
        let networks = vec![AllowedNetwork { network: "127.0.0.0/8".parse().unwrap(), tenants: Vec::new() }];
        let allowed = Arc::new(Allowed { networks, ..Allowed::default() });
        read(text, Path::new("tenant.toml"), &held, &Bounds { allowed, ..Bounds::default() }, &environment).1
    }

    fn problems(text: &str) -> Vec<String> {
        let problems = parsed(text).unwrap_err();
        let found = problems.to_string();
        assert!(!found.contains("hunter2"), "{found}");
        found.lines().map(|line| line.strip_prefix("tenant.toml:").unwrap().into()).collect()
    }

    /// The only problem, on line 4, of an upstream with `line` added.
    fn upstream_problem(line: &str) -> String {
        let found = problems(&format!("name = 'my-market'\n[[upstream]]\nname = 'f'\n{line}\nurl = 'ws://f'\n"));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].strip_prefix("4: upstream.").unwrap().into()
    }

    #[test]
    fn everything_set() {
        let tenant = parsed(GOOD).unwrap();
        assert_eq!((&*tenant.name, tenant.path.as_str(), tenant.filter), ("my-market", "/", None));
        let feed = &tenant.upstreams[0];
        assert_eq!(
            (&*feed.name, feed.url.authority(), feed.url.target()),
            ("feed", "feed.example.com", "/stream?depth=5")
        );
        let plain = |credential: &Credential| matches!(credential, Credential::Plain(_));
        let value = |credential: &Credential| match credential {
            Credential::Plain(text) => text.clone(),
            Credential::Secret(secret) => secret.reveal().to_owned(),
            Credential::File(file) => panic!("{file:?}"),
        };
        let headers: Vec<_> = feed.headers.iter().map(|(name, v)| (name.as_str(), value(v), plain(v))).collect();
        assert_eq!(headers, [("authorization", "Bearer hunter2".into(), false), ("x-client", "edge".into(), true)]);
        assert_eq!(feed.subprotocols, ["v2.json", "v1"]);
        assert_eq!((feed.idle_timeout, feed.max_message), (Duration::from_secs(5), 1 << 20));
        assert_eq!((feed.linger, tenant.upstreams[1].linger), (None, Some(Duration::from_secs(1))));
        let other = &tenant.upstreams[1];
        assert_eq!(
            (other.idle_timeout, other.max_message),
            (UpstreamConfig::IDLE_TIMEOUT, UpstreamConfig::MAX_MESSAGE)
        );
        let channels: Vec<_> = tenant.channels.iter().map(|rule| (rule.pattern.as_str(), rule.log_bytes)).collect();
        assert_eq!(channels, [("prices*", 64 << 10), ("all", crate::ChannelRule::LOG_BYTES)]);
        let settings: Vec<_> = tenant.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = [("text", "a\tb"), ("whole", "1000"), ("hex", "0x1F"), ("float", "1.50"), ("flag", "true")];
        assert_eq!(settings, expected);
        assert_eq!((tenant.limits.memory, tenant.limits.client_message), (128 << 20, 125));
        assert_eq!(tenant.limits.filter_call, Duration::from_millis(250));
        let TenantLimits { api_call, api_instances, api_queue, api_body, .. } = tenant.limits;
        assert_eq!((api_call, api_instances, api_queue, api_body), (Duration::from_secs(3600), 1, 2, 0));
        assert!(!format!("{:?}", parsed(GOOD)).contains("hunter2"));
    }

    #[test]
    fn the_least() {
        let tenant = parsed("name = 'a'").unwrap();
        assert_eq!((tenant.path.as_str(), tenant.upstreams.len()), ("/a", 0));
        assert_eq!(format!("{:?}", tenant.limits), format!("{:?}", TenantLimits::default()));
    }

    #[test]
    fn every_mistake_at_once() {
        let text = "name = 'a'\npath = '/a/'\n\n[[upstream]]\nnam = 'f'\nurl = 'http://f'\nidle-timeout = '0s'\n\n\
            [[upstream]]\nname = 'f'\nmax-message = 1\n\n[[upstream]]\nname = 'f'\nurl = 'ws://f'\n\n\
            [channels.'a*b']\nlog = 1\nlogs = 1\n[channels.'']\n[channels.\"\\u0007\"]\n\n\
            [settings]\nlist = []\nwhen = 1979-05-27\nhuge = 99999999999999999999\n\n\
            [limits]\nmemory = '8GiB'\nfilter-call = '5ms'\nclient-message = 124\nfilter_call = 1\n\
            api-call = '2h'\napi-instances = 0\napi-queue = 0\napi-body = '5GiB'\n";
        let expected = [
            "2: path: \"/a/\" is not a path clients can connect to; write no '//' and no '/' at the end",
            "4: upstream.name: is missing; write for example name = \"feed\"",
            "5: upstream.nam: unknown key; did you mean `name`?",
            "6: upstream.url: must begin with ws:// or wss://",
            "7: upstream.idle-timeout: \"0s\" is out of range; write \"100ms\" to \"1h\"",
            "9: upstream.url: is missing; write for example url = \"wss://feed.example.com/stream\"",
            "11: upstream.max-message: 1 is out of range; write 1KiB to 64MiB",
            "14: upstream.name: \"f\" is another upstream's name; give each its own",
            "17: channels.\"a*b\": a channel's pattern may have '*' only at its end; write a prefix and one '*'",
            "18: channels.\"a*b\".log: 1 is out of range; write 64KiB to 1GiB",
            "19: channels.\"a*b\".logs: unknown key; did you mean `log`?",
            "20: channels.\"\": a channel's pattern is empty or too long; write 1 to 255 bytes",
            "21: channels.\"\\u{7}\": a channel's pattern must have no control characters; rename the channel",
            "24: settings.list: must be a string, an integer, a float or a boolean, not an array",
            "25: settings.when: must be a string, an integer, a float or a boolean, not a date or time",
            "26: settings.huge: is not an integer of 64 bits; correct it, or write it in quotes",
            "29: limits.memory: \"8GiB\" is out of range; write 1MiB to 4GiB",
            "30: limits.filter-call: \"5ms\" is out of range; write \"10ms\" to \"1m\"",
            "31: limits.client-message: 124 is out of range; write 125 to 16MiB",
            "32: limits.filter_call: unknown key; did you mean `filter-call`?",
            "33: limits.api-call: \"2h\" is out of range; write \"10ms\" to \"1h\"",
            "34: limits.api-instances: 0 is out of range; write 1 to 1000",
            "35: limits.api-queue: 0 is out of range; write 1 to 1000000",
            "36: limits.api-body: \"5GiB\" is out of range; write 0 to 4GiB",
        ];
        assert_eq!(problems(text), expected);
    }

    #[test]
    fn filter_needs_an_upstream() {
        for text in
            ["name = 'a'\n[components]\nfilter = '../f'\n", "name = 'a'\nupstream = []\ncomponents.filter = '../f'\n"]
        {
            let found = problems(text);
            assert_eq!(
                found[0],
                "3: components.filter: needs an [[upstream]]; add one, or remove the filter component"
            );
        }
        let found = problems("name = 'a'\n[upstream]\nname = 'f'\n");
        assert_eq!(found, ["2: upstream: must be an array of tables, each headed [[upstream]], not a table"]);
    }

    #[test]
    fn headers_of_the_handshake() {
        for name in ["Host", "connection", "UPGRADE", "Sec-WebSocket-Key", "sec-websocket-protocol", "Content-Length"] {
            let found = upstream_problem(&format!("headers = {{ {name} = 'hunter2' }}"));
            assert!(found.starts_with(&format!("headers.{name}: is set by the handshake itself")), "{found}");
        }
    }

    #[test]
    fn header_names_and_values() {
        for (headers, start) in [
            ("'a b' = 'hunter2'", "headers.\"a b\": is not an HTTP header's name"),
            ("'' = 'hunter2'", "headers.\"\": is not an HTTP header's name"),
            ("X = \"hunter2\\n\"", "headers.X: cannot be a header's value"),
            ("X = 5", "headers.X: must be a string, { env = \"VARIABLE\" } or { file = \"PATH\" }, not an integer"),
            ("X = 'hunter2', x = 'hunter2'", "headers.x: is written twice"),
            ("X = {}", "headers.X: names no value, or two"),
            ("X = { env = 'MY_MARKET__TOKEN', file = 'hunter2' }", "headers.X: names no value, or two"),
        ] {
            let found = upstream_problem(&format!("headers = {{ {headers} }}"));
            assert!(found.starts_with(start), "{found}");
        }
        let many: Vec<_> = (0..=64).map(|index| format!("X{index} = ''")).collect();
        let found = upstream_problem(&format!("headers = {{ {} }}", many.join(", ")));
        assert_eq!(found, "headers.X64: is one header too many; write at most 64");
        let found = upstream_problem(&format!("query = {{ {} }}", many.join(", ")));
        assert_eq!(found, "query.X64: is one parameter too many; write at most 64");
        let lines = parsed("name = 'a'\n[[upstream]]\nname = 'f'\nurl = 'ws://f'\nquery = { x = \"a\\n\" }").unwrap();
        assert_eq!(lines.upstreams[0].query, [("x".into(), Credential::Plain("a\n".into()))]);
    }

    #[test]
    fn secrets_are_the_tenants_own() {
        for variable in
            ["PATH", "OTHER__TOKEN", "MY_MARKET__", "MY_MARKET___A", "MY_MARKET__A__B", "MY_MARKET_TOKEN", "hunter2"]
        {
            let found = upstream_problem(&format!("headers = {{ X = {{ env = '{variable}' }} }}"));
            assert!(
                found.starts_with("headers.X.env: a tenant reads only its own variables; name one MY_MARKET__TOKEN"),
                "{found}"
            );
        }
        for (variable, message) in [
            ("MY_MARKET__NONE", "is not in the environment, or empty; set it where the host runs"),
            ("MY_MARKET__EMPTY", "is not in the environment, or empty; set it where the host runs"),
            ("MY_MARKET__LINES", "cannot be a header's value; remove line breaks and control characters"),
        ] {
            let found = upstream_problem(&format!("headers = {{ X = {{ env = '{variable}' }} }}"));
            assert_eq!(found, format!("headers.X.env: {variable} {message}"));
        }
    }

    #[test]
    fn subprotocols() {
        for (listed, start) in [
            ("['a b']", "subprotocols: \"a b\" is not a subprotocol"),
            ("['']", "subprotocols: \"\" is not a subprotocol"),
            ("['a', 'a']", "subprotocols: \"a\" is listed twice"),
            ("'a'", "subprotocols: must be an array of names in quotes, not a string"),
        ] {
            let found = upstream_problem(&format!("subprotocols = {listed}"));
            assert!(found.starts_with(start), "{found}");
        }
    }

    #[test]
    fn addresses_that_are_not_public_are_the_operators_to_allow() {
        let url = |url: &str| format!("name = 'a'\n[[upstream]]\nname = 'f'\nurl = '{url}'\n");
        for text in ["ws://127.0.0.1/", "ws://8.8.8.8/", "ws://[::ffff:127.0.0.1]/", "ws://localhost/", "ws://0x7f.1/"]
        {
            parsed(&url(text)).unwrap();
        }
        for (text, address) in
            [("ws://10.0.0.1/", "10.0.0.1"), ("ws://[::1]/", "::1"), ("ws://0x0a000001/", "10.0.0.1")]
        {
            let line = format!("in relay.toml: grants.networks = [\"{address}\"]");
            let found = problems(&url(text)).concat();
            assert!(found.starts_with("4: upstream.url: ") && found.contains(&line), "{found}");
        }
    }

    #[test]
    fn tls_is_for_wss() {
        let found = upstream_problem("tls = { server-name = 'a' }");
        assert_eq!(found, "tls: needs a URL that begins with wss://; write that, or remove it");
        let with = |tls: &str| {
            problems(&format!("name = 'a'\n[[upstream]]\nname = 'f'\nurl = 'wss://f'\n[upstream.tls]\n{tls}\n"))
                .concat()
        };
        assert!(with("server-name = 'a b'").contains("tls.server-name: \"a b\" is not a host name"));
        assert!(with("roots = 'none.pem'").contains("tls.roots: \"none.pem\" cannot be read"));
        assert!(with("roots = 'Cargo.toml'").contains("tls.roots: \"Cargo.toml\" has no certificate in it"));
        assert!(with("key = 'Cargo.toml'").contains("tls.key: \"Cargo.toml\" has no private key in it"));
    }

    #[test]
    fn connected_always_or_on_demand() {
        let linger = |keys: &str| {
            let text = format!("name = 'a'\n[[upstream]]\nname = 'f'\nurl = 'ws://f'\n{keys}");
            parsed(&text).unwrap().upstreams[0].linger
        };
        assert_eq!((linger(""), linger("connect = 'always'")), (None, None));
        assert_eq!(linger("connect = 'on-demand'"), Some(UpstreamConfig::LINGER));
        assert_eq!(linger("connect = 'on-demand'\nlinger = '24h'"), Some(Duration::from_secs(86_400)));
        for (keys, found) in [
            ("connect = 'never'", "connect: \"never\" is not known; write \"always\" or \"on-demand\""),
            ("connect = true", "connect: must be a string in quotes, not a boolean"),
            ("linger = '30s'", "linger: needs connect = \"on-demand\"; write that too, or remove it"),
        ] {
            assert_eq!(upstream_problem(keys), found);
        }
        let bad = "name = 'a'\n[[upstream]]\nname = 'f'\nurl = 'ws://f'\nconnect = 'on-demand'\nlinger = '25h'";
        assert_eq!(problems(bad), ["6: upstream.linger: \"25h\" is out of range; write \"1s\" to \"24h\""]);
    }

    #[test]
    fn data_timeout_and_overflow() {
        let upstream = |keys: &str| {
            let text = format!("name = 'a'\n[[upstream]]\nname = 'f'\nurl = 'ws://f'\n{keys}");
            let UpstreamConfig { data_timeout, overflow, .. } = parsed(&text).unwrap().upstreams[0];
            (data_timeout, overflow)
        };
        assert_eq!(upstream(""), (None, Overflow::Wait));
        let written = upstream("data-timeout = '10s'\noverflow = 'drop'");
        assert_eq!(written, (Some(Duration::from_secs(10)), Overflow::Drop));
        assert_eq!(upstream("overflow = 'wait'").1, Overflow::Wait);
        for (line, found) in [
            ("overflow = 'block'", "overflow: \"block\" is not known; write \"wait\" or \"drop\""),
            ("data-timeout = '10ms'", "data-timeout: \"10ms\" is out of range; write \"1s\" to \"24h\""),
        ] {
            assert_eq!(upstream_problem(line), found);
        }
    }

    #[test]
    fn upstreams_have_a_limit() {
        let manifest = |count: usize, limit: &str| {
            let one = |nth| format!("[[upstream]]\nname = 'f{nth}'\nurl = 'ws://f'\n");
            let listed: String = (0..count).map(one).collect();
            parsed(&format!("name = 'a'\n{listed}{limit}"))
        };
        assert_eq!(manifest(32, "").unwrap().upstreams.len(), 32);
        assert_eq!(manifest(1000, "[limits]\nupstreams = 1000\n").unwrap().upstreams.len(), 1000);
        let found = manifest(9000, "").unwrap_err().to_string();
        let rule = "upstream: is one upstream too many: there are 9000, and limits.upstreams is 32; remove some, or \
                    write a higher limit";
        assert_eq!(found, format!("tenant.toml:98: {rule}"));
    }

    #[test]
    fn half_a_manifest() {
        for end in 0..GOOD.len() {
            let _ = parsed(&GOOD[..end]);
        }
        let half = GOOD.find("5s").unwrap();
        assert_eq!(problems(&GOOD[..half]).len(), 1);
        assert!(problems(&GOOD[..half])[0].starts_with("9: is not TOML: "));
    }

    #[test]
    fn settings_are_numbers_if_they_look_like_one() {
        let found = problems("name = 'a'\n[settings]\na = 0x\nB = -inf\nC = +5\n");
        let message = "is not an integer of 64 bits; correct it, or write it in quotes";
        assert_eq!(found, [format!("3: settings.a: {message}")]);
    }

    /// A large hostile manifest must not take long.
    #[test]
    fn a_mebibyte_of_mistakes() {
        for line in ["k{}=1\n", "[[schedule]]\nname='a{}'\n", "[channels.'{}*a']\n", "[[schedule]]\n"] {
            let mut text = String::from("name = 'a'\n");
            for index in 0.. {
                if text.len() + line.len() + 8 > 1 << 20 {
                    break;
                }
                text.push_str(&line.replace("{}", &index.to_string()));
            }
            let started = std::time::Instant::now();
            let Problems(listed) = parsed(&text).unwrap_err();
            let unlisted = listed.last().unwrap().message.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
            assert!(unlisted > 10_000 && listed.len() == 51, "{} and {unlisted}", listed.len());
            // Far more than it takes, and far less than it would take to compare each line with every other.
            assert!(started.elapsed() < Duration::from_secs(60), "{line}");
        }
    }

    /// Parses without a panic. What is refused has a reason, on a line of the text.
    fn check(text: &str) {
        if let Err(Problems(problems)) = parsed(text) {
            assert!(!problems.is_empty());
            let lines = text.matches('\n').count() + 1;
            assert!(problems.iter().all(|problem| problem.line.is_none_or(|line| (1..=lines).contains(&line))));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>(), toml in "[\\[\\]{}=.,\"'#\\\\\n a-f0-9_+-]{0,80}") {
            check(&text);
            check(&toml);
        }

        #[test]
        fn mutations_never_panic(
            edits in prop::collection::vec((any::<Index>(), any::<Index>(), "\\PC{0,3}|[\\[\\]{}=.\"'\n]{1,3}"), 1..6),
        ) {
            let mut text: Vec<char> = GOOD.chars().collect();
            for (at, len, new) in edits {
                let start = at.index(text.len() + 1);
                let end = (start + len.index(8)).min(text.len());
                text.splice(start..end, new.chars());
            }
            check(&text.into_iter().collect::<String>());
        }

        #[test]
        fn lines_swapped_or_lost_never_panic(order in prop::collection::vec(any::<Index>(), 0..60)) {
            let lines: Vec<_> = GOOD.lines().collect();
            let text: Vec<_> = order.iter().map(|index| lines[index.index(lines.len())]).collect();
            check(&text.join("\n"));
        }
    }
}

//! `proxy` of relay.toml: the HTTP proxy that connections to partners and guests' requests go through.

use std::{net::IpAddr, path::Path};

use ipnet::IpNet;
use url::Url;

use crate::{
    ProxyConfig, ProxySource,
    document::{Table, Value, quote},
    grants::Secret,
    names::is_host,
    relay::secret::secret,
};

/// The value that takes the proxy from the environment.
const ENVIRONMENT: &str = "environment";

/// Takes the keys from the top level of the file. `folder` is where that is.
pub(super) fn proxy(
    root: &mut Table<'_>,
    folder: &Path,
    secrets: &dyn Fn(&str) -> Option<String>,
) -> Option<ProxyConfig> {
    let source = root.take("proxy");
    let (credentials, no_proxy) = (root.take("proxy-credentials"), root.take("no-proxy"));
    let resolves = root.take("proxy-resolves");
    let Some(source) = source else {
        for value in [credentials, no_proxy, resolves].into_iter().flatten() {
            value.problem("needs a proxy; write that too, or remove it");
        }
        return None;
    };
    let from_environment = source.value.as_str() == Some(ENVIRONMENT);
    if from_environment {
        for value in [&credentials, &no_proxy].into_iter().flatten() {
            value.problem("is in the environment as the proxy is: in HTTPS_PROXY and NO_PROXY; remove it");
        }
    }
    let source = if from_environment { Some(ProxySource::Environment) } else { url(&source) };
    let wanted = "{ env = \"VARIABLE\" } or { file = \"PATH\" }, with user:password there";
    let credentials = credentials.and_then(|value| {
        let place = value.place.clone();
        let text = secret(value, folder, secrets, wanted)?;
        let text = text.trim_end_matches(['\r', '\n']);
        if !text.contains(':') || text.chars().any(char::is_control) {
            place.problem("is not user:password; write both, with a colon between them");
            return None;
        }
        Some(Secret::from(text))
    });
    let no_proxy = no_proxy.and_then(|value| value.array("an array of hosts in quotes"));
    let no_proxy = no_proxy.iter().flatten().filter_map(exception).collect();
    let resolves = resolves.and_then(|value| value.flag()).unwrap_or(false);
    Some(ProxyConfig { source: source?, credentials, no_proxy, resolves })
}

fn url(value: &Value<'_>) -> Option<ProxySource> {
    let text = value.str()?;
    let url = Url::parse(text).ok().filter(|url| url.has_host());
    let why = match url {
        Some(url) if url.scheme() != "http" => "must begin with http://: other proxies are not known here",
        Some(url) if !url.username().is_empty() || url.password().is_some() => {
            "must have no user or password; put them into the environment or a file: proxy-credentials = { env = \"PROXY\" }"
        }
        Some(url) if !matches!(url.path(), "" | "/") || url.query().is_some() || url.port() == Some(0) => {
            "must be host and port alone; write for example \"http://proxy.example.com:3128\""
        }
        Some(url) => return Some(ProxySource::Url(url.to_string())),
        None => "is not a proxy; write for example \"http://proxy.example.com:3128\", or \"environment\"",
    };
    value.problem(why);
    None
}

/// A host that is connected to without the proxy.
fn exception(value: &Value<'_>) -> Option<String> {
    let text = value.str()?;
    let is_known = text == "*"
        || text.parse::<IpNet>().is_ok()
        || text.parse::<IpAddr>().is_ok()
        || is_host(text.strip_prefix('.').unwrap_or(text));
    if !is_known {
        let example = "\"example.com\" (and all below it), \"10.1.2.3\", \"10.0.0.0/8\" or \"*\"";
        value.problem(format!("{} is no host, address or network; write for example {example}", quote(text)));
    }
    is_known.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::problems;

    fn read(text: &str) -> Result<Option<ProxyConfig>, Vec<String>> {
        let mut config = None;
        let secrets =
            |name: &str| (name != "NONE").then(|| if name == "BAD" { "hunter2".into() } else { "u:hunter2".into() });
        let found = problems(text, |mut root| {
            config = proxy(&mut root, Path::new(""), &secrets);
            root.finish();
        });
        assert!(!found.concat().contains("hunter2"));
        if found.is_empty() { Ok(config) } else { Err(found) }
    }

    #[test]
    fn proxies() {
        assert!(matches!(read(""), Ok(None)));
        let text = "proxy = 'http://Proxy.example:3128'\nproxy-credentials = { env = 'P' }\nproxy-resolves = true\n\
            no-proxy = ['a.example', '.b', '10.0.0.0/8', '::1', '*']";
        let Ok(Some(config)) = read(text) else { panic!("{text}") };
        assert_eq!(config.source, ProxySource::Url("http://proxy.example:3128/".into()));
        assert_eq!(config.credentials.as_ref().map(Secret::reveal), Some("u:hunter2"));
        assert_eq!((config.no_proxy.len(), config.resolves), (5, true));
        let Ok(Some(config)) = read("proxy = 'environment'\nproxy-resolves = false") else { panic!() };
        assert_eq!((config.source, config.resolves), (ProxySource::Environment, false));
        for (text, words) in [
            ("proxy = 'https://p:1'", "must begin with http://"),
            ("proxy = 'socks5://p:1'", "must begin with http://"),
            ("proxy = 'p:1'", "is not a proxy"),
            ("proxy = ''", "is not a proxy"),
            ("proxy = 'http://u:hunter2@p:1'", "must have no user"),
            ("proxy = 'http://p:1/x'", "host and port alone"),
            ("proxy = 'http://p:0'", "host and port alone"),
            ("no-proxy = []", "no-proxy: needs a proxy"),
            ("proxy-resolves = true", "proxy-resolves: needs a proxy"),
            ("proxy = 'environment'\nno-proxy = ['a']", "is in the environment"),
            ("proxy = 'http://p:1'\nno-proxy = ['a b']", "is no host"),
            ("proxy = 'http://p:1'\nno-proxy = ['http://a']", "is no host"),
            ("proxy = 'http://p:1'\nproxy-credentials = 'u:hunter2'", "must be { env"),
            ("proxy = 'http://p:1'\nproxy-credentials = { env = 'NONE' }", "is not in the host's environment"),
            ("proxy = 'http://p:1'\nproxy-credentials = { env = 'BAD' }", "is not user:password"),
        ] {
            let found = read(text).unwrap_err().concat();
            assert!(found.contains(words), "{text}: {found}");
        }
    }
}

//! The URL of MySQL: what the driver reads of it, and what is added here.

use std::time::Duration;

use config::MySqlUrl;
use form_urlencoded::Serializer;
use mysql_async::{Opts, OptsBuilder, SslOpts};

use crate::{store::mysql::insert::KEPT_STATEMENTS, tls};

/// How often a connection that waits for an answer asks whether the other machine is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why a URL is refused. The driver's reason is left out: it may repeat parts of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("store.url {0}")]
pub struct BadUrl(&'static str);

/// The value of `ssl-mode`, as MySQL's own programs take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SslMode {
    Disabled,
    /// Encrypted, whoever the server is.
    Required,
    VerifyIdentity,
}

/// Reads a `mysql://` URL as the driver does. The check of the configuration uses it.
pub fn parse_url(url: &str) -> Result<MySqlUrl, &'static str> {
    let opts = opts(url).map_err(|BadUrl(why)| why)?;
    Ok(MySqlUrl { has_database: opts.db_name().is_some(), has_password: opts.pass().is_some() })
}

/// What connects to this URL.
pub fn opts(url: &str) -> Result<Opts, BadUrl> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut prefers_socket, mut others) = (None, false, Serializer::new(String::new()));
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "ssl-mode" => mode = Some(ssl_mode(&value)?),
            "verify_identity" if value == "false" => {
                return Err(BadUrl(
                    "has verify_identity=false, which the driver cannot do; write ssl-mode=REQUIRED to check nothing, \
                     or have the server's certificate name its host",
                ));
            }
            "require_ssl" | "verify_ca" | "verify_identity" if query.contains("ssl-mode=") => {
                return Err(BadUrl("has ssl-mode and another option for TLS; keep ssl-mode"));
            }
            _ => {
                prefers_socket |= key == "prefer_socket" && value == "true";
                others.append_pair(&key, &value);
            }
        }
    }
    let others = others.finish();
    let url = if others.is_empty() { base.to_owned() } else { format!("{base}?{others}") };
    let opts = Opts::from_url(&url)
        .map_err(|_| BadUrl("is not a MySQL URL; write mysql://USER:PASSWORD@HOST:3306/DATABASE"))?;
    let tls = match mode {
        None => opts.ssl_opts().cloned(),
        Some(SslMode::Disabled) => None,
        Some(SslMode::Required) => Some(SslOpts::default().with_danger_accept_invalid_certs(true)),
        Some(SslMode::VerifyIdentity) => Some(SslOpts::default()),
    };
    let opts = OptsBuilder::from_opts(opts)
        .ssl_opts(tls.map(trusting))
        .stmt_cache_size(KEPT_STATEMENTS)
        .tcp_keepalive(Some(KEEPALIVE))
        // A path that the server names may be another server's here.
        .prefer_socket(prefers_socket)
        // Each statement is its own transaction, whatever the server's default.
        .setup(vec!["SET autocommit = 1"]);
    Ok(opts.into())
}

fn ssl_mode(value: &str) -> Result<SslMode, BadUrl> {
    match value {
        "DISABLED" => Ok(SslMode::Disabled),
        "REQUIRED" => Ok(SslMode::Required),
        "VERIFY_IDENTITY" => Ok(SslMode::VerifyIdentity),
        "PREFERRED" => Err(BadUrl(
            "has ssl-mode=PREFERRED, which anybody on the way can turn off; write DISABLED, REQUIRED or VERIFY_IDENTITY",
        )),
        "VERIFY_CA" => Err(BadUrl(
            "has ssl-mode=VERIFY_CA, which the driver cannot do; write VERIFY_IDENTITY, or REQUIRED to check nothing",
        )),
        _ => Err(BadUrl("has an unknown ssl-mode; write DISABLED, REQUIRED or VERIFY_IDENTITY")),
    }
}

/// TLS to MySQL trusts the same roots as TLS to upstreams.
fn trusting(tls: SslOpts) -> SslOpts {
    // The driver would fail on a root that it cannot parse.
    // `serve` has read them before, and has ended with an error if it could not.
    let roots = tls::roots().unwrap_or_default().iter().map(|root| root.to_vec().into()).collect();
    tls.with_disable_built_in_roots(true).with_root_certs(roots)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tls(query: &str) -> Option<bool> {
        let opts = opts(&format!("mysql://user@db/records{query}")).unwrap();
        opts.ssl_opts().map(SslOpts::accept_invalid_certs)
    }

    #[test]
    fn ssl_mode_means_what_it_means_to_the_servers_own_programs() {
        assert_eq!([tls(""), tls("?ssl-mode=DISABLED")], [None, None]);
        assert_eq!(tls("?ssl-mode=REQUIRED"), Some(true));
        assert_eq!([tls("?ssl-mode=VERIFY_IDENTITY"), tls("?require_ssl=true")], [Some(false); 2]);
        assert_eq!(tls("?require_ssl=true&verify_ca=false"), Some(true));
        for refused in [
            "ssl-mode=PREFERRED",
            "ssl-mode=VERIFY_CA",
            "ssl-mode=required",
            "require_ssl=true&verify_identity=false",
            "require_ssl=true&ssl-mode=REQUIRED",
            "verify_identity=true&ssl-mode=REQUIRED",
            "nonsense=1",
        ] {
            opts(&format!("mysql://user@db/records?{refused}")).unwrap_err();
        }
    }

    #[test]
    fn a_socket_is_used_only_if_the_url_asks_for_it() {
        let prefers = |query: &str| opts(&format!("mysql://user:p%40ss@db/records{query}")).unwrap().prefer_socket();
        assert!(!prefers("") && !prefers("?prefer_socket=false") && prefers("?prefer_socket=true"));
        assert_eq!(opts("mysql://user:p%40ss@db/records?prefer_socket=true").unwrap().pass(), Some("p@ss"));
    }
}

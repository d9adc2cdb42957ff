//! `[store]` of relay.toml: where records are kept.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use toml::de::DeValue;

use crate::{
    StoreConfig,
    document::{Location, Table, Value},
    grants::Secret,
    relay::{MySqlParser, MySqlUrl, secret::secret_from},
};

/// The default file, beside relay.toml.
const FILE: &str = "data/records.sqlite";
/// The range is from what a test needs to what one machine has.
const SIZE: RangeInclusive<u64> = 64 << 10..=1 << 44;
const EXAMPLE: &str = "write \"sqlite:data/records.sqlite\" or { env = \"STORE_URL\" } with a mysql:// URL in it";

/// Reads the section; `relay` is the file it stands in.
pub(super) fn store(
    mut table: Table<'_>,
    relay: &Path,
    secrets: &dyn Fn(&str) -> Option<String>,
    mysql: MySqlParser,
) -> StoreConfig {
    let folder = relay.parent().unwrap_or(Path::new(""));
    let mut config = StoreConfig { file: folder.join(FILE), size: StoreConfig::SIZE, mysql: None, mysql_file: None };
    let url = table.take("url");
    let file = table.take("file");
    if let Some(name) = file.as_ref().and_then(Value::str) {
        config.file = folder.join(name);
    }
    if let Some(value) = url {
        match (source(value, folder, secrets, mysql), file) {
            (Some(StoreUrl::Sqlite(path)), None) => config.file = folder.join(path),
            (Some(StoreUrl::Sqlite(_)), Some(file)) => file.problem("is named by url already; remove one"),
            (Some(StoreUrl::MySql { url, file: from, .. }), _) => (config.mysql, config.mysql_file) = (Some(url), from),
            (None, _) => {}
        }
    }
    config.size = table.size("size", &SIZE).map_or(config.size, |size| size as u64);
    table.finish();
    config
}

enum StoreUrl {
    Sqlite(String),
    MySql { url: Secret, has_password: bool, file: Option<PathBuf> },
}

/// The URL: written out, or taken from the environment or a file. Problems do not repeat it.
fn source(
    value: Value<'_>,
    folder: &Path,
    secrets: &dyn Fn(&str) -> Option<String>,
    mysql: MySqlParser,
) -> Option<StoreUrl> {
    let place = value.place.clone();
    if let DeValue::String(text) = &value.value {
        let source = parse(&place, text, mysql)?;
        if matches!(&source, StoreUrl::MySql { has_password: true, .. }) {
            place.problem("has a password in it; put the URL into the environment or a file: { env = \"STORE_URL\" }");
            return None;
        }
        return Some(source);
    }
    let wanted = "a URL in quotes, { env = \"VARIABLE\" } or { file = \"PATH\" }";
    let (url, from) = secret_from(value, folder, secrets, wanted)?;
    let source = parse(&place, url.trim(), mysql)?;
    Some(match source {
        StoreUrl::MySql { url, has_password, .. } => StoreUrl::MySql { url, has_password, file: from },
        sqlite => sqlite,
    })
}

fn parse(place: &Location<'_>, url: &str, mysql: MySqlParser) -> Option<StoreUrl> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        if path.is_empty() {
            place.problem(format!("names no file; {EXAMPLE}"));
            return None;
        }
        return Some(StoreUrl::Sqlite(path.to_owned()));
    }
    if !url.starts_with("mysql://") {
        place.problem(format!("is neither sqlite: nor mysql://; {EXAMPLE}"));
        return None;
    }
    match mysql(url) {
        Ok(MySqlUrl { has_database: true, has_password }) => {
            Some(StoreUrl::MySql { url: url.into(), has_password, file: None })
        }
        Ok(_) => {
            place.problem("names no database; write mysql://USER:PASSWORD@HOST:3306/DATABASE");
            None
        }
        Err(why) => {
            place.problem(why);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use mysql_async::Opts;

    use super::*;
    use crate::document::Document;

    const TLS: &str = "mysql://user:hush@db/records?require_ssl=true";

    /// What the driver says of a URL.
    fn driver(url: &str) -> Result<MySqlUrl, &'static str> {
        let opts = Opts::from_url(url).map_err(|_| "is not a MySQL URL")?;
        Ok(MySqlUrl { has_database: opts.db_name().is_some(), has_password: opts.pass().is_some() })
    }

    fn opts(url: &Secret) -> Opts {
        Opts::from_url(url.reveal()).unwrap()
    }

    /// What a section says; its variables are `TLS` and `BAD`.
    fn read(section: &str) -> Result<StoreConfig, String> {
        let text = format!("[store]\n{section}");
        let relay = Path::new("/nowhere/relay.toml");
        let document = Document::new(relay, &text);
        let config = {
            let mut root = document.parse().unwrap_or_else(|root| root);
            let secrets = |name: &str| match name {
                "TLS" => Some(TLS.to_owned()),
                "BAD" => Some("mysql://user:hush@db:port/records".to_owned()),
                _ => None,
            };
            store(root.section("store"), relay, &secrets, driver)
        };
        document.conclude(Some(config)).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_file_beside_relay_toml_is_the_store() {
        let file = |section| read(section).unwrap().file;
        assert_eq!(file(""), Path::new("/nowhere/data/records.sqlite"));
        assert_eq!(file("file = \"r.sqlite\""), Path::new("/nowhere/r.sqlite"));
        assert_eq!(file("url = \"sqlite:/var/r.sqlite\""), Path::new("/var/r.sqlite"));
        assert!(read("").unwrap().mysql.is_none());
        assert_eq!((read("").unwrap().size, read("size = \"2MiB\"").unwrap().size), (1 << 30, 2 << 20));
    }

    #[test]
    fn a_url_of_mysql_makes_it_the_outbox() {
        let config = read("url = \"mysql://user@db/records\"\nfile = \"outbox.sqlite\"").unwrap();
        assert_eq!(config.file, Path::new("/nowhere/outbox.sqlite"));
        let opts = self::opts(&config.mysql.unwrap());
        assert_eq!((opts.ip_or_hostname(), opts.db_name(), opts.ssl_opts()), ("db", Some("records"), None));
        let opts = self::opts(&read("url = { env = \"TLS\" }").unwrap().mysql.unwrap());
        assert_eq!(opts.pass(), Some("hush"));
        let tls = opts.ssl_opts().unwrap();
        assert!(!tls.accept_invalid_certs() && !tls.skip_domain_validation());
    }

    #[test]
    fn a_url_may_stand_in_a_file() {
        let file = std::env::temp_dir().join(format!("edge-relay-store-url-{}", std::process::id()));
        std::fs::write(&file, format!("{TLS}\n")).unwrap();
        let opts = self::opts(&read(&format!("url = {{ file = {file:?} }}")).unwrap().mysql.unwrap());
        std::fs::remove_file(file).unwrap();
        assert_eq!((opts.pass(), opts.db_name()), (Some("hush"), Some("records")));
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        for (section, words) in [
            ("url = \"postgres://db/x\"", "store.url: is neither sqlite: nor mysql://"),
            ("url = \"sqlite:\"", "store.url: names no file"),
            ("url = \"mysql://db\"", "store.url: names no database"),
            ("url = \"mysql://user:hush@db/x\"", "store.url: has a password in it"),
            ("url = \"mysql://db/x?nonsense=1\"", "store.url: is not a MySQL URL"),
            ("url = { env = \"BAD\" }", "store.url: is not a MySQL URL"),
            ("url = { env = \"NONE\" }", "\"NONE\" is not in the host's environment"),
            ("url = { file = \"missing\" }", "\"missing\" cannot be read"),
            ("url = { env = \"TLS\", file = \"x\" }", "store.url: names no value, or two"),
            ("url = {}", "store.url: names no value, or two"),
            ("url = { variable = \"TLS\" }", "store.url.variable: unknown key"),
            ("url = 5", "store.url"),
            ("url = \"sqlite:a\"\nfile = \"b\"", "store.file: is named by url already"),
            ("size = \"1KiB\"", "store.size"),
            ("size = \"much\"", "store.size"),
            ("sise = \"1MiB\"", "store.sise: unknown key"),
        ] {
            let problems = read(section).unwrap_err();
            assert!(problems.contains(words) && !problems.contains("hush"), "{section}: {problems}");
        }
    }
}

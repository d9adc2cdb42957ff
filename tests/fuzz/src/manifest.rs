//! Configuration: `relay.toml` and a tenant's manifest, read as `serve` does.

use std::{env, fs, io, path::Path, process};

use config::MySqlUrl;

/// The line between `relay.toml` and the manifest.
const NEXT: &[u8] = b"# tenant.toml\n";

/// Takes the text of both files. Either they are a configuration, or there are problems to print.
pub fn manifest(input: &[u8]) {
    let at = input.windows(NEXT.len()).position(|bytes| bytes == NEXT);
    let (relay, tenant) = match at {
        Some(at) => (input.get(..at).unwrap_or_default(), input.get(at + NEXT.len()..).unwrap_or_default()),
        None => (&b"tenants = \"tenants\""[..], input),
    };
    let folder = env::temp_dir().join(format!("edge-relay-fuzz-{}", process::id()));
    let file = folder.join("relay.toml");
    let written = write(&file, relay).and_then(|()| write(&folder.join("tenants/fuzzed/tenant.toml"), tenant));
    assert!(written.is_ok(), "{}: {written:?}", folder.display());
    match config::load(&file, any_mysql_url) {
        Ok(config) => drop(format!("{config:?}")),
        Err(invalid) => assert!(!invalid.to_string().is_empty()),
    }
    let _ = fs::remove_dir_all(folder);
}

fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, text)
}

/// Replaces the MySQL driver's parser, which is not tested here.
fn any_mysql_url(url: &str) -> Result<MySqlUrl, &'static str> {
    Ok(MySqlUrl { has_database: true, has_password: url.contains('@') })
}

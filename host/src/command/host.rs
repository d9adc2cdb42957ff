//! The host that components and tenants are checked for: that of a relay.toml, or one with defaults.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use config::{Bounds, HostLimits};

use crate::{command::Failure, component::EngineSource, metrics::Metrics, store};

/// Where the code that checks compile is kept, in the user's folder of caches.
const CACHE: &str = "edge-relay/compiled";

/// The engine of the host with this configuration, with its limits and its cache, and what it allows.
///
/// Without a configuration the limits are any host's defaults, nothing is allowed, and the cache is the user's own.
pub fn checked(config: Option<&Path>) -> Result<(EngineSource, Arc<Bounds>), Failure> {
    let (limits, cache, bounds) = match config {
        Some(file) => {
            let host = config::load_host(file, store::parse_mysql_url)
                .map_err(|problems| Failure::usage(problems.to_string()))?;
            let bounds = host.folder.map(|folder| folder.bounds).unwrap_or_default();
            (host.limits, host.cache, bounds)
        }
        None => (HostLimits::default(), user_cache(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")), Arc::default()),
    };
    Ok((EngineSource::new(limits, cache, Arc::new(Metrics::new())), bounds))
}

/// The user's cache: in the folder of caches, or else in `.cache` of the home. Relative paths are ignored, as the [XDG
/// Base Directory Specification](https://specifications.freedesktop.org/basedir/latest/) wants it. `None`: the user has
/// no home, so nothing is kept.
fn user_cache(caches: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let caches = caches.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
    Some(caches.join(CACHE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_cache_is_where_the_specification_has_it() {
        for (caches, home, cache) in [
            (Some("/c"), Some("/h"), Some("/c/edge-relay/compiled")),
            (Some("c"), Some("/h"), Some("/h/.cache/edge-relay/compiled")),
            (Some(""), Some("/h"), Some("/h/.cache/edge-relay/compiled")),
            (None, Some("/h"), Some("/h/.cache/edge-relay/compiled")),
            (None, Some("h"), None),
            (None, None, None),
        ] {
            let found = user_cache(caches.map(OsString::from), home.map(OsString::from));
            assert_eq!(found, cache.map(PathBuf::from), "{caches:?}, {home:?}");
        }
    }
}

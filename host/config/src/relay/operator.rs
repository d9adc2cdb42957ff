//! `[grants]` of relay.toml: what the operator lets tenants be granted.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net};

use crate::{
    document::{Table, Value, quote},
    grants::{Allowed, AllowedFolder, AllowedHost, AllowedNetwork},
    names::{host, name},
};

/// The host's own files. A tenant that could write them would have the power of the host, or of the operator. `None`:
/// the file's place could not be read.
pub(super) struct HostFiles<'r> {
    /// `relay.toml` itself.
    pub(super) relay: &'r Path,
    /// The file of records; its journal is beside it.
    pub(super) store: Option<&'r Path>,
    /// The folder of compiled code.
    pub(super) cache: Option<&'r Path>,
}

impl HostFiles<'_> {
    /// Why a folder, which has its links followed, cannot be listed. `None`: it can.
    fn problem_with(&self, listed: &Path) -> Option<String> {
        let own = [Some(self.relay), self.store, self.cache];
        // Checks both the file and the folder of its name, which may be a link.
        let within = |file: &&Path| {
            real(file).starts_with(listed) || file.parent().is_some_and(|folder| real(folder).starts_with(listed))
        };
        if let Some(file) = own.into_iter().flatten().find(within) {
            return Some(format!("has the host's own {} in it; list a folder apart", file.display()));
        }
        let cache = self.cache.map(real).filter(|cache| listed.starts_with(cache));
        cache.map(|cache| format!("is in the host's cache of compiled code, {}; list a folder apart", cache.display()))
    }
}

/// A path with the links followed in the part that exists. The host makes the rest there.
fn real(path: &Path) -> PathBuf {
    let path = if path.is_relative() { Path::new(".").join(path) } else { path.to_owned() };
    let there = path.ancestors().find_map(|there| Some((there, there.canonicalize().ok()?)));
    let Some((there, real)) = there else { return path };
    match path.strip_prefix(there) {
        Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
        _ => real,
    }
}

/// Reads the section of a `relay.toml`. Folders that have the host's own files in them cannot be listed.
pub(super) fn allowed(mut table: Table<'_>, files: &HostFiles<'_>) -> Allowed {
    let listed = table.take("folders").and_then(|value| value.array("an array of folders in quotes"));
    let folders = listed.into_iter().flatten().filter_map(|value| allowed_folder(value, files)).collect();
    let listed = table.take("networks").and_then(|value| value.array("an array of networks in quotes"));
    let networks = listed.into_iter().flatten().filter_map(allowed_network).collect();
    let listed = table.take("hosts").and_then(|value| value.array("an array of host names in quotes"));
    let hosts = listed.into_iter().flatten().filter_map(allowed_host).collect();
    let write = table.take("write").and_then(|value| value.flag()).unwrap_or(false);
    table.finish();
    Allowed { folders, networks, hosts, write }
}

/// A host name, or `{ host = "…", tenants = ["…"] }`.
fn allowed_host(value: Value<'_>) -> Option<AllowedHost> {
    if value.value.is_str() {
        return Some(AllowedHost { host: host(&value)?.value, tenants: Vec::new() });
    }
    let mut table = value.table("a host name in quotes, or { host = \"feed.example.com\", tenants = [\"market\"] }")?;
    let host = table.require("host", "host = \"feed.example.com\"").and_then(|value| host(&value));
    let tenants = tenants(&mut table);
    table.finish();
    Some(AllowedHost { host: host?.value, tenants: tenants? })
}

/// A path, or `{ path = "…", write = true, tenants = ["…"] }`; a relative one is beside relay.toml.
fn allowed_folder(value: Value<'_>, files: &HostFiles<'_>) -> Option<AllowedFolder> {
    if value.value.is_str() {
        return Some(AllowedFolder { path: existing(&value, files)?, write: false, tenants: Vec::new() });
    }
    let mut table = value.table("a folder in quotes, or { path = \"/srv/prices\", write = true }")?;
    let path = table.require("path", "path = \"/srv/prices\"").and_then(|value| existing(&value, files));
    let write = table.take("write").and_then(|value| value.flag()).unwrap_or(false);
    let tenants = tenants(&mut table);
    table.finish();
    Some(AllowedFolder { path: path?, write, tenants: tenants? })
}

/// An existing folder, with links followed, that has none of the host's own files.
fn existing(value: &Value<'_>, files: &HostFiles<'_>) -> Option<PathBuf> {
    let text = value.str()?;
    let folder = files.relay.parent().unwrap_or(Path::new(""));
    let message = match folder.join(text).canonicalize() {
        Ok(path) if path.is_dir() => match files.problem_with(&path) {
            None => return Some(path),
            Some(problem) => problem,
        },
        Ok(_) => "is not a folder; name one".into(),
        Err(error) => format!("cannot be read ({error}); make the folder, or remove it here"),
    };
    value.problem(format!("{} {message}", quote(text)));
    None
}

/// A network, or `{ network = "…", tenants = ["…"] }`.
fn allowed_network(value: Value<'_>) -> Option<AllowedNetwork> {
    if value.value.is_str() {
        return Some(AllowedNetwork { network: network(&value)?, tenants: Vec::new() });
    }
    let mut table = value.table("a network in quotes, or { network = \"10.0.0.0/8\", tenants = [\"market\"] }")?;
    let network = table.require("network", "network = \"10.0.0.0/8\"").and_then(|value| network(&value));
    let tenants = tenants(&mut table);
    table.finish();
    Some(AllowedNetwork { network: network?, tenants: tenants? })
}

/// The tenants that an entry is for. Empty: the key is missing, and the entry is for all. `None`: a name is wrong, and
/// the entry must not be for all by mistake.
fn tenants(table: &mut Table<'_>) -> Option<Vec<String>> {
    let Some(value) = table.take("tenants") else { return Some(Vec::new()) };
    let place = value.place.clone();
    let listed = value.array("an array of tenants' names in quotes")?;
    if listed.is_empty() {
        place.problem("names no tenant; name some, or remove it: then it is for all");
        return None;
    }
    listed.iter().map(|value| name(value).map(|name| name.value)).collect()
}

/// A network, or one address, such as one of `trusted-proxies`.
pub(super) fn network(value: &Value<'_>) -> Option<IpNet> {
    let text = value.str()?;
    let network = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if network.is_none() {
        let example = "write for example \"10.0.0.0/8\" or \"::1\"";
        value.problem(format!("{} is neither a network nor an address; {example}", quote(text)));
    }
    network.map(|network| in_ipv4(network).unwrap_or(network).trunc())
}

/// A network of IPv4 that is written as IPv6 (RFC 4291 section 2.5.5.2), as peers of a listener for both are shown.
fn in_ipv4(network: IpNet) -> Option<IpNet> {
    let IpNet::V6(network) = network else { return None };
    let address = network.addr().to_ipv4_mapped()?;
    Ipv4Net::new(address, network.prefix_len().checked_sub(96)?).ok().map(IpNet::V4)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::document::Document;

    /// Reads the section of a relay.toml in `/usr`.
    fn read(section: &str) -> Result<Allowed, String> {
        let text = format!("[grants]\n{section}");
        let relay = Path::new("/usr/relay.toml");
        let document = Document::new(relay, &text);
        let read = {
            let mut root = document.parse().unwrap_or_else(|root| root);
            allowed(root.section("grants"), &HostFiles { relay, store: None, cache: None })
        };
        document.conclude(Some(read)).map_err(|problems| problems.to_string())
    }

    #[test]
    fn nothing_by_default() {
        let allowed = read("").unwrap();
        assert!(allowed.folders.is_empty() && allowed.networks.is_empty() && !allowed.write);
    }

    #[test]
    fn folders_and_networks_for_all_or_for_some() {
        let section = "write = true\nfolders = ['/etc', { path = 'lib', write = true, tenants = ['a'] }]\n\
            networks = ['10.1.2.3/8', { network = '::1', tenants = ['b'] }]";
        let allowed = read(section).unwrap();
        let here = Path::new("/usr/lib").canonicalize().unwrap();
        assert!(allowed.has_folder("any", Path::new("/etc/x"), false));
        assert!(!allowed.has_folder("any", Path::new("/etc/x"), true) && !allowed.has_folder("any", &here, false));
        assert!(
            allowed.has_folder("a", &here.join("x"), true) && !allowed.has_folder("a", Path::new("/usr/libx"), false)
        );
        let has = |tenant: &str, network: &str| allowed.has_network(tenant, &network.parse().unwrap());
        assert!(has("any", "10.200.0.0/16") && has("b", "::1/128"));
        assert!(!has("any", "::1/128") && !has("any", "10.0.0.0/7") && allowed.write);
    }

    #[test]
    fn mistakes() {
        for (section, words) in [
            ("folders = '/usr'", "grants.folders: must be an array of folders"),
            ("folders = ['/nowhere/at/all']", "cannot be read"),
            ("folders = ['/etc/hosts']", "is not a folder"),
            ("folders = [{ write = true }]", "grants.folders.path: is missing"),
            ("folders = [{ path = '/etc', tenants = [] }]", "names no tenant"),
            ("folders = [{ path = '/etc', tenants = ['A'] }]", "is not a name"),
            ("folders = [{ path = '/etc', wirte = true }]", "did you mean `write`?"),
            ("networks = ['example.com']", "is neither a network nor an address"),
            ("networks = [{ network = '10.0.0.0/8', tenants = 'a' }]", "must be an array of tenants' names"),
            ("write = 'yes'", "must be true or false"),
            ("http = []", "grants.http: unknown key; known here: folders, networks, hosts, write"),
        ] {
            let problems = read(section).unwrap_err();
            assert!(problems.contains(words), "{section}: {problems}");
        }
    }
}

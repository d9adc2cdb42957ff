#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{
    Bounds, TenantConfig,
    grants::{Allowed, AllowedFolder, AllowedNetwork},
    held::HeldFolder,
    manifest,
};

/// A tenants' folder with the tenant `t` in it, and what the operator allows; removed after the test.
struct Place {
    root: PathBuf,
    allowed: Allowed,
}

impl Place {
    /// `tenants/t` with folders and links, `tenants/u`, and `shared` and `secret` beside them.
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("edge-relay-grants-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        for folder in ["tenants/t/data/deep", "tenants/t/code", "tenants/u/data", "shared/prices", "secret"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let root = root.canonicalize().unwrap();
        let place = Self { root, allowed: Allowed::default() };
        place.write("tenants/t/code/job.wasm", "");
        place.write("tenants/t/key", "hunter2\r\n");
        place.write("tenants/t/data/key", "hunter2 of data");
        place.write("tenants/u/key", "hunter2");
        place.write("secret/key", "hunter2\n");
        for (link, to) in [
            ("tenants/t/out", "../../secret"),
            ("tenants/t/root", "/"),
            ("tenants/t/in", "data/deep"),
            ("tenants/t/itself", "."),
            ("tenants/t/link.key", "../../secret/key"),
            ("shared/prices/out", "../../secret"),
        ] {
            symlink(to, place.root.join(link)).unwrap();
        }
        place
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.root.join(path), text).unwrap();
    }

    fn path(&self, path: &str) -> String {
        self.root.join(path).to_str().unwrap().to_owned()
    }

    fn allow(&mut self, path: &str, write: bool, tenants: &[&str]) {
        let tenants = tenants.iter().map(ToString::to_string).collect();
        self.allowed.folders.push(AllowedFolder { path: self.root.join(path), write, tenants });
    }

    fn read(&self, grants: &str) -> Result<TenantConfig, Vec<String>> {
        let environment = |name: &str| match name {
            "T__TOKEN" => Some("hunter2".to_owned()),
            "U__TOKEN" | "PATH" => Some("hunter3".to_owned()),
            _ => None,
        };
        let file = self.root.join("tenants/t/tenant.toml");
        let text = format!(
            "name = 't'\ncomponents.job = 'code/job.wasm'\nschedule = [{{ name = 'x', every = '1s' }}]\n\
             settings.taken = 1\n[grants]\n{grants}\n"
        );
        let bounds = Bounds { allowed: self.allowed.clone().into(), ..Bounds::default() };
        let held = HeldFolder::open(&self.root.join("tenants/t")).unwrap();
        let (_, read) = manifest::read(&text, &file, &held, &bounds, &environment);
        read.map_err(|problems| {
            let shown = problems.to_string();
            assert!(!shown.contains("hunter"), "{shown}");
            shown.lines().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
        })
    }

    /// The only problem, without its file and line.
    fn problem(&self, grants: &str) -> String {
        let problems = self.read(grants).map(|config| config.grants).unwrap_err();
        assert_eq!(problems.len(), 1, "{grants}: {problems:?}");
        problems[0].clone()
    }

    fn refuses(&self, grants: &str, words: &str) {
        let problem = self.problem(grants);
        assert!(problem.contains(words), "{grants}: {problem}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn nothing_is_granted_by_default() {
    let grants = Place::new().read("").unwrap().grants;
    assert!(grants.folders.is_empty() && grants.environment.is_empty() && grants.secrets.is_empty());
    assert!(!grants.http.has_address([8, 8, 8, 8].into(), 80));
}

#[test]
fn folders_of_the_tenants_own() {
    let mut place = Place::new();
    let grants =
        place.read("folders = { '/data' = 'data', '/a/b' = './data/deep', '/in' = { path = 'in' } }").unwrap().grants;
    let folders: Vec<_> = grants.folders.iter().map(|folder| (folder.guest.as_str(), folder.write)).collect();
    assert_eq!(folders, [("/data", false), ("/a/b", false), ("/in", false)]);
    assert_eq!(grants.folders[2].path, place.root.join("tenants/t/data/deep"), "where the link leads");
    assert_eq!(grants.folders[0].handle().read_link().unwrap(), place.root.join("tenants/t/data"));
    for (path, words) in [
        ("..", "is not within the tenant's folder"),
        ("data/../../u/data", "is not within the tenant's folder"),
        ("", "is the tenant's own folder"),
        (".", "is the tenant's own folder"),
        ("itself", "is the tenant's own folder"),
        ("out", "leads out of the tenant's folder"),
        ("root", "leads out of the tenant's folder"),
        ("code", "has job.wasm in it"),
        ("none", "cannot be opened"),
        ("key", "cannot be opened"),
    ] {
        place.refuses(&format!("folders = {{ '/data' = '{path}' }}"), words);
    }
    place.refuses("folders = { '/data' = { path = 'data', write = true } }", "is not to be written: relay.toml");
    place.allowed.write = true;
    let grants = place.read("folders = { '/data' = { path = 'data', write = true } }").unwrap().grants;
    assert!(grants.folders[0].write && !grants.read_only().folders[0].write);
}

/// Otherwise a guest could write its own limits and grants.
#[test]
fn no_folder_has_the_manifest_in_it() {
    let place = Place::new();
    place.write("tenants/t/data/deep/real.toml", "");
    symlink("data/deep/real.toml", place.root.join("tenants/t/tenant.toml")).unwrap();
    place.refuses("folders = { '/data' = 'data' }", "has real.toml in it");
    assert_eq!(place.read("folders = {}").unwrap().named, [place.root.join("tenants/t/code/job.wasm")]);
}

/// The file that was checked is loaded, wherever a link leads by then. A change of the link counts as a change.
#[test]
fn code_is_where_the_links_led() {
    let place = Place::new();
    let (link, code) = (place.root.join("tenants/t/code/job.wasm"), place.root.join("tenants/t/code/v1.wasm"));
    fs::rename(&link, &code).unwrap();
    symlink("v1.wasm", &link).unwrap();
    let config = place.read("").unwrap();
    assert_eq!((config.job, config.named), (Some(code), vec![link]));
}

#[test]
fn folders_that_the_operator_lists() {
    let mut place = Place::new();
    let (shared, prices) = (place.path("shared"), place.path("shared/prices"));
    let ask = |path: &str, write: bool| format!("folders = {{ '/s' = {{ path = '{path}', write = {write} }} }}");
    place.refuses(&ask(&shared, false), "is not for this tenant to be read; have the operator list it");
    place.allow("shared", false, &["u"]);
    place.refuses(&ask(&shared, false), "is not for this tenant to be read");
    place.allow("shared", false, &["u", "t"]);
    assert_eq!(place.read(&ask(&prices, false)).unwrap().grants.folders[0].path, place.root.join("shared/prices"));
    place.refuses(&ask(&shared, true), "is not for this tenant to be written");
    place.allow("shared/prices", true, &[]);
    assert!(place.read(&ask(&prices, true)).unwrap().grants.folders[0].write);
    place.refuses(&ask(&shared, true), "is not for this tenant to be written");
    place.refuses(&ask(&place.path("shared/prices/out"), true), "is not for this tenant");
    place.refuses(&ask(&place.path("shared/../secret"), false), "is not for this tenant");
    // The tenants' folders are never shared, whatever the operator lists.
    place.allow("", true, &[]);
    for path in ["tenants/u/data", "tenants/u", "tenants", "tenants/t/data", ""] {
        place.refuses(&ask(&place.path(path), false), "is not for this tenant");
    }
    assert!(place.read(&ask(&place.path("secret"), true)).is_ok());
    // Another tenant's folder is a link to it.
    symlink("../secret", place.root.join("tenants/v")).unwrap();
    place.refuses(&ask(&place.path("secret"), true), "is not for this tenant");
    assert!(place.read(&ask(&prices, true)).is_ok());
}

#[test]
fn what_a_path_leads_to_later_makes_no_difference() {
    let place = Place::new();
    let grants = place.read("folders = { '/data' = 'data' }").unwrap().grants;
    fs::rename(place.root.join("tenants/t/data"), place.root.join("tenants/t/moved")).unwrap();
    symlink(place.root.join("secret"), place.root.join("tenants/t/data")).unwrap();
    assert_eq!(fs::read_to_string(grants.folders[0].handle().join("key")).unwrap(), "hunter2 of data");
    place.refuses("folders = { '/data' = 'data' }", "leads out of the tenant's folder");
}

#[test]
fn paths_of_guests() {
    let place = Place::new();
    for guest in ["data", "", "/", "/a//b", "/a/../b", "/.", "/a/", "\\u0000"] {
        let problem = place.problem(&format!("folders = {{ \"{guest}\" = 'data' }}"));
        assert!(problem.contains("is not a path that guests can have"), "{guest}: {problem}");
    }
}

#[test]
fn hosts_addresses_and_networks() {
    let mut place = Place::new();
    let http = "http = ['API.example.com', 'api.example.com:8443', '*.example.org', '8.8.8.8', '8.8.4.4:53', '9.9.9.0/24', \
        '[2606:4700::1]:8080', '2606:4700::2']";
    let reach = place.read(http).unwrap().grants.http.clone();
    assert!(reach.has_name("api.example.com", 443) && reach.has_name("api.example.com", 8443));
    assert!(reach.has_name("x.example.org", 80) && !reach.has_name("example.org", 80));
    let has = |address: &str, port| reach.has_address(address.parse().unwrap(), port);
    assert!(has("8.8.8.8", 80) && has("8.8.4.4", 53) && !has("8.8.4.4", 80) && has("9.9.9.200", 443));
    assert!(has("2606:4700::1", 8080) && has("2606:4700::2", 443) && !has("2606:4700::1", 443));
    for bad in [
        "",
        "*",
        "*.",
        ".com",
        "a..b",
        "http://a.example.com",
        "a.example.com/path",
        "user@a.example.com",
        "a b",
        "a:0",
        "a:99999",
        "a:",
        "a.*.com",
        "*a.com",
        "10.1.2.3:",
        "1.2.3",
        "0x7f.1",
        "2130706433",
        "127.0x1",
        "[::1",
        "1.2.3.4/33",
    ] {
        let problem = place.problem(&format!("http = ['{bad}']"));
        assert!(problem.contains("is no host, address or network"), "{bad}: {problem}");
    }
    let private = [
        "127.0.0.1",
        "10.1.2.3:8000",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "[::1]:80",
        "fd00::/8",
        "::ffff:127.0.0.1",
        "169.254.169.254",
    ];
    for private in private {
        place.refuses(&format!("http = ['{private}']"), "is not on the public Internet; have the operator list it");
    }
    place.allowed.networks = ["10.0.0.0/8", "127.0.0.0/8"]
        .map(|network| AllowedNetwork { network: network.parse().unwrap(), tenants: Vec::new() })
        .into();
    assert!(place.read("http = ['10.1.2.3:8000', '10.0.0.0/8', '10.2.0.0/16', '::ffff:127.0.0.1']").is_ok());
    for private in ["10.0.0.0/7", "192.168.1.1", "0.0.0.0/0"] {
        place.refuses(&format!("http = ['{private}']"), "is not on the public Internet");
    }
    place.allowed.networks[0].tenants = vec!["u".into()];
    place.refuses("http = ['10.1.2.3']", "is not on the public Internet");
}

#[test]
fn values_of_the_environment_and_of_files() {
    let mut place = Place::new();
    let grants = "environment = { LOG = 'debug', TOKEN = { env = 'T__TOKEN' }, FILE = { file = 'key' } }\n\
        secrets = { key = { file = 'key' }, token = { env = 'T__TOKEN' } }";
    let config = place.read(grants).unwrap();
    let shown = |values: &[(String, crate::grants::Secret)]| -> Vec<_> {
        values.iter().map(|(name, value)| format!("{name}={}", value.reveal())).collect()
    };
    assert_eq!(shown(&config.grants.environment), ["LOG=debug", "TOKEN=hunter2", "FILE=hunter2"]);
    assert_eq!(shown(&config.grants.secrets), ["key=hunter2", "token=hunter2"]);
    assert!(!format!("{config:?}").contains("hunter2"));
    let key = place.root.join("tenants/t/key");
    assert_eq!(
        config.files().iter().filter(|file| **file == key).count(),
        2,
        "a change of it is a change of the tenant"
    );
    for (secret, words) in [
        ("{ env = 'U__TOKEN' }", "a tenant reads only its own variables"),
        ("{ env = 'PATH' }", "a tenant reads only its own variables"),
        ("{ env = 'T__NONE' }", "is not in the environment"),
        ("{ file = 'none' }", "cannot be read"),
        ("{ file = 'data' }", "it is not a file"),
        ("{ file = '../u/key' }", "is neither in the tenant's folder nor in one that the operator allows"),
        ("{ file = 'link.key' }", "is neither in the tenant's folder"),
        ("{}", "names no value, or two"),
        ("{ env = 'T__TOKEN', file = 'key' }", "names no value, or two"),
        ("{ variable = 'x' }", "unknown key"),
        ("'hunter2'", "would be a secret in the manifest"),
        ("5", "must be { env"),
    ] {
        let problems = place.read(&format!("secrets = {{ key = {secret} }}")).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(words)), "{secret}: {problems:?}");
    }
    place.refuses("secrets = { taken = { file = 'key' } }", "is the name of a setting too");
    place.refuses("environment = { 'A=B' = 'x' }", "is not a variable's name");
    place.refuses("environment = { A = \"x\\u0000\" }", "has a NUL character");
    place.write("tenants/t/key", &"x".repeat(65 << 10));
    place.refuses("secrets = { key = { file = 'key' } }", "it is larger than 64KiB");
    place.write("tenants/t/key", "\n");
    place.refuses("secrets = { key = { file = 'key' } }", "it is empty");
    let file = place.path("secret/key");
    place.refuses(&format!("secrets = {{ key = {{ file = '{file}' }} }}"), "is neither in the tenant's folder");
    place.allow("secret", false, &["t"]);
    assert!(place.read(&format!("secrets = {{ key = {{ file = '{file}' }} }}")).is_ok());
    place.allow("", false, &[]);
    place.refuses("secrets = { key = { file = '../u/key' } }", "is neither in the tenant's folder");
}

#[test]
fn unknown_and_mistyped_keys() {
    let place = Place::new();
    place.refuses("folder = {}", "unknown key; did you mean `folders`?");
    place.refuses("http = 'api.example.com'", "must be an array of hosts in quotes");
    place.refuses("folders = { '/data' = 5 }", "must be a folder in quotes, or");
    place.refuses("folders = { '/data' = { path = 'data', write = 'yes' } }", "must be true or false");
    let many: Vec<_> = (0..=super::MAX_ENTRIES).map(|index| format!("'h{index}'")).collect();
    place.refuses(&format!("http = [{}]", many.join(", ")), "lists too many hosts");
}

/// A guest could write its own manifest, code or secrets through another link to the same file.
#[test]
fn no_file_of_the_tenant_may_have_another_link_where_guests_write_on_its_device() {
    let mut place = Place::new();
    place.allowed.write = true;
    place.write("tenants/t/tenant.toml", "");
    let writable = "folders = { '/data' = { path = 'data', write = true } }";
    assert!(place.read(writable).is_ok());
    let link = place.root.join("tenants/t/data/other");
    for file in ["tenant.toml", "code/job.wasm", "key"] {
        fs::hard_link(place.root.join("tenants/t").join(file), &link).unwrap();
        let secret = "\nsecrets = { key = { file = 'key' } }";
        let problems = place.read(&format!("{writable}{secret}")).unwrap_err();
        let name = file.rsplit('/').next().unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(&format!("\"{name}\" has 2 hard links")), "{problems:?}");
        // Without a right to write it does no harm.
        assert!(place.read(&format!("folders = {{ '/data' = 'data' }}{secret}")).is_ok());
        fs::remove_file(&link).unwrap();
    }
}

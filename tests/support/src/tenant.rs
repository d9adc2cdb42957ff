//! A relay's configuration, in a folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{disk, guests, place::temporary};

/// The fakes around the relay are on this machine, which tenants reach only if the operator allows it.
const GRANTS: &str = "grants.networks = [\"127.0.0.0/8\", \"::1\"]\n";

/// A folder that is removed with the test.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes a `relay.toml` on free ports, with `limits` in its `[limits]`. It shares compiled code with all other
    /// tests: a small component takes half a second to compile, and most tests have one.
    pub fn new(limits: &str) -> Self {
        Self::with_own_cache(limits).shared_cache()
    }

    /// Makes the same with its own cache of compiled code, which is empty.
    pub fn with_own_cache(limits: &str) -> Self {
        let folder = Self::empty();
        let listen = ["clients", "api", "admin"].map(|name| format!("{name} = \"127.0.0.1:0\"")).join("\n");
        // A test that is about the notice says so.
        let notice = if limits.contains("shutdown-notice") { "" } else { "shutdown-notice = \"0s\"\n" };
        folder.write(
            "relay.toml",
            format!("tenants = \"tenants\"\n{GRANTS}[listen]\n{listen}\n[limits]\n{notice}{limits}\n"),
        );
        folder
    }

    /// Has this `[grants]` in relay.toml, and nothing else allowed.
    pub fn allow(&self, allowed: &str) {
        let host = fs::read_to_string(self.config()).unwrap().replace(GRANTS, "");
        self.write("relay.toml", format!("{host}[grants]\n{allowed}\n"));
    }

    pub fn empty() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = temporary().join(name);
        fs::create_dir_all(folder.join("tenants")).unwrap();
        Self(folder)
    }

    /// Uses the compiled code that other relays have left, in these tests and in earlier ones.
    pub fn shared_cache(self) -> Self {
        self.cache_at(&temporary().join("compiled"))
    }

    /// Has compiled code kept in this folder.
    pub fn cache_at(self, cache: &Path) -> Self {
        let host = fs::read_to_string(self.config()).unwrap();
        self.write("relay.toml", format!("cache = \"{}\"\n{host}", cache.display()));
        self
    }

    /// Adds a tenant: its name, an upstream called `feed`, and more of its manifest.
    pub fn tenant(self, name: &str, url: &str, more: &str) -> Self {
        let manifest = format!("name = \"{name}\"\n[[upstream]]\nname = \"feed\"\nurl = \"{url}\"\n{more}\n");
        self.write(&format!("tenants/{name}/tenant.toml"), &manifest);
        self
    }

    /// Adds a tenant whose upstream has this filter.
    pub fn filtered(self, name: &str, url: &str, filter: &Path, more: &str) -> Self {
        let folder = self.tenant(name, url, &format!("[components]\nfilter = \"filter.wasm\"\n{more}"));
        folder.copy(filter, &format!("tenants/{name}/filter.wasm"));
        folder
    }

    /// Adds a tenant that has no upstream, and whose clients have this handler.
    pub fn handled(self, name: &str, handler: &Path, more: &str) -> Self {
        let manifest = format!("name = \"{name}\"\n[components]\nclient = \"client.wasm\"\n{more}\n");
        self.write(&format!("tenants/{name}/tenant.toml"), manifest);
        self.copy(handler, &format!("tenants/{name}/client.wasm"));
        self
    }

    /// Adds a tenant whose only code is the API that does what the path says. `more` is added to its manifest, and
    /// begins with keys of its top level.
    pub fn api(self, name: &str, more: &str) -> Self {
        self.api_as(name, "\"api.wasm\"", more)
    }

    /// Adds such a tenant, with `api` as what its manifest says about the API.
    pub fn api_as(self, name: &str, api: &str, more: &str) -> Self {
        let manifest = format!("name = \"{name}\"\ncomponents.api = {api}\n{more}\n");
        self.write(&format!("tenants/{name}/tenant.toml"), manifest);
        self.copy(guests::api(), &format!("tenants/{name}/api.wasm"));
        self
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn append(&self, path: &str, more: &str) {
        let so_far = fs::read_to_string(self.0.join(path)).unwrap();
        self.write(path, so_far + more);
    }

    pub fn copy(&self, file: &Path, path: &str) {
        self.write(path, fs::read(file).unwrap());
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    pub fn config(&self) -> PathBuf {
        self.path("relay.toml")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays in the build's own folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the folders of tests that were killed.
fn sweep() {
    for folder in fs::read_dir(temporary()).unwrap().map_while(Result::ok) {
        let name = folder.file_name();
        let mut parts = name.to_str().unwrap_or_default().split('-');
        if parts.next() == Some("test")
            && parts.next().is_some_and(|process| !Path::new("/proc").join(process).exists())
        {
            disk::unmount(&folder.path());
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}

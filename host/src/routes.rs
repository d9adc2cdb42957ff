//! Which tenant a request is meant for: by the host that it names and the longest part of its path.
//!
//! A tenant that claims hosts answers to requests for these alone; one that claims none, to any. The table is replaced as
//! a whole when tenants come, change and go; nobody who looks waits.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use hyper::{Request, header::HOST};

use crate::{
    component::{Api, Handler},
    tenant::Tenant,
};

/// All tenants' routes.
#[derive(Default)]
pub struct Routes(ArcSwap<Table>);

/// A tenant, and what asks its code.
pub struct Route {
    pub tenant: Arc<Tenant>,
    pub handler: Option<Arc<Handler>>,
    pub api: Option<Arc<Api>>,
    /// In lower case, without ports; none: any.
    pub hosts: Vec<String>,
    pub path: String,
}

#[derive(Default)]
struct Table {
    /// By name.
    tenants: Vec<Arc<Tenant>>,
    /// By path, its last slash left out.
    anywhere: HashMap<String, Arc<Route>>,
    hosts: HashMap<String, HashMap<String, Arc<Route>>>,
}

impl Routes {
    /// These are all there are from now on.
    pub fn set(&self, routes: impl IntoIterator<Item = Arc<Route>>) {
        let mut table = Table::default();
        for route in routes {
            table.tenants.push(Arc::clone(&route.tenant));
            let path = route.path.trim_end_matches('/');
            if route.hosts.is_empty() {
                table.anywhere.insert(path.to_owned(), Arc::clone(&route));
            }
            for host in &route.hosts {
                table.hosts.entry(host.clone()).or_default().insert(path.to_owned(), Arc::clone(&route));
            }
        }
        self.0.store(Arc::new(table));
    }

    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        self.0.load().tenants.clone()
    }

    /// The route that has claimed the host, or else any, and the longest part of the path; of those, the first that `fits`
    /// makes something of what is left of the path, which is nothing or begins with a slash.
    pub fn find<T>(&self, host: Option<&str>, path: &str, fits: impl Fn(&str) -> Option<T>) -> Option<(Arc<Route>, T)> {
        let table = self.0.load();
        let own = host.and_then(|host| table.hosts.get(host));
        let found = |routes: &HashMap<String, Arc<Route>>| {
            prefixes(path).find_map(|(prefix, rest)| Some((Arc::clone(routes.get(prefix)?), fits(rest)?)))
        };
        own.and_then(found).or_else(|| found(&table.anywhere))
    }
}

/// The host that a request is for, in lower case, without port (RFC 9110 section 7.2).
pub fn host_of<B>(request: &Request<B>) -> Option<String> {
    let header = || request.headers().get(HOST)?.to_str().ok();
    let authority = request.uri().authority().map(hyper::http::uri::Authority::as_str).or_else(header)?;
    let host = authority.parse::<hyper::http::uri::Authority>().ok()?.host().trim_end_matches('.').to_ascii_lowercase();
    (!host.is_empty()).then_some(host)
}

/// The path cut before each of its slashes, longest first, each with what is cut off.
fn prefixes(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let cuts = path.rmatch_indices('/').map(|(at, _)| at);
    std::iter::once(path.len()).chain(cuts).map(|at| path.split_at(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cut_at_its_slashes() {
        let cut = |path| prefixes(path).collect::<Vec<_>>();
        assert_eq!(cut("/a/b"), [("/a/b", ""), ("/a", "/b"), ("", "/a/b")]);
        assert_eq!(cut("/a/"), [("/a/", ""), ("/a", "/"), ("", "/a/")]);
        assert_eq!(cut("/"), [("/", ""), ("", "/")]);
        assert_eq!(cut("*"), [("*", "")]);
    }

    #[test]
    fn hosts_have_neither_case_nor_port() {
        let host = |uri: &str, header: Option<&str>| {
            let request =
                header.into_iter().fold(Request::builder().uri(uri), |builder, host| builder.header(HOST, host));
            host_of(&request.body(()).ok()?)
        };
        assert_eq!(host("/", Some("Feed.Example.com:8080")).as_deref(), Some("feed.example.com"));
        assert_eq!(host("/", Some("feed.example.com.")).as_deref(), Some("feed.example.com"));
        assert_eq!(host("/", Some("[::1]:80")).as_deref(), Some("[::1]"));
        // What the request's line names counts for more.
        assert_eq!(host("http://a.example/x", Some("b.example")).as_deref(), Some("a.example"));
        assert_eq!(host("/", Some("a b")), None);
        assert_eq!(host("/", None), None);
    }
}

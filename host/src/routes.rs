//! Finds the tenant that a request is for, by the request's host and the longest matching part of its path.
//!
//! A tenant that claims hosts gets requests for these hosts alone; a tenant that claims none gets requests for all
//! that nobody claims. So who owns a host owns all of it.
//! When tenants come, change or go, the whole table is replaced. Readers never wait.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arc_swap::ArcSwap;

use crate::{
    component::{Api, Handler},
    tenant::Tenant,
};

/// All tenants' routes.
#[derive(Default)]
pub struct Routes {
    table: ArcSwap<RouteTable>,
    /// Hosts that lead to their tenants alone, or to nobody while these do not run.
    given: HashSet<String>,
}

/// A tenant, with the handles that call its code.
pub struct Route {
    pub tenant: Arc<Tenant>,
    pub handler: Option<Arc<Handler>>,
    pub api: Option<Arc<Api>>,
    /// In lower case, without ports. Empty: any host.
    pub hosts: Vec<String>,
    pub path: String,
}

#[derive(Default)]
struct RouteTable {
    /// Sorted by name.
    tenants: Vec<Arc<Tenant>>,
    /// The tenants without host names, by path. A path has no slash at its end.
    anywhere: HashMap<String, Arc<Route>>,
    hosts: HashMap<String, HashMap<String, Arc<Route>>>,
}

impl Routes {
    /// `given`: the hosts that the operator lets tenants claim.
    pub fn new(given: HashSet<String>) -> Self {
        Self { given, ..Self::default() }
    }

    /// Replaces all routes.
    pub fn set(&self, routes: impl IntoIterator<Item = Arc<Route>>) {
        let mut table = RouteTable::default();
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
        self.table.store(Arc::new(table));
    }

    /// How many tenants there are.
    pub fn count(&self) -> usize {
        self.table.load().tenants.len()
    }

    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        self.table.load().tenants.clone()
    }

    /// Finds the route for a host and a path: among the routes that claim the host, or else, if nobody does, among the
    /// routes for any. The longest part of the path counts for which there is a route and `fits` returns something.
    /// `fits` gets the rest of the path, which is empty or begins with a slash.
    pub fn find<T>(&self, host: Option<&str>, path: &str, fits: impl Fn(&str) -> Option<T>) -> Option<(Arc<Route>, T)> {
        let table = self.table.load();
        let own = host.and_then(|host| table.hosts.get(host));
        if own.is_none() && host.is_some_and(|host| self.given.contains(host)) {
            return None;
        }
        let found = |routes: &HashMap<String, Arc<Route>>| {
            prefixes(path).find_map(|(prefix, rest)| Some((Arc::clone(routes.get(prefix)?), fits(rest)?)))
        };
        found(own.unwrap_or(&table.anywhere))
    }
}

/// The path cut at its end and before each slash, longest first. Each comes with the rest.
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
}

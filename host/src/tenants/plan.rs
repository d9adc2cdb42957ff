//! Plans how one version of a tenant becomes the next: which upstreams and schedules are kept, replaced, added, removed.
//!
//! Two manifests go in, a value comes out. Nothing runs here. The code of the roles is not planned: each new version
//! swaps all of it.

use std::{collections::BTreeMap, sync::Arc};

use config::TenantConfig;

/// What becomes of an upstream or a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It goes on as it is, with the new version's code.
    Keep,
    /// It ends, and one with the same name begins in its place.
    Replace,
    Add,
    Remove,
}

/// By name, in one version or both.
type Changes = BTreeMap<Arc<str>, Change>;

/// What changes when another version of a tenant begins.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub upstreams: Changes,
    pub schedules: Changes,
}

impl Plan {
    /// `before`: the version that runs. `None`: the tenant is new.
    pub fn new(before: Option<&TenantConfig>, now: &TenantConfig) -> Self {
        // A filter says what is sent first on a connection, and a dial component what it is opened with. So an upstream
        // begins anew when one of them comes or goes.
        let has = |config: &TenantConfig| (config.filter.is_some(), config.dial.is_some());
        let code_stays = before.is_some_and(|before| has(before) == has(now));
        Self {
            upstreams: changes(
                before.map(|before| before.upstreams.as_slice()).unwrap_or_default(),
                &now.upstreams,
                |upstream| &upstream.name,
                |before, now| code_stays && before == now,
            ),
            schedules: changes(
                before.map(|before| before.schedules.as_slice()).unwrap_or_default(),
                &now.schedules,
                |schedule| &schedule.name,
                |before, now| before == now,
            ),
        }
    }
}

fn changes<T>(before: &[T], now: &[T], name: impl Fn(&T) -> &Arc<str>, same: impl Fn(&T, &T) -> bool) -> Changes {
    let removed = before.iter().map(|old| (Arc::clone(name(old)), Change::Remove));
    let mut changes: Changes = removed.collect();
    for new in now {
        let change = match before.iter().find(|old| name(old) == name(new)) {
            Some(old) if same(old, new) => Change::Keep,
            Some(_) => Change::Replace,
            None => Change::Add,
        };
        changes.insert(Arc::clone(name(new)), change);
    }
    changes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use config::{PartnerUrl, ScheduleConfig, UpstreamConfig};

    use super::*;

    /// A tenant with these upstreams (name and port) and schedules (name and minutes).
    fn tenant(upstreams: &[(&str, u16)], schedules: &[(&str, u64)]) -> TenantConfig {
        let upstream = |(name, port): &(&str, u16)| {
            UpstreamConfig::new(name, PartnerUrl::parse(&format!("ws://127.0.0.1:{port}/")).unwrap())
        };
        let schedule = |(name, minutes): &(&str, u64)| {
            let every = Duration::from_secs(60 * minutes);
            ScheduleConfig { name: (*name).into(), every, after: every }
        };
        TenantConfig {
            upstreams: upstreams.iter().map(upstream).collect(),
            schedules: schedules.iter().map(schedule).collect(),
            ..TenantConfig::new("t")
        }
    }

    fn shown(changes: &Changes) -> Vec<(&str, Change)> {
        changes.iter().map(|(name, change)| (&**name, *change)).collect()
    }

    #[test]
    fn all_of_a_new_tenant_is_added() {
        let plan = Plan::new(None, &tenant(&[("a", 1), ("b", 2)], &[("s", 1)]));
        assert_eq!(shown(&plan.upstreams), [("a", Change::Add), ("b", Change::Add)]);
        assert_eq!(shown(&plan.schedules), [("s", Change::Add)]);
    }

    #[test]
    fn what_is_the_same_is_kept_and_each_other_one_is_added_changed_or_removed() {
        let before = tenant(&[("same", 1), ("other", 2), ("gone", 3)], &[("same", 1), ("other", 2), ("gone", 3)]);
        let now = tenant(&[("new", 3), ("other", 4), ("same", 1)], &[("other", 5), ("new", 3), ("same", 1)]);
        let expected =
            [("gone", Change::Remove), ("new", Change::Add), ("other", Change::Replace), ("same", Change::Keep)];
        let plan = Plan::new(Some(&before), &now);
        assert_eq!(shown(&plan.upstreams), expected);
        assert_eq!(shown(&plan.schedules), expected);
    }

    #[test]
    fn upstreams_begin_anew_when_a_filter_or_a_dial_component_comes_or_goes() {
        let without = tenant(&[("a", 1)], &[]);
        let filter = TenantConfig { filter: Some("filter.wasm".into()), ..without.clone() };
        let dial = TenantConfig { dial: Some("dial.wasm".into()), ..without.clone() };
        for with in [&filter, &dial] {
            for (before, now, change) in
                [(&without, with, Change::Replace), (with, &without, Change::Replace), (with, with, Change::Keep)]
            {
                assert_eq!(shown(&Plan::new(Some(before), now).upstreams), [("a", change)]);
            }
        }
    }
}

//! A tenant's share of what the whole process has few of: memory mappings and open files.

use std::{
    fs::{self, File},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::{Resource, getrlimit};

use crate::sync::Mutex;

/// The kernel's default number of mappings (`vm.max_map_count`), for systems that do not say theirs.
const MAPPINGS: usize = 65_530;
/// Mappings and files that the host keeps for itself: an eighth.
const OWN_PART: usize = 8;
/// A tenant may have a quarter of what the others leave. It is more than any tenant needs within its other limits.
const TENANT_PART: usize = 4;

/// The process's mappings and files that guests may have.
pub struct ProcessLimits {
    mappings: usize,
    mappings_used: AtomicUsize,
    files: usize,
}

/// A tenant's share.
pub struct ProcessShare {
    limits: Arc<ProcessLimits>,
    mappings_used: Arc<AtomicUsize>,
    files: Mutex<Vec<Weak<File>>>,
}

/// Mappings of one instance, given back when this is dropped.
pub struct MappingShare {
    limits: Arc<ProcessLimits>,
    used: Arc<AtomicUsize>,
    mappings: usize,
}

impl ProcessLimits {
    /// The limits that the system sets this process.
    pub fn of_process() -> Arc<Self> {
        let mappings = fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|text| text.trim().parse().ok());
        let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
        Arc::new(Self::new(mappings.unwrap_or(MAPPINGS), files.unwrap_or(usize::MAX)))
    }

    fn new(mappings: usize, files: usize) -> Self {
        let guests = |all: usize| all - all / OWN_PART;
        Self { mappings: guests(mappings), mappings_used: AtomicUsize::new(0), files: guests(files) }
    }

    pub fn share(self: &Arc<Self>) -> ProcessShare {
        ProcessShare { limits: Arc::clone(self), mappings_used: Arc::default(), files: Mutex::default() }
    }
}

impl ProcessShare {
    /// Takes mappings for an instance. `None`: the tenant, or all together, have as many as they may.
    pub fn mappings(&self, mappings: usize) -> Option<MappingShare> {
        let (limits, used) = (Arc::clone(&self.limits), Arc::clone(&self.mappings_used));
        let own = used.fetch_add(mappings, Ordering::Relaxed) + mappings;
        let all = limits.mappings_used.fetch_add(mappings, Ordering::Relaxed) + mappings;
        let share = MappingShare { limits, used, mappings };
        (own <= self.limits.mappings / TENANT_PART && all <= self.limits.mappings).then_some(share)
    }

    /// Notes a file that a guest has opened. `false`: the tenant has as many open as it may.
    pub fn opened(&self, file: &Arc<File>) -> bool {
        let most = self.limits.files / TENANT_PART;
        let mut files = self.files.lock();
        if files.len() >= most {
            files.retain(|file| file.strong_count() > 0);
        }
        let fits = files.len() < most;
        if fits {
            files.push(Arc::downgrade(file));
        }
        fits
    }
}

impl Drop for MappingShare {
    fn drop(&mut self) {
        self.used.fetch_sub(self.mappings, Ordering::Relaxed);
        self.limits.mappings_used.fetch_sub(self.mappings, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_a_quarter_of_the_mappings_and_all_have_no_more_than_there_are() {
        let limits = Arc::new(ProcessLimits::new(800, 800));
        let tenants: Vec<_> = (0..5).map(|_| limits.share()).collect();
        let first = tenants[0].mappings(175).unwrap();
        assert!(tenants[0].mappings(1).is_none());
        let held: Vec<_> = tenants[1..4].iter().map(|tenant| tenant.mappings(175).unwrap()).collect();
        assert!(tenants[4].mappings(1).is_none());
        drop(first);
        assert!(tenants[4].mappings(175).is_some() && tenants[0].mappings(175).is_some());
        drop(held);
        assert_eq!(limits.mappings_used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn files_that_are_closed_make_room_for_others() {
        let share = Arc::new(ProcessLimits::new(80, 80)).share();
        let open = || Arc::new(File::open("/dev/null").unwrap());
        let mut files: Vec<_> = (0..17).map(|_| open()).collect();
        assert!(files.iter().all(|file| share.opened(file)));
        assert!(!share.opened(&open()));
        files.pop();
        assert!(share.opened(&open()));
    }
}

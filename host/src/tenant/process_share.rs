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
/// Mappings that the host keeps for itself: an eighth. Files that guests may have: an eighth, since clients need them.
const PART: usize = 8;
/// A tenant may have a quarter of what guests may have.
const TENANT_PART: usize = 4;
/// Files that are noted before those that are closed are looked for the first time.
const FIRST_LOOK: usize = 64;

/// The process's mappings and files that guests may have.
pub struct ProcessLimits {
    mappings: usize,
    mappings_used: AtomicUsize,
    files: usize,
    files_noted: AtomicUsize,
}

/// A tenant's share.
pub struct ProcessShare {
    limits: Arc<ProcessLimits>,
    mappings_used: Arc<AtomicUsize>,
    files: Mutex<NotedFiles>,
}

/// Files that guests have opened. Those that are closed are forgotten now and then.
#[derive(Default)]
struct NotedFiles {
    files: Vec<Weak<File>>,
    /// How many there may be before closed ones are looked for.
    look_at: usize,
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
        Self {
            mappings: mappings - mappings / PART,
            mappings_used: AtomicUsize::new(0),
            files: files / PART,
            files_noted: AtomicUsize::new(0),
        }
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

    /// Whether the next instance with a few memories may have no mappings.
    pub fn lacks_mappings(&self) -> bool {
        let most = self.limits.mappings / TENANT_PART;
        self.mappings_used.load(Ordering::Relaxed) > most - most / PART
    }

    /// Whether a guest may open another file.
    pub fn has_room_for_file(&self) -> bool {
        let (own, all) = (self.limits.files / TENANT_PART, self.limits.files);
        let mut noted = self.files.lock();
        let count = noted.files.len();
        let is_full = |count| count >= own || self.limits.files_noted.load(Ordering::Relaxed) >= all;
        if is_full(count) || count >= noted.look_at {
            noted.files.retain(|file| file.strong_count() > 0);
            self.limits.files_noted.fetch_sub(count - noted.files.len(), Ordering::Relaxed);
            noted.look_at = FIRST_LOOK.max(2 * noted.files.len());
        }
        !is_full(noted.files.len())
    }

    /// Notes a file that a guest has opened.
    pub fn opened(&self, file: &Arc<File>) {
        self.files.lock().files.push(Arc::downgrade(file));
        self.limits.files_noted.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for ProcessShare {
    fn drop(&mut self) {
        self.limits.files_noted.fetch_sub(self.files.lock().files.len(), Ordering::Relaxed);
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
        let limits = Arc::new(ProcessLimits::new(80, 640));
        let (share, other) = (limits.share(), limits.share());
        let open = |share: &ProcessShare| {
            let file = Arc::new(File::open("/dev/null").unwrap());
            share.has_room_for_file().then(|| share.opened(&file)).map(|()| file)
        };
        let mut files: Vec<_> = (0..20).map(|_| open(&share).unwrap()).collect();
        assert!(open(&share).is_none());
        files.pop();
        files.push(open(&share).unwrap());
        assert!(open(&share).is_none());
        // However many are opened and closed, few are noted.
        (0..10_000).for_each(|_| drop(open(&other).unwrap()));
        assert!(other.files.lock().files.len() <= 20);
        drop(other);
        let more: Vec<_> = (0..4).map(|_| limits.share()).collect();
        let held: Vec<_> = more.iter().take(3).flat_map(|share| (0..20).map(|_| open(share).unwrap())).collect();
        let last = more.last().unwrap();
        assert!(open(last).is_none(), "all together have as many as they may");
        drop((held, files, share));
        assert!(open(last).is_some());
    }
}

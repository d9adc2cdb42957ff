//! State: a tenant's keys and values in the host's memory, shared by its components.
//!
//! Every instance of the tenant's components calls it through `wasi:keyvalue`. The map is the only copy. It is bounded
//! in keys and in bytes, and a call that would exceed either changes nothing. It outlives instances and new code, but
//! not the host. The methods are async for the day when state lives on another node. Here they never wait.

use std::{collections::BTreeMap, sync::Arc};

use config::Quota;

use crate::{
    account::{Account, Charge, Part},
    sync::Mutex,
};

/// Most buckets of a tenant.
const MAX_BUCKETS: usize = 64;
const MAX_BUCKET_NAME: usize = 64;
/// Longest key, in bytes.
const MAX_KEY: usize = 1024;
/// Most keys in one answer to `list-keys`.
const PAGE: usize = 1000;
/// Most keys in one batch call. Each key takes time under the lock that all the tenant's components share, and even a
/// key that is not there takes room in the answer.
const MAX_BATCH: usize = 10_000;
/// Bytes that a key takes besides itself and its value: roughly the map's own share of memory.
const KEY_OVERHEAD: usize = 64;

/// Why a call was refused. A refused call changes nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("a bucket's name has 1 to {MAX_BUCKET_NAME} of a-z, 0-9, - and _")]
    BucketName,
    #[error("a tenant has at most {MAX_BUCKETS} buckets")]
    Buckets,
    #[error("a key has 1 to {MAX_KEY} bytes")]
    Key,
    #[error("the tenant's state is full: {limit} keys")]
    Keys { limit: usize },
    #[error("the tenant's state is full: {limit} bytes, with keys, values and {KEY_OVERHEAD} for each key")]
    Bytes { limit: usize },
    #[error("all that the tenant may have of the host's memory is taken (memory-total)")]
    Memory,
    #[error("one call names at most {MAX_BATCH} keys")]
    Batch,
    #[error("the answer would be larger than all that the tenant may keep: {limit} bytes; ask for each key once")]
    Answer { limit: usize },
    #[error("the value is not a decimal number, or the sum is over 2^64 - 1")]
    NotANumber,
}

/// All buckets of one tenant.
pub struct State {
    inner: Mutex<Inner>,
}

struct Inner {
    quota: Quota,
    buckets: BTreeMap<Arc<str>, BTreeMap<String, Vec<u8>>>,
    keys: usize,
    bytes: usize,
    /// The bytes again, on the tenant's account.
    charge: Charge,
}

/// A part of the keys, and where the next part begins.
#[derive(Debug, PartialEq, Eq)]
pub struct KeyPage {
    pub keys: Vec<String>,
    pub next: Option<u64>,
}

/// One bucket of a tenant's state.
#[derive(Clone)]
pub struct Bucket {
    state: Arc<State>,
    name: Arc<str>,
}

impl State {
    pub fn new(quota: Quota, account: &Arc<Account>) -> Self {
        let charge = Charge::new(account, Part::State);
        Self { inner: Mutex::new(Inner { quota, buckets: BTreeMap::new(), keys: 0, bytes: 0, charge }) }
    }

    /// Changes the quota from now on. What is kept already stays.
    pub fn set_quota(&self, quota: Quota) {
        self.inner.lock().quota = quota;
    }

    /// Opens the bucket of that name, and makes it if it is not there.
    pub async fn open(self: &Arc<Self>, name: &str) -> Result<Bucket, StateError> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > MAX_BUCKET_NAME || !name.bytes().all(fits) {
            return Err(StateError::BucketName);
        }
        let mut inner = self.inner.lock();
        let name = match inner.buckets.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None if inner.buckets.len() >= MAX_BUCKETS => return Err(StateError::Buckets),
            None => {
                let name: Arc<str> = name.into();
                inner.buckets.insert(Arc::clone(&name), BTreeMap::new());
                name
            }
        };
        Ok(Bucket { state: Arc::clone(self), name })
    }

    /// Keys and bytes kept now.
    #[cfg(test)]
    fn used(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.keys, inner.bytes)
    }
}

impl Inner {
    /// Most bytes of one answer. A call that asks for each key once always gets everything, even under a lowered quota.
    fn most(&self) -> usize {
        self.quota.bytes.max(self.bytes)
    }

    /// Sets keys if all of them fit.
    fn set(&mut self, bucket: &str, pairs: Vec<(String, Vec<u8>)>) -> Result<(), StateError> {
        let quota = self.quota;
        let Some(map) = self.buckets.get_mut(bucket) else { return Err(StateError::BucketName) };
        // The last of several values of a key counts.
        let pairs: BTreeMap<String, Vec<u8>> = pairs.into_iter().collect();
        let (mut keys, mut bytes) = (self.keys, self.bytes);
        for (key, value) in &pairs {
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(StateError::Key);
            }
            match map.get(key) {
                Some(old) => bytes -= old.len(),
                None => {
                    keys += 1;
                    bytes += key.len() + KEY_OVERHEAD;
                }
            }
            bytes += value.len();
        }
        if keys > quota.keys {
            return Err(StateError::Keys { limit: quota.keys });
        }
        // A call that frees bytes is allowed even when a lowered quota is exceeded.
        if bytes > quota.bytes && bytes > self.bytes {
            return Err(StateError::Bytes { limit: quota.bytes });
        }
        if !self.charge.set(bytes) {
            return Err(StateError::Memory);
        }
        map.extend(pairs);
        (self.keys, self.bytes) = (keys, bytes);
        Ok(())
    }

    fn remove<K: AsRef<str>>(&mut self, bucket: &str, keys: &[K]) {
        let Some(map) = self.buckets.get_mut(bucket) else { return };
        for key in keys {
            if let Some((key, value)) = map.remove_entry(key.as_ref()) {
                self.keys -= 1;
                self.bytes -= key.len() + value.len() + KEY_OVERHEAD;
            }
        }
        // It is less than before.
        self.charge.set(self.bytes);
    }
}

impl Bucket {
    pub async fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.state.inner.lock().buckets.get(&self.name)?.get(key).cloned()
    }

    pub async fn exists(&self, key: &str) -> bool {
        self.state.inner.lock().buckets.get(&self.name).is_some_and(|map| map.contains_key(key))
    }

    pub async fn set(&self, key: String, value: Vec<u8>) -> Result<(), StateError> {
        self.set_many(vec![(key, value)]).await
    }

    pub async fn delete(&self, key: &str) {
        self.state.inner.lock().remove(&self.name, &[key]);
    }

    /// A page of keys in order. `cursor` is the `next` of an earlier page. Keys added or deleted in between may make
    /// others be left out or come twice.
    pub async fn list_keys(&self, cursor: Option<u64>) -> KeyPage {
        let from = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        let inner = self.state.inner.lock();
        let Some(map) = inner.buckets.get(&self.name) else { return KeyPage { keys: Vec::new(), next: None } };
        let keys: Vec<String> = map.keys().skip(from).take(PAGE).cloned().collect();
        let end = from.saturating_add(keys.len());
        KeyPage { keys, next: (end < map.len()).then_some(end as u64) }
    }

    /// Adds to a number kept as decimal text; a key that is not there counts as 0.
    pub async fn increment(&self, key: String, delta: u64) -> Result<u64, StateError> {
        let mut inner = self.state.inner.lock();
        let value = inner.buckets.get(&self.name).and_then(|map| map.get(&key));
        let number = match value {
            None => Some(0),
            Some(text) => str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok()),
        };
        let sum = number.and_then(|number| number.checked_add(delta)).ok_or(StateError::NotANumber)?;
        inner.set(&self.name, vec![(key, sum.to_string().into_bytes())])?;
        Ok(sum)
    }

    /// The values of keys. The answer's size is bounded, since a list may name one key many times.
    pub async fn get_many(&self, keys: Vec<String>) -> Result<Vec<Option<(String, Vec<u8>)>>, StateError> {
        check_count(&keys)?;
        let inner = self.state.inner.lock();
        let map = inner.buckets.get(&self.name);
        let limit = inner.most();
        let mut left = limit;
        let pair = |key: String| {
            let Some(value) = map.and_then(|map| map.get(&key)) else { return Ok(None) };
            left = left.checked_sub(key.len() + value.len()).ok_or(StateError::Answer { limit })?;
            Ok(Some((key, value.clone())))
        };
        keys.into_iter().map(pair).collect()
    }

    pub async fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), StateError> {
        check_count(&pairs)?;
        self.state.inner.lock().set(&self.name, pairs)
    }

    pub async fn delete_many(&self, keys: &[String]) -> Result<(), StateError> {
        check_count(keys)?;
        self.state.inner.lock().remove(&self.name, keys);
        Ok(())
    }
}

/// Checks the number of keys before anything is done with them.
fn check_count<T>(named: &[T]) -> Result<(), StateError> {
    if named.len() > MAX_BATCH { Err(StateError::Batch) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULT_BUCKET: &str = "default";

    fn state(keys: usize, bytes: usize) -> Arc<State> {
        Arc::new(State::new(Quota { keys, bytes }, &Account::of_test()))
    }

    fn pair(key: &str, value: &str) -> (String, Vec<u8>) {
        (key.into(), value.into())
    }

    #[tokio::test]
    async fn buckets_of_one_name_are_one_and_others_are_apart() {
        let state = state(10, 10_000);
        let bucket = state.open(DEFAULT_BUCKET).await.unwrap();
        bucket.set("a".into(), b"1".to_vec()).await.unwrap();
        assert_eq!(state.open(DEFAULT_BUCKET).await.unwrap().get("a").await, Some(b"1".to_vec()));
        assert_eq!(state.open("other").await.unwrap().get("a").await, None);
        for name in ["", "A", "a/b", &"a".repeat(65)] {
            assert_eq!(state.open(name).await.err(), Some(StateError::BucketName));
        }
    }

    #[tokio::test]
    async fn over_a_quota_nothing_changes() {
        let state = state(2, 200);
        let bucket = state.open(DEFAULT_BUCKET).await.unwrap();
        bucket.set_many(vec![pair("a", "1"), pair("b", "2")]).await.unwrap();
        let many = vec![pair("a", "new"), pair("c", "3")];
        assert_eq!(bucket.set_many(many).await, Err(StateError::Keys { limit: 2 }));
        assert_eq!(bucket.set("a".into(), vec![0; 200]).await, Err(StateError::Bytes { limit: 200 }));
        assert_eq!(bucket.get("a").await, Some(b"1".to_vec()));
        assert_eq!(state.used(), (2, 2 * (KEY_OVERHEAD + 2)));
        bucket.delete("b").await;
        bucket.set("c".into(), b"3".to_vec()).await.unwrap();
        assert_eq!(bucket.set(String::new(), Vec::new()).await, Err(StateError::Key));
    }

    #[tokio::test]
    async fn a_key_named_many_times_is_no_larger_an_answer_than_all_keys() {
        let state = state(10, 1000);
        let bucket = state.open(DEFAULT_BUCKET).await.unwrap();
        bucket.set_many(vec![pair("a", &"x".repeat(400)), pair("b", &"y".repeat(400))]).await.unwrap();
        let ask = |keys: &[&str]| bucket.get_many(keys.iter().map(|key| (*key).to_owned()).collect());
        assert_eq!(ask(&["a", "b", "c"]).await.unwrap().iter().flatten().count(), 2);
        assert_eq!(ask(&["a"; 3]).await, Err(StateError::Answer { limit: 1000 }));
        // What was kept before the quota was lowered can still be read.
        state.set_quota(Quota { keys: 10, bytes: 100 });
        assert!(ask(&["a", "b"]).await.is_ok() && ask(&["a"; 3]).await.is_err());
    }

    #[tokio::test]
    async fn a_call_with_one_key_too_many_changes_nothing() {
        let state = state(20_000, 10_000_000);
        let bucket = state.open(DEFAULT_BUCKET).await.unwrap();
        let names = |count| (0..count).map(|nth| nth.to_string()).collect::<Vec<_>>();
        let pairs = |count| names(count).into_iter().map(|name| (name, Vec::new())).collect();
        assert_eq!(bucket.set_many(pairs(MAX_BATCH + 1)).await, Err(StateError::Batch));
        assert_eq!(state.used(), (0, 0));
        bucket.set_many(pairs(MAX_BATCH)).await.unwrap();
        assert_eq!(bucket.get_many(names(MAX_BATCH + 1)).await, Err(StateError::Batch));
        assert_eq!(bucket.get_many(names(MAX_BATCH)).await.unwrap().len(), MAX_BATCH);
        assert_eq!(bucket.delete_many(&names(MAX_BATCH + 1)).await, Err(StateError::Batch));
        assert_eq!(state.used().0, MAX_BATCH);
        bucket.delete_many(&names(MAX_BATCH)).await.unwrap();
        assert_eq!(state.used(), (0, 0));
    }

    #[tokio::test]
    async fn numbers_are_text() {
        let bucket = state(10, 10_000).open(DEFAULT_BUCKET).await.unwrap();
        assert_eq!(bucket.increment("n".into(), 5).await, Ok(5));
        assert_eq!(bucket.increment("n".into(), 7).await, Ok(12));
        assert_eq!(bucket.get("n").await, Some(b"12".to_vec()));
        assert_eq!(bucket.increment("n".into(), u64::MAX).await, Err(StateError::NotANumber));
        bucket.set("t".into(), b"x".to_vec()).await.unwrap();
        assert_eq!(bucket.increment("t".into(), 1).await, Err(StateError::NotANumber));
    }

    #[tokio::test]
    async fn keys_come_in_pages() {
        let bucket = state(5000, 10_000_000).open(DEFAULT_BUCKET).await.unwrap();
        bucket.set_many((0..2500).map(|n| (format!("{n:04}"), Vec::new())).collect()).await.unwrap();
        let (mut cursor, mut keys) = (None, Vec::new());
        loop {
            let page = bucket.list_keys(cursor).await;
            keys.extend(page.keys);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(keys, (0..2500).map(|n| format!("{n:04}")).collect::<Vec<_>>());
        assert_eq!(bucket.list_keys(Some(u64::MAX)).await, KeyPage { keys: Vec::new(), next: None });
    }

    proptest! {
        /// Whatever is done, the counts are true.
        #[test]
        fn the_count_is_true(steps in prop::collection::vec(("[a-c]{1,2}", prop::option::of(0usize..120)), 0..60)) {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let state = state(4, 500);
                let bucket = state.open(DEFAULT_BUCKET).await.unwrap();
                for (key, value) in steps {
                    match value {
                        Some(size) => drop(bucket.set(key, vec![0; size]).await),
                        None => bucket.delete(&key).await,
                    }
                    let mut bytes = 0;
                    let keys = bucket.list_keys(None).await.keys;
                    for key in &keys {
                        bytes += key.len() + KEY_OVERHEAD + bucket.get(key).await.unwrap().len();
                    }
                    prop_assert_eq!(state.used(), (keys.len(), bytes));
                    prop_assert!(keys.len() <= 4 && bytes <= 500);
                }
                Ok(())
            })?;
        }
    }
}

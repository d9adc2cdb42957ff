//! The import `records`: rows that outlive the host.
//!
//! A filter's appends wait in its instance's [`Host`], and are written together when its call has returned. So its feed
//! waits for the disk once for each call. Other roles wait for the disk at each append.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use wasmtime::component::{HasSelf, Linker};

use crate::{
    component::{
        Guest, RoleKind,
        bindings::edge_relay::tenant::{
            records,
            records::{Entry, Error, Start},
        },
        run::host::Host,
    },
    store,
    store::{Collection, Part, Query, Record, RecordId, Row, StoreError},
    tenant::{Tenant, TenantVersion},
};

/// Most rows that one call of a filter appends.
const MAX_DEFERRED: usize = 10_000;
/// Most bytes that one call of a filter appends.
const MAX_DEFERRED_BYTES: usize = 16 << 20;
/// How long a filter's feed waits until its rows are written. They may still be written later.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a filter's appends fail at once after its rows could not be written.
const REFUSE_FOR: Duration = Duration::from_secs(1);

/// What an instance keeps for its records.
pub struct PendingRecords {
    /// A filter's rows. `None`: the instance has another role.
    deferred: Option<Deferred>,
}

impl PendingRecords {
    pub fn new(guest: &Guest) -> Self {
        Self { deferred: (guest.role == RoleKind::Filter).then(Deferred::default) }
    }
}

/// A component that imports this needs a store.
pub const INTERFACE: &str = "edge-relay:tenant/records";
pub const PROVIDED: &[(&str, &str)] = &[(INTERFACE, "0.1.0")];
pub const GRANTED: &[(&str, &str)] = &[];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    records::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

/// A filter's rows that are not written yet.
#[derive(Default)]
struct Deferred {
    rows: Vec<Row>,
    bytes: usize,
    /// Why the last rows could not be written, and until when further appends fail.
    refused: Option<(StoreError, Instant)>,
}

impl Deferred {
    fn add(&mut self, rows: Vec<Row>) -> Result<(), StoreError> {
        if let Some((error, until)) = &self.refused
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let bytes: usize = rows.iter().map(|row| row.data.len()).sum();
        if self.rows.len() + rows.len() > MAX_DEFERRED || self.bytes + bytes > MAX_DEFERRED_BYTES {
            return Err(StoreError::Full("one call of a filter appends at most 10,000 rows and 16 MiB"));
        }
        self.rows.extend(rows);
        self.bytes += bytes;
        Ok(())
    }

    /// The rows among them that match a query.
    fn select(&self, collection: &Collection, query: &Query) -> Part {
        let found = |row: &&Row| row.collection == *collection && query.covers(row.id, row.at);
        let record = |row: &Row| Record { id: row.id, at: row.at, data: row.data.clone() };
        Part { records: self.rows.iter().filter(found).map(record).collect(), cut_at: None }
    }
}

impl Host {
    fn deferred(&mut self) -> Option<&mut Deferred> {
        self.capabilities.records.deferred.as_mut()
    }

    /// Writes the rows that a filter appended in the call that has just returned.
    pub async fn write_deferred(&mut self) {
        let (tenant, version) = (Arc::clone(self.tenant()), Arc::clone(self.version()));
        let (Some(deferred), Some(store)) = (self.deferred(), &version.store) else { return };
        let rows = std::mem::take(&mut deferred.rows);
        deferred.bytes = 0;
        if rows.is_empty() {
            return;
        }
        let records = rows.len();
        let written = timeout(WRITE_DEADLINE, store.append(rows, version.limits.records as u64, &tenant.records));
        let late = |_| Err(StoreError::Unavailable(format!("not written within {} s", WRITE_DEADLINE.as_secs())));
        if let Err(error) = written.await.unwrap_or_else(late) {
            count(&error, &tenant);
            deferred.refused = Some((error.clone(), Instant::now() + REFUSE_FOR));
            let write = || tracing::error!(records, %error, "a filter's records were not written");
            self.guest().span().in_scope(write);
        }
    }

    async fn append_rows(&mut self, collection: &str, data: Vec<Vec<u8>>) -> Result<Vec<RecordId>, StoreError> {
        let version = Arc::clone(self.version());
        let store = store_of(&version)?;
        let rows = store::rows(&Collection::new(&self.tenant().name, collection)?, data)?;
        let ids = rows.iter().map(|row| row.id).collect();
        match self.deferred() {
            Some(deferred) => deferred.add(rows)?,
            None => {
                let appended = store.append(rows, version.limits.records as u64, &self.tenant().records).await;
                appended.inspect_err(|error| count(error, self.tenant()))?;
            }
        }
        Ok(ids)
    }

    async fn read_rows(&mut self, collection: &str, query: Query) -> Result<Vec<Entry>, Error> {
        let version = Arc::clone(self.version());
        let collection = Collection::new(&self.tenant().name, collection)?;
        let (store, until) = (store_of(&version)?, self.answers_until());
        let mut rows = store.read(&collection, query.clone(), &self.tenant().records, until).await?;
        if let Some(deferred) = self.deferred() {
            rows = query.merge(rows, deferred.select(&collection, &query));
        }
        Ok(rows
            .records
            .into_iter()
            .map(|record| Entry { id: record.id.to_string(), at: record.time(), data: record.data })
            .collect())
    }
}

/// Counts a refusal by the tenant's own limit.
fn count(error: &StoreError, tenant: &Tenant) {
    if *error == StoreError::Quota {
        tenant.metrics.limited("records", 1);
    }
}

fn store_of(version: &TenantVersion) -> Result<&store::Store, StoreError> {
    version.store.as_deref().ok_or_else(|| StoreError::Unavailable("this host keeps no records".into()))
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Invalid(_) => Self::Invalid(message),
            StoreError::Full(_) | StoreError::Quota => Self::Full(message),
            StoreError::Unavailable(_) => Self::Unavailable(message),
        }
    }
}

impl records::Host for Host {
    async fn append(&mut self, collection: String, data: Vec<u8>) -> Result<String, Error> {
        let ids = self.append_rows(&collection, vec![data]).await?;
        Ok(ids.iter().map(ToString::to_string).collect())
    }

    async fn append_batch(&mut self, collection: String, rows: Vec<Vec<u8>>) -> Result<Vec<String>, Error> {
        let ids = self.append_rows(&collection, rows).await?;
        Ok(ids.iter().map(ToString::to_string).collect())
    }

    async fn latest(&mut self, collection: String, count: u32) -> Result<Vec<Entry>, Error> {
        self.read_rows(&collection, Query::Latest(count as usize)).await
    }

    async fn range(&mut self, collection: String, start: Start, to: u64, limit: u32) -> Result<Vec<Entry>, Error> {
        let (from, since) = match start {
            Start::At(millis) => (RecordId::first_of(0), millis),
            Start::After(id) => (id.parse::<RecordId>()?.next(), 0),
        };
        let query = Query::Range { from, since, to, limit: limit as usize };
        self.read_rows(&collection, query).await
    }
}

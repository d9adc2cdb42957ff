//! What the log says of rows that MySQL refuses: each tenant's at once, and then now and then, with their number.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::store::record::{RecordId, Row};

/// How often the log says how many rows of a tenant were refused.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The refused rows that the log has not told of, by tenant.
#[derive(Default)]
pub struct Refusals(HashMap<Arc<str>, Untold>);

#[derive(Default)]
struct Untold {
    rows: usize,
    /// One of them, and what MySQL said.
    last: Option<(RecordId, Arc<str>, String)>,
    told: Option<Instant>,
}

impl Refusals {
    /// Notes a row that is now among the dead letters.
    pub fn add(&mut self, row: &Row, error: &str) {
        let untold = self.0.entry(Arc::clone(&row.collection.tenant)).or_default();
        untold.rows += 1;
        untold.last = Some((row.id, Arc::clone(&row.collection.name), error.to_owned()));
    }

    /// Logs those that are due, a line for each tenant.
    pub fn tell(&mut self) {
        for (tenant, untold) in &mut self.0 {
            let Untold { rows, last: Some((id, collection, error)), told } = untold else { continue };
            if *rows == 0 || told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
                continue;
            }
            tracing::error!(
                tenant.name = %tenant,
                refused = *rows,
                record.id = %id,
                record.collection = %collection,
                %error,
                "MySQL refuses records, such as this one; they are now among the dead letters"
            );
            (*rows, *told) = (0, Some(Instant::now()));
        }
    }
}

//! A host's row in MySQL's table `relay_hosts`, which keeps others from undoing migrations under it.

use std::time::{Duration, Instant};

use mysql_async::{Conn, Error, prelude::Queryable};
use tokio::time::timeout;
use uuid::Uuid;

use crate::store::mysql::{Inserter, RecordTable, explain, leaves_it_usable};

/// How often the row is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How long it may take at the end to remove it.
const REMOVE_DEADLINE: Duration = Duration::from_secs(1);

pub struct Presence {
    host: Uuid,
    renewed: Option<Instant>,
}

impl Presence {
    pub fn new() -> Self {
        Self { host: Uuid::new_v4(), renewed: None }
    }

    pub fn is_due(&self) -> bool {
        self.renewed.is_none_or(|renewed| renewed.elapsed() >= RENEW_EVERY)
    }

    /// Renews the row, if that is due.
    pub async fn renew(&mut self, inserter: &mut Inserter<'_>) -> Result<(), Error> {
        if !self.is_due() {
            return Ok(());
        }
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let row = (self.host.as_bytes().to_vec(), name);
        let renew = async |connection: &mut Conn| {
            let sql = "INSERT INTO relay_hosts (id, name, seen) VALUES (?, ?, CURRENT_TIMESTAMP) \
                ON DUPLICATE KEY UPDATE seen = CURRENT_TIMESTAMP";
            connection.exec_drop(sql, row).await?;
            connection.query_drop("DELETE FROM relay_hosts WHERE seen < CURRENT_TIMESTAMP - INTERVAL 1 DAY").await
        };
        match inserter.run(renew).await {
            // Rows go on; only nobody knows of this host.
            Err(error) if leaves_it_usable(&error) => tracing::debug!(error = explain(&error), "not noted in MySQL"),
            renewed => renewed?,
        }
        self.renewed = Some(Instant::now());
        Ok(())
    }

    /// Removes the row, if there is one.
    pub async fn remove(&self, mysql: &RecordTable) {
        if self.renewed.is_none() {
            return;
        }
        let id = self.host.as_bytes().to_vec();
        let removed = timeout(REMOVE_DEADLINE, async {
            let mut connection = mysql.connect().await?;
            let sql = "DELETE FROM relay_hosts WHERE id = ?";
            let deadline = Instant::now() + REMOVE_DEADLINE;
            connection.run(deadline, async |connection| connection.exec_drop(sql, (id,)).await).await
        });
        if !matches!(removed.await, Ok(Ok(()))) {
            tracing::debug!("this host is still noted in MySQL");
        }
    }
}

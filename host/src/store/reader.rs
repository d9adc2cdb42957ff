//! Reads the SQLite file while its writer writes.

use std::path::PathBuf;

use rusqlite::Connection;
use tokio::runtime::Handle;

use crate::{
    store::{StoreError, sqlite},
    sync::Mutex,
};

/// Most reads at once. Each has a thread of its own.
pub const MAX_READERS: usize = 8;

/// Connections to read with.
pub struct ReadConnections {
    file: PathBuf,
    runtime: Handle,
    idle: Mutex<Vec<Connection>>,
}

impl ReadConnections {
    /// `runtime` has the threads that may wait for the disk, at most [`MAX_READERS`].
    pub fn new(file: PathBuf, runtime: Handle) -> Self {
        Self { file, runtime, idle: Mutex::default() }
    }

    /// Reads on a thread that may wait.
    pub async fn read<T: Send + 'static>(
        self: &std::sync::Arc<Self>,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = std::sync::Arc::clone(self);
        let reading = self.runtime.spawn_blocking(move || {
            let idle = readers.idle.lock().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => sqlite::open_for_reading(&readers.file)?,
            };
            let read = read(&connection)?;
            readers.idle.lock().push(connection);
            Ok(read)
        });
        let read = reading.await.map_err(|_| StoreError::Unavailable("the store is closed".into()))?;
        read.map_err(|error: rusqlite::Error| StoreError::Unavailable(format!("the store cannot be read: {error}")))
    }
}

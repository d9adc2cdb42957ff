//! The files that an upstream's credentials and certificates are in, read anew for each connection.

use std::time::Duration;

use config::{SecretFile, UpstreamConfig};
use tokio::time::sleep;

/// How often the files are looked at while a connection waits for another content of them.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What was in them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FileContents(Vec<(SecretFile, Result<Vec<u8>, String>)>);

impl FileContents {
    pub async fn read(config: &UpstreamConfig) -> Self {
        let files: Vec<_> = config.files().cloned().collect();
        if files.is_empty() {
            return Self::default();
        }
        let read = |file: SecretFile| {
            let content = file.read().map_err(|error| format!("{} cannot be read: {error}", file.path().display()));
            (file, content)
        };
        // It ends early only with the process.
        let all = tokio::task::spawn_blocking(move || files.into_iter().map(read).collect());
        Self(all.await.unwrap_or_default())
    }

    /// The content of one of them.
    ///
    /// # Errors
    /// Why it could not be read.
    pub fn of(&self, file: &SecretFile) -> Result<&[u8], String> {
        match self.0.iter().find(|(read, _)| read == file) {
            Some((_, Ok(content))) => Ok(content),
            Some((_, Err(error))) => Err(error.clone()),
            None => Err(format!("{} was not read", file.path().display())),
        }
    }

    /// Returns when there is something else in them.
    pub async fn change(&self, config: &UpstreamConfig) {
        if self.0.is_empty() {
            std::future::pending().await
        }
        loop {
            sleep(LOOK_AGAIN).await;
            if Self::read(config).await != *self {
                return;
            }
        }
    }
}

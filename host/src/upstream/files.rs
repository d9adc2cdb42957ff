//! The files that an upstream's credentials and certificates are in, read anew for each connection.

use std::{sync::Arc, time::Duration};

use config::{SecretFile, UpstreamConfig};
use ring::digest::{Context, SHA256};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::upstream::connect::CONNECT_TIMEOUT;

/// How often the files are looked at while a connection waits for another content of them.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What was in them.
#[derive(Default)]
pub struct FileContents(Vec<(SecretFile, Result<Vec<u8>, String>)>);

/// What was in files, for a comparison.
#[derive(Clone, PartialEq, Eq)]
pub struct FilesDigest([u8; 32]);

impl FileContents {
    /// Reads each file once, on a thread that may wait. A thread that waits for a file keeps the permit of `reading`, so
    /// that there is never another one.
    pub async fn read(config: &UpstreamConfig, reading: &Arc<Semaphore>) -> Self {
        let mut files: Vec<SecretFile> = Vec::new();
        for file in config.files() {
            if !files.contains(file) {
                files.push(file.clone());
            }
        }
        if files.is_empty() {
            return Self::default();
        }
        // The semaphore is never closed.
        let permit = Arc::clone(reading).acquire_owned().await;
        let read = |file: SecretFile| {
            let content = file.read().map_err(|error| format!("{} cannot be read: {error}", file.path().display()));
            (file, content)
        };
        let all = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            files.into_iter().map(read).collect()
        });
        // It ends early only with the process.
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

    pub fn digest(&self) -> FilesDigest {
        let mut context = Context::new(&SHA256);
        for (_, content) in &self.0 {
            let (is_there, bytes) = match content {
                Ok(content) => (1, &content[..]),
                Err(why) => (0, why.as_bytes()),
            };
            context.update(&[is_there]);
            context.update(&bytes.len().to_le_bytes());
            context.update(bytes);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        FilesDigest(digest)
    }
}

impl FilesDigest {
    /// Returns when there is something else in the files.
    pub async fn change(&self, config: &UpstreamConfig, reading: &Arc<Semaphore>) {
        if config.files().next().is_none() {
            std::future::pending().await
        }
        loop {
            sleep(LOOK_AGAIN).await;
            // What cannot be read in time has not changed.
            let read = timeout(CONNECT_TIMEOUT, FileContents::read(config, reading)).await;
            if read.is_ok_and(|read| read.digest() != *self) {
                return;
            }
        }
    }
}

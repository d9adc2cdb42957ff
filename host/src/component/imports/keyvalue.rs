//! `wasi:keyvalue`: guests read and write their tenant's state.

use wasmtime::{
    Result,
    component::{HasSelf, Linker, Resource},
};

use crate::{
    component::{
        bindings::wasi::keyvalue::{
            atomics, batch, store,
            store::{Error, KeyResponse},
        },
        run::host::Host,
    },
    state::{Bucket, StateError},
};

pub const PROVIDED: &[(&str, &str)] = &[("wasi:keyvalue/", "0.2.0-draft")];
pub const GRANTED: &[(&str, &str)] = &[];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    store::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)?;
    atomics::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)?;
    batch::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

impl Host {
    /// The guest's error for a refusal of the state, which is counted if it is for a limit. A guest can act on each: it
    /// asked for something that is not allowed, or that there is no room for.
    fn refused(&self, error: StateError) -> Error {
        let limit = match error {
            StateError::Bytes { .. } => Some("state"),
            StateError::Keys { .. } => Some("state-keys"),
            StateError::Buckets => Some("state-buckets"),
            StateError::Batch => Some("state-batch"),
            StateError::Answer { .. } => Some("state-answer"),
            // Counted where it was refused, or no limit.
            StateError::Memory | StateError::BucketName | StateError::Key | StateError::NotANumber => None,
        };
        limit.into_iter().for_each(|limit| self.tenant().metrics.limited(limit, 1));
        match error {
            StateError::BucketName => Error::NoSuchStore,
            error => Error::Other(error.to_string()),
        }
    }
}

impl store::Host for Host {
    async fn open(&mut self, identifier: String) -> Result<Result<Resource<Bucket>, Error>> {
        match self.tenant().state.clone().open(&identifier).await {
            Ok(bucket) => Ok(Ok(self.table().push(bucket)?)),
            Err(error) => Ok(Err(self.refused(error))),
        }
    }
}

impl store::HostBucket for Host {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Result<Option<Vec<u8>>, Error>> {
        Ok(Ok(self.table().get(&bucket)?.get(&key).await))
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<Result<(), Error>> {
        let set = self.table().get(&bucket)?.set(key, value).await;
        Ok(set.map_err(|error| self.refused(error)))
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Result<(), Error>> {
        self.table().get(&bucket)?.delete(&key).await;
        Ok(Ok(()))
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Result<bool, Error>> {
        Ok(Ok(self.table().get(&bucket)?.exists(&key).await))
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Result<Result<KeyResponse, Error>> {
        let page = self.table().get(&bucket)?.list_keys(cursor).await;
        Ok(Ok(KeyResponse { keys: page.keys, cursor: page.next }))
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.table().delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for Host {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Result<Result<u64, Error>> {
        let sum = self.table().get(&bucket)?.increment(key, delta).await;
        Ok(sum.map_err(|error| self.refused(error)))
    }
}

impl batch::Host for Host {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Result<Vec<Option<(String, Vec<u8>)>>, Error>> {
        let found = self.table().get(&bucket)?.get_many(keys).await;
        Ok(found.map_err(|error| self.refused(error)))
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Result<Result<(), Error>> {
        let set = self.table().get(&bucket)?.set_many(key_values).await;
        Ok(set.map_err(|error| self.refused(error)))
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<Result<(), Error>> {
        let deleted = self.table().get(&bucket)?.delete_many(&keys).await;
        Ok(deleted.map_err(|error| self.refused(error)))
    }
}

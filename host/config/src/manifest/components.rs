//! The files that a manifest's `[components]` names.

use std::{
    io,
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
};

use crate::{
    ApiConfig,
    document::{Table, Value, quote},
    grants::{is_no_proc, real_path},
    held::{HeldFolder, OpenError},
};

/// Above the range an instance would never be replaced.
const REUSE: RangeInclusive<u64> = 1..=1_000_000_000;

/// The components of a tenant, each in its role.
pub(super) struct Components {
    pub(super) dial: Option<PathBuf>,
    pub(super) filter: Option<PathBuf>,
    pub(super) client: Option<PathBuf>,
    pub(super) api: Option<ApiConfig>,
    pub(super) job: Option<PathBuf>,
    /// All their files, as the manifest names them.
    pub(super) named: Vec<PathBuf>,
}

impl Components {
    /// Reads `[components]`. A filter and a dial component need an upstream. A job needs the key `schedule`, and that key
    /// a job.
    pub(super) fn read(mut table: Table<'_>, home: Home<'_>, has_upstream: bool, schedule: Option<&Value<'_>>) -> Self {
        let mut named = Vec::new();
        let mut for_upstreams = |key| {
            let value = table.take(key)?;
            if !has_upstream {
                value.problem(format!("needs an [[upstream]]; add one, or remove the {key} component"));
            }
            component(&value, home, &mut named)
        };
        let (filter, dial) = (for_upstreams("filter"), for_upstreams("dial"));
        let client = table.take("client").and_then(|value| component(&value, home, &mut named));
        let api = table.take("api").and_then(|value| api(value, home, &mut named));
        let job = table.take("job");
        table.finish();
        match (&job, schedule) {
            (Some(job), None) => job.problem("needs a [[schedule]]; add one, or remove the job"),
            (None, Some(listed)) => listed.problem("needs a job; write for example components.job = \"job.wasm\""),
            _ => {}
        }
        let job = job.and_then(|value| component(&value, home, &mut named));
        Self { dial, filter, client, api, job, named }
    }

    /// Their files, links followed.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let api = self.api.as_ref().map(|api| &api.file);
        [self.dial.as_ref(), self.filter.as_ref(), self.client.as_ref(), api, self.job.as_ref()].into_iter().flatten()
    }
}

/// A tenant's folder: the path that leads to it, and what is held open of it.
#[derive(Clone, Copy)]
pub(super) struct Home<'h> {
    pub(super) folder: &'h Path,
    pub(super) held: &'h HeldFolder,
}

/// A component's file with its links followed. It must be within the tenant's folder. Its path as written is added to
/// `named`, to be watched for changes.
fn component(value: &Value<'_>, home: Home<'_>, named: &mut Vec<PathBuf>) -> Option<PathBuf> {
    let text = value.str()?;
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if text.is_empty() || !Path::new(text).components().all(inside) {
        value.problem(format!("{} is not within the tenant's folder; write for example \"filter.wasm\"", quote(text)));
        return None;
    }
    let opened = home.held.file(Path::new(text)).and_then(|file| Ok(real_path(&file)?));
    let message = match opened {
        Ok(real) => {
            named.push(home.folder.join(text));
            return Some(real);
        }
        Err(OpenError::LeadsOut) => "leads out of the tenant's folder; put the file itself there".into(),
        Err(OpenError::NotAFile) => "is not a file; name the component's .wasm".into(),
        Err(OpenError::Io(error)) if is_no_proc(&error) => format!("cannot be read: {error}"),
        Err(OpenError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            let folder = home.held.real_path().unwrap_or_else(|_| home.folder.into());
            format!("is not in {}; build the component and put it there", folder.display())
        }
        Err(OpenError::Io(error)) => format!("cannot be read ({error}); check its rights"),
    };
    value.problem(format!("{} {message}", quote(text)));
    None
}

/// The API: a file's name, or a table with more keys.
fn api(value: Value<'_>, home: Home<'_>, named: &mut Vec<PathBuf>) -> Option<ApiConfig> {
    if value.value.is_str() {
        return component(&value, home, named).map(|file| ApiConfig { file, reuse: ApiConfig::REUSE });
    }
    let mut table = value.table("a file's name, or { file = \"api.wasm\", isolation = \"call\" }")?;
    let file = table.require("file", "file = \"api.wasm\"").and_then(|value| component(&value, home, named));
    let reuse = table.count("reuse", &REUSE);
    let isolation = table.take("isolation");
    let fresh = isolation.as_ref().and_then(Value::str).is_some_and(|isolation| isolation == "call");
    if let Some(value) = isolation.filter(|_| !fresh).filter(|value| value.value.is_str()) {
        value.problem(
            "is not known; write \"call\", or remove it and set how many calls an instance serves: reuse = 1000",
        );
    }
    if fresh && reuse.is_some() {
        table.place.problem("has both isolation = \"call\" and reuse; remove one");
    }
    table.finish();
    let calls = reuse.and_then(|calls| u32::try_from(calls).ok()).unwrap_or(ApiConfig::REUSE);
    Some(ApiConfig { file: file?, reuse: if fresh { 1 } else { calls } })
}

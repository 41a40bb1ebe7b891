//! What a data folder's store says of dead letters, to somebody who only looks.

use std::path::Path;

use super::Stop;
use crate::delivery::checkpoint;
use crate::state::{DataDir, DiskStore, Entries, Store};

/// The file of a data folder's store.
const STORE: &str = "weir.redb";

/// The store of a folder, if there is one and nobody else holds it. No folder is made for looking.
pub(super) fn held(folder: &Path) -> Result<Option<(DataDir, DiskStore)>, Stop> {
    if !folder.join(STORE).exists() {
        return Ok(None);
    }
    let Ok(dir) = DataDir::take(folder) else { return Ok(None) };
    let store = DiskStore::open(&dir.store()).map_err(|error| Stop::failed(error.to_string()))?;
    Ok(Some((dir, store)))
}

/// What the store of a folder has of a pipeline: nothing if there is no store. `None` if somebody else holds it.
pub(super) fn of_pipeline(folder: &Path, pipeline: &str) -> Result<Option<Entries>, Stop> {
    if !folder.join(STORE).exists() {
        return Ok(Some(Entries::new()));
    }
    let Some((_dir, store)) = held(folder)? else { return Ok(None) };
    let tokio = tokio::runtime::Builder::new_current_thread().build();
    let tokio = tokio.map_err(|error| Stop::failed(format!("cannot start: {error}")))?;
    let entries = tokio.block_on(store.load(&checkpoint::scope(pipeline)));
    entries.map(Some).map_err(|error| Stop::failed(error.to_string()))
}

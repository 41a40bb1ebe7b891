//! Files that are read once, one after another in the order of their names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_stream::try_stream;
use futures::stream::Stream;

use super::FileSource;
use super::identity::{FileId, Place};
use super::listing::{Found, list, missing, retry};
use super::marks::{self, Known};
use super::moved::{Lost, Original, locate};
use super::reader::{Read, Reader};
use crate::clients::lines::Tail;
use crate::component::{Pulled, SourceContext, SourceError};
use crate::record::Partition;

impl FileSource {
    pub(super) fn read_once(
        &mut self,
        cx: SourceContext,
    ) -> impl Stream<Item = Result<Pulled, SourceError>> + Send + '_ {
        try_stream! {
            let listed = list(&cx.runtime, &self.settings).await?;
            let (mut readers, gone) = self.assign(&cx, listed.files).await;
            for reader in &mut readers {
                if reader.known.gone.take().is_some() {
                    yield reader.say();
                }
                let path = Arc::clone(&reader.path);
                let len = reader.open(&cx.runtime).await.map_err(|error| missing(&path, &error))?;
                if reader.file.is_none() {
                    Err(SourceError::Retry(format!("another file has taken the name `{path}` since it was found")))?;
                }
                if reader.known.whole == Some(len) {
                    continue;
                }
                let read = reader.known.place.offset;
                if !reader.is_compressed() && len < read {
                    Err(SourceError::Fatal(format!(
                        "`{path}` has become shorter than what was read of it: it has {len} bytes, and {read} were \
                         committed; restore it, give it another name, or say `follow: true` to begin anew"
                    )))?;
                }
                reader.ready = true;
                while reader.ready {
                    match reader.read(&cx.runtime, Tail::Last).await {
                        Read::Pulled(pulled) => yield pulled,
                        Read::Nothing => {}
                        Read::Changed => Err(SourceError::Fatal(format!(
                            "`{path}` does not hold any more what was read of it, up to byte {read}; restore it, give \
                             what is new another name, or say `follow: true` to begin anew"
                        )))?,
                        Read::Damaged(error) => yield reader.refusal(&error, cx.runtime.clock().timestamp()),
                        Read::Failed(error) => Err(retry(&path, "cannot read", &error))?,
                    }
                }
                // It is read: nothing of it is needed in memory.
                reader.file = None;
            }
            for mut reader in gone {
                if let Some(pulled) = self.note_gone(&mut reader, cx.runtime.clock().timestamp()) {
                    yield pulled;
                }
            }
        }
    }

    /// A reader for each file, and those of files that are gone.
    async fn assign(&self, cx: &SourceContext, listed: Vec<Found>) -> (Vec<Reader>, Vec<Reader>) {
        let mut known: BTreeMap<Partition, Known> = marks::files(&cx.committed, &self.name).into_iter().collect();
        let mut numbers: BTreeMap<Arc<str>, i32> = BTreeMap::new();
        for file in known.keys() {
            numbers.insert(Arc::clone(&file.topic), file.number + 1);
        }
        let mut take = |is: &dyn Fn(&Partition, &Known) -> bool| {
            let file = known.iter().rev().find(|(file, known)| is(file, known))?.0.clone();
            known.remove_entry(&file)
        };
        let mut assigned: Vec<(Found, Option<(Partition, Known)>)> = Vec::new();
        for found in listed {
            let by_id = take(&|_, known| known.id == Some(found.id));
            // As earlier versions noted it.
            let by_path = || take(&|file, known| known.id.is_none() && file.topic == found.path);
            let file = by_id.or_else(by_path);
            assigned.push((found, file));
        }
        let moved = self.find_moved(cx, &assigned, &known).await;
        for (file, id) in moved {
            let place = assigned.iter_mut().find(|(found, known)| found.id == id && known.is_none());
            if let (Some((_, unknown)), Some(entry)) = (place, known.remove_entry(&file)) {
                *unknown = Some(entry);
            }
        }
        let readers = assigned.into_iter().map(|(found, file)| {
            let (file, known) = file.unwrap_or_else(|| {
                let number = numbers.get(&found.path).copied().unwrap_or(0);
                (self.partition(&found.path, number), Known { place: Place::start(), ..Known::default() })
            });
            let whole = known.whole.filter(|_| known.id == Some(found.id));
            let known = Known { id: Some(found.id), whole, ..known };
            Reader::new(file, &found.path, known, self.settings.max_line_bytes)
        });
        let readers = readers.collect();
        let gone = known.into_iter().map(|(file, known)| {
            let path = Arc::clone(&file.topic);
            Reader::new(file, &path, known, self.settings.max_line_bytes)
        });
        (readers, gone.collect())
    }

    /// Which of the files that are not known hold what was read of one that is not there any more: copies of it, or it
    /// compressed.
    async fn find_moved(
        &self,
        cx: &SourceContext,
        assigned: &[(Found, Option<(Partition, Known)>)],
        missing: &BTreeMap<Partition, Known>,
    ) -> Vec<(Partition, FileId)> {
        let unknown: Vec<Found> =
            assigned.iter().filter(|(_, known)| known.is_none()).map(|(found, _)| found.clone()).collect();
        if unknown.is_empty() || missing.is_empty() {
            return Vec::new();
        }
        let files: Vec<Partition> = missing.keys().cloned().collect();
        let lost: Vec<Lost> = missing
            .iter()
            .map(|(file, known)| Lost { id: None, original: Original::gone(&file.topic, known.place) })
            .collect();
        let taken: BTreeSet<FileId> =
            assigned.iter().filter(|(_, known)| known.is_some()).map(|(found, _)| found.id).collect();
        let located = cx.runtime.blocking(move || locate(&lost, &unknown, &taken)).await;
        files.into_iter().zip(located).filter_map(|(file, found)| Some((file, found?.id))).collect()
    }
}

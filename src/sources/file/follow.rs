//! Files that are followed as they grow, and across rotation.
//!
//! A file is known by what it is, not by its name: a renamed one is read on, a copy or a compressed form that takes the
//! place of a file is that file. What is written anew under an old name, or in an old file, is a new one; it waits until
//! the old one is read to its end.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use futures::stream::Stream;

use super::ended::Since;
use super::identity::{FileId, Place, Window};
use super::listing::{Found, list};
use super::marks::{self, Known};
use super::moved::{Likeness, Lost, Original, compare, goes_on_from, locate};
use super::reader::{Read, Reader, Seen};
use super::{FileSource, StartAt};
use crate::clients::lines::{Tail, past_last_newline};
use crate::clients::packed::{Format, Unpacker};
use crate::clock::Instant;
use crate::component::{Pulled, SourceContext, SourceError};
use crate::record::{Partition, Timestamp};
use crate::runtime::Runtime;

/// New files are looked for this often.
const LISTING: Duration = Duration::from_secs(1);
/// Files that are read to their end are looked at this often.
const WATCHING: Duration = Duration::from_millis(100);
/// A file that has lost its name is read on for this long: its writer may not have noticed yet. As long, one that looks
/// like a copy in the making waits for the original to go.
const LINGER: Duration = Duration::from_secs(5);
/// Files kept open while they wait for more. Far below the usual limit of 1024.
pub(super) const MAX_OPEN: usize = 256;
/// Files kept open that have lost their names, so that a rewind across a rotation finds them.
const MAX_RETIRED: usize = 64;

/// A file that looks like a copy of another one, which is still there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    len: u64,
    since: Instant,
}

/// What is to be done with a file that nobody knows.
enum Meeting {
    /// It holds what was read of this one, which is gone.
    GoesOn(Arc<Partition>),
    Wait,
    New,
}

impl FileSource {
    pub(super) fn follow(&mut self, cx: SourceContext) -> impl Stream<Item = Result<Pulled, SourceError>> + Send + '_ {
        try_stream! {
            for pulled in self.rewind(&cx) {
                yield pulled;
            }
            let runtime = &cx.runtime;
            let mut next_listing = runtime.clock().now();
            let mut next_look = next_listing;
            loop {
                let now = runtime.clock().now();
                if now >= next_look {
                    next_look = now + WATCHING;
                    for pulled in self.look(runtime).await {
                        yield pulled;
                    }
                }
                if now >= next_listing || self.files.values().any(|reader| reader.lost) {
                    next_listing = now + LISTING;
                    for pulled in self.find(&cx).await? {
                        yield pulled;
                    }
                }
                let ready = self.ready();
                let none_was_ready = ready.is_empty();
                let mut open = self.files.values().filter(|reader| reader.file.is_some()).count();
                let mut unpacking = false;
                for file in ready {
                    let Some(reader) = self.files.get_mut(&file) else { continue };
                    if reader.file.is_none() {
                        match reader.open(runtime).await {
                            Ok(_) => open += usize::from(reader.file.is_some()),
                            Err(error) => reader.complain(&self.name, &self.metrics, &error),
                        }
                    }
                    // One after another: each needs memory to look back to.
                    if reader.is_compressed() && std::mem::replace(&mut unpacking, true) {
                        continue;
                    }
                    // One read of each, so that a large file does not hold up the others.
                    loop {
                        match reader.read(runtime, Tail::Open).await {
                            Read::Pulled(pulled) => yield pulled,
                            Read::Nothing => break,
                            Read::Changed => {
                                reader.lost = true;
                                break;
                            }
                            Read::Damaged(error) => {
                                let clock = runtime.clock();
                                if let Some(pulled) = reader.stall(error, clock.now(), clock.timestamp()) {
                                    yield pulled;
                                }
                                reader.try_again();
                                break;
                            }
                            Read::Failed(error) => {
                                reader.complain(&self.name, &self.metrics, &error);
                                reader.try_again();
                                // Where its name leads to may be well.
                                open -= usize::from(reader.listed && reader.file.take().is_some());
                                break;
                            }
                        }
                        if !reader.holds_pieces() {
                            break;
                        }
                    }
                    if open > MAX_OPEN && reader.file.take().is_some() {
                        open -= 1;
                    }
                }
                if none_was_ready {
                    runtime.sleep_until(next_look.min(next_listing)).await;
                }
            }
        }
    }

    /// Puts all files back to what was committed.
    fn rewind(&mut self, cx: &SourceContext) -> Vec<Pulled> {
        self.held.clear();
        let mut committed = marks::files(&cx.committed, &self.name);
        // Of two that are said to be one file, the later is: the earlier was lost, and that was not committed.
        let mut ids = BTreeSet::new();
        for (_, known) in committed.iter_mut().rev().filter(|(_, known)| known.gone.is_none()) {
            known.id = known.id.filter(|id| ids.insert(*id));
        }
        self.first_start = committed.is_empty() && self.files.is_empty();
        let mut forgotten = Vec::new();
        for (file, known) in committed {
            if let Some(over) = self.over.iter().find(|over| *over.origin == file) {
                if known.place.offset < over.known.place.offset {
                    tracing::error!(
                        component = &*self.name,
                        path = &*file.topic,
                        "the file was written anew before all that had been read of it was committed: lines are lost"
                    );
                }
                forgotten.push(over.forget());
            } else if let Some(reader) = self.files.get_mut(&file) {
                // Where its content is now is known better than what was committed says.
                let id = reader.known.id.or(known.id);
                let whole = known.whole.filter(|_| id == known.id);
                reader.take_up(Known { id, whole, ..known });
                if id == known.id {
                    reader.is_committed();
                }
            } else {
                let lost = known.id.is_none() && known.place.proof.is_some();
                let path = Arc::clone(&file.topic);
                let mut reader = Reader::new(file, &path, known, self.settings.max_line_bytes);
                reader.lost = lost;
                if known.id.is_some() {
                    reader.is_committed();
                }
                self.files.insert(Arc::clone(&reader.origin), reader);
            }
        }
        for reader in self.files.values_mut().filter(|reader| marks::known(&cx.committed, &reader.origin).is_none()) {
            let known = Known { place: reader.first, id: reader.known.id, ..Known::default() };
            reader.take_up(known);
        }
        self.over.retain(|over| cx.committed.contains_key(&*over.origin));
        forgotten
    }

    /// The files that have something to read. One that follows another under the same path waits for it.
    fn ready(&self) -> Vec<Arc<Partition>> {
        let mut ready = Vec::new();
        let mut unfinished: Option<&Arc<str>> = None;
        for (file, reader) in &self.files {
            let waits = reader.known.place.offset == 0 && unfinished == Some(&file.topic);
            if reader.ready && !waits {
                ready.push(Arc::clone(file));
            }
            if !reader.finished && !reader.complained {
                unfinished = Some(&file.topic);
            }
        }
        ready
    }

    /// Looks at the files that wait: has one grown, or was it written anew? What has lost its name is read to its end.
    async fn look(&mut self, runtime: &Runtime) -> Vec<Pulled> {
        let waiting = self.files.iter().filter(|(_, reader)| {
            !reader.ready && !reader.lost && reader.known.gone.is_none() && (reader.listed || reader.file.is_some())
        });
        let looks: Vec<_> = waiting.map(|(file, reader)| (Arc::clone(file), reader.look())).collect();
        let look_at_all = move || looks.into_iter().map(|(file, look)| (file, look())).collect::<Vec<_>>();
        let seen = runtime.blocking(look_at_all).await;
        let (now, timestamp) = (runtime.clock().now(), runtime.clock().timestamp());
        let mut pulled = Vec::new();
        for (file, seen) in seen {
            let Some(reader) = self.files.get_mut(&file) else { continue };
            match seen {
                Seen::Same => pulled.extend(reader.heed_len(None, now, timestamp)),
                Seen::Moved(len) => pulled.extend(reader.heed_len(Some(len), now, timestamp)),
                Seen::Shorter => reader.lost = true,
                Seen::Failed(error) => reader.complain(&self.name, &self.metrics, &error),
            }
            let lingered = reader.moved_since.is_some_and(|since| now.duration_since(since) >= LINGER);
            if !lingered || reader.ready || reader.lost || (reader.finished && reader.listed) {
                continue;
            }
            self.finish(runtime, &file, &mut pulled).await;
        }
        pulled
    }

    /// Reads the end of a file that has lost its name: nobody will end its last line now.
    async fn finish(&mut self, runtime: &Runtime, file: &Arc<Partition>, pulled: &mut Vec<Pulled>) {
        let Some(reader) = self.files.get_mut(file) else { return };
        let was_closed = reader.file.is_none();
        if was_closed && let Err(error) = reader.open(runtime).await {
            reader.complain(&self.name, &self.metrics, &error);
            return;
        }
        if !reader.is_compressed() {
            reader.ready = true;
            while reader.ready {
                match reader.read(runtime, Tail::Last).await {
                    Read::Pulled(rest) => pulled.push(rest),
                    Read::Changed => reader.lost = true,
                    Read::Nothing | Read::Damaged(_) => {}
                    Read::Failed(error) => {
                        reader.complain(&self.name, &self.metrics, &error);
                        reader.try_again();
                        return;
                    }
                }
            }
        }
        if reader.lost {
            return;
        }
        reader.finished = true;
        if was_closed {
            reader.file = None;
        }
        if !reader.listed {
            tracing::info!(
                component = &*self.name,
                path = &*reader.path,
                "the file has lost its name and is read to its end"
            );
            reader.known.gone = Some(runtime.clock().timestamp().0);
            pulled.push(reader.say());
            self.retired.push_back(Arc::clone(file));
            if self.retired.len() > MAX_RETIRED
                && let Some(oldest) = self.retired.pop_front()
                && let Some(oldest) = self.files.get_mut(&oldest).filter(|oldest| oldest.known.gone.is_some())
            {
                oldest.file = None;
            }
        }
    }

    /// Looks for files, under names old and new.
    async fn find(&mut self, cx: &SourceContext) -> Result<Vec<Pulled>, SourceError> {
        self.let_go();
        let listing = list(&cx.runtime, &self.settings).await?;
        if let Some(trouble) = listing.trouble.as_ref().filter(|trouble| self.trouble.as_ref() != Some(trouble)) {
            tracing::warn!(component = &*self.name, "{trouble}: it is tried again");
            self.metrics.error("read");
        }
        self.trouble = listing.trouble;
        let listed = listing.files;
        let mut pulled = self.name_files(&listed, cx.runtime.clock().now());
        let over = self.over.len();
        self.seek(cx, &listed, &mut pulled).await;
        self.meet(cx, listed, &mut pulled).await;
        for reader in self.files.values_mut().filter(|reader| reader.is_unsaid()) {
            pulled.push(reader.say());
        }
        // Behind what was found in its place: there must never be nothing.
        pulled.extend(self.over[over..].iter().map(Reader::forget));
        self.first_start = false;
        let timestamp = cx.runtime.clock().timestamp();
        let gone = self.files.iter().filter(|(_, reader)| reader.known.gone.is_some());
        let gone: Vec<_> = gone.map(|(file, _)| Arc::clone(file)).collect();
        for file in gone {
            let Some(mut reader) = self.files.remove(&file) else { continue };
            let said = self.note_gone(&mut reader, timestamp);
            // One that is forgotten is not followed any more.
            if said.is_none() {
                self.files.insert(file, reader);
            }
            pulled.extend(said);
        }
        Ok(pulled)
    }

    /// Lets go of files whose ends are committed.
    fn let_go(&mut self) {
        let Since { gone, forgotten } = self.ended.take();
        for file in gone {
            if let Some(reader) = self.files.get_mut(&file).filter(|reader| reader.known.gone.is_some()) {
                reader.file = None;
            }
        }
        self.over.retain(|over| !forgotten.contains(&over.origin));
    }

    /// Takes note of the names that files have now.
    fn name_files(&mut self, listed: &[Found], now: Instant) -> Vec<Pulled> {
        let by_id: HashMap<FileId, &Found> = listed.iter().map(|found| (found.id, found)).collect();
        let mut pulled = Vec::new();
        let mut new: BTreeSet<FileId> = by_id.keys().copied().collect();
        // Of several that are said to be one file, the latest is.
        for reader in self.files.values_mut().rev() {
            match reader.known.id.filter(|id| !reader.lost && new.remove(id)).and_then(|id| by_id.get(&id)) {
                Some(found) => {
                    reader.found_at(&found.path, now);
                    if reader.known.gone.take().is_some() {
                        reader.finished = reader.known.whole.is_some();
                        pulled.push(reader.say());
                    }
                }
                None => reader.not_found(now),
            }
        }
        // As earlier versions noted it: by its path.
        let by_path: HashMap<&Arc<str>, &Found> = listed.iter().map(|found| (&found.path, found)).collect();
        for reader in self.files.values_mut().filter(|reader| reader.known.id.is_none() && !reader.lost) {
            let Some(found) = by_path.get(&reader.origin.topic).filter(|found| new.contains(&found.id)) else {
                continue;
            };
            reader.lost = found.len < reader.known.place.offset;
            if !reader.lost {
                reader.known.id = Some(found.id);
                reader.found_at(&found.path, now);
            }
        }
        pulled
    }

    /// Looks for files that are not where they were. Those that are nowhere are over, or gone.
    async fn seek(&mut self, cx: &SourceContext, listed: &[Found], pulled: &mut Vec<Pulled>) {
        let is_sought =
            |reader: &Reader| reader.lost || (!reader.listed && reader.file.is_none() && reader.known.gone.is_none());
        let sought: Vec<_> = self.files.values().filter(|reader| is_sought(reader)).collect();
        if sought.is_empty() {
            return;
        }
        let files: Vec<_> = sought.iter().map(|reader| Arc::clone(&reader.origin)).collect();
        let lost: Vec<_> = sought
            .iter()
            .map(|reader| Lost {
                id: reader.known.id.filter(|_| !reader.lost),
                original: Original::gone(&reader.origin.topic, reader.known.place),
            })
            .collect();
        let of_others = self.files.values().filter(|reader| !is_sought(reader)).filter_map(|reader| reader.known.id);
        // What was written anew is no copy of what it was.
        let rewritten = sought.iter().filter(|reader| reader.lost).filter_map(|reader| reader.known.id);
        let known: BTreeSet<FileId> = of_others.chain(rewritten).collect();
        let listed = listed.to_vec();
        let located = cx.runtime.blocking(move || locate(&lost, &listed, &known)).await;
        let now = cx.runtime.clock().now();
        for (file, found) in files.into_iter().zip(located) {
            let Some(reader) = self.files.get_mut(&file) else { continue };
            match found {
                Some(found) if reader.known.id == Some(found.id) && !reader.lost => {
                    reader.path = found.path;
                    match reader.open(&cx.runtime).await {
                        Ok(_) => reader.ready = true,
                        Err(error) => reader.complain(&self.name, &self.metrics, &error),
                    }
                }
                Some(found) => {
                    reader.go_on_in(&found.path, found.id);
                    reader.listed = false;
                    reader.moved_since = Some(now);
                    if let Err(error) = reader.open(&cx.runtime).await {
                        reader.complain(&self.name, &self.metrics, &error);
                    }
                }
                None if reader.lost => {
                    let path = &*reader.origin.topic;
                    tracing::warn!(
                        component = &*self.name,
                        path,
                        "the file was written anew: it is read from its beginning"
                    );
                    reader.file = None;
                    self.over.extend(self.files.remove(&file));
                }
                None => {
                    tracing::info!(component = &*self.name, path = &*reader.path, "the file is gone");
                    reader.finished = true;
                    reader.ready = false;
                    reader.known.gone = Some(cx.runtime.clock().timestamp().0);
                    pulled.push(reader.say());
                }
            }
        }
    }

    /// Takes up the files that nobody knows.
    async fn meet(&mut self, cx: &SourceContext, listed: Vec<Found>, pulled: &mut Vec<Pulled>) {
        let known: BTreeSet<FileId> = self.files.values().filter_map(|reader| reader.known.id).collect();
        let unknown: Vec<Found> = listed.into_iter().filter(|found| !known.contains(&found.id)).collect();
        self.held.retain(|id, _| unknown.iter().any(|found| found.id == *id));
        for found in unknown {
            let now = cx.runtime.clock().now();
            match self.judge(cx, &found, now).await {
                Meeting::GoesOn(file) => {
                    let reader = self.files.get_mut(&file).expect("it was judged a moment ago");
                    reader.go_on_in(&found.path, found.id);
                    reader.found_at(&found.path, now);
                }
                Meeting::Wait => continue,
                Meeting::New => {
                    let topic = Arc::clone(&found.path);
                    let same_path = self.files.keys().filter(|file| file.topic == topic);
                    let over = self.over.iter().map(|over| &over.origin).filter(|file| file.topic == topic);
                    let number = same_path.chain(over).map(|file| file.number + 1).max().unwrap_or(0);
                    let mut place = Place::start();
                    if self.settings.start_at == StartAt::End && (self.first_start || self.from_end.contains(&found.id))
                    {
                        match end_of_lines(&cx.runtime, &found.path).await {
                            Ok(end) => place = end,
                            Err(error) => {
                                self.begins_later(&found, &error);
                                continue;
                            }
                        }
                        self.from_end.remove(&found.id);
                    }
                    let known = Known { place, id: Some(found.id), ..Known::default() };
                    let file = self.partition(&found.path, number);
                    let mut reader = Reader::new(file, &found.path, known, self.settings.max_line_bytes);
                    reader.found_at(&found.path, now);
                    // Said at once: after a crash the end may be elsewhere, and a first start is one.
                    pulled.push(reader.say());
                    self.files.insert(Arc::clone(&reader.origin), reader);
                }
            }
            self.held.remove(&found.id);
        }
    }

    /// The end of a file, where it is to be begun, cannot be read for now: it is begun there once it can be, and never at
    /// its beginning.
    fn begins_later(&mut self, found: &Found, error: &io::Error) {
        if self.from_end.insert(found.id) {
            tracing::warn!(component = &*self.name, path = &*found.path, %error, "cannot read the file: it is tried again");
            self.metrics.error("read");
        }
    }

    /// Whether a file is new, or holds what was read of one that is known.
    async fn judge(&mut self, cx: &SourceContext, found: &Found, now: Instant) -> Meeting {
        let relatives: Vec<&Reader> = self
            .files
            .values()
            .filter(|reader| reader.known.place.can_be_known() && reader.origin.topic != found.path)
            .filter(|reader| [&reader.origin.topic, &reader.path].iter().any(|path| goes_on_from(path, &found.path)))
            .collect();
        if relatives.is_empty() {
            return Meeting::New;
        }
        let originals: Vec<Original> = relatives
            .iter()
            .map(|reader| Original {
                path: Arc::clone(&reader.path),
                place: reader.known.place,
                file: reader.file.clone(),
                is_there: reader.listed,
            })
            .collect();
        let path = Arc::clone(&found.path);
        // What cannot be read shows its error when it is read as a new one.
        let likeness = cx.runtime.blocking(move || compare(&path, &originals)).await.unwrap_or_default();
        let mut alike: Vec<_> = relatives.into_iter().zip(likeness).filter(|(_, is)| *is != Likeness::Other).collect();
        alike.sort_by_key(|(reader, _)| reader.known.place.offset);
        let of_one_gone = alike.iter().rev().find(|(reader, is)| *is == Likeness::Same && !reader.listed);
        if let Some((reader, _)) = of_one_gone {
            // What is still open is read to its end first.
            let at_end = reader.file.is_none() || !reader.ready;
            return if at_end { Meeting::GoesOn(Arc::clone(&reader.origin)) } else { Meeting::Wait };
        }
        if !alike.iter().any(|(reader, _)| reader.listed) {
            return Meeting::New;
        }
        let held = self.held.entry(found.id).or_insert(Held { len: found.len, since: now });
        if held.len != found.len {
            *held = Held { len: found.len, since: now };
        }
        if now.duration_since(held.since) < LINGER { Meeting::Wait } else { Meeting::New }
    }

    /// Notes since when a file is gone; after `forget_after` nothing is known of it any more.
    pub(super) fn note_gone(&self, reader: &mut Reader, timestamp: Timestamp) -> Option<Pulled> {
        let Some(gone) = reader.known.gone else {
            reader.known.gone = Some(timestamp.0);
            return Some(reader.say());
        };
        let limit = i64::try_from(self.settings.forget_after.as_millis()).unwrap_or(i64::MAX);
        (timestamp.0.saturating_sub(gone) >= limit).then(|| reader.forget())
    }
}

/// Behind the last whole line of a file, or behind all that a compressed one holds.
async fn end_of_lines(runtime: &Runtime, path: &Arc<str>) -> io::Result<Place> {
    let file = Arc::clone(path);
    let find = move || {
        let file = Arc::new(File::open(&*file)?);
        let mut window = Window::default();
        let mut offset = 0;
        match Format::of(&file)? {
            Some(format) if format.is_compressed() => {
                Unpacker::start(&file, format)?.skip(&mut offset, u64::MAX, &mut |bytes| window.push(bytes))?;
            }
            _ => {
                offset = past_last_newline(&file, file.metadata()?.len())?;
                window = Window::before(&file, offset)?.unwrap_or_default();
            }
        }
        Ok(Place::behind(offset, &window))
    };
    runtime.blocking(find).await
}

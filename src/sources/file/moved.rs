//! Finds content that has moved: a file that was renamed, copied or compressed, as rotation does.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::identity::{FileId, Place, Window};
use super::listing::Found;
use crate::clients::packed::{Format, Unpacker, is_damage};

/// How the content of one file compares with what was read of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likeness {
    /// It is something else.
    Other,
    /// It is shorter than what was read of the other, and the same so far: a copy in the making.
    SoFar,
    /// It holds what was read of the other.
    Same,
}

/// What was read of a file.
#[derive(Debug, Clone)]
pub(super) struct Original {
    /// The path under which it was found.
    pub(super) path: Arc<str>,
    pub(super) place: Place,
    /// The file itself, if it is open.
    pub(super) file: Option<Arc<File>>,
    /// Whether it has its path still.
    pub(super) is_there: bool,
}

impl Original {
    /// One that is not there any more.
    pub(super) fn gone(path: &Arc<str>, place: Place) -> Self {
        Self { path: Arc::clone(path), place, file: None, is_there: false }
    }
}

/// Whether a name is one that rotation may give to a copy: it goes on from the name without its ending, as do
/// `app.log.1`, `app.log-20260101.gz` and `app-2.log` from `app.log`.
pub(super) fn goes_on_from(original: &str, candidate: &str) -> bool {
    let name = |path| Path::new(path).file_name().and_then(OsStr::to_str).unwrap_or_default();
    let stem = Path::new(original).file_stem().and_then(OsStr::to_str).unwrap_or_default();
    let rest = name(candidate).strip_prefix(stem);
    original != candidate && rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

/// How a file compares with each of several originals.
pub(super) fn compare(candidate: &str, originals: &[Original]) -> io::Result<Vec<Likeness>> {
    let file = Arc::new(File::open(candidate)?);
    match Format::of(&file)? {
        Some(Format::Plain) => originals.iter().map(|original| compare_plain(&file, original)).collect(),
        Some(format) => compare_packed(&file, format, originals),
        None => Ok(originals.iter().map(|original| copying(original, 0, &Window::default())).collect()),
    }
}

fn compare_plain(file: &File, original: &Original) -> io::Result<Likeness> {
    let len = file.metadata()?.len();
    let place = original.place;
    if let Some(proof) = place.proof.filter(|_| len >= place.offset) {
        let is_same = Window::before(file, proof.at)?.is_some_and(|window| window.is(proof));
        return Ok(if is_same { Likeness::Same } else { Likeness::Other });
    }
    // None where it has become shorter just now.
    let window = Window::before(file, len)?;
    Ok(window.map_or(Likeness::Other, |window| copying(original, len, &window)))
}

/// One pass over a compressed file, however many originals there are.
fn compare_packed(file: &Arc<File>, format: Format, originals: &[Original]) -> io::Result<Vec<Likeness>> {
    let mut order: Vec<usize> = (0..originals.len()).collect();
    let proof = |index: usize| originals[index].place.proof;
    order.sort_by_key(|&index| proof(index).map(|proof| proof.at));
    let mut found = vec![Likeness::Other; originals.len()];
    let mut unpacker = Unpacker::start(file, format)?;
    let (mut at, mut window) = (0, Window::default());
    let mut cut_off = false;
    for index in order {
        let Some(proof) = proof(index) else { continue };
        if !cut_off {
            match unpacker.skip(&mut at, proof.at, &mut |bytes| window.push(bytes)) {
                Ok(()) => {}
                Err(error) if is_damage(&error) => cut_off = true,
                Err(error) => return Err(error),
            }
        }
        found[index] = match at == proof.at {
            true if window.is(proof) => Likeness::Same,
            false if cut_off => copying(&originals[index], at, &window),
            _ => Likeness::Other,
        };
    }
    Ok(found)
}

/// Whether what there is of a shorter file is what the original has there.
fn copying(original: &Original, at: u64, window: &Window) -> Likeness {
    let open = || File::open(&*original.path).ok().map(Arc::new);
    let file = original.file.clone().or_else(|| if original.is_there { open() } else { None });
    let there = file.and_then(|file| Window::before(&file, at).ok().flatten());
    if there.as_ref() == Some(window) { Likeness::SoFar } else { Likeness::Other }
}

/// A file whose name or content was lost.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) original: Original,
    /// Which file it is, unless that one was written anew.
    pub(super) id: Option<FileId>,
}

/// Whether a file under the same name may be the very one, although its id is another: where the file system knows no
/// births, the id holds the number of a device, which changes with a mount.
fn may_be_itself(lost: &Lost, found: &Found) -> bool {
    !found.has_birth && lost.original.path == found.path
}

/// Where each of these files is now, if it is anywhere among those that were listed or in its own folder. `known` are the
/// files that belong to others.
pub(super) fn locate(lost: &[Lost], listed: &[Found], known: &BTreeSet<FileId>) -> Vec<Option<Found>> {
    let mut folders: HashMap<&Path, Vec<Found>> = HashMap::new();
    let mut taken = BTreeSet::new();
    let mut located = Vec::new();
    for one in lost {
        let folder = Path::new(&*one.original.path).parent().unwrap_or(Path::new("/"));
        let neighbours: &Vec<Found> = folders.entry(folder).or_insert_with(|| neighbours(folder));
        let by_id = |found: &&Found| Some(found.id) == one.id;
        let by_content = |found: &&Found| {
            one.original.place.can_be_known()
                && !known.contains(&found.id)
                && !taken.contains(&found.id)
                && (goes_on_from(&one.original.path, &found.path) || may_be_itself(one, found))
                && compare(&found.path, std::slice::from_ref(&one.original))
                    .is_ok_and(|likeness| likeness == [Likeness::Same])
        };
        let all = || listed.iter().chain(neighbours);
        let found = all().find(by_id).or_else(|| all().find(by_content)).cloned();
        taken.extend(found.as_ref().map(|found| found.id));
        located.push(found);
    }
    located
}

/// The files of a folder that can be read by name.
fn neighbours(folder: &Path) -> Vec<Found> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<Found> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some(Found::new(path.to_str()?.into(), &metadata))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::packed::testing::{gzip, numbered, zstandard};

    #[test]
    fn names_that_rotation_gives_go_on_from_the_name() {
        for (candidate, goes_on) in [
            ("/l/app.log.1", true),
            ("/l/app.log.1.gz", true),
            ("/l/app.log-20260101.zst", true),
            ("/l/app-20260101.log", true),
            ("/archive/app.1.log", true),
            ("/l/app.log", false),
            ("/l/application.log", false),
            ("/l/app2.log", false),
            ("/l/other.log", false),
        ] {
            assert_eq!(goes_on_from("/l/app.log", candidate), goes_on, "{candidate}");
        }
    }

    #[test]
    fn a_file_whose_device_has_another_number_is_known_by_its_name_and_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.log");
        fs::write(&path, numbered(500)).unwrap();
        let window = Window::before(&File::open(&path).unwrap(), 1000).unwrap().unwrap();
        let place = Place::behind(1000, &window);
        let name: Arc<str> = path.to_str().unwrap().into();
        let lost = [Lost { original: Original::gone(&name, place), id: Some(FileId(1)) }];
        let found = Found::new(name, &fs::metadata(&path).unwrap());
        let locate = |found: &Found| locate(&lost, std::slice::from_ref(found), &BTreeSet::new());
        let without_birth = Found { has_birth: false, ..found.clone() };
        assert_eq!(locate(&without_birth), [Some(without_birth.clone())]);
        assert_eq!(locate(&Found { has_birth: true, ..found.clone() }), [None], "a birth tells it from any other");
        fs::write(&path, numbered(500).replace("line", "item")).unwrap();
        assert_eq!(locate(&without_birth), [None]);
    }

    #[test]
    fn content_is_known_again_whatever_the_format() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let text = numbered(500);
        let path = write("app.log", text.as_bytes());
        let file = Arc::new(File::open(&path).unwrap());
        let original = |offset, there: bool| {
            let window = Window::before(&file, offset).unwrap().unwrap();
            let place = Place::behind(offset, &window);
            Original { path: path.as_str().into(), place, file: there.then(|| Arc::clone(&file)), is_there: there }
        };
        let end = text.len() as u64;
        let half = &text[..text.len() / 2];
        let pack = [(|text: &str| text.as_bytes().to_vec()) as fn(&str) -> Vec<u8>, gzip, zstandard];
        for (number, pack) in pack.into_iter().enumerate() {
            let longer = write(&format!("app.log.{number}"), &pack(&format!("{text}more\n")));
            let shorter = write(&format!("app.log.{number}.part"), &pack(half));
            let other = write(&format!("app.log.{number}.other"), &pack(&text.replace("line 49", "xxxx 49")));
            let originals = [original(end, true), original(1000, true)];
            assert_eq!(compare(&longer, &originals).unwrap(), [Likeness::Same, Likeness::Same]);
            assert_eq!(compare(&other, &originals).unwrap()[0], Likeness::Other);
            let so_far = compare(&shorter, &originals).unwrap();
            // A compressed file that ends in order is no copy in the making.
            assert_eq!(so_far[0], if number == 0 { Likeness::SoFar } else { Likeness::Other });
            assert_eq!(so_far[1], Likeness::Same);
            assert_eq!(compare(&shorter, &[original(end, false)]).unwrap(), [Likeness::Other]);
        }
        let packed = gzip(&text);
        let growing = write("app.log.gz", &packed[..packed.len() / 2]);
        assert_eq!(compare(&growing, &[original(end, true)]).unwrap(), [Likeness::SoFar]);
        assert_eq!(compare(&write("app.log.2.gz", b""), &[original(end, true)]).unwrap(), [Likeness::SoFar]);
    }
}

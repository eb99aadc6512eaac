//! Who works inside a directory tree: the proof that a tree is ours alone.
//!
//! A process uses a tree if its working directory, its root, an open descriptor or a memory map lies inside. The links
//! in `/proc` are paths as that process sees them, so a tree is looked for at every place where the process has it
//! mounted; within the same file system this says more than a comparison of device numbers, which differ between the
//! parts of some file systems and agree between a tree and its neighbours.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::error::Result;
use crate::sys::mount::{Mount, mounts_of, places_of};

use super::table::pids;

/// One process that uses a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUse {
    /// Its process id.
    pub pid: i32,
    /// Its name, safe to show.
    pub name: String,
    /// How, for example `working directory /srv/x`.
    pub how: String,
}

/// Everyone who uses a tree, as far as we may know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeUsers {
    /// The processes, ourselves left out.
    pub found: Vec<ProcessUse>,
    /// How many processes of others could not be examined.
    pub unreadable: usize,
}

enum Seen {
    No,
    Unreadable,
    Yes(String),
}

/// Finds every process that uses the directory `dir` or something below it, in one pass over `/proc`. We ourselves are
/// left out.
///
/// # Errors
/// If the directory does not exist or `/proc` cannot be read.
pub fn processes_using(dir: &Path) -> Result<TreeUsers> {
    let dir = crate::sys::fs::canonical(dir)?;
    let ours = mounts_of(None)?;
    let us = std::process::id().cast_signed();
    let mut places: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let mut users = TreeUsers::default();
    for pid in pids()?.into_iter().filter(|pid| *pid != us) {
        match examine(pid, &mut |namespace| places_in(&dir, &ours, pid, namespace, &mut places)) {
            Seen::No => {}
            Seen::Unreadable => users.unreadable += 1,
            Seen::Yes(how) => users.found.push(ProcessUse { pid, name: name_of(pid), how }),
        }
    }
    Ok(users)
}

/// The places of the tree in one mount namespace; asked once for each of them.
fn places_in(
    dir: &Path,
    ours: &[Mount],
    pid: i32,
    namespace: PathBuf,
    known: &mut BTreeMap<PathBuf, Vec<PathBuf>>,
) -> Vec<PathBuf> {
    if let Some(places) = known.get(&namespace) {
        return places.clone();
    }
    let mut places = match mounts_of(Some(pid)) {
        Ok(theirs) => places_of(dir, ours, &theirs),
        Err(_) => return vec![dir.to_path_buf()],
    };
    // Where the mounts say nothing (a file system that names itself differently), the path itself is the best guess.
    if !places.iter().any(|place| place == dir) {
        places.push(dir.to_path_buf());
    }
    known.insert(namespace, places.clone());
    places
}

fn examine(pid: i32, places: &mut dyn FnMut(PathBuf) -> Vec<PathBuf>) -> Seen {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let namespace = match std::fs::read_link(base.join("ns/mnt")) {
        Ok(namespace) => namespace,
        // Gone, or a zombie.
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => return Seen::No,
        Err(_) => return Seen::Unreadable,
    };
    let places = places(namespace);
    for (link, words) in [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")] {
        let link = base.join(link);
        if let Some(path) = inside(&link, &places) {
            return Seen::Yes(format!("{words} {path}"));
        }
    }
    let Ok(descriptors) = std::fs::read_dir(base.join("fd")) else { return Seen::Unreadable };
    for descriptor in descriptors.flatten() {
        if let Some(path) = inside(&descriptor.path(), &places) {
            return Seen::Yes(format!("open file {path}"));
        }
    }
    match std::fs::read(base.join("maps")) {
        Ok(maps) => mapped(&maps, &places).map_or(Seen::No, |path| Seen::Yes(format!("mapped file {path}"))),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Seen::Unreadable,
        Err(_) => Seen::No,
    }
}

/// The target of a link of `/proc`, safe to show, if it lies inside one of the places.
fn inside(link: &Path, places: &[PathBuf]) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    if !places.iter().any(|place| target.starts_with(place) || is_deleted(&target, place)) {
        return None;
    }
    // What was removed is in no tree any more.
    let is_gone = std::fs::metadata(link).is_ok_and(|meta| std::os::unix::fs::MetadataExt::nlink(&meta) == 0);
    (!is_gone).then(|| shown(target.as_os_str().as_bytes()))
}

/// The tree itself may be named with the ending that the kernel gives to removed names.
fn is_deleted(target: &Path, place: &Path) -> bool {
    target.as_os_str().as_bytes().strip_suffix(b" (deleted)") == Some(place.as_os_str().as_bytes())
}

/// The first file of `maps` inside one of the places.
fn mapped(maps: &[u8], places: &[PathBuf]) -> Option<String> {
    for place in places {
        let place = place.as_os_str().as_bytes();
        // The kernel writes a newline in a name as `\012`.
        let place = String::from_utf8_lossy(place).replace('\n', "\\012").into_bytes();
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&maps[from..], &place).map(|at| from + at) {
            let line_start = memchr::memrchr(b'\n', &maps[..at]).map_or(0, |i| i + 1);
            let end = memchr::memchr(b'\n', &maps[at..]).map_or(maps.len(), |i| at + i);
            let is_path_start = !maps[line_start..at].contains(&b'/');
            let is_whole = place == b"/" || matches!(maps.get(at + place.len()), None | Some(b'/' | b'\n'));
            if is_path_start && is_whole && !maps[at..end].ends_with(b" (deleted)") {
                return Some(shown(&maps[at..end]));
            }
            from = end;
        }
    }
    None
}

fn name_of(pid: i32) -> String {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    shown(name.strip_suffix(b"\n").unwrap_or(&name))
}

fn shown(bytes: &[u8]) -> String {
    crate::sys::escape::visible_bounded(bytes, 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_components_at_the_start_of_the_path_count_as_mapped() {
        let maps = b"7f00-7f01 r-xp 0 08:01 5 /a/tree2/lib.so\n7f01-7f02 r-xp 0 08:01 6 /x/a/tree/lib.so\n\
            7f02-7f03 r-xp 0 08:01 6 /a/tree/gone (deleted)\n7f03-7f04 rw-p 0 00:00 0 [heap]\n";
        let places = [PathBuf::from("/a/tree")];
        assert_eq!(mapped(maps, &places), None);
        let more = [maps.as_slice(), b"7f05-7f06 r-xp 0 08:01 7 /a/tree/lib b.so\n"].concat();
        assert_eq!(mapped(&more, &places).as_deref(), Some("/a/tree/lib b.so"));
    }
}

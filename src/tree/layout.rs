//! Makes and repairs the directories and links of a project, as often as one likes.
//!
//! The plan is made first, from what stands on disk; applying it is a plain list of acts. Nothing is ever removed but
//! a link that leads elsewhere, and no link is followed: what stands in the way is named and left alone.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::project::layout::{Entry, Layout, Owner, Spot, What};
use crate::project::place::Place;
use crate::sys::acl;
use crate::sys::dir::{Dir, FileKind, Meta};
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::fs;

/// The mode of the directory that holds the projects, if it is new.
const PROJECTS_MODE: u32 = 0o751;

/// What is done at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A directory is made.
    MakeDir {
        /// Its permission bits.
        mode: u32,
    },
    /// The permission bits of a directory are set right.
    SetMode {
        /// As they are.
        from: u32,
        /// As they shall be.
        to: u32,
    },
    /// A directory is given to its owner.
    SetOwner {
        /// User and group as they are.
        from: (u32, u32),
        /// As they shall be.
        to: (u32, u32),
    },
    /// One more user may pass through a directory.
    LetPass {
        /// The user.
        uid: u32,
        /// The permission bits of the directory.
        mode: u32,
    },
    /// A link is made.
    MakeLink {
        /// Where it leads.
        target: PathBuf,
    },
    /// A link is made to lead elsewhere.
    TurnLink {
        /// Where it leads now.
        from: PathBuf,
        /// Where it shall lead.
        to: PathBuf,
    },
}

/// One difference between the layout and what stands on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path below the node's root.
    pub path: PathBuf,
    /// What is done about it.
    pub act: Act,
}

/// Users and groups of a whole-machine node, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners {
    /// The project's account.
    pub project: (u32, u32),
    /// The account that receives pushes.
    pub receiver: (u32, u32),
}

impl Owners {
    fn ids(&self, owner: Owner) -> (u32, u32) {
        match owner {
            Owner::Root => (0, 0),
            Owner::Project => self.project,
            Owner::Receiver => self.receiver,
        }
    }

    /// User and group of an entry. What the system has of its own (`/srv`, `/var/log`) stays as it is.
    fn of(&self, entry: &Entry) -> Option<(u32, u32)> {
        let is_ours = match (&entry.spot, &entry.what) {
            (Spot::Project(_), What::Dir { .. }) => true,
            (Spot::Node(_), What::Dir { keep, .. }) => !keep,
            (_, What::Link { .. }) => false,
        };
        is_ours.then(|| (self.ids(entry.owner).0, self.ids(entry.group).1))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = shown(&self.path);
        match &self.act {
            Act::MakeDir { mode } => write!(f, "make directory {path} ({mode:04o})"),
            Act::SetMode { from, to } => write!(f, "set mode of {path} to {to:04o} (is {from:04o})"),
            Act::SetOwner { from, to } => {
                write!(f, "give {path} to {}:{} (is {}:{})", to.0, to.1, from.0, from.1)
            }
            Act::LetPass { uid, .. } => write!(f, "let user {uid} pass through {path}"),
            Act::MakeLink { target } => write!(f, "make link {path} -> {}", shown(target)),
            Act::TurnLink { from, to } => write!(f, "turn link {path} -> {} (is {})", shown(to), shown(from)),
        }
    }
}

/// Tells what [`build`] would change, without changing it. Without `owners` everything is one user's.
///
/// # Errors
/// If something that we do not remove stands in the way, or the disk cannot be read.
pub fn check(place: &Place, layout: &Layout, owners: Option<&Owners>) -> Result<Vec<Change>> {
    let root = place.node().root();
    if !fs::exists(root) {
        return everything(place, layout);
    }
    plan(&Dir::open(root)?, place, layout, owners)
}

/// Makes the layout be on disk and returns what had to be changed for that.
///
/// # Errors
/// As [`check`], and if a change cannot be made; what was made until then stays, and the next call goes on.
pub fn build(place: &Place, layout: &Layout, owners: Option<&Owners>) -> Result<Vec<Change>> {
    fs::ensure_dir(place.node().root(), 0o755)?;
    let root = Dir::open(place.node().root())?;
    let changes = plan(&root, place, layout, owners)?;
    for change in &changes {
        apply(&root, change)?;
    }
    Ok(changes)
}

/// The plan where there is not even a root.
fn everything(place: &Place, layout: &Layout) -> Result<Vec<Change>> {
    let mut changes = projects_dirs(place)?.into_iter().map(|(path, mode)| made(path, mode)).collect::<Vec<_>>();
    for entry in layout.entries.iter().filter(|entry| !entry.machine) {
        let path = entry.spot.below_root(place)?;
        if changes.iter().all(|change| change.path != path) {
            changes.push(Change { act: fresh(entry, place)?, path });
        }
    }
    Ok(changes)
}

fn plan(root: &Dir, place: &Place, layout: &Layout, owners: Option<&Owners>) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for (path, mode) in projects_dirs(place)? {
        if stat_dir(root, &path)?.is_none() {
            changes.push(made(path, mode));
        }
    }
    for entry in layout.entries.iter().filter(|entry| owners.is_some() || !entry.machine) {
        let path = entry.spot.below_root(place)?;
        // The directory that holds the projects may be one that the layout names too (`srv`).
        if changes.iter().any(|change| change.path == path) {
            continue;
        }
        let acts = match &entry.what {
            What::Dir { mode, keep } => plan_dir(root, &path, entry, (*mode, *keep), owners)?,
            What::Link { .. } => plan_link(root, &path, entry, place)?.into_iter().collect(),
        };
        changes.extend(acts.into_iter().map(|act| Change { path: path.clone(), act }));
    }
    Ok(changes)
}

fn plan_dir(
    root: &Dir,
    path: &Path,
    entry: &Entry,
    (mode, keep): (u32, bool),
    owners: Option<&Owners>,
) -> Result<Vec<Act>> {
    let meta = stat_dir(root, path)?;
    let mut acts = Vec::new();
    if meta.is_none() {
        acts.push(Act::MakeDir { mode });
    }
    if let Some(to) = owners.and_then(|owners| owners.of(entry)) {
        let us = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let from = meta.as_ref().map_or(us, |meta| (meta.uid, meta.gid));
        if from != to {
            acts.push(Act::SetOwner { from, to });
        }
    }
    if let Some(from) = meta.as_ref().map(|meta| meta.mode).filter(|from| *from != mode && !keep) {
        acts.push(Act::SetMode { from, to: mode });
    }
    if let (Some(owners), Some(who)) = (owners, entry.passes) {
        let uid = owners.ids(who).0;
        if meta.is_none() || !lets_pass(root, path, uid, mode)? {
            acts.push(Act::LetPass { uid, mode });
        }
    }
    Ok(acts)
}

fn lets_pass(root: &Dir, path: &Path, uid: u32, mode: u32) -> Result<bool> {
    let (parent, name) = split(root, path)?;
    let wanted = acl::passing(mode, uid);
    Ok(parent.xattrs(name)?.iter().any(|(key, value)| key == acl::ATTRIBUTE && *value == wanted))
}

/// The directory that holds `path`, and its name there.
fn split<'a>(root: &Dir, path: &'a Path) -> Result<(Dir, &'a std::ffi::OsStr)> {
    let name = path.file_name().ok_or_else(|| Error::bug("an entry of the layout has no name"))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok((parent.map_or_else(|| root.again(), |parent| root.dir(parent))?, name))
}

/// The directories down to the one that holds the projects, with the modes that they are made with.
fn projects_dirs(place: &Place) -> Result<Vec<(PathBuf, u32)>> {
    let node = place.node();
    let outside = |_| Error::bug(format!("{} is not below the node's root", node.projects().display()));
    let projects = node.projects().strip_prefix(node.root()).map_err(outside)?;
    let mut dirs: Vec<(PathBuf, u32)> = projects
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty())
        .map(|path| (path.to_path_buf(), if path == projects { PROJECTS_MODE } else { 0o755 }))
        .collect();
    dirs.reverse();
    Ok(dirs)
}

fn made(path: PathBuf, mode: u32) -> Change {
    Change { path, act: Act::MakeDir { mode } }
}

fn fresh(entry: &Entry, place: &Place) -> Result<Act> {
    match (&entry.what, entry.link_text(place)?) {
        (What::Dir { mode, .. }, _) => Ok(Act::MakeDir { mode: *mode }),
        (What::Link { .. }, Some(target)) => Ok(Act::MakeLink { target }),
        (What::Link { .. }, None) => Err(Error::bug("a link of the layout leads nowhere")),
    }
}

/// The directory at `path`; `None` if nothing stands there.
fn stat_dir(root: &Dir, path: &Path) -> Result<Option<Meta>> {
    match root.stat(path)? {
        None => Ok(None),
        Some(meta) if meta.kind == FileKind::Dir => Ok(Some(meta)),
        Some(meta) => Err(in_the_way(root, path, meta.kind, "a directory")),
    }
}

fn plan_link(root: &Dir, path: &Path, entry: &Entry, place: &Place) -> Result<Option<Act>> {
    let act = fresh(entry, place)?;
    let Act::MakeLink { target } = &act else { return Ok(Some(act)) };
    match root.stat(path)? {
        None => Ok(Some(act)),
        Some(meta) if meta.kind == FileKind::Symlink => {
            let from = PathBuf::from(std::ffi::OsStr::from_bytes(&root.read_link(path)?));
            Ok((from != *target).then(|| Act::TurnLink { from, to: target.clone() }))
        }
        Some(meta) => Err(in_the_way(root, path, meta.kind, "a link")),
    }
}

fn in_the_way(root: &Dir, path: &Path, found: FileKind, wanted: &str) -> Error {
    let found = match found {
        FileKind::File => "a regular file",
        FileKind::Dir => "a directory",
        FileKind::Symlink => "a symbolic link",
        FileKind::Special => "a device, fifo or socket",
    };
    let path = root.path().join(path);
    let path = shown(&path);
    Error::refused(format!("{path} is {found}, {wanted} belongs there")).hint(format!("mv {path} {path}.old"))
}

fn apply(root: &Dir, change: &Change) -> Result<()> {
    let path = &change.path;
    match &change.act {
        Act::MakeDir { mode } => root.ensure_dir(path, *mode).map(|_| ()),
        Act::SetMode { to, .. } => root.set_mode(path, *to),
        Act::SetOwner { to, .. } => root.set_owner(path, to.0, to.1),
        Act::LetPass { uid, mode } => {
            let (parent, name) = split(root, path)?;
            let mut all = parent.xattrs(name)?;
            all.retain(|(key, _)| key != acl::ATTRIBUTE);
            all.push((acl::ATTRIBUTE.to_string(), acl::passing(*mode, *uid)));
            parent.set_xattrs(name, &all)
        }
        Act::MakeLink { target } => root.symlink(target.as_os_str().as_bytes(), path),
        Act::TurnLink { to, .. } => {
            // Made beside and renamed over, so that there is a link at every moment.
            let mut name = std::ffi::OsString::from(".");
            name.push(path.file_name().unwrap_or_default());
            name.push(".new");
            let beside = path.with_file_name(name);
            root.unlink(&beside)?;
            root.symlink(to.as_os_str().as_bytes(), &beside)?;
            root.rename(&beside, root, path)
        }
    }
}

fn shown(path: &Path) -> String {
    visible_bounded(path.as_os_str().as_bytes(), 4096)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::{Act, build, check};
    use crate::project::layout::{Layout, layout};
    use crate::project::mode::Mode;
    use crate::project::place::{NodePlace, Place};
    use crate::sys::error::Kind;

    fn fixture() -> (tempfile::TempDir, Place, Layout) {
        let temp = tempfile::tempdir().unwrap();
        let name = "shop".parse().unwrap();
        let place = NodePlace::new(&temp.path().join("node")).project(&name);
        (temp, place, layout(Mode::Cooking, &name).unwrap())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_plan_is_what_is_done_and_the_second_time_nothing_is() {
        let (_temp, place, layout) = fixture();
        let planned = check(&place, &layout, None).unwrap();
        assert!(!place.node().root().exists(), "a plan changes nothing");
        assert_eq!(build(&place, &layout, None).unwrap(), planned);
        assert!(build(&place, &layout, None).unwrap().is_empty());
        assert!(check(&place, &layout, None).unwrap().is_empty());
        assert_eq!((mode(place.dir()), mode(&place.pillar()), mode(&place.state())), (0o750, 0o700, 0o700));
        assert_eq!(mode(place.node().projects()), 0o751);
        let pillar = place.node().root().join("srv/pillar/makina-projects/shop");
        assert_eq!(fs::canonicalize(pillar).unwrap(), fs::canonicalize(place.pillar()).unwrap());
        assert_eq!(fs::read_link(place.dir().join("git/project.git")).unwrap(), Path::new("project"));
    }

    #[test]
    fn what_was_damaged_is_repaired_and_data_stay() {
        let (_temp, place, layout) = fixture();
        build(&place, &layout, None).unwrap();
        fs::write(place.data().join("precious"), "x").unwrap();
        fs::set_permissions(place.pillar(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(place.data(), fs::Permissions::from_mode(0o770)).unwrap();
        fs::remove_dir(place.spool()).unwrap();
        let link = place.dir().join("git/pillar.git");
        fs::remove_file(&link).unwrap();
        symlink("/etc", &link).unwrap();
        symlink("/left/by/a/crash", place.dir().join("git/.pillar.git.new")).unwrap();
        let changes = build(&place, &layout, None).unwrap();
        let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "turn link srv/projects/shop/git/pillar.git -> pillar (is /etc)",
                "set mode of srv/projects/shop/pillar to 0700 (is 0755)",
                "make directory srv/projects/shop/state/spool (0700)",
            ]
        );
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("pillar"));
        assert_eq!(mode(&place.data()), 0o770, "the mode of data is the application's");
        assert_eq!(fs::read_to_string(place.data().join("precious")).unwrap(), "x");
        assert!(fs::symlink_metadata(place.dir().join("git/.pillar.git.new")).is_err());
        assert!(check(&place, &layout, None).unwrap().is_empty());
    }

    #[test]
    fn what_stands_in_the_way_is_named_and_left_alone() {
        let (temp, place, layout) = fixture();
        build(&place, &layout, None).unwrap();
        fs::remove_dir(place.spool()).unwrap();
        fs::write(place.spool(), "mine").unwrap();
        let error = build(&place, &layout, None).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.message().ends_with("state/spool is a regular file, a directory belongs there"), "{error}");
        assert_eq!(fs::read_to_string(place.spool()).unwrap(), "mine");
        fs::remove_file(place.spool()).unwrap();

        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::remove_dir_all(place.state()).unwrap();
        symlink(&outside, place.state()).unwrap();
        let error = build(&place, &layout, None).unwrap_err();
        assert!(error.message().ends_with("state is a symbolic link, a directory belongs there"), "{error}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing is made behind a link");
    }

    #[test]
    fn projects_may_be_elsewhere_below_the_root() {
        let (temp, _, layout) = fixture();
        let node = NodePlace::new(temp.path()).with_projects_dir(Path::new("/home/sites"));
        let place = node.project(&"shop".parse().unwrap());
        let changes = build(&place, &layout, None).unwrap();
        assert_eq!(changes[0].path, Path::new("home"));
        assert_eq!(changes[1].act, Act::MakeDir { mode: 0o751 });
        let link = temp.path().join("srv/pillar/makina-projects/shop");
        assert_eq!(fs::canonicalize(link).unwrap(), fs::canonicalize(place.pillar()).unwrap());
    }
}

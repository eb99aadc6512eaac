//! Where our own control groups are, and which of them we may divide.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::error::{Context, Result};
use crate::sys::{fs, machine, mount};

/// The leaf that our own processes move into before a group of the unified hierarchy is divided.
const LEAF: &str = "mc-worker";
/// The leaf in which systemd starts what it runs beside the main process of a unit whose group it handed over.
const CONTROL: &str = ".control";
/// How deep groups are looked for.
const DEEPEST: usize = 16;

/// A hierarchy that concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Version 2.
    Unified,
    /// Version 1, with the memory controller.
    Memory,
    /// Version 1, with the controller of processes.
    Processes,
}

impl Kind {
    /// The name of the controller that limits this.
    fn controller(self) -> &'static str {
        match self {
            Self::Unified => "",
            Self::Memory => "memory",
            Self::Processes => "pids",
        }
    }
}

/// A hierarchy and the group in it below which ours are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Which one.
    pub kind: Kind,
    /// The directory of the group.
    pub base: PathBuf,
}

/// What there is for us.
#[derive(Debug)]
pub struct Found {
    /// The unified hierarchy, or why it is not to be used.
    pub unified: std::result::Result<Hierarchy, String>,
    /// The controllers that the unified one gives to groups below `base`.
    controllers: BTreeSet<String>,
    /// Those of version 1.
    old: Vec<Hierarchy>,
}

impl Found {
    /// The hierarchy that limits this.
    ///
    /// # Errors
    /// Why there is none.
    pub fn with_controller(&self, kind: Kind) -> std::result::Result<&Hierarchy, String> {
        if let Some(old) = self.old.iter().find(|hierarchy| hierarchy.kind == kind) {
            return Ok(old);
        }
        match &self.unified {
            Ok(hierarchy) if self.controllers.contains(kind.controller()) => Ok(hierarchy),
            Ok(_) => Err(format!("there is no cgroup controller `{}`", kind.controller())),
            Err(reason) => Err(reason.clone()),
        }
    }
}

/// Finds the groups that we are in.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn ours() -> Result<Found> {
    let own = fs::read_text(Path::new("/proc/self/cgroup"))?;
    let mounts = mount::cgroup_mounts()?;
    let mut old = Vec::new();
    let mut unified = Err("there is no cgroup file system".to_string());
    let mut controllers = BTreeSet::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
        for kind in [Kind::Memory, Kind::Processes] {
            if names.split(',').any(|name| name == kind.controller())
                && let Some(base) = group_dir(&mounts, Some(kind.controller()), path)
            {
                old.push(Hierarchy { kind, base });
            }
        }
        if names.is_empty()
            && let Some(dir) = group_dir(&mounts, None, path)
        {
            unified = divide(&dir).map(|base| {
                controllers = words_of(&base.join("cgroup.subtree_control"));
                Hierarchy { kind: Kind::Unified, base }
            });
        }
    }
    Ok(Found { unified, controllers, old })
}

/// The directory of a group: the mount of its hierarchy and what of the path lies below the mounted part.
fn group_dir(mounts: &[mount::CgroupMount], controller: Option<&str>, path: &str) -> Option<PathBuf> {
    let is_it = |mount: &&mount::CgroupMount| match controller {
        Some(name) => !mount.is_unified && mount.options.iter().any(|option| option == name),
        None => mount.is_unified,
    };
    let mount = mounts.iter().rfind(is_it)?;
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    let dir = if below.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(below) };
    (!path.contains("/../") && fs::exists(&dir.join("cgroup.procs"))).then_some(dir)
}

/// Makes a group of the unified hierarchy one that gives memory and processes to its children, if it is ours to divide.
fn divide(own: &Path) -> std::result::Result<PathBuf, String> {
    let is_leaf = own.file_name().is_some_and(|name| name == LEAF || name == CONTROL);
    let base = if is_leaf { own.parent().unwrap_or(own) } else { own }.to_path_buf();
    let available = words_of(&base.join("cgroup.controllers"));
    let given = words_of(&base.join("cgroup.subtree_control"));
    let wanted: Vec<&str> = ["memory", "pids"].into_iter().filter(|name| available.contains(*name)).collect();
    // Only the root of the whole hierarchy has no type, and may have processes beside groups.
    let is_root = !fs::exists(&base.join("cgroup.type"));
    if machine::runs_systemd() && !is_handed_over(&base) {
        return Err("systemd has not handed this process's control group over (Delegate=yes)".into());
    }
    if wanted.iter().all(|name| given.contains(*name)) {
        return Ok(base);
    }
    if !is_root && !is_handed_over(&base) {
        return Err("the control group of this process has other processes too".into());
    }
    let moved = if is_root { Ok(()) } else { move_into_leaf(&base) };
    let text = wanted.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    let enabled = moved.and_then(|()| super::write(&base.join("cgroup.subtree_control"), &text));
    enabled.map(|()| base).map_err(|error| error.one_line())
}

/// Moves every process of a group into a leaf below it, until none is left.
fn move_into_leaf(base: &Path) -> Result<()> {
    let leaf = base.join(LEAF);
    match std::fs::create_dir(&leaf) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.context(|| format!("cannot make the control group {}", leaf.display()))?,
    }
    for _ in 0..100 {
        let members = super::members(base)?;
        if members.is_empty() {
            break;
        }
        for pid in members {
            match super::write(&leaf.join("cgroup.procs"), &pid.to_string()) {
                // It has ended meanwhile.
                Err(error) if std::fs::exists(format!("/proc/{pid}")).unwrap_or(false) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether systemd says that this group is ours to divide.
fn is_handed_over(dir: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(dir, *name, &mut value).is_ok_and(|n| value[..n].starts_with(b"1"))
    })
}

/// What the machine can limit, whoever asks.
pub fn of_the_machine() -> BTreeSet<Kind> {
    let mut found = BTreeSet::new();
    for mount in mount::cgroup_mounts().unwrap_or_default() {
        let unified =
            if mount.is_unified { words_of(&mount.point.join("cgroup.controllers")) } else { BTreeSet::new() };
        for kind in [Kind::Memory, Kind::Processes] {
            let name = kind.controller();
            if unified.contains(name) || (!mount.is_unified && mount.options.iter().any(|option| option == name)) {
                found.insert(kind);
            }
        }
    }
    found
}

/// The hierarchies in which groups of ours may be, with their mount points.
///
/// # Errors
/// If our mounts cannot be read.
pub fn mounted() -> Result<Vec<(Kind, PathBuf)>> {
    let kind = |mount: &mount::CgroupMount| {
        if mount.is_unified {
            return Some(Kind::Unified);
        }
        [Kind::Memory, Kind::Processes].into_iter().find(|kind| mount.options.iter().any(|o| o == kind.controller()))
    };
    Ok(mount::cgroup_mounts()?.into_iter().filter_map(|mount| Some((kind(&mount)?, mount.point))).collect())
}

/// Shows every group below a directory, inner ones first.
pub fn walk(dir: &Path, see: &mut dyn FnMut(&Path)) {
    walk_at(dir, DEEPEST, see);
}

fn walk_at(dir: &Path, depth: usize, see: &mut dyn FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk_at(&entry.path(), depth - 1, see);
            see(&entry.path());
        }
    }
}

fn words_of(file: &Path) -> BTreeSet<String> {
    let text = fs::read_text(file).unwrap_or_default();
    text.split_whitespace().map(str::to_string).collect()
}

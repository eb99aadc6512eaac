//! Who owns what on a whole-machine node: accounts, the receiver's part of a repository, trees given to the project.
//!
//! A repository is root's; the receiver may write objects and refs and nothing else. The bits that make this so: the
//! repository, `objects/` and `refs/` are root's with the sticky bit, so that the receiver can add to them but neither
//! rename nor replace what is root's (`config`, `HEAD`, `hooks/`, `info/`, `objects/info/` where alternates stand, and
//! `commondir` and `.git`, which could lead git elsewhere for all of them).

use std::path::{Path, PathBuf};

use super::site::{Node, Rights, Site};
use crate::project::ids::ProjectName;
use crate::project::system::System;
use crate::sys::accounts::{Account, Login};
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Error, Result};
use crate::sys::{fs, git};

/// Group-writable for the receiver, with files of root's that stay root's; new directories get the receiver's group.
const SHARED: u32 = 0o3775;
/// What is in a repository and root's alone, with its mode.
const ROOTS: [(&str, u32); 5] =
    [("config", 0o644), ("HEAD", 0o644), ("hooks", 0o755), ("info", 0o755), ("objects/info", 0o755)];
/// The file by which a repository says that its configuration, hooks and objects are elsewhere, and what ours says: here.
/// The receiver could write one if root had none, and root's own git would run hooks of the receiver's. (libgit2 takes a
/// `.` without a slash for the current directory.)
const COMMON: (&str, &str) = ("commondir", "./\n");
/// Where git looks first when it is told a repository's path: an empty directory of root's is passed over, and keeps the
/// receiver from putting a repository of its own there.
const INNER: &str = ".git";
/// What the receiver writes into.
const RECEIVERS: [&str; 5] = ["objects/pack", "refs/heads", "refs/tags", "refs/notes", "refs/deploys"];

/// Makes the project's account unless it is there; tells whether it was made.
///
/// # Errors
/// If it cannot be made, or the account that `node.yaml` names is missing.
pub fn ensure_account(node: &Node, name: &ProjectName, user: Option<&str>) -> Result<bool> {
    if node.system.is_none() {
        return Ok(false);
    }
    let account = user.map_or_else(|| System::project_account(name), str::to_string);
    if Account::of(&account)?.is_some() {
        return Ok(false);
    }
    if user.is_some() {
        return Err(Error::refused(format!("the account {account}, which node.yaml names for {name}, is missing"))
            .hint(format!("useradd --system --user-group {account}, or take `user: {account}` out of node.yaml")));
    }
    Account::make(&account, &node.place.project(name).build_home(), &format!("runs {name}"), Login::Never)?;
    Ok(true)
}

/// Gives a repository its owners: root's what decides, the receiver's what is pushed. Tells what was changed, or what
/// would be if it shall not `repair`.
///
/// # Errors
/// If something cannot be changed.
pub fn repository(site: &Site, path: &Path, repair: bool) -> Result<Vec<String>> {
    let Rights::Separate { receiver, .. } = &site.rights else { return Ok(Vec::new()) };
    let dir = Dir::open_real(path)?;
    let mut changes: Vec<String> = keep_common(site, path, repair)?;
    let mut fix = |name: &str, owner: (u32, u32), mode: u32| -> Result<()> {
        let rel = Path::new(name);
        let mut meta = if name == "." { Some(dir.stat_self()?) } else { dir.stat(rel)? };
        if meta.is_none() && repair && !ROOTS[..2].iter().any(|(file, _)| *file == name) {
            meta = Some(dir.ensure_dir(rel, 0o700)?.stat_self()?);
        }
        let Some(meta) = meta else { return Ok(()) };
        if meta.kind != FileKind::Dir && meta.kind != FileKind::File {
            return Err(Error::refused(format!("{}/{name} is no file and no directory", path.display()))
                .hint("look who put it there; then remove it"));
        }
        if (meta.uid, meta.gid) == owner && meta.mode == mode {
            return Ok(());
        }
        if repair && name == "." {
            dir.give_to(owner.0, owner.1)?;
            dir.set_own_mode(mode)?;
        } else if repair {
            dir.set_owner(rel, owner.0, owner.1)?;
            dir.set_mode(rel, mode)?;
        }
        changes.push(format!("{}/{name}: owner {}:{}, mode {mode:04o}", path.display(), owner.0, owner.1));
        Ok(())
    };
    fix(".", (0, receiver.gid), 0o1775)?;
    for name in ["objects", "refs"] {
        fix(name, (0, receiver.gid), SHARED)?;
    }
    for (name, mode) in ROOTS {
        fix(name, (0, 0), mode)?;
    }
    for name in RECEIVERS {
        fix(name, (receiver.uid, receiver.gid), 0o2775)?;
    }
    if repair {
        changes.extend(give_back(site, path)?);
    }
    Ok(changes)
}

/// Makes sure that a repository's configuration and hooks are its own, whatever the receiver wrote there before; to be
/// done before anything reads it. Tells what was changed, or would be.
///
/// # Errors
/// If something is in the way.
pub fn keep_common(site: &Site, path: &Path, repair: bool) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    if site.rights == Rights::OneUser {
        return Ok(changes);
    }
    let dir = Dir::open_real(path)?;
    let in_the_way = |name: &str, uid: u32| {
        let what = format!("{} is in the way (it belongs to user {uid})", path.join(name).display());
        if !repair {
            return Ok(what);
        }
        Err(Error::refused(what)
            .hint("only the receiver of pushes could put it there: look what it is and how it came, then remove it"))
    };
    match dir.stat(Path::new(INNER))? {
        None => {
            changes.push(format!("{}: made, to stay empty", path.join(INNER).display()));
            if repair {
                dir.make_dir(Path::new(INNER), 0o755)?;
            }
        }
        Some(meta) if meta.kind == FileKind::Dir && meta.uid == 0 => {}
        Some(meta) => changes.push(in_the_way(INNER, meta.uid)?),
    }
    let (name, text) = COMMON;
    let file = path.join(name);
    changes.push(match dir.stat(Path::new(name))? {
        None => format!("{}: written", file.display()),
        Some(meta) if meta.kind == FileKind::Dir => in_the_way(name, meta.uid)?,
        Some(meta) if (meta.kind, meta.uid, meta.mode) != (FileKind::File, 0, 0o644) => {
            format!("{}: of user {}, who led git elsewhere; replaced", file.display(), meta.uid)
        }
        Some(_) if fs::read_bounded(&file, 1024)?.is_some_and(|bytes| bytes == text.as_bytes()) => return Ok(changes),
        Some(_) => format!("{}: led git elsewhere; replaced", file.display()),
    });
    if repair {
        fs::write_durable(&file, text.as_bytes(), 0o644)?;
    }
    Ok(changes)
}

/// Gives to the receiver what root wrote into `objects/` and `refs/`: a push as root leaves files that the next push of
/// the receiver could not replace. Tells how many there were.
///
/// # Errors
/// If something cannot be changed.
pub fn give_back(site: &Site, repository: &Path) -> Result<Option<String>> {
    let Rights::Separate { receiver, .. } = &site.rights else { return Ok(None) };
    let dir = Dir::open_real(repository)?;
    let to = (receiver.uid, receiver.gid);
    let mut count = 0;
    for name in ["packed-refs", "shallow", "logs"] {
        count += give(&dir, Path::new(name), to)?;
    }
    for top in ["objects", "refs", "logs"] {
        if dir.stat(Path::new(top))?.is_some_and(|meta| meta.kind == FileKind::Dir) {
            count += give_below(&dir.dir(Path::new(top))?, to, &|path| top == "objects" && path.starts_with("info"))?;
        }
    }
    Ok((count > 0).then(|| format!("{}: {count} files given to {}", repository.display(), receiver.name)))
}

/// Gives everything in a tree that is root's to a user; what `spare` names is left.
///
/// # Errors
/// If something cannot be changed.
pub fn give_below(top: &Dir, to: (u32, u32), spare: &dyn Fn(&Path) -> bool) -> Result<usize> {
    let mut count = 0;
    let mut stack: Vec<PathBuf> = vec![PathBuf::new()];
    while let Some(at) = stack.pop() {
        let dir = if at.as_os_str().is_empty() { top.again()? } else { top.dir(&at)? };
        for name in dir.names()? {
            let path = at.join(&name);
            if spare(&path) {
                continue;
            }
            let Some(meta) = dir.stat(Path::new(&name))? else { continue };
            if meta.kind == FileKind::Dir {
                stack.push(path);
            }
            count += give(&dir, Path::new(&name), to)?;
        }
    }
    Ok(count)
}

fn give(dir: &Dir, name: &Path, to: (u32, u32)) -> Result<usize> {
    let held = match dir.hold(name) {
        Err(error) if error.is_not_found() => return Ok(0),
        other => other?,
    };
    // A file with a second name may be anybody's.
    if held.meta().uid != 0 || !held.is_single() {
        return Ok(0);
    }
    held.set_owner(to.0, to.1).map(|()| 1)
}

/// Gives the directory of a restore point's dumps to the project: its steps write and read there.
///
/// # Errors
/// If it cannot be given.
pub fn give_dumps(site: &Site, dumps: &Path) -> Result<()> {
    let Some(owners) = site.owners() else { return Ok(()) };
    match Dir::open_real(dumps) {
        Ok(dir) => {
            dir.give_to(owners.project.0, owners.project.1)?;
            give_below(&dir, owners.project, &|_| false).map(|_| ())
        }
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets git accept exactly this repository although it is root's (`safe.directory` in the machine's configuration).
///
/// # Errors
/// If the configuration cannot be read or written.
pub fn trust_repository(node: &Node, path: &Path) -> Result<Option<String>> {
    // A root in a directory is a test or a rehearsal: the machine's own configuration is left alone.
    if node.system.is_none() || node.place.root() != Path::new("/") || git::is_safe_directory(path)? {
        return Ok(None);
    }
    git::add_safe_directory(path)?;
    Ok(Some(format!("git: safe.directory = {}", path.display())))
}

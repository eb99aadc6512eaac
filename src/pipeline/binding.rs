//! In editable mode `project/` shows the clone that runs: a bind mount, which comes back after a boot, or a link where we
//! may not mount. Everything of ours goes through `run`: after a boot the mount may be missing.

use std::path::{Path, PathBuf};

use super::site::Site;
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Error, Result};
use crate::sys::lock::Lock;
use crate::sys::mount::{self, persist};
use crate::sys::{fs, machine, process};

/// How long systemd may take to read its units again.
const RELOAD: std::time::Duration = std::time::Duration::from_secs(30);

/// How `project/` shows `run` at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// By a bind mount.
    Mount,
    /// By a link.
    Link,
    /// Not at all.
    Missing,
}

/// How `project/` shows `run` at the moment.
///
/// # Errors
/// If one of them cannot be examined.
pub fn shown(site: &Site) -> Result<Shown> {
    let dir = Dir::open(site.place.dir())?;
    let (project, run) = (dir.stat(Path::new("project"))?, dir.stat(Path::new("run"))?);
    let (Some(project), Some(run)) = (project, run) else { return Ok(Shown::Missing) };
    Ok(match project.kind {
        FileKind::Symlink if dir.read_link(Path::new("project"))? == b"run" => Shown::Link,
        FileKind::Dir if (project.dev, project.ino) == (run.dev, run.ino) => Shown::Mount,
        _ => Shown::Missing,
    })
}

/// Why nothing may be mounted here; `Ok` if it may.
///
/// # Errors
/// If the question itself fails.
pub fn possible(site: &Site) -> Result<std::result::Result<(), String>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Err("only root may mount".to_string()));
    }
    mount::probe_bind(&site.place.state())
}

/// Shows `run` at `project`, and sees to it that a boot does so too. May be repeated. What stands at `project` must be an
/// empty directory, a link of ours or nothing.
///
/// Returns what had to be said about it: the reason why it is only a link, or why it does not come back after a boot.
///
/// # Errors
/// If something is in the way.
pub fn bind(site: &Site) -> Result<Vec<String>> {
    let place = &site.place;
    let mut notes = Vec::new();
    let now = shown(site)?;
    if let Err(reason) = possible(site)? {
        if now == Shown::Missing {
            clear(site)?;
            fs::replace_symlink(&place.project(), Path::new("run"))?;
            notes.push(format!("project is a link to run, no mount: {reason}"));
        }
        return Ok(notes);
    }
    if now != Shown::Mount {
        clear(site)?;
        let dir = Dir::open(place.dir())?;
        dir.make_dir(Path::new("project"), 0o755)?;
        dir.sync()?;
        mount::bind(&dir.dir(Path::new("run"))?, &dir.dir(Path::new("project"))?)?;
    }
    match persistent(site) {
        Some(way) => {
            if let Err(error) = way.add(site) {
                notes.push(format!("after a boot the mount is missing until `recover`: {}", error.one_line()));
            }
        }
        None if now != Shown::Mount => {
            notes.push(format!(
                "after a boot, {} recover {} mounts run at project again",
                site.command(),
                place.name()
            ));
        }
        None => {}
    }
    Ok(notes)
}

/// Takes the mount or the link away, for good. A directory that stands at `project` is left.
///
/// # Errors
/// If it cannot be unmounted.
pub fn unbind(site: &Site) -> Result<()> {
    // First what a boot would bring back.
    if let Some(way) = persistent(site) {
        way.remove(site)?;
    }
    mount::unbind(&site.place.project())?;
    if shown(site)? == Shown::Link {
        let dir = Dir::open(site.place.dir())?;
        dir.unlink(Path::new("project"))?;
        dir.sync()?;
    }
    Ok(())
}

/// Makes room for a mount or a link of ours.
fn clear(site: &Site) -> Result<()> {
    let dir = Dir::open(site.place.dir())?;
    let name = Path::new("project");
    mount::unbind(&site.place.project())?;
    match dir.stat(name)?.map(|meta| meta.kind) {
        None => return Ok(()),
        Some(FileKind::Symlink) => dir.unlink(name)?,
        Some(FileKind::Dir) => dir.remove_dir(name).map_err(|error| {
            error.hint(format!(
                "it must be empty in editable mode: move what is in {} away",
                site.place.project().display()
            ))
        })?,
        Some(_) => return Err(Error::refused(format!("{} is no directory", site.place.project().display()))),
    }
    dir.sync()
}

/// What is wrong with how `project` shows `run`, if anything is.
///
/// # Errors
/// If it cannot be examined.
pub fn problem(site: &Site) -> Result<Option<String>> {
    let missing = shown(site)? == Shown::Missing;
    Ok(missing.then(|| format!("{} does not show run", site.place.project().display())))
}

/// How a mount comes back after a boot.
enum Persistent {
    /// A unit in this directory; whether systemd runs and must be told.
    Unit(PathBuf),
    /// A line of this file.
    Fstab(PathBuf),
}

/// The way of this node; `None` for a directory node, which changes nothing of the machine.
fn persistent(site: &Site) -> Option<Persistent> {
    site.node.system.as_ref()?;
    let root = site.place.node().root();
    if root == Path::new("/") && machine::runs_systemd() {
        return Some(Persistent::Unit(PathBuf::from("/etc/systemd/system")));
    }
    Some(Persistent::Fstab(root.join("etc/fstab")))
}

impl Persistent {
    fn add(&self, site: &Site) -> Result<()> {
        let place = &site.place;
        let (run, project, owner) = (place.run(), place.project(), place.name().as_str());
        match self {
            Self::Unit(dir) => {
                let name = persist::unit_name(&project);
                let text = persist::unit_text(&run, &project, owner);
                let wants = dir.join("multi-user.target.wants");
                let link = wants.join(&name);
                let target = dir.join(&name);
                if fs::read_if_there(&target)?.as_deref() == Some(text.as_bytes())
                    && fs::link_target(&link).as_deref() == Some(&target)
                {
                    return Ok(());
                }
                fs::write_durable(&target, text.as_bytes(), 0o644)?;
                fs::ensure_dir(&wants, 0o755)?;
                fs::replace_symlink(&link, &target)?;
                reload()
            }
            Self::Fstab(file) => edit(site, file, |text| persist::fstab_with(text, &run, &project, owner)),
        }
    }

    fn remove(&self, site: &Site) -> Result<()> {
        let project = site.place.project();
        match self {
            Self::Unit(dir) => {
                let name = persist::unit_name(&project);
                if !fs::exists(&dir.join(&name)) {
                    return Ok(());
                }
                fs::remove_file(&dir.join("multi-user.target.wants").join(&name))?;
                fs::remove_file(&dir.join(&name))?;
                fs::sync_dir(dir)?;
                reload()
            }
            Self::Fstab(file) => edit(site, file, |text| persist::fstab_without(text, &project)),
        }
    }
}

/// Lets systemd read its units again.
fn reload() -> Result<()> {
    let env = process::base_environment(Path::new("/"));
    let ended = process::run_captured("systemctl", &["daemon-reload"], &env, b"", RELOAD)?;
    if ended.status.is_ok() {
        return Ok(());
    }
    Err(Error::failed(format!("systemctl daemon-reload: {}: {}", ended.status.words(), ended.last_words())))
}

/// Edits a file of the machine that other projects edit too; one that is as it shall be is not touched.
fn edit(site: &Site, file: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<()> {
    if fs::link_target(file).is_some() {
        return Err(Error::refused(format!("{} is a link: somebody else writes it", file.display())));
    }
    let config = site.place.node().config();
    let door = config.with_file_name(".fstab.lock");
    fs::ensure_dir(door.parent().unwrap_or(Path::new("/")), 0o755)?;
    let _one_at_a_time = Lock::take(&door, None, |_| Ok(()))?;
    let text = fs::read_if_there(file)?.unwrap_or_default();
    let changed = change(&text);
    if changed == text { Ok(()) } else { fs::write_durable(file, &changed, 0o644) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::site::{Node, Rights};
    use crate::project::ids::ProjectName;
    use crate::project::node::NodeConfig;
    use crate::project::place::NodePlace;
    use crate::project::system::System;
    use crate::tree::scan::Own;

    fn site(root: &Path, name: &str, is_machine: bool) -> Site {
        let system = is_machine.then(|| System::parse("s", br#"{"format": 1, "receiver": "mc"}"#).unwrap());
        let (place, config) = (NodePlace::new(root), NodeConfig::default());
        let name: ProjectName = name.parse().unwrap();
        let (own, project) = (place.project(&name), config.for_project(&name, None));
        let node = Node { place, config, system };
        Site { node, place: own, config: project, own: Own::current(), rights: Rights::OneUser }
    }

    #[test]
    fn a_machine_without_systemd_gets_a_line_of_fstab_and_loses_it_again() {
        let temp = tempfile::tempdir().unwrap();
        let fstab = temp.path().join("etc/fstab");
        std::fs::create_dir(temp.path().join("etc")).unwrap();
        let others = "UUID=x / ext4 rw 0 1\n";
        std::fs::write(&fstab, others).unwrap();
        let text = || std::fs::read_to_string(&fstab).unwrap();
        let (shop, other) = (site(temp.path(), "shop", true), site(temp.path(), "other", true));
        for site in [&shop, &other, &shop] {
            persistent(site).unwrap().add(site).unwrap();
        }
        assert_eq!(text().lines().count(), 3, "{}", text());
        assert!(
            text().contains("/shop/run ") && text().contains("/shop/project none bind,nofail 0 0 # mc_project shop\n")
        );
        persistent(&shop).unwrap().remove(&shop).unwrap();
        persistent(&shop).unwrap().remove(&shop).unwrap();
        assert!(text().starts_with(others) && text().contains("/other/run ") && !text().contains("shop"), "{}", text());
        std::fs::remove_file(&fstab).unwrap();
        std::os::unix::fs::symlink("elsewhere", &fstab).unwrap();
        assert!(persistent(&shop).unwrap().add(&shop).is_err(), "somebody else's file");
        assert!(
            persistent(&site(temp.path(), "shop", false)).is_none(),
            "a directory node changes nothing of the machine"
        );
    }
}

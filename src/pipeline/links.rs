//! The links by which the trees of Salt and of its pillar find a project: `srv/salt/makina-projects/NAME` and
//! `srv/pillar/makina-projects/NAME`. A project has them unless somebody took them away.

use std::path::PathBuf;

use super::parking::layout_mode;
use super::site::Site;
use crate::project::layout::{self, Layout};
use crate::project::mode::Mode;
use crate::project::place::Place;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::tree::layout as trees;

/// The layout that a project has in a mode, without the links that somebody took away.
///
/// # Errors
/// As [`layout::layout`].
pub fn expected(place: &Place, mode: Mode) -> Result<Layout> {
    let mut layout = layout::layout(mode, place.name())?;
    if fs::exists(&place.unlinked()) {
        layout.entries.retain(|entry| !entry.is_link_outside());
    }
    Ok(layout)
}

/// Where the links of a project are.
///
/// # Errors
/// As [`layout::layout`].
fn links(site: &Site) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
    let layout = layout::layout(layout_mode(site)?, site.place.name())?;
    let outside = layout.entries.iter().filter(|entry| entry.is_link_outside());
    let root = site.place.node().root();
    outside.map(|entry| Ok((root.join(entry.spot.below_root(&site.place)?), entry.link_text(&site.place)?))).collect()
}

/// Makes the links, and lets the project have them from now on; returns where they are.
///
/// # Errors
/// If something else stands there.
pub fn link(site: &Site) -> Result<Vec<PathBuf>> {
    fs::remove_file(&site.place.unlinked())?;
    let layout = expected(&site.place, layout_mode(site)?)?;
    trees::build(&site.place, &layout, site.owners().as_ref())?;
    Ok(links(site)?.into_iter().map(|(path, _)| path).collect())
}

/// Takes the links away, and keeps `init` from making them again; returns those that were there.
///
/// # Errors
/// If something else stands there: then nothing was taken away.
pub fn unlink(site: &Site) -> Result<Vec<PathBuf>> {
    let there: Vec<(PathBuf, Option<PathBuf>)> =
        links(site)?.into_iter().filter(|(path, _)| fs::exists(path) || fs::link_target(path).is_some()).collect();
    if let Some((path, _)) = there.iter().find(|(path, text)| fs::link_target(path) != *text) {
        return Err(Error::refused(format!("{} is no link of this project", path.display()))
            .hint(format!("look what it is: ls -l {}", path.display())));
    }
    fs::write_durable(&site.place.unlinked(), b"", 0o600)?;
    for (path, _) in &there {
        fs::remove_file(path)?;
    }
    Ok(there.into_iter().map(|(path, _)| path).collect())
}

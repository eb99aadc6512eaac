//! Questions about what changed: in `run` since its release, in `data/` since a restore point.

use super::activate::{RestorePoint, live_of};
use super::site::Site;
use super::{clone, parking};
use crate::project::ids::DeploymentId;
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::tree::drift::{Drift, How};
use crate::tree::manifest::Manifest;
use crate::tree::scan::identify;
use crate::tree::snapshot::{Snapshots, wants};
use crate::tree::witness::{self, Witness};

/// How many changed paths are named.
const EXAMPLES: usize = 10;

/// What was changed by hand in `run` since its release; in editable mode, in the clone since its commit.
///
/// # Errors
/// If `run` cannot be read.
pub fn drift_of_run(site: &Site) -> Result<Drift> {
    if parking::read(site)?.is_some() {
        return clone::drift(site);
    }
    let repo = site.repo()?;
    let live = live_of(site, &repo)?;
    let run = Dir::open_real(&site.place.run())?;
    let witness = Witness::open_or_read(&witness::path_of(&site.place, &run)?);
    let actual = identify(&run, site.own, witness.as_ref(), &|_| true)?;
    let empty = Manifest::default();
    let manifest = live.as_ref().map_or(&empty, |live| &live.manifest);
    let ignore = live.as_ref().and_then(|live| live.version.as_ref()).map(|version| &version.recipe.ignore_drift);
    let drift =
        Drift::between(manifest, &actual, &|path, is_dir| ignore.is_some_and(|ignore| ignore.matches(path, is_dir)));
    manifest.intact()?;
    Ok(drift)
}

/// How many files of `data/` differ from a restore point, and some of their names.
///
/// # Errors
/// If the restore point has no data, or the data cannot be read.
pub fn written_since(site: &Site, point: &DeploymentId) -> Result<(usize, Vec<String>)> {
    let snapshots = Snapshots::new(&site.place, site.own);
    let scope = RestorePoint::read(site, point)?.and_then(|point| point.scope);
    let before = snapshots.manifest(point)?.ok_or_else(|| Error::refused(format!("{point} has no data")))?;
    let now = identify(&Dir::open_real(&site.place.data())?, site.own, None, &wants(&scope))?;
    let drift = Drift::between(&before, &now, &|_, is_dir| is_dir);
    let words = |how: How| match how {
        How::Added => "new since",
        How::Removed => "removed since",
        How::Changed | How::Metadata => "changed since",
    };
    let named = drift.changes.iter().take(EXAMPLES).map(|change| format!("{} ({})", change.path, words(change.how)));
    Ok((drift.changes.len(), named.collect()))
}

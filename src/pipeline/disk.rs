//! What a project costs on the disk: by part, by kept deployment, by restore point.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::activate::{RestorePoint, live_of};
use super::parking;
use super::preflight::{Disk, Need, Part, What, disks};
use super::site::Site;
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::outcome::Serving;
use crate::project::place::Place;
use crate::project::recipe::Recipe;
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::Result;
use crate::sys::fs;
use crate::sys::path::TreePath;
use crate::sys::usage::{Counted, Usage, measure};
use crate::tree::cost::{Cost, Wanted, costs};
use crate::tree::deliverable::Deliverable;
use crate::tree::hash::Hash;
use crate::tree::release::Releases;
use crate::tree::scan::identify;
use crate::tree::snapshot::Snapshots;
use crate::tree::witness::{self, Witness};

/// One part of a project.
#[derive(Debug, Serialize)]
pub struct PartUsage {
    /// Its name.
    pub part: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// What it takes: measured.
    #[serde(flatten)]
    pub usage: Usage,
}

/// A kept deployment.
#[derive(Debug, Serialize)]
pub struct Kept {
    /// Its id.
    pub id: DeploymentId,
    /// Its number.
    pub seq: u64,
    /// Its commit.
    pub commit: Option<ObjectId>,
    /// The tree that holds it: `run`, `spare`, or none.
    pub tree: Option<&'static str>,
    /// What it costs.
    #[serde(flatten)]
    pub cost: Cost,
}

/// A file system that the project lies on.
#[derive(Debug, Serialize)]
pub struct FileSystem {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Free bytes.
    pub free: u64,
    /// Size in bytes.
    pub total: u64,
    /// Free inodes; `None`: as many as there is space for.
    pub free_inodes: Option<u64>,
    /// Bytes that a deployment must leave free.
    pub reserve: u64,
    /// Whether less than that is free.
    pub below_reserve: bool,
}

/// What a project costs.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The project.
    pub project: String,
    /// Everything of it.
    pub total: Usage,
    /// The most that it may take.
    pub limit: Option<u64>,
    /// Its parts.
    pub parts: Vec<PartUsage>,
    /// Its kept deployments, oldest first.
    pub deployments: Vec<Kept>,
    /// Its restore points, oldest first.
    pub restore_points: Vec<Kept>,
    /// The file systems that it lies on.
    pub file_systems: Vec<FileSystem>,
}

/// Examines what a project costs.
///
/// # Errors
/// If something cannot be read.
pub fn report(site: &Site) -> Result<Report> {
    let recipe = live_recipe(site);
    let parts = parts(site, &recipe)?;
    let total = parts.iter().fold(Usage::default(), |sum, part| sum.plus(part.usage));
    Ok(Report {
        project: site.place.name().to_string(),
        total,
        limit: site.config.disk,
        parts,
        deployments: deployments(site)?,
        restore_points: restore_points(site)?,
        file_systems: file_systems(site)?,
    })
}

fn live_recipe(site: &Site) -> Recipe {
    let live = site.repo().and_then(|repo| live_of(site, &repo)).ok().flatten();
    live.and_then(|live| live.version).map(|version| version.recipe).unwrap_or_default()
}

fn parts(site: &Site, recipe: &Recipe) -> Result<Vec<PartUsage>> {
    let place = &site.place;
    let counted = Counted::default();
    let mut all: Vec<PartUsage> = Vec::new();
    let mut add = |part: &'static str, path: PathBuf, skip: &[PathBuf]| -> Result<()> {
        if fs::exists(&path) {
            let usage = measure(&Dir::open(&path)?, &counted, skip)?;
            all.push(PartUsage { part, path, usage });
        }
        Ok(())
    };
    let caches: Vec<&Path> = recipe.cache.iter().map(TreePath::as_path).collect();
    add("git", place.dir().join("git"), &[])?;
    if parking::read(site)?.is_none() {
        // In editable mode it only shows run.
        add("project", place.project(), &[])?;
    }
    add("pillar", place.pillar(), &[])?;
    add("data", place.data(), &[])?;
    let in_build = caches.iter().map(|cache| Path::new("tree").join(cache));
    let apart: Vec<PathBuf> = in_build.chain([PathBuf::from("home")]).collect();
    add("build", place.build(), &apart)?;
    add("build cache", place.build_home(), &[])?;
    add("run", place.run(), &[])?;
    add("spare", place.spare(), &[])?;
    add("store", place.store(), &[])?;
    // In editable mode: what ran before, as it was left.
    add("parked", place.cooked(), &[])?;
    add("parked checkout", place.checkout(), &[])?;
    let apart = ["spare", "store", "cooked", "checkout"].map(PathBuf::from);
    add("deploy records", place.deploy(), &apart)?;
    add("releases", place.releases(), &[])?;
    add("archives", place.archives(), &[])?;
    add("state", place.state(), &[])?;
    add("logs", place.logs(), &[])?;
    let kept = cached(place, &caches, &counted)?;
    if let Some(part) = all.iter_mut().find(|part| part.part == "build cache") {
        part.usage = part.usage.plus(kept);
    }
    Ok(all)
}

/// What the recipe's caches take in `build/tree`. Steps can write there: what they put in the place of a cache is never
/// followed.
fn cached(place: &Place, caches: &[&Path], counted: &Counted) -> Result<Usage> {
    let mut kept = Usage::default();
    if !fs::exists(&place.build_tree()) {
        return Ok(kept);
    }
    let tree = Dir::open_real(&place.build_tree())?;
    for cache in caches {
        match tree.stat(cache)? {
            Some(meta) if meta.kind == FileKind::Dir => {
                kept = kept.plus(measure(&tree.dir(cache)?, counted, &[])?);
            }
            Some(meta) => kept = kept.plus(Usage { bytes: meta.disk, inodes: 1, unread: 0 }),
            None => {}
        }
    }
    Ok(kept)
}

/// The disk space of one record directory.
fn record(path: &Path) -> Result<u64> {
    if !fs::exists(path) {
        return Ok(0);
    }
    Ok(measure(&Dir::open(path)?, &Counted::default(), &[])?.bytes)
}

fn deployments(site: &Site) -> Result<Vec<Kept>> {
    if !fs::exists(&site.place.store()) {
        // A project that never was in another mode than editable.
        return Ok(Vec::new());
    }
    let (place, releases) = (&site.place, Releases::new(&site.place));
    let mut all = Vec::new();
    for id in releases.ids()? {
        all.push((releases.provenance(&id)?, Wanted::new(&releases.manifest(&id)?, Some(&releases.built(&id)?))));
    }
    all.sort_by_key(|(provenance, _)| provenance.seq);
    // What the spare has is not in the pool for it alone.
    let mut elsewhere: HashSet<Hash> = HashSet::new();
    for tree in [place.spare(), place.cooked()].into_iter().filter(|tree| fs::exists(tree)) {
        let tree = Dir::open_real(&tree)?;
        let witness = Witness::read(&witness::path_of(place, &tree)?);
        elsewhere.extend(identify(&tree, site.own, witness.as_ref(), &|_| true)?.manifest.hashes());
    }
    let wanted: Vec<Wanted> = all.iter().map(|(_, wanted)| wanted.clone()).collect();
    let costs = costs(&wanted, &place.store(), &|hash| elsewhere.contains(hash))?;
    let serves: Option<Serving> = site.serves()?;
    let packed = Dir::open(&place.releases())?;
    let commits: Vec<ObjectId> = all.iter().map(|(provenance, _)| provenance.commit.clone()).collect();
    let mut kept = Vec::new();
    for ((provenance, _), mut cost) in all.into_iter().zip(costs) {
        let is_live = serves.as_ref().is_some_and(|serving| serving.id == provenance.id);
        let link = fs::link_target(&place.release(&provenance.id).join("tree"));
        let tree = match link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) {
            _ if is_live => Some("run"),
            Some("spare") => Some("spare"),
            _ => None,
        };
        // Its deliverable goes with it, unless another one has the same commit.
        if commits.iter().filter(|commit| **commit == provenance.commit).count() == 1 {
            cost.frees += deliverable(site, &packed, &provenance.commit)?;
        }
        // What serves is never removed.
        cost.frees = if is_live { 0 } else { cost.frees + record(&place.release(&provenance.id))? };
        kept.push(Kept { id: provenance.id, seq: provenance.seq, commit: Some(provenance.commit), tree, cost });
    }
    Ok(kept)
}

fn deliverable(site: &Site, dir: &Dir, commit: &ObjectId) -> Result<u64> {
    let found = Deliverable::new(Path::new(""), site.place.name(), commit);
    let mut bytes = 0;
    for ending in ["tar.zst", "manifest", "json", "sig"] {
        bytes += dir.stat(&found.file(ending))?.map_or(0, |meta| meta.disk);
    }
    Ok(bytes)
}

fn restore_points(site: &Site) -> Result<Vec<Kept>> {
    if !fs::exists(&site.place.snapshot_store()) {
        return Ok(Vec::new());
    }
    let (place, snapshots) = (&site.place, Snapshots::new(&site.place, site.own));
    let (mut points, mut wanted) = (Vec::new(), Vec::new());
    for point in RestorePoint::all(site)? {
        let manifest = snapshots.manifest(&point.id)?.unwrap_or_default();
        wanted.push(Wanted::new(&manifest, None));
        points.push(point);
    }
    let elsewhere: HashSet<Hash> = snapshots.present()?.manifest.hashes().collect();
    let costs = costs(&wanted, &place.snapshot_store(), &|hash| elsewhere.contains(hash))?;
    let mut kept = Vec::new();
    for (point, mut cost) in points.into_iter().zip(costs) {
        let own = record(&place.archive(&point.id))?;
        cost.alone += own;
        cost.frees += own;
        let commit = point.before.map(|before| before.commit);
        kept.push(Kept { id: point.id, seq: point.seq, commit, tree: None, cost });
    }
    Ok(kept)
}

/// The file systems that a project lies on, and whether each has its reserve free.
///
/// # Errors
/// If one cannot be examined.
pub fn file_systems(site: &Site) -> Result<Vec<FileSystem>> {
    let place = &site.place;
    let dirs = [
        place.git_project(),
        place.project(),
        place.pillar(),
        place.data(),
        place.build_tree(),
        place.run(),
        place.deploy(),
        place.releases(),
        place.archives(),
        place.state(),
    ];
    let any = Need { bytes: 1, inodes: 0 };
    let parts: Vec<Part> = dirs.into_iter().map(|dir| Part { dir, need: any, what: What::Deployment }).collect();
    let told = |disk: Disk| FileSystem {
        free: disk.space.bytes,
        total: disk.space.total,
        free_inodes: (disk.space.inodes != u64::MAX).then_some(disk.space.inodes),
        below_reserve: disk.space.bytes < disk.reserve,
        reserve: disk.reserve,
        point: disk.point,
    };
    Ok(disks(site, &parts, true)?.into_iter().map(told).collect())
}

//! Stage `fetch` of final mode: the deliverable that another node cooked is found, brought here and checked, and its contents
//! go into the store. Nothing is built, and nothing that runs is touched.
//!
//! It is looked for before the preflight, which counts what will be downloaded; what went wrong with that is told by the
//! stage.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::download::{Download, Tell};
use super::draft::Draft;
use super::halt::{Halt, Step};
use super::preflight::{Part, What, downloaded, refuse_short};
use super::site::Site;
use crate::project::ids::ObjectId;
use crate::project::node::{ReleaseSource, RemoteSource};
use crate::project::stage::Stage;
use crate::sys::error::{Error, Result};
use crate::sys::{fault, fs};
use crate::tree::deliverable::{Deliverable, Limits};
use crate::tree::hash::Hash;
use crate::tree::incoming::Incoming;
use crate::tree::manifest::Manifest;
use crate::tree::store::Store;

/// Where the deliverable of a commit is.
#[derive(Debug)]
pub enum Offer {
    /// On this machine.
    Here(Deliverable),
    /// On another node; all of it but the archive is known.
    There(Box<Incoming>, RemoteSource),
}

/// The directories of this machine in which a deliverable is looked for, in order: those of the node's sources (each may be
/// a directory of deliverables, of one project, or of all projects of a staging node), then the project's own.
#[must_use]
pub fn directories(site: &Site) -> Vec<PathBuf> {
    let name = site.place.name().as_str();
    let mut all = Vec::new();
    for source in &site.node.config.release_sources {
        let ReleaseSource::Directory(source) = source else { continue };
        let candidates =
            [source.clone(), source.join(name).join("releases"), source.join("releases"), source.join(name)];
        let found = candidates.into_iter().filter(|dir| fs::exists(dir)).collect::<Vec<_>>();
        if found.is_empty() { all.push(source.clone()) } else { all.extend(found) }
    }
    all.push(site.place.releases());
    all
}

/// The deliverable of a commit on this machine.
#[must_use]
pub fn found_here(site: &Site, commit: &ObjectId) -> Option<Deliverable> {
    let all = directories(site).into_iter().map(|dir| Deliverable::new(&dir, site.place.name(), commit));
    all.into_iter().find(Deliverable::exists)
}

/// The other nodes that may have deliverables of this project, in order.
pub fn remotes(site: &Site) -> impl Iterator<Item = &RemoteSource> {
    let all = site.node.config.release_sources.iter().filter(|source| source.concerns(site.place.name()));
    all.filter_map(|source| match source {
        ReleaseSource::Remote(remote) => Some(remote),
        ReleaseSource::Directory(_) => None,
    })
}

/// Looks for the deliverable of a commit: on this machine, then on each other node.
///
/// # Errors
/// If it is nowhere, or where it should be nobody can be asked.
pub fn look(site: &Site, commit: &ObjectId, within: Duration, tell: Tell<'_>) -> Result<Offer> {
    if let Some(found) = found_here(site, commit) {
        return Ok(Offer::Here(found));
    }
    let mut looked: Vec<String> = directories(site).iter().map(|dir| dir.display().to_string()).collect();
    let mut unreachable = None;
    for remote in remotes(site) {
        match Download::new(site, remote, within, &mut *tell).and_then(|mut way| way.look(commit)) {
            Ok(Some(incoming)) => return Ok(Offer::There(Box::new(incoming), remote.clone())),
            Ok(None) => looked.push(remote.to_string()),
            // Another one may have it.
            Err(error) => {
                unreachable.get_or_insert(error);
            }
        }
    }
    if let Some(error) = unreachable {
        return Err(error);
    }
    let file = Deliverable::new(Path::new(""), site.place.name(), commit).name().to_string();
    Err(Error::refused(format!(
        "no deliverable {file}.json of {} was found; looked in: {}",
        commit.short(),
        looked.join(", ")
    ))
    .hint("push this commit to the staging node first, which cooks it, and name that node or its releases/ in `release_sources` of node.yaml"))
}

/// Brings what was offered here.
///
/// # Errors
/// If it cannot be had.
pub fn bring(site: &Site, offer: &Offer, within: Duration, tell: Tell<'_>) -> Result<Deliverable> {
    match offer {
        Offer::Here(found) => Ok(found.clone()),
        Offer::There(incoming, remote) => {
            Download::new(site, remote, within, tell)?.bring(incoming)?;
            Ok(incoming.deliverable().clone())
        }
    }
}

/// Brings a deliverable here without deploying it, if there is room.
///
/// # Errors
/// If there is none, or it cannot be had.
pub fn by_hand(site: &Site, commit: &ObjectId, tell: Tell<'_>) -> Result<Deliverable> {
    let within = site.node.config.fetch_within;
    let offer = look(site, commit, within, &mut *tell)?;
    let part = Part { dir: site.place.releases(), need: downloaded(&offer), what: What::Deployment };
    refuse_short(site, &[part])?;
    bring(site, &offer, within, tell)
}

impl Draft<'_> {
    /// Looks for the deliverable; what comes of it is for the preflight and for [`Draft::fetch`].
    pub fn look_for_deliverable(&mut self) {
        let (site, commit) = (self.site, self.next.commit.id.clone());
        let within = site.node.config.fetch_within;
        let offer = look(site, &commit, within, &mut |line| self.note(line));
        self.offer = Some(offer);
    }

    /// Final: the deliverable of the commit is brought here, checked, and its contents taken into the store.
    ///
    /// # Errors
    /// If there is none, it does not come, or it is refused.
    pub fn fetch(&mut self, store: &Store) -> Step<Manifest> {
        self.stage(Stage::Fetch, |draft| {
            let offer = draft.offer.take().unwrap_or_else(|| Err(Error::bug("nobody looked for the deliverable")))?;
            let (site, within) = (draft.site, draft.site.node.config.fetch_within);
            let found = bring(site, &offer, within, &mut |line| draft.note(line))?;
            draft.unpack(&found, store)
        })
    }

    fn unpack(&mut self, found: &Deliverable, store: &Store) -> Step<(Manifest, Option<String>)> {
        let (statement, manifest) = found.verify(&self.site.trusted_keys()?)?;
        let live: HashSet<Hash> = self.live.iter().flat_map(|live| live.manifest.hashes()).collect();
        let wants = |hash: &Hash| Ok(!live.contains(hash));
        let taken = found.unpack(&statement, &manifest, store, Limits::default(), &wants)?;
        fault::point("fetch.verified").map_err(Halt::from)?;
        Ok((manifest, Some(format!("{}, {taken} new contents, signature good", found.name()))))
    }
}

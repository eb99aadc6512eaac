//! Steps about units of the machine: whether the node allows them, and doing them ourselves.

use std::time::Duration;

use super::draft::{Draft, RECIPE, Version};
use super::site::Site;
use crate::project::recipe::units::{Asking, hint};
use crate::project::stage::Stage;
use crate::project::unit::{UnitAction, UnitName};
use crate::service::systemd::Manager;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::git::Repo;
use crate::sys::path::TreePath;
use crate::sys::process::StepWatcher;

/// The stages whose steps come from the live version's recipe while it is replaced, or is brought back.
const OF_THE_OLD: [Stage; 5] = [Stage::Stop, Stage::Backup, Stage::Restore, Stage::Start, Stage::Health];

impl Draft<'_> {
    /// Refuses a deployment with a step that asks for a unit which the node does not allow, before anything changes. The
    /// live version's steps count too: one that could not be stopped or started again would need a person.
    ///
    /// # Errors
    /// The refusal, with the recipe's line and the line to write into `node.yaml`.
    pub fn refuse_units(&self) -> Result<()> {
        refuse(self.site, &self.repo, &self.next, self.old_version())
    }
}

/// As [`Draft::refuse_units`].
///
/// # Errors
/// The refusal.
pub fn refuse(site: &Site, repo: &Repo, next: &Version, old: Option<&Version>) -> Result<()> {
    refuse_in(site, repo, next, &Stage::WITH_STEPS, RECIPE)?;
    match old {
        Some(old) => {
            refuse_in(site, repo, old, &OF_THE_OLD, &format!("{RECIPE} of {}, which is live", old.commit.id.short()))
        }
        None => Ok(()),
    }
}

fn refuse_in(site: &Site, repo: &Repo, version: &Version, stages: &[Stage], file: &str) -> Result<()> {
    if !version.recipe.asks_for_units(version.mode, stages) {
        return Ok(());
    }
    let path = TreePath::new(RECIPE.as_bytes())?;
    let bytes = repo.blob_at(&version.commit.id, &path, fs::CONFIG_LIMIT)?.unwrap_or_default();
    let node_file = site.place.node().config().display().to_string();
    let asking = Asking { file, bytes: &bytes, node_file: &node_file, project: site.place.name() };
    version.recipe.refuse_units(version.mode, stages, &site.config.allow, &asking)?;
    Manager::find().map(|_| ())
}

/// Does a step about a unit: as root on a whole-machine node, as ourselves otherwise.
///
/// # Errors
/// A refusal where the node does not allow it or has no systemd; a unit that fails is a status.
pub fn act(
    site: &Site,
    action: UnitAction,
    unit: &UnitName,
    limit: Duration,
    on: &mut dyn StepWatcher,
) -> Result<std::result::Result<(), String>> {
    let allow = &site.config.allow;
    if !allow.permits(action, unit) {
        let node_file = site.place.node().config().display().to_string();
        let told = format!("this node does not allow the project to {} {unit}", action.word());
        return Err(Error::refused(told).hint(hint(allow, &[(action, unit)], &node_file, site.place.name())));
    }
    Manager::find()?.act(action, unit, limit, on)
}

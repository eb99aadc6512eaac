//! The environment of every step, task and command: one function, built from nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::secrets::Given;
use super::site::{Rights, Site};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::Mode;
use crate::project::pillar::Pillar;
use crate::project::recipe::Recipe;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Result};
use crate::sys::{fs, process};

/// What the environment is made for.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The mode.
    pub mode: Mode,
    /// The deployment, if the program runs in one.
    pub id: Option<DeploymentId>,
    /// The commit whose tree the program works in.
    pub commit: Option<ObjectId>,
    /// The commit's time in seconds (`SOURCE_DATE_EPOCH`).
    pub commit_time: Option<i64>,
    /// Where the program sees the tree: the path of `run`, or `build/tree` where that is impossible.
    pub run: PathBuf,
    /// Where dumps are written to or read from.
    pub dumps: Option<PathBuf>,
    /// The JSON file of the merged configuration.
    pub config: PathBuf,
    /// The secrets.
    pub given: Given,
}

/// Makes the environment of a step, a task or a command. Later sources win: node, recipe, pillar, step, ours.
#[must_use]
pub fn environment(
    site: &Site,
    recipe: &Recipe,
    pillar: &Pillar,
    setting: &Setting,
    step: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let place = &site.place;
    let mut all = match &site.rights {
        Rights::OneUser => process::base_environment(&place.build_home()),
        Rights::Separate { project, .. } => process::base_environment_of(&project.name, &place.build_home()),
    };
    all.extend(site.node.config.env.clone());
    all.extend(recipe.env.clone());
    all.extend(pillar.exports());
    let variables =
        recipe.secrets.iter().filter_map(|(name, secret)| Some((name.clone(), setting.given.variable(secret)?)));
    all.extend(variables);
    all.extend(step.clone());
    let text = |path: &Path| path.display().to_string();
    let mut ours = |name: &str, value: String| all.insert(name.to_string(), value);
    ours("MC_PROJECT", place.name().to_string());
    ours("MC_MODE", setting.mode.name().to_string());
    ours("MC_ENV", site.config.environment.name().to_string());
    ours("MC_DEPLOYMENT", setting.id.as_ref().map(ToString::to_string).unwrap_or_default());
    ours("MC_COMMIT", setting.commit.as_ref().map(ToString::to_string).unwrap_or_default());
    ours("MC_RUN", text(&setting.run));
    ours("MC_DATA", text(&place.data()));
    ours("MC_BUILD", text(&place.build()));
    ours("MC_PROJECT_DIR", text(place.dir()));
    ours("MC_PILLAR", text(&place.pillar()));
    ours("MC_CONFIG", text(&setting.config));
    if let Some(dir) = &setting.given.dir {
        ours("MC_SECRETS_DIR", text(dir));
    }
    ours("MC_DUMPS", setting.dumps.as_deref().map(|dumps| text(&dumps_seen_at(site, dumps))).unwrap_or_default());
    // One node until sets of nodes come: it is the primary of the only role.
    ours("MC_PRIMARY", "1".to_string());
    ours("MC_ROLE", "app".to_string());
    all.entry("STATIC_URL".to_string()).or_insert_with(|| {
        let version = setting.commit.as_ref().map_or("0", |commit| commit.short());
        format!("/static/{version}/")
    });
    if let Some(time) = setting.commit_time {
        all.insert("SOURCE_DATE_EPOCH".to_string(), time.to_string());
    }
    all
}

/// Where steps see a restore point's dumps: `archives/` is closed to the project's account, so they are shown elsewhere.
#[must_use]
pub fn dumps_seen_at(site: &Site, dumps: &Path) -> PathBuf {
    if site.owners().is_some() { site.place.build().join("dumps") } else { dumps.to_path_buf() }
}

/// Writes a configuration as JSON for `MC_CONFIG`, and returns the path. One file per configuration: a rollback finds its own.
///
/// # Errors
/// If it cannot be written.
pub fn write_config(site: &Site, path: &Path, pillar: &Pillar) -> Result<PathBuf> {
    let text = serde_json::to_vec_pretty(pillar.config()).context(|| "cannot write the configuration".to_string())?;
    if fs::read_if_there(path)?.as_deref() != Some(&text) {
        let dir = site.place.build().join("config");
        match &site.rights {
            Rights::OneUser => {
                fs::ensure_dir(&dir, 0o700)?;
                fs::write_durable(path, &text, 0o600)?;
            }
            // The project's account reads its configuration and changes nothing.
            Rights::Separate { project, .. } => {
                fs::ensure_dir(&dir, 0o750)?;
                Dir::open_real(&dir)?.give_to(0, project.gid)?;
                fs::write_durable_for(path, &text, 0o640, project.gid)?;
            }
        }
    }
    Ok(path.to_path_buf())
}

/// Where the configuration of a pillar commit stands, as it is with everything else that `key` names.
#[must_use]
pub fn config_path(site: &Site, commit: Option<&ObjectId>, key: &str) -> PathBuf {
    site.place.build().join("config").join(format!("{}-{key}.json", commit.map_or("none", ObjectId::as_str)))
}

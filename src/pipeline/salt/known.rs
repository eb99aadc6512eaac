//! `opts['ms_project']`: what states are told of their project. The names and their defaults are those of makina-states'
//! `mc_project`; what the pillar says goes over them, and what is a fact of this run over that.

use serde_json::{Map, Value, json};

use super::account;
use crate::pipeline::activate::dumps_of;
use crate::pipeline::configuration::{PasswordVersions, facts};
use crate::pipeline::draft::Version;
use crate::pipeline::environment::dumps_seen_at;
use crate::pipeline::site::Site;
use crate::pipeline::steps::Place;
use crate::project::recipe;
use crate::project::stage::Stage;
use crate::sys::error::Result;
use crate::sys::machine;

/// The steps of makina-states that can be skipped.
const STEPS: [&str; 8] =
    ["deploy", "archive", "release_sync", "install", "rotate_archives", "rollback", "fixperms", "notify"];

/// All of it.
///
/// # Errors
/// If the machine cannot be asked.
pub fn known(
    site: &Site,
    version: &Version,
    (stage, step): (Stage, &recipe::Step),
    place: &Place,
) -> Result<Map<String, Value>> {
    let facts = facts(site, &PasswordVersions::before(version.passwords.clone()))?;
    let mut all = defaults(site, version, &facts.grains);
    all.extend(facts.project);
    if version.pillar.is_makina() {
        all.extend(version.pillar.project().clone());
    } else {
        // The plain rule knows no parts: everything that the pillar says is data.
        all.insert("data".into(), version.pillar.config().clone());
    }
    all.extend(of_this_run(site, (stage, step), place));
    Ok(all)
}

fn defaults(site: &Site, version: &Version, grains: &Map<String, Value>) -> Map<String, Value> {
    let project = &site.place;
    let root = project.node().root();
    let wired = |tree: &str| root.join(tree).join("makina-projects").join(project.name().as_str());
    let fqdn = grains.get("fqdn").cloned().unwrap_or_default();
    let domain = fqdn.as_str().and_then(|name| name.split_once('.')).map_or("", |(_, domain)| domain).to_string();
    let host = machine::host_name();
    let url =
        |path: std::path::PathBuf| format!("ssh://root@{}:22{}", fqdn.as_str().unwrap_or("localhost"), path.display());
    let value = json!({
        "api_version": "2",
        "installer": "generic",
        "remote_less": false,
        "no_user": false,
        "no_reset_perms": false,
        "no_default_includes": false,
        "raw_console_return": false,
        "force_reload": false,
        "keep_archives": version.recipe.keep_archives,
        "minion_id": host,
        "domain": domain,
        "remote_host": fqdn,
        "this_host": "localhost",
        "this_localhost": "localhost",
        "this_port": "22",
        "groups": [account(site)],
        "only": null,
        "only_steps": null,
        "defaults": {},
        "env_defaults": {},
        "os_defaults": {},
        "sls_default_pillar": {},
        "git_root": project.dir().join("git"),
        "project_git_root": project.git_project(),
        "pillar_git_root": project.git_pillar(),
        "push_salt_url": url(project.git_project()),
        "push_pillar_url": url(project.git_pillar()),
        "deploy_marker": project.run().join(".tmp_deploy"),
        "wired_salt_root": wired("srv/salt"),
        "wired_pillar_root": wired("srv/pillar"),
    });
    let mut all = value.as_object().cloned().unwrap_or_default();
    all.extend(STEPS.map(|step| (format!("skip_{step}"), Value::Bool(false))));
    all
}

/// What nobody else can say.
fn of_this_run(site: &Site, (stage, step): (Stage, &recipe::Step), place: &Place) -> Map<String, Value> {
    let outcome = |name: &str| step.env.get(name).cloned().unwrap_or_default();
    let verdict = outcome("MC_VERDICT");
    let has_failed = !matches!(verdict.as_str(), "" | "deployed");
    let is_back = stage == Stage::Restore || verdict == "rolled back";
    let archive = place.setting.dumps.as_deref().map(|dumps| dumps_seen_at(site, dumps));
    let archive = archive.or_else(|| place.setting.id.as_ref().map(|id| dumps_of(site, id)));
    let value = json!({
        "name": site.place.name(),
        "chrono": place.setting.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        "current_archive_dir": archive,
        "rollback": is_back,
        "deploy_summary": outcome("MC_OUTCOME"),
        "deploy_ret": {"result": !has_failed, "comment": outcome("MC_OUTCOME"), "changes": {}, "name": site.place.name()},
    });
    value.as_object().cloned().unwrap_or_default()
}

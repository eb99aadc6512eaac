//! States of Salt as steps: `run: salt:NAME`, and what a project of makina-states means by its `.salt` directory.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::step::Command;
use super::{Defaults, Recipe, Step};
use crate::project::limits::User;
use crate::project::pillar::Merge;
use crate::project::stage::Stage;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// The directory of a project's states.
pub const DIR: &str = ".salt";
/// What a step that runs states begins with.
pub const PREFIX: &str = "salt:";
/// How the files of states end.
const ENDING: &str = ".sls";
/// The states that run everything by themselves, where a project has them (the RFC's `.salt/top.sls`).
const TOP: &str = "top";
/// States that have a place of their own.
const SPECIAL: [&str; 4] = ["archive", "rollback", "fixperms", "notify"];
/// What the states of a task begin with.
const TASK: &str = "task_";
/// The longest name.
const MAX_NAME: usize = 100;

/// The name of a file of states directly in `.salt`, without its ending.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SlsName(String);

impl SlsName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its file in a commit.
    #[must_use]
    pub fn file(&self) -> String {
        format!("{DIR}/{}{ENDING}", self.0)
    }
}

impl<'de> Deserialize<'de> for SlsName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error: Error| serde::de::Error::custom(error.message()))
    }
}

impl fmt::Display for SlsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SlsName {
    type Err = Error;

    /// Takes the name with or without `.sls`.
    fn from_str(text: &str) -> Result<Self> {
        let name = text.strip_suffix(ENDING).unwrap_or(text);
        let is_good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_good) {
            let shown = visible_bounded(text.as_bytes(), 80);
            return Err(Error::invalid(format!("`{shown}` is no name of a file of states"))
                .hint("letters, digits, _ and -, at most 100: Salt takes a dot for a directory"));
        }
        Ok(Self(name.to_string()))
    }
}

/// States that one process of Salt runs, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaltRun {
    /// One failed state among these ends the step.
    pub states: Vec<SlsName>,
    /// What these do wrong is told and is no failure.
    pub lenient: Vec<SlsName>,
}

impl SaltRun {
    /// All of them, in the order in which they run.
    pub fn all(&self) -> impl Iterator<Item = &SlsName> {
        self.states.iter().chain(&self.lenient)
    }

    /// The step as it is written: `salt:a salt:b`.
    #[must_use]
    pub fn words(&self) -> String {
        self.all().map(|name| format!("{PREFIX}{name}")).collect::<Vec<_>>().join(" ")
    }

    fn of(states: &[&SlsName], lenient: &[&SlsName]) -> Self {
        let owned = |names: &[&SlsName]| names.iter().map(|name| (*name).clone()).collect();
        Self { states: owned(states), lenient: owned(lenient) }
    }
}

/// Reads a command that runs states; `None` if the text is none.
///
/// # Errors
/// If the name is none.
pub fn parse(text: &str) -> Result<Option<SaltRun>> {
    let Some(name) = text.trim().strip_prefix(PREFIX) else { return Ok(None) };
    Ok(Some(SaltRun { states: vec![name.parse()?], lenient: Vec::new() }))
}

impl Recipe {
    /// What a project of makina-states means, which has `.salt` and no recipe; `None` where `.salt` has no states to run.
    ///
    /// `names` are the files in `.salt`. The states run in the order of their names, `top` alone where it is there; `archive`
    /// makes the backup, `rollback` brings it back, `fixperms` follows what was installed or brought back, `notify` tells.
    ///
    /// # Errors
    /// If a file of states has a name that Salt cannot call.
    pub fn of_salt(names: &[String], as_root: bool, defaults: &Defaults) -> Result<Option<Self>> {
        let files = names.iter().filter(|name| name.ends_with(ENDING));
        let mut all: Vec<SlsName> = files.map(|name| name.parse()).collect::<Result<_>>()?;
        all.sort();
        let find = |wanted: &str| all.iter().find(|name| name.as_str() == wanted);
        let is_install = |name: &&SlsName| !SPECIAL.contains(&name.as_str()) && !name.as_str().starts_with(TASK);
        let install: Vec<&SlsName> = find(TOP).map_or_else(|| all.iter().filter(is_install).collect(), |top| vec![top]);
        if install.is_empty() {
            return Ok(None);
        }
        let mut recipe = Self::without_file(defaults);
        recipe.config.merge = Merge::Makina;
        recipe.keeps_made = true;
        let fixperms: Vec<&SlsName> = find("fixperms").into_iter().collect();
        let step = |run: SaltRun| salt_step(run, as_root, defaults.step_timeout);
        recipe.stages.insert(Stage::PostInstall, vec![step(SaltRun::of(&install, &fixperms))]);
        if let Some(archive) = find("archive") {
            recipe.stages.insert(Stage::Backup, vec![step(SaltRun::of(&[archive], &[]))]);
        }
        let rollback: Vec<&SlsName> = find("rollback").into_iter().collect();
        if !rollback.is_empty() || !fixperms.is_empty() {
            recipe.stages.insert(Stage::Restore, vec![step(SaltRun::of(&rollback, &fixperms))]);
        }
        if let Some(notify) = find("notify") {
            recipe.stages.insert(Stage::Notify, vec![step(SaltRun::of(&[notify], &[]))]);
        }
        for name in all.iter().filter(|name| name.as_str().starts_with(TASK)) {
            recipe.tasks.insert(name.to_string(), vec![step(SaltRun::of(&[name], &[]))]);
        }
        Ok(Some(recipe))
    }

    /// Every run of states in the stages, with its stage.
    pub fn salt_runs(&self) -> impl Iterator<Item = (Stage, &SaltRun)> {
        let steps = self.stages.iter().flat_map(|(stage, steps)| steps.iter().map(move |step| (*stage, step)));
        steps.filter_map(|(stage, step)| step.salt().map(|run| (stage, run)))
    }

    /// Every run of states in stages and tasks.
    pub fn all_salt_runs(&self) -> impl Iterator<Item = &SaltRun> {
        let tasks = self.tasks.values().flatten().filter_map(Step::salt);
        self.salt_runs().map(|(_, run)| run).chain(tasks)
    }

    /// Refuses names of states that are none of those which this project installs.
    ///
    /// # Errors
    /// Which one, and which there are.
    pub fn refuse_unknown_states(&self, wanted: &[SlsName]) -> Result<()> {
        let installing = self.salt_runs().filter(|(stage, _)| is_installing(*stage));
        let names: Vec<&SlsName> = installing.flat_map(|(_, run)| &run.states).collect();
        let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) else { return Ok(()) };
        let known = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        Err(Error::usage(format!("only-steps: `{unknown}` is none of the states that this project installs")).hint(
            if known.is_empty() { "it installs nothing by Salt".to_string() } else { format!("they are: {known}") },
        ))
    }
}

/// Whether states of this stage make the new version, and do not save or tell something.
#[must_use]
pub fn is_installing(stage: Stage) -> bool {
    !matches!(stage, Stage::Backup | Stage::Restore | Stage::Notify | Stage::Stop)
}

fn salt_step(run: SaltRun, as_root: bool, timeout: Duration) -> Step {
    let user = if as_root { User::Root } else { User::default() };
    Step { timeout, user, ..Step::of(Command::Salt(run)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Option<Recipe> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Recipe::of_salt(&names, false, &Defaults::default()).unwrap()
    }

    fn words(recipe: &Recipe, stage: Stage) -> String {
        recipe.steps(stage).iter().map(Step::title).collect()
    }

    #[test]
    fn states_run_in_the_order_of_their_names_and_the_special_ones_at_their_places() {
        let recipe = of(&[
            "100_app.sls",
            "000_prepare.sls",
            "fixperms.sls",
            "archive.sls",
            "rollback.sls",
            "notify.sls",
            "task_admin.sls",
            "PILLAR.sample",
            "files",
        ])
        .unwrap();
        assert_eq!(words(&recipe, Stage::PostInstall), "salt:000_prepare salt:100_app salt:fixperms");
        assert_eq!(words(&recipe, Stage::Backup), "salt:archive");
        assert_eq!(words(&recipe, Stage::Restore), "salt:rollback salt:fixperms");
        assert_eq!(words(&recipe, Stage::Notify), "salt:notify");
        assert_eq!(recipe.tasks.keys().collect::<Vec<_>>(), ["task_admin"]);
        let run = recipe.steps(Stage::PostInstall)[0].salt().unwrap();
        assert_eq!((run.states.len(), run.lenient.len()), (2, 1));
        // As makina-states sorts: by the characters, not by the numbers.
        let recipe = of(&["100_b.sls", "0_4.sls", "0100_a.sls", "0010_b.sls"]).unwrap();
        assert_eq!(words(&recipe, Stage::PostInstall), "salt:0010_b salt:0100_a salt:0_4 salt:100_b");
    }

    #[test]
    fn a_top_file_runs_alone_and_nothing_to_run_is_no_recipe() {
        let recipe = of(&["top.sls", "000_a.sls", "task_x.sls"]).unwrap();
        assert_eq!(words(&recipe, Stage::PostInstall), "salt:top");
        assert!(of(&["PILLAR.sample", "fixperms.sls", "task_x.sls"]).is_none());
        assert!(of(&[]).is_none());
        let error = Recipe::of_salt(&["1.0_app.sls".into()], false, &Defaults::default()).unwrap_err();
        assert!(error.to_string().contains("`1.0_app.sls` is no name"), "{error}");
    }

    #[test]
    fn root_runs_the_states_only_where_it_is_said() {
        let names = ["000_a.sls".to_string()];
        let user = |as_root| {
            let recipe = Recipe::of_salt(&names, as_root, &Defaults::default()).unwrap().unwrap();
            recipe.steps(Stage::PostInstall)[0].user
        };
        assert_eq!((user(true), user(false)), (User::Root, User::Project));
    }

    #[test]
    fn only_some_of_the_states_can_be_asked_for_and_an_unknown_one_is_an_error() {
        let recipe = of(&["000_a.sls", "100_b.sls", "archive.sls", "fixperms.sls"]).unwrap();
        let wanted = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<SlsName>>();
        recipe.refuse_unknown_states(&wanted(&["100_b.sls", "000_a"])).unwrap();
        for other in ["200_c", "archive", "fixperms"] {
            let error = recipe.refuse_unknown_states(&wanted(&[other])).unwrap_err().to_string();
            assert!(error.contains(&format!("`{other}` is none")) && error.contains("000_a, 100_b"), "{error}");
        }
        let error = Recipe::default().refuse_unknown_states(&wanted(&["a"])).unwrap_err();
        assert!(error.to_string().contains("nothing by Salt"), "{error}");
    }
}

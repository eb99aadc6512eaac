//! Steps that run states of Salt: what one process of `salt-call` is given, and what it tells.
//!
//! States run from a copy of the commit's `.salt` that belongs to us, with a configuration directory and a file root of
//! their own: no minion of the machine is asked or changed. The pillar is handed over as JSON, the configuration as
//! `opts['ms_project']`, and our own modules stand in for the few helpers of makina-states that nearly all projects call.
//! One process runs all states of a step, so that the start of Salt, a second or two, is paid once.

use std::path::{Path, PathBuf};

use super::boxes;
use super::cancel;
use super::draft::{Draft, Version};
use super::halt::{Halt, Step};
use super::site::{Rights, Site};
use super::steps::{self, Place};
use crate::project::limits::{User, time_words};
use crate::project::place::NodePlace;
use crate::project::recipe::{self, SaltRun, SlsName};
use crate::project::request::Options;
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::report::stream::Reporter;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::git::Repo;
use crate::sys::path::TreePath;
use crate::sys::process::{self, StepStatus, StepWatcher, Tick};

mod known;
mod states;
mod told;
mod tree;

use told::{End, Heard, Told};
use tree::SaltTree;

/// Where packages of a distribution and of the Salt project put the program.
const INSTALLED: [&str; 2] = ["/usr/bin/salt-call", "/opt/saltstack/salt/salt-call"];

/// The program that runs states: the one that `node.yaml` names, else the one of `setup --salt`, else the machine's.
///
/// # Errors
/// If there is none.
pub fn program(site: &Site) -> Result<PathBuf> {
    let place = &site.node.place;
    if let Some(named) = &site.node.config.salt {
        let named = named.clone();
        return if fs::is_executable(&named) {
            Ok(named)
        } else {
            Err(Error::refused(format!("{} is no program, but node.yaml names it as `salt`", named.display())))
        };
    }
    let all = std::iter::once(own_program(place)).chain(INSTALLED.map(PathBuf::from));
    all.into_iter().find(|path| fs::is_executable(path)).ok_or_else(|| {
        Error::refused("this project is deployed by Salt, and there is no salt-call on this node")
            .hint(format!("{} setup --salt", site.command()))
    })
}

/// The `salt-call` of the environment that `setup --salt` makes.
#[must_use]
pub fn own_program(place: &NodePlace) -> PathBuf {
    place.salt().join("bin/salt-call")
}

impl Draft<'_> {
    /// Refuses a deployment by Salt where Salt is missing, or states that the commit has not: before anything changes.
    ///
    /// # Errors
    /// The refusal.
    pub fn refuse_states(&self) -> Result<()> {
        refuse(self.site, &self.repo, &self.next, &self.options)
    }
}

/// As [`Draft::refuse_states`].
///
/// # Errors
/// The refusal.
pub fn refuse(site: &Site, repo: &Repo, next: &Version, options: &Options) -> Result<()> {
    next.recipe.refuse_unknown_states(&options.only_steps)?;
    let mut names = next.recipe.all_salt_runs().flat_map(SaltRun::all).peekable();
    if names.peek().is_none() {
        return Ok(());
    }
    program(site)?;
    for name in names {
        if !repo.has_entry(&next.commit.id, &TreePath::new(name.file().as_bytes())?)? {
            return Err(Error::invalid(format!("the recipe runs salt:{name}, but the commit has no {}", name.file())));
        }
    }
    // What cannot be copied is found out before anything changes.
    states::files(site, repo, &next.commit.id).map(drop)
}

/// Runs the states of a step. Returns what they did, in a few words.
///
/// # Errors
/// Which state failed and why, with the tail of the output.
pub fn run(
    site: &Site,
    telling: &mut Reporter,
    version: &Version,
    (stage, step, run): (Stage, &recipe::Step, &SaltRun),
    place: &Place,
    beats: bool,
) -> Step<Option<String>> {
    boxes::announce(site, step, telling)?;
    let program = program(site)?;
    let tree = SaltTree::make(site, version, (stage, step, run), place)?;
    let mut order = steps::order(site, version, stage, step, place)?;
    order.argv = tree.command(&program);
    // Salt itself warns of its own libraries, which nobody who deploys can mend.
    if order.env.iter().all(|(name, _)| name != "PYTHONWARNINGS") {
        order.env.push(("PYTHONWARNINGS".to_string(), "ignore".to_string()));
    }
    order.keep_background = false;
    order.output_file = None;
    let limit = boxes::limits(site, step).timeout.unwrap_or(step.timeout);
    let told = Told::new(tree.mark(), stage, run.all().count() > 1);
    let mut watcher = Watcher { telling, told, beats };
    let result = process::run_step(&order, limit, &mut watcher)?;
    let Watcher { told, .. } = watcher;
    drop(tree);
    let tail = telling.tail();
    boxes::report(&result, telling)?;
    let ms = u64::try_from(result.duration.as_millis()).unwrap_or(u64::MAX);
    let status = match result.status {
        StepStatus::Timeout => format!("timeout after {}", time_words(limit)),
        _ => result.status.words(),
    };
    if !told.has_ended() {
        telling.emit(Event::StepDone { stage, status: status.clone(), ms })?;
    }
    for end in told.ends.iter().filter(|end| end.lenient) {
        if let Some(reason) = &end.reason {
            telling.emit(Event::Warning { text: format!("salt:{} failed, and changes nothing: {reason}", end.sls) })?;
        }
    }
    if let Some((end, reason)) = told.ends.iter().find_map(End::failure) {
        let halt = Halt::failed(format!("salt:{}: {reason}", end.sls)).tail(tail);
        return Err(end.hints.iter().fold(halt, Halt::hint));
    }
    if result.status.is_ok() && told.is_done() {
        return Ok(Some(told.words()));
    }
    cancel::check().map_err(|halt| halt.tail(tail.clone()))?;
    let status = if result.status.is_ok() { "it ended before its states did".to_string() } else { status };
    let halt = Halt::failed(format!("salt-call: {status}")).tail(tail).hint(format!("the step was: {}", step.title()));
    Err(match boxes::hint(site, step, &result.status) {
        Some(hint) => halt.hint(hint),
        None => halt,
    })
}

/// Who runs the states, as Salt's configuration names them.
fn user_of(site: &Site, step: &recipe::Step) -> String {
    let is_root = step.user == User::Root && site.owners().is_some();
    if is_root { "root".to_string() } else { account(site) }
}

/// The project's account; in a directory node everything is one user's.
fn account(site: &Site) -> String {
    match &site.rights {
        Rights::Separate { project, .. } => project.name.clone(),
        Rights::OneUser => process::user_name(),
    }
}

/// Tells lines of output and what the runner says in between; after the switch, writes heartbeats.
struct Watcher<'a> {
    telling: &'a mut Reporter,
    told: Told,
    beats: bool,
}

impl StepWatcher for Watcher<'_> {
    fn line(&mut self, line: &[u8]) {
        match self.told.hear(line) {
            Heard::Output => self.telling.output(line),
            Heard::Tell(event) => drop(self.telling.emit(event)),
            Heard::Nothing => {}
        }
    }

    fn tick(&mut self) -> Tick {
        steps::Watcher { telling: self.telling, beats: self.beats }.tick()
    }
}

/// The files directly in the commit's `.salt`; none if it has no such directory.
///
/// # Errors
/// If the commit cannot be read.
pub fn names_of(repo: &Repo, commit: &crate::project::ids::ObjectId) -> Result<Vec<String>> {
    let names = repo.names_at(commit, &TreePath::new(recipe::salt::DIR.as_bytes())?)?;
    Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
}

/// Only these of a step's states; `None` where nothing is left of it.
#[must_use]
pub fn only(mut step: recipe::Step, stage: Stage, wanted: &[SlsName]) -> Option<recipe::Step> {
    let Some(run) = step.salt_mut().filter(|_| !wanted.is_empty() && recipe::salt::is_installing(stage)) else {
        return Some(step);
    };
    run.states.retain(|name| wanted.contains(name));
    let is_left = run.all().next().is_some();
    is_left.then_some(step)
}

/// Removes what processes that are gone have left.
///
/// # Errors
/// If it cannot be removed.
pub fn sweep(site: &Site) -> Result<()> {
    tree::sweep(&site.place.salt_runs())
}

/// A path as text for Salt's configuration.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

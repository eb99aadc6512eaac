//! Running the recipe's steps of a stage: where, with which environment, and what a failure tells.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::boxes;
use super::cancel;
use super::draft::{Draft, Version};
use super::environment::{Setting, dumps_seen_at, environment};
use super::halt::{Halt, Step};
use super::salt;
use super::site::Site;
use crate::project::limits::time_words;
use crate::project::recipe::{self, Command};
use crate::project::request::Options;
use crate::project::stage::Stage;
use crate::project::unit::{UnitAction, UnitName};
use crate::report::event::Event;
use crate::report::stream::Reporter;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::process::{self, StepStatus, StepWatcher, TICK, Tick};
use crate::sys::step_exec::{Bind, StepOrder};

/// How much of the output of a `start` step is told.
const OUTPUT_TOLD: u64 = 64 * 1024;

/// Where steps work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// In `run`.
    Run,
    /// In this tree, which they see at the path of `run`.
    Mounted(PathBuf),
    /// In this tree, at its own path.
    Plain(PathBuf),
}

/// What the steps of a stage need to know.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where they work.
    pub at: At,
    /// Their setting.
    pub setting: Setting,
}

impl Draft<'_> {
    /// The steps of a version for a stage, in this mode and with these push options.
    #[must_use]
    pub fn steps_of(&self, version: &Version, stage: Stage) -> Vec<recipe::Step> {
        steps_of(version, stage, &self.options)
    }

    /// Runs the steps of a stage as a stage of its own; nothing is told where there are none.
    ///
    /// # Errors
    /// The first failed step.
    pub fn step_stage(&mut self, version: &Version, stage: Stage, place: &Place) -> Step<usize> {
        let steps = self.steps_of(version, stage);
        if steps.is_empty() {
            return Ok(0);
        }
        self.stage(stage, |draft| {
            let ran = draft.run_steps(version, stage, &steps, place)?;
            Ok((ran.count, Some(ran.words())))
        })
    }

    /// Runs steps, in order, until one fails.
    ///
    /// # Errors
    /// The failed step with the tail of its output.
    pub fn run_steps(&mut self, version: &Version, stage: Stage, steps: &[recipe::Step], place: &Place) -> Step<Ran> {
        if let Some(warning) = ready_for(self.site, version, stage)? {
            self.warn(warning);
        }
        let mut ran = Ran { count: steps.len(), did: Vec::new() };
        for step in steps {
            let beats = self.switching.is_some();
            ran.did.extend(run_one(self.site, self.telling, version, (stage, step), place, beats)?);
        }
        Ok(ran)
    }
}

/// Makes configuration and secrets of a version ready for a stage. Nobody is kept from stopping and saving what serves by a
/// secret that cannot be had any more: then the warning is returned.
///
/// # Errors
/// If they cannot be made ready, and the stage needs them.
pub fn ready_for(site: &Site, version: &Version, stage: Stage) -> Result<Option<String>> {
    match version.write_config(site) {
        Ok(_) => Ok(None),
        Err(error) if version.release.is_some() && matches!(stage, Stage::Stop | Stage::Backup | Stage::Restore) => {
            Ok(Some(format!("the {} steps run without secrets: {}", stage.name(), error.one_line())))
        }
        Err(error) => Err(error),
    }
}

/// The steps of a version for a stage, in its mode and with these push options.
#[must_use]
pub fn steps_of(version: &Version, stage: Stage, options: &Options) -> Vec<recipe::Step> {
    let chosen = (options.only.is_empty() || options.only.contains(&stage)) && !options.skip.contains(&stage);
    let steps = version.recipe.steps(stage).iter();
    let steps = steps.filter(|step| chosen && step.applies(version.mode)).cloned();
    steps.filter_map(|step| salt::only(step, stage, &options.only_steps)).collect()
}

/// Runs one step; returns what it did, where that can be said in a few words.
///
/// # Errors
/// Why it failed, with the tail of its output.
pub fn run_one(
    site: &Site,
    telling: &mut Reporter,
    version: &Version,
    (stage, step): (Stage, &recipe::Step),
    place: &Place,
    beats: bool,
) -> Step<Option<String>> {
    telling.also_keep_secret(&version.secret_values());
    let title = step.title();
    telling.secure()?;
    telling.emit(Event::Step { stage, title: title.clone() })?;
    if let Some((action, unit)) = step.unit() {
        return run_unit(site, telling, (stage, step), (action, unit), beats).map(|()| None);
    }
    if let Some(run) = step.salt() {
        return salt::run(site, telling, version, (stage, step, run), place, beats);
    }
    boxes::announce(site, step, telling)?;
    let order = order(site, version, stage, step, place)?;
    let limit = boxes::limits(site, step).timeout.unwrap_or(step.timeout);
    let written = order.output_file.as_deref().map(fs::size_of).transpose()?;
    let result = process::run_step(&order, limit, &mut Watcher { telling, beats })?;
    if let (Some(file), Some(from)) = (&order.output_file, written) {
        // What a daemon goes on writing is not ours to wait for: what stands there when the step ends is told.
        for line in fs::read_from(file, from, OUTPUT_TOLD)?.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            telling.output(line);
        }
    }
    let tail = telling.tail();
    let ms = u64::try_from(result.duration.as_millis()).unwrap_or(u64::MAX);
    let status = match result.status {
        StepStatus::Timeout => format!("timeout after {}", time_words(limit)),
        _ => result.status.words(),
    };
    boxes::report(&result, telling)?;
    telling.emit(Event::StepDone { stage, status: status.clone(), ms })?;
    if result.status.is_ok() {
        return Ok(None);
    }
    cancel::check().map_err(|halt| halt.tail(telling.tail()))?;
    let halt = Halt::failed(status).tail(tail).hint(format!("the step was: {title}"));
    Err(match boxes::hint(site, step, &result.status) {
        Some(hint) => halt.hint(hint),
        None => halt,
    })
}

/// A step about a unit is no program of the project: we do it ourselves, where the node allows it.
fn run_unit(
    site: &Site,
    telling: &mut Reporter,
    (stage, step): (Stage, &recipe::Step),
    (action, unit): (UnitAction, &UnitName),
    beats: bool,
) -> Step {
    let begin = Instant::now();
    let done = super::units::act(site, action, unit, step.timeout, &mut Watcher { telling, beats })?;
    let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let status = done.as_ref().map_or_else(Clone::clone, |()| StepStatus::Ok.words());
    telling.emit(Event::StepDone { stage, status: status.clone(), ms })?;
    let tail = telling.tail();
    done.map_err(|_| Halt::failed(status).tail(tail).hint(format!("the step was: {}", step.title())))
}

/// The order of a step: its command, environment, place and box.
///
/// # Errors
/// If the step asks for what it may not have.
pub fn order(site: &Site, version: &Version, stage: Stage, step: &recipe::Step, place: &Place) -> Result<StepOrder> {
    let argv = argv_of(&step.command);
    let env = environment(site, &version.recipe, &version.pillar, &place.setting, &step.env);
    let (cwd, mut binds) = match &place.at {
        At::Run => (site.place.run(), Vec::new()),
        At::Plain(tree) => (tree.clone(), Vec::new()),
        At::Mounted(tree) => {
            (site.place.run(), vec![Bind { source: tree.clone(), at: site.place.run(), read_only: false }])
        }
    };
    if let Some(dumps) = &place.setting.dumps {
        let at = dumps_seen_at(site, dumps);
        if at != *dumps {
            binds.push(Bind { source: dumps.clone(), at, read_only: false });
        }
    }
    let mut order = StepOrder::new(argv, env.into_iter().collect(), cwd);
    order.view.binds = binds;
    // A service that a step of `start` puts into the background must live on.
    order.keep_background = stage == Stage::Start;
    order.output_file = order.keep_background.then(|| site.place.logs().join("services.log"));
    order.marker = place.setting.id.as_ref().map(|id| format!("{id}.{}", stage.name()));
    boxes::close(site, stage, step, &mut order)?;
    Ok(order)
}

/// The program of a command, with its arguments.
#[must_use]
pub fn argv_of(command: &Command) -> Vec<OsString> {
    match command {
        Command::Shell(text) => ["/bin/sh", "-euc", text].iter().map(OsString::from).collect(),
        Command::Argv(argv) => argv.iter().map(OsString::from).collect(),
        // Not run as a program of the project: see `run_unit` and `salt::run`.
        Command::Unit { .. } | Command::Salt(_) => Vec::new(),
    }
}

/// The order of a command that a person runs beside the live version (`run`): boxed as a step is.
///
/// # Errors
/// If no command was given.
pub fn command_order(site: &Site, version: &Version, argv: &[OsString]) -> Result<StepOrder> {
    if argv.is_empty() {
        return Err(Error::usage("no command was given"));
    }
    let place = Place { at: At::Run, setting: version.setting(site, None) };
    let mut order = order(site, version, Stage::PostInstall, &recipe::Step::of(Command::Argv(Vec::new())), &place)?;
    order.argv = argv.to_vec();
    Ok(order)
}

/// Steps that were run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// How many.
    pub count: usize,
    /// What they did, as far as they say.
    pub did: Vec<String>,
}

impl Ran {
    /// `1 step: 12 states, 4 changed something`.
    #[must_use]
    pub fn words(&self) -> String {
        let count = steps_words(self.count);
        if self.did.is_empty() { count } else { format!("{count}: {}", self.did.join("; ")) }
    }
}

/// `1 step`, `3 steps`.
#[must_use]
pub fn steps_words(count: usize) -> String {
    if count == 1 { "1 step".to_string() } else { format!("{count} steps") }
}

/// `1 file`, `3 files`.
#[must_use]
pub fn files_words(count: usize) -> String {
    if count == 1 { "1 file".to_string() } else { format!("{count} files") }
}

/// Tells lines of output; after the switch, writes heartbeats.
#[derive(Debug)]
pub struct Watcher<'a> {
    /// Where lines are told.
    pub telling: &'a mut Reporter,
    /// Whether heartbeats are written.
    pub beats: bool,
}

impl StepWatcher for Watcher<'_> {
    fn line(&mut self, line: &[u8]) {
        self.telling.output(line);
    }

    fn tick(&mut self) -> Tick {
        if self.beats {
            self.telling.beat(TICK);
        }
        if cancel::asked().is_some() { Tick::Cancel } else { Tick::GoOn }
    }
}

/// Where steps that must see a tree at the path of `run` work: mounted there if this node can, else at the tree's own path.
///
/// # Errors
/// If the probe itself fails.
pub fn seen_at_run(site: &Site, tree: &Path) -> Result<(At, Option<String>)> {
    Ok(match crate::sys::mount::probe_namespace(&site.place.build())? {
        Ok(()) => (At::Mounted(tree.to_path_buf()), None),
        Err(reason) => (At::Plain(tree.to_path_buf()), Some(reason)),
    })
}

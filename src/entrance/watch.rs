//! `watch`: a saved file runs the steps again that it concerns, and starts anew what depends on them. Only in editable mode.
//!
//! Whether something was saved is told by comparing what stands in the clone with what stood there ([`Moment`]); inotify
//! only says when to look. What changes while our own steps run is theirs, unless it is somebody's work: a file that git
//! knows, or one that was saved before while nothing ran. Such a file concerns the steps once more; one that they write
//! each time they run is taken for theirs from then on, so that no step can keep itself running.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::entrance::relay::Tell;
use crate::pipeline::draft::{Deployed, RECIPE, Version};
use crate::pipeline::halt::Halt;
use crate::pipeline::parking::{self, Editable};
use crate::pipeline::recover::finish_interrupted;
use crate::pipeline::services::{self, How, Staying};
use crate::pipeline::site::Site;
use crate::pipeline::steps::{At, Place, run_one};
use crate::pipeline::{boxes, clone, worker};
use crate::project::limits::User;
use crate::project::recipe::{Recipe, Step};
use crate::project::stage::Stage;
use crate::report::ledger::Last;
use crate::report::stream::Reporter;
use crate::report::terminal::{duration, shown_output};
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs;
use crate::sys::git::Untracked;
use crate::sys::lock::{Holder, Lock};
use crate::sys::path::TreePath;
use crate::sys::watch::Eyes;
use crate::sys::{clock, escape};
use crate::tree::watched::Moment;

/// Nothing may be saved for so long before we look: editors save in several acts.
const QUIET: Duration = Duration::from_millis(200);
/// But no longer than this: somebody may save without end.
const LONGEST: Duration = Duration::from_secs(2);
/// How often we ask whether the project still is in editable mode.
const IDLE: Duration = Duration::from_secs(2);
/// The stages whose steps build.
const BUILDING: [Stage; 4] = [Stage::PreInstall, Stage::Build, Stage::PostBuild, Stage::Configure];

/// Watches until editable mode ends.
///
/// # Errors
/// If the project is not in editable mode, or its clone cannot be read any more.
pub fn watch(site: &Site, tell: &mut dyn Tell) -> Result<()> {
    let mut watching = Watching::begin(site, tell)?;
    let mut eyes = Eyes::new();
    let mut again = BTreeSet::new();
    loop {
        // A directory that is new may have got files before anybody looked at it: then it is looked at once more, now.
        let is_wider = watching.point(&mut eyes);
        if again.is_empty() && !is_wider {
            if !eyes.wait(IDLE) {
                if parking::read(site)?.is_none() {
                    watching.over();
                    return Ok(());
                }
                continue;
            }
            eyes.wait_for_quiet(QUIET, LONGEST);
        }
        match watching.round(std::mem::take(&mut again))? {
            Round::Again(paths) => again = paths,
            Round::Over => return Ok(()),
        }
    }
}

/// How a round ended.
enum Round {
    /// These were written while steps ran, and are somebody's work; nothing, most often.
    Again(BTreeSet<TreePath>),
    /// The project left editable mode.
    Over,
}

struct Watching<'a> {
    site: &'a Site,
    tell: &'a mut dyn Tell,
    log: Reporter,
    record: Editable,
    /// The number of the last deployment that we know of.
    seq: u64,
    version: Version,
    /// What stood in the clone when we looked last.
    seen: Moment,
    /// What was saved while nothing of ours ran.
    saved: BTreeSet<TreePath>,
    /// What the steps write themselves each time.
    written: BTreeSet<TreePath>,
}

impl<'a> Watching<'a> {
    fn begin(site: &'a Site, tell: &'a mut dyn Tell) -> Result<Self> {
        let record = parking::read(site)?.ok_or_else(|| not_editable(site))?;
        let version = parking::held_version(site, &record)
            .map(|held| held.version)
            .ok_or_else(|| Error::failed(format!("commit {} cannot be read", record.holds.commit.short())))?;
        let log = Reporter::new(&site.place, &worker::new_id(), None);
        let (seen, saved, written) = (Moment::default(), BTreeSet::new(), BTreeSet::new());
        let seq = seq_of(site)?;
        let mut watching = Self { site, tell, log, record, seq, version, seen, saved, written };
        watching.version.find_secrets(site)?;
        watching.log.set_secrets(&watching.version.secret_values());
        watching.read_recipe();
        watching.seen = watching.look()?;
        let run = site.place.run();
        watching.tell.line(&format!("watching {} files in {}", watching.seen.count(), run.display()));
        watching.tell_what_is_watched();
        Ok(watching)
    }

    fn tell_what_is_watched(&mut self) {
        let stages = BUILDING.into_iter().chain([Stage::Start]);
        let recipe = &self.version.recipe;
        let watched = stages.flat_map(|stage| recipe.steps(stage)).filter(|step| !step.watch.is_empty());
        let services = recipe.services.iter().filter(|service| !service.watch.is_empty()).count();
        let word = |count: usize, word: &str| match count {
            0 => None,
            1 => Some(format!("1 {word}")),
            count => Some(format!("{count} {word}s")),
        };
        let (steps, services) = (watched.count(), services);
        let words: Vec<String> = word(steps, "step").into_iter().chain(word(services, "service")).collect();
        if words.is_empty() {
            self.tell.line(&format!("no step and no service of {RECIPE} says what it watches; for example:"));
            self.tell.line("    build:");
            self.tell.line("      - {run: make css, watch: ['style/**']}");
        } else {
            let say = if steps + services == 1 { "says" } else { "say" };
            self.tell.line(&format!("{} {say} in {RECIPE} what concerns them", words.join(" and ")));
        }
    }

    fn look(&self) -> Result<Moment> {
        let recipe = &self.version.recipe;
        let ignored = |path: &TreePath, is_dir: bool| {
            path.as_bytes() == b".git"
                || recipe.cache.iter().any(|cached| path.is_within(cached))
                || recipe.ignore_drift.matches(path, is_dir)
        };
        Moment::of(&Dir::open_real(&self.site.place.run())?, &ignored)
    }

    /// Lets the eyes look where files are by now; tells whether that is somewhere new.
    fn point(&mut self, eyes: &mut Eyes) -> bool {
        let run = self.site.place.run();
        let dirs: BTreeSet<PathBuf> =
            self.seen.dirs().map(|dir| run.join(dir.as_path())).chain([run.clone()]).collect();
        let is_wider = !dirs.is_subset(eyes.dirs());
        if let Some(reason) = eyes.look_at(dirs) {
            self.tell.line(&format!("no inotify, so it looks once per second: {}", escape::visible(&reason)));
        }
        is_wider
    }

    /// Looks, and runs what is concerned.
    fn round(&mut self, again: BTreeSet<TreePath>) -> Result<Round> {
        if parking::read(self.site)?.is_none() {
            return Ok(self.over());
        }
        let now = self.look()?;
        let fresh = now.changed_since(&self.seen);
        self.seen = now;
        let only_again = fresh.is_empty();
        self.saved.extend(fresh.iter().filter(|path| !self.written.contains(*path)).cloned());
        let mut changed = fresh;
        changed.extend(again);
        if changed.iter().any(|path| path.as_bytes() == RECIPE.as_bytes()) && self.read_recipe() {
            self.tell_what_is_watched();
        }
        if self.concerned(&changed).is_none() {
            return Ok(Round::Again(BTreeSet::new()));
        }
        let _lock = self.lock()?;
        finish_interrupted(self.site)?;
        let Some(record) = parking::read(self.site)? else { return Ok(self.over()) };
        self.catch_up(record, &mut changed)?;
        let Some(work) = self.concerned(&changed) else { return Ok(Round::Again(BTreeSet::new())) };
        let before = self.seen.clone();
        self.run(&work, &changed)?;
        self.seen = self.look()?;
        let during = self.seen.changed_since(&before);
        if only_again {
            // These steps ran because of what they had written, and wrote it again.
            self.written.extend(during.intersection(&changed).cloned());
        }
        let tracked = clone::running(self.site).tracked().unwrap_or_default();
        let is_work =
            |path: &&TreePath| (tracked.contains(*path) || self.saved.contains(*path)) && !self.written.contains(*path);
        Ok(Round::Again(during.iter().filter(is_work).cloned().collect()))
    }

    fn over(&mut self) -> Round {
        self.tell.line(&format!("{} has left editable mode", self.site.place.name()));
        Round::Over
    }

    /// The lock of the project: a deployment is waited for.
    fn lock(&mut self) -> Result<Lock> {
        let mut is_told = false;
        let tell = &mut *self.tell;
        let mut lock = Lock::take(&self.site.place.lock(), None, |holder| {
            if !std::mem::replace(&mut is_told, true) {
                let who =
                    holder.map_or_else(|| "another command".to_string(), |h| format!("process {} {}", h.pid, h.what));
                tell.line(&format!("waiting: {}", escape::visible(&who)));
            }
            Ok(())
        })?;
        let since = clock::now().strftime("%H:%M:%S UTC").to_string();
        lock.describe(&Holder { what: "builds what was saved".into(), id: None, pid: std::process::id(), since })?;
        Ok(lock)
    }

    /// Looks again under the lock. A deployment meanwhile has built everything itself: then only what was changed since its
    /// checkout counts.
    fn catch_up(&mut self, record: Editable, changed: &mut BTreeSet<TreePath>) -> Result<()> {
        let now = self.look()?;
        changed.extend(now.changed_since(&self.seen));
        self.seen = now;
        let seq = seq_of(self.site)?;
        if seq == self.seq {
            return Ok(());
        }
        self.seq = seq;
        self.record = record;
        if let Some(held) = parking::held_version(self.site, &self.record) {
            held.version.find_secrets(self.site)?;
            self.log.set_secrets(&held.version.secret_values());
            self.version = held.version;
        }
        self.read_recipe();
        let kept = clone::running(self.site).changes(Untracked::No)?;
        let kept: BTreeSet<TreePath> = kept.into_iter().map(|change| change.path).collect();
        changed.retain(|path| kept.contains(path));
        self.tell.line(&format!("#{seq} was deployed meanwhile: {}", self.record.holds.commit.short()));
        Ok(())
    }

    /// Reads the recipe as it stands in the clone, saved and not committed; an invalid one is told, and the old one stays.
    fn read_recipe(&mut self) -> bool {
        match recipe_of(self.site) {
            Ok(recipe) => {
                self.version.recipe = recipe;
                true
            }
            Err(error) => {
                self.tell.line(&format!("the old recipe stays: {}", escape::visible(&error.one_line())));
                for line in error.hint_text().into_iter().flat_map(escape::hint_lines) {
                    self.tell.line(&format!("    {line}"));
                }
                false
            }
        }
    }

    /// What these files concern.
    fn concerned(&self, changed: &BTreeSet<TreePath>) -> Option<Work> {
        let is_concerned = |step: &&Step| {
            step.applies(self.version.mode) && changed.iter().any(|path| step.watch.matches(path, false))
        };
        let recipe = &self.version.recipe;
        let build = BUILDING.into_iter().flat_map(|stage| recipe.steps(stage).iter().map(move |step| (stage, step)));
        let build: Vec<_> =
            build.filter(|(_, step)| is_concerned(step)).map(|(stage, step)| (stage, step.clone())).collect();
        let mode = self.version.mode;
        let mut services = recipe.services.iter().filter(|service| service.applies(mode));
        let restart = !build.is_empty()
            || recipe.steps(Stage::Start).iter().any(|step| is_concerned(&step))
            || services.any(|service| changed.iter().any(|path| service.watch.matches(path, false)));
        restart.then_some(Work { build })
    }

    /// Runs the steps, and tells it in one line.
    fn run(&mut self, work: &Work, changed: &BTreeSet<TreePath>) -> Result<()> {
        let begin = Instant::now();
        let mut parts = Vec::new();
        let mut failed = self.run_steps(&work.build)?;
        if !work.build.is_empty() && failed.is_none() {
            parts.push(format!("{} {}", steps_words(work.build.len()), took(begin)));
        }
        let restarted = Instant::now();
        if failed.is_none() {
            let restarted_some = self.restart()?;
            match restarted_some {
                Ok(true) => parts.push(format!("restarted {}", took(restarted))),
                Ok(false) => {}
                Err(broken) => failed = Some(broken),
            }
        }
        let time = clock::now().strftime("%H:%M:%S");
        let what = named(changed);
        let Some(Broken { stage, title, halt }) = failed else {
            self.tell.line(&format!("{time} {what}: {}", parts.join(", ")));
            return Ok(());
        };
        let reason = escape::visible(&halt.reason);
        self.tell.line(&format!("{time} {what}: {} FAILED after {}: {title}: {reason}", stage.name(), took(begin)));
        for line in &halt.tail {
            self.tell.line(format!("    | {}", shown_output(line)).trim_end());
        }
        Ok(())
    }

    /// Stops and starts steps and services; tells whether there was something to restart.
    fn restart(&mut self) -> Result<std::result::Result<bool, Broken>> {
        let broken = |stage| move |halt| Broken { stage, title: "services".into(), halt };
        let site = self.site;
        let stopped = services::stop(site, &mut self.log, &Staying::new(), false).map_err(broken(Stage::Stop));
        let stopped = match stopped {
            Ok(count) => count,
            Err(broken) => return Ok(Err(broken)),
        };
        let recipe = self.version.recipe.clone();
        let steps: Vec<(Stage, Step)> = [Stage::Stop, Stage::Start]
            .into_iter()
            .flat_map(|stage| recipe.steps(stage).iter().map(move |step| (stage, step.clone())))
            .filter(|(_, step)| step.applies(self.version.mode))
            .collect();
        if let Some(broken) = self.run_steps(&steps)? {
            return Ok(Err(broken));
        }
        let of = Deployed { version: self.version.clone(), id: self.record.holds.id.clone() };
        let started = services::start(site, &mut self.log, Some(&of), How::Anew, false).map_err(broken(Stage::Start));
        Ok(started.map(|started| stopped + started + steps.len() > 0))
    }

    /// Runs steps until one fails.
    fn run_steps(&mut self, steps: &[(Stage, Step)]) -> Result<Option<Broken>> {
        self.version.write_config(self.site)?;
        let place = Place { at: At::Run, setting: self.version.setting(self.site, None) };
        for (stage, step) in steps {
            if step.user == User::Root {
                // The recipe here is what stands in the clone: whoever works there would be root.
                let halt = Halt::failed("a step as root runs in a deployment alone, with the recipe that was pushed");
                return Ok(Some(Broken { stage: *stage, title: step.title(), halt }));
            }
            if let Err(halt) = run_one(self.site, &mut self.log, &self.version, (*stage, step), &place, false) {
                return Ok(Some(Broken { stage: *stage, title: step.title(), halt }));
            }
        }
        Ok(None)
    }
}

/// What failed.
struct Broken {
    stage: Stage,
    title: String,
    halt: Halt,
}

/// What has to be done about a change: these steps, and then stop and start.
struct Work {
    build: Vec<(Stage, Step)>,
}

fn not_editable(site: &Site) -> Error {
    let name = site.place.name();
    let error = Error::refused(format!("{name} is not in editable mode: nobody works in what runs"));
    error.hint(format!("{} init {name} --environment dev, then push", site.command()))
}

fn seq_of(site: &Site) -> Result<u64> {
    Ok(Last::read(&site.place)?.map_or(0, |last| last.seq))
}

fn recipe_of(site: &Site) -> Result<Recipe> {
    use std::io::Read as _;
    let run = Dir::open_real(&site.place.run())?;
    let path = std::path::Path::new(RECIPE);
    let defaults = &site.node.config.defaults;
    if run.stat(path)?.is_none() {
        return Ok(Recipe::without_file(defaults));
    }
    let mut text = Vec::new();
    let read = run.open_file(path)?.take(fs::CONFIG_LIMIT + 1).read_to_end(&mut text);
    read.context(|| format!("cannot read {RECIPE}"))?;
    if text.len() as u64 > fs::CONFIG_LIMIT {
        return Err(Error::invalid(format!("{RECIPE} is too large")));
    }
    let recipe = Recipe::parse_with(RECIPE, &text, defaults)?;
    boxes::refuse_demands(site, &recipe)?;
    Ok(recipe)
}

/// The first of the files, and how many more.
fn named(changed: &BTreeSet<TreePath>) -> String {
    let first = changed.first().map(ToString::to_string).unwrap_or_default();
    match changed.len() {
        0 | 1 => first,
        n => format!("{first} and {} more", n - 1),
    }
}

fn steps_words(count: usize) -> String {
    crate::pipeline::steps::steps_words(count)
}

fn took(since: Instant) -> String {
    duration(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX))
}

//! Services as units of systemd: one generated unit for each instance, in the project's own slice.
//!
//! `state/services/known.json` is what we were told to run last. It is written after everything that is not to go on was
//! stopped, and before anything is started; what a killed process left between the two is found by the names of the units on
//! the disk. The units are in no target of the boot: the recovery unit starts what serves, once it has found out what that is.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::seen::{self, Seen};
use super::{LOOK, Manager, QUESTION, unit};
use crate::project::ids::ProjectName;
use crate::project::recipe::service::Unchanged;
use crate::service::backend::{Backend, Choice, Failure, LogLine, LogQuery, Look, State};
use crate::service::definition::{Definition, Instance};
use crate::service::journal;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::process::{self, StepWatcher, Tick, run_captured};
use crate::sys::step_exec::StepOrder;
use crate::sys::{clock, fs, machine};

/// Beside the time that a service has: what systemd itself may need.
const SLACK: Duration = Duration::from_secs(30);
/// How long the start of one project keeps the others waiting while the machine boots.
const AT_BOOT: Duration = Duration::from_mins(1);
/// What `systemctl` needs to be there.
const DIR: &str = "/etc/systemd/system";

/// The services of one project as units of the machine's systemd.
#[derive(Debug, Clone)]
pub struct Systemd {
    project: ProjectName,
    state: PathBuf,
}

type Started = std::result::Result<(), Failure>;

impl Systemd {
    /// The services of a project; `state` is our own directory below the project's `state/`.
    #[must_use]
    pub fn new(project: &ProjectName, state: PathBuf) -> Self {
        Self { project: project.clone(), state }
    }

    fn known_file(&self) -> PathBuf {
        self.state.join("known.json")
    }

    fn environment_file(&self, instance: &Instance) -> PathBuf {
        self.state.join(format!("{instance}.env"))
    }

    fn unit(&self, instance: &Instance) -> String {
        unit::name(&self.project, instance)
    }

    /// What we were told to run last, in order.
    fn known(&self) -> Result<Vec<Definition>> {
        let path = self.known_file();
        let Some(bytes) = fs::read_if_there(&path)? else { return Ok(Vec::new()) };
        serde_json::from_slice(&bytes).context(|| format!("cannot understand {}", path.display()))
    }

    /// The instances whose units stand on the disk, whoever told us of them.
    fn on_disk(&self) -> Result<BTreeSet<Instance>> {
        Ok(fs::names(Path::new(DIR))?.iter().filter_map(|name| unit::instance_of(&self.project, name)).collect())
    }

    /// The instances that may run: those with a unit on the disk, and those that we know and whose unit somebody removed,
    /// which ends nothing.
    fn standing(&self, known: &[Definition]) -> Result<BTreeSet<Instance>> {
        let mut standing = self.on_disk()?;
        let lost = known.iter().map(|it| it.instance.clone()).filter(|instance| !standing.contains(instance));
        let lost: Vec<Instance> = lost.collect();
        let seen = self.see(&lost)?;
        let runs = |instance: &Instance| seen.get(&self.unit(instance)).is_some_and(|it| it.state() != State::Stopped);
        standing.extend(lost.into_iter().filter(runs));
        Ok(standing)
    }

    /// What systemd says of these instances.
    fn see(&self, instances: &[Instance]) -> Result<HashMap<String, Seen>> {
        if instances.is_empty() {
            return Ok(HashMap::new());
        }
        let mut args: Vec<OsString> = ["show", "--no-pager", seen::PROPERTIES, "--"].map(OsString::from).to_vec();
        args.extend(instances.iter().map(|instance| OsString::from(self.unit(instance))));
        let captured = run_captured("systemctl", &args, &Manager::System.environment(), b"", QUESTION)?;
        if !captured.status.is_ok() {
            let words = format!("{}: {}", captured.status.words(), captured.last_words());
            return Err(Error::failed(format!("cannot ask systemd about the services of {}: {words}", self.project)));
        }
        let all = seen::parse(&String::from_utf8_lossy(&captured.stdout));
        Ok(all.into_iter().map(|seen| (seen.unit().to_string(), seen)).collect())
    }

    /// Runs systemctl for these units; how it ended in words, if not well.
    fn call(
        &self,
        words: &[&str],
        instances: &[Instance],
        limit: Duration,
        on: &mut dyn StepWatcher,
    ) -> Result<Option<String>> {
        let argv = ["systemctl", "--no-ask-password", "--no-pager", "--quiet"].iter().chain(words).map(OsString::from);
        let units = instances.iter().map(|instance| OsString::from(self.unit(instance)));
        let env = Manager::System.environment().into_iter().collect();
        let order = StepOrder::new(argv.chain(units).collect(), env, PathBuf::from("/"));
        let status = process::run_step(&order, limit, on)?.status;
        Ok((!status.is_ok()).then(|| status.words()))
    }

    /// Stops instances, a service at a time in the opposite order, and sees that they are gone.
    fn stop_these(&self, going: &[Instance], known: &[Definition], on: &mut dyn StepWatcher) -> Result<()> {
        let patience = |instance: &Instance| {
            known.iter().find(|known| known.instance == *instance).map_or(SLACK, |known| known.stop_timeout)
        };
        for together in by_service(going).into_iter().rev() {
            // Once until the kill, once more until systemd gives up what does not even die of it.
            let limit = together.iter().map(patience).max().unwrap_or_default() * 2 + SLACK;
            let failed = self.call(&["stop", "--"], &together, limit, &mut ToItsEnd(on))?;
            let seen = self.see(&together)?;
            for instance in &together {
                let now = seen.get(&self.unit(instance));
                let lives = now.is_some_and(|now| now.pid().is_some() || now.state() == State::Stopping);
                if lives || failed.is_some() {
                    let why = failed.unwrap_or_else(|| "it outlives even the kill".to_string());
                    return Err(Error::failed(format!("{instance} does not stop: {why}"))
                        .hint(format!("systemctl status {}", self.unit(instance))));
                }
            }
        }
        if !going.is_empty() {
            // One that had to be killed is no failure to be told about for ever; it is stopped.
            let _ = self.call(&["reset-failed", "--"], going, QUESTION, &mut Deaf)?;
        }
        Ok(())
    }

    /// The environment and the unit of an instance, in systemd's words.
    fn words(&self, definition: &Definition) -> Result<(String, String)> {
        let file = self.environment_file(&definition.instance);
        Ok((unit::environment(definition)?, unit::text(&self.project, definition, &file, version()?)?))
    }

    /// Makes the units on the disk those of these definitions, and tells systemd if something changed.
    fn write_units(&self, wanted: &[Definition], on: &mut dyn StepWatcher) -> Result<()> {
        fs::ensure_dir(&self.state, 0o700)?;
        let mut changed = false;
        for gone in self.on_disk()?.iter().filter(|on_disk| !wanted.iter().any(|it| it.instance == **on_disk)) {
            fs::remove_file(&Path::new(DIR).join(self.unit(gone)))?;
            fs::remove_file(&self.environment_file(gone))?;
            changed = true;
        }
        for definition in wanted {
            let (environment, text) = self.words(definition)?;
            write_if_new(&self.environment_file(&definition.instance), &environment, 0o600)?;
            changed |= write_if_new(&Path::new(DIR).join(self.unit(&definition.instance)), &text, 0o644)?;
        }
        let instances: Vec<Instance> = wanted.iter().map(|definition| definition.instance.clone()).collect();
        // One that was killed may have written them and not told systemd.
        if changed || self.see(&instances)?.values().any(Seen::is_outdated) {
            fs::sync_dir(Path::new(DIR))?;
            if let Some(why) = self.call(&["daemon-reload"], &[], SLACK, &mut ToItsEnd(on))? {
                return Err(Error::failed(format!("systemd does not read its units again: {why}")));
            }
        }
        Ok(())
    }

    fn write_known(&self, wanted: &[Definition]) -> Result<()> {
        fs::ensure_dir(&self.state, 0o700)?;
        let text = serde_json::to_vec_pretty(wanted).context(|| "cannot write what is to run".to_string())?;
        fs::write_durable(&self.known_file(), &text, 0o600)
    }

    /// Starts instances, a service at a time, and waits until all of them are up and stay so. After one that does not come
    /// up the others are started only if it is to go on: as at a boot, where nobody takes anything back.
    fn start_these(&self, coming: &[&Definition], goes_on: bool, on: &mut dyn StepWatcher) -> Result<Started> {
        let (mut first, begin) = (None, clock::now());
        let until = (goes_on && machine::at_boot()).then(|| Instant::now() + AT_BOOT);
        let instances: Vec<Instance> = coming.iter().map(|definition| definition.instance.clone()).collect();
        for together in by_service(&instances) {
            let of = |definition: &&&Definition| together.contains(&definition.instance);
            let limit = coming.iter().filter(of).map(|definition| definition.start_timeout).max().unwrap_or_default();
            // What it answers says less than a look: a unit that fails later is "started" too.
            let failed = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                // Asked for, and not waited for.
                Some(left) if left < LOOK * 2 => {
                    self.call(&["start", "--no-block", "--"], &together, QUESTION, &mut Deaf)?
                }
                left => self.call(
                    &["start", "--"],
                    &together,
                    (limit + SLACK).min(left.unwrap_or(Duration::MAX)),
                    &mut Ticks(on),
                )?,
            };
            if failed.is_some() {
                first = first.or(self.find_failure(coming, &together)?);
            }
            if on.tick() == Tick::Cancel {
                first = first.or_else(|| Some(not_waited_for(together[0].clone())));
            }
            if first.is_some() && !goes_on {
                break;
            }
        }
        match first {
            Some(failure) => self.tell_failure(failure, begin, on),
            None => self.settle(coming, (begin, until), on),
        }
    }

    fn find_failure(&self, coming: &[&Definition], among: &[Instance]) -> Result<Option<Failure>> {
        let seen = self.see(among)?;
        for definition in coming.iter().filter(|definition| among.contains(&definition.instance)) {
            let now = seen.get(&self.unit(&definition.instance));
            if let Some(Err(reason)) = now.and_then(|now| now.verdict(definition.kind)) {
                return Ok(Some(Failure { instance: definition.instance.clone(), reason }));
            }
        }
        Ok(None)
    }

    /// Waits until all are up and stay so; at most `until`, if that is said: what starts then still is left to it.
    fn settle(
        &self,
        coming: &[&Definition],
        (begin, until): (Timestamp, Option<Instant>),
        on: &mut dyn StepWatcher,
    ) -> Result<Started> {
        let instances: Vec<Instance> = coming.iter().map(|definition| definition.instance.clone()).collect();
        let patience = coming.iter().map(|definition| definition.start_timeout).max().unwrap_or_default();
        let deadline = Instant::now() + patience + SLACK;
        let mut before = None;
        let mut ticked = Instant::now();
        loop {
            if let Some(failure) = self.find_failure(coming, &instances)? {
                return self.tell_failure(failure, begin, on);
            }
            let seen = self.see(&instances)?;
            let now =
                |definition: &&&Definition| seen.get(&self.unit(&definition.instance)).cloned().unwrap_or_default();
            let unsettled = coming.iter().find(|it| now(it).verdict(it.kind) != Some(Ok(())));
            let runs: Vec<_> = coming.iter().map(|it| now(&it).run()).collect();
            match unsettled {
                // The same runs, two looks in a row: none has died and come back meanwhile.
                None if before.as_ref() == Some(&runs) => return Ok(Ok(())),
                Some(_) if until.is_some_and(|until| Instant::now() > until) => return Ok(Ok(())),
                Some(late) if Instant::now() > deadline => {
                    let failure = Failure { instance: late.instance.clone(), reason: "is not up in time".to_string() };
                    return self.tell_failure(failure, begin, on);
                }
                _ => before = Some(runs),
            }
            std::thread::sleep(LOOK);
            if ticked.elapsed() >= process::TICK {
                ticked = Instant::now();
                if on.tick() == Tick::Cancel
                    && let Some(late) = unsettled
                {
                    return Ok(Err(not_waited_for(late.instance.clone())));
                }
            }
        }
    }

    /// Tells the last lines that what failed has written since this start.
    fn tell_failure(&self, failure: Failure, begin: Timestamp, on: &mut dyn StepWatcher) -> Result<Started> {
        let service = Some(failure.instance.service.clone());
        let query = LogQuery { service, last: Some(20), since: Some(begin), own: true, ..LogQuery::default() };
        self.log(&query, &mut |line| {
            if line.instance == failure.instance {
                on.line(&line.text);
            }
            true
        })?;
        Ok(Err(failure))
    }

    fn look_of(definition: &Definition, seen: Option<&Seen>) -> Result<Look> {
        let none = Seen::default();
        let seen = seen.unwrap_or(&none);
        let state = seen.state();
        let is_bad = matches!(state, State::Failed | State::Waiting);
        Ok(Look {
            instance: definition.instance.clone(),
            state,
            detail: seen.end().filter(|_| is_bad),
            since: seen.since(),
            pid: seen.pid(),
            restarts: seen.restarts(),
            last_end: None,
            memory: seen.memory(),
            cpu_ms: seen.cpu_ms(),
            running: definition.running.clone(),
            digest: definition.digest()?,
        })
    }
}

impl Backend for Systemd {
    fn refuse(&self, wanted: &[Definition]) -> Result<()> {
        wanted.iter().try_for_each(|definition| self.words(definition).map(drop))
    }

    fn converge(&self, wanted: &[Definition], on: &mut dyn StepWatcher) -> Result<Started> {
        let known = self.known()?;
        let standing = self.standing(&known)?;
        if wanted.is_empty() && known.is_empty() && standing.is_empty() {
            return Ok(Ok(()));
        }
        // Before anything is stopped: what systemd cannot be told changes nothing.
        self.refuse(wanted)?;
        let staying = self.staying(wanted, &known)?;
        let going: Vec<Instance> =
            in_order(&known, &standing).into_iter().filter(|instance| !staying.contains(instance)).collect();
        self.stop_these(&going, &known, on)?;
        self.write_known(wanted)?;
        self.write_units(wanted, on)?;
        let coming: Vec<&Definition> = wanted.iter().filter(|it| !staying.contains(&it.instance)).collect();
        self.start_these(&coming, false, on)
    }

    fn stop(&self, which: Choice<'_>, on: &mut dyn StepWatcher) -> Result<()> {
        let known = self.known()?;
        let mut going = Vec::new();
        for instance in in_order(&known, &self.standing(&known)?) {
            let digest = known.iter().find(|it| it.instance == instance).map(Definition::digest).transpose()?;
            if which(&instance, digest.as_deref().unwrap_or_default()) {
                going.push(instance);
            }
        }
        self.stop_these(&going, &known, on)
    }

    fn start(&self, which: Choice<'_>, on: &mut dyn StepWatcher) -> Result<Started> {
        let known = self.known()?;
        if known.is_empty() {
            return Ok(Ok(()));
        }
        self.write_units(&known, on)?;
        let mut coming = Vec::new();
        let seen = self.see(&known.iter().map(|it| it.instance.clone()).collect::<Vec<_>>())?;
        for definition in &known {
            let state = seen.get(&self.unit(&definition.instance)).map(Seen::state);
            let runs = matches!(state, Some(State::Running | State::Done | State::Starting));
            if !runs && which(&definition.instance, &definition.digest()?) {
                coming.push(definition);
            }
        }
        self.start_these(&coming, true, on)
    }

    fn look(&self) -> Result<Vec<Look>> {
        let known = self.known()?;
        let seen = self.see(&known.iter().map(|it| it.instance.clone()).collect::<Vec<_>>())?;
        known.iter().map(|it| Self::look_of(it, seen.get(&self.unit(&it.instance)))).collect()
    }

    fn log(&self, query: &LogQuery, each: &mut dyn FnMut(&LogLine) -> bool) -> Result<()> {
        let known = self.known()?;
        let wanted = |instance: &&Instance| query.service.as_ref().is_none_or(|service| *service == instance.service);
        let instances = in_order(&known, &self.on_disk()?);
        let units: Vec<(String, Instance)> =
            instances.iter().filter(wanted).map(|instance| (self.unit(instance), instance.clone())).collect();
        let secrets: Vec<String> = known.iter().flat_map(Definition::all_secrets).collect();
        journal::read(&units, query, &secrets, each)
    }

    fn forget(&self, on: &mut dyn StepWatcher) -> Result<()> {
        let done = self.converge(&[], on)?;
        debug_assert!(done.is_ok(), "nothing was started");
        if let Some(above) = self.state.parent().filter(|above| fs::exists(above))
            && let Some(name) = self.state.file_name()
        {
            Dir::open(above)?.remove_tree(Path::new(name))?;
        }
        Ok(())
    }
}

impl Systemd {
    /// What may go on: it runs, by an equal definition that allows it.
    fn staying(&self, wanted: &[Definition], known: &[Definition]) -> Result<Vec<Instance>> {
        let seen = self.see(&known.iter().map(|it| it.instance.clone()).collect::<Vec<_>>())?;
        let mut staying = Vec::new();
        for definition in wanted.iter().filter(|it| it.unchanged == Unchanged::Leave) {
            let before = known.iter().find(|it| it.instance == definition.instance);
            let runs = seen.get(&self.unit(&definition.instance)).is_some_and(|now| now.state() == State::Running);
            if runs && before.map(Definition::digest).transpose()?.as_ref() == Some(&definition.digest()?) {
                staying.push(definition.instance.clone());
            }
        }
        Ok(staying)
    }
}

/// Those instances: first those that nobody told us of, then those that we know, in their order.
fn in_order(known: &[Definition], among: &BTreeSet<Instance>) -> Vec<Instance> {
    let is_known = |instance: &&Instance| known.iter().any(|it| it.instance == **instance);
    let strangers = among.iter().filter(|instance| !is_known(instance)).cloned();
    strangers.chain(known.iter().map(|it| it.instance.clone()).filter(|it| among.contains(it))).collect()
}

/// The instances of each service together, in their order.
fn by_service(instances: &[Instance]) -> Vec<Vec<Instance>> {
    let mut all: Vec<Vec<Instance>> = Vec::new();
    for instance in instances {
        match all.last_mut().filter(|last| last.first().is_some_and(|first| first.service == instance.service)) {
            Some(last) => last.push(instance.clone()),
            None => all.push(vec![instance.clone()]),
        }
    }
    all
}

fn write_if_new(path: &Path, text: &str, mode: u32) -> Result<bool> {
    if fs::read_if_there(path)?.as_deref() == Some(text.as_bytes()) {
        return Ok(false);
    }
    fs::write_durable(path, text.as_bytes(), mode).map(|()| true)
}

/// The version of the machine's systemd.
fn version() -> Result<u32> {
    static VERSION: OnceLock<u32> = OnceLock::new();
    if let Some(known) = VERSION.get() {
        return Ok(*known);
    }
    let captured = run_captured("systemctl", &["--version"], &Manager::System.environment(), b"", QUESTION)?;
    let text = String::from_utf8_lossy(&captured.stdout).into_owned();
    let version = text.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok(*VERSION.get_or_init(|| version))
}

/// Hears nothing of what systemctl says: a look says it better.
struct Deaf;

impl StepWatcher for Deaf {
    fn line(&mut self, _: &[u8]) {}
}

/// A command that is not ended before it has done its work, whoever wants the deployment to end: a stop comes to its end.
struct ToItsEnd<'a>(&'a mut dyn StepWatcher);

impl StepWatcher for ToItsEnd<'_> {
    fn line(&mut self, line: &[u8]) {
        self.0.line(line);
    }

    fn tick(&mut self) -> Tick {
        self.0.tick();
        Tick::GoOn
    }
}

/// As [`Deaf`], and whoever wants the deployment to end is heard.
struct Ticks<'a>(&'a mut dyn StepWatcher);

impl StepWatcher for Ticks<'_> {
    fn line(&mut self, _: &[u8]) {}

    fn tick(&mut self) -> Tick {
        self.0.tick()
    }
}

fn not_waited_for(instance: Instance) -> Failure {
    Failure { instance, reason: "is not waited for any more".to_string() }
}

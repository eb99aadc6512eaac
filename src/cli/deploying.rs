//! Commands that change what runs. They start the same detached worker as a push does, and follow it.

use std::io::Read;
use std::path::Path;

use super::screen;
use super::{Cli, DeployArgs, PlanArgs, RecoverArgs, RollbackArgs, RunArgs, TaskArgs, With};
use crate::entrance::launch::{self, launch};
use crate::entrance::relay::{Ending, Pace, Tell, follow};
use crate::entrance::{call, options, unit};
use crate::pipeline::draft::{Deployed, Version};
use crate::pipeline::halt::Step as Pipelined;
use crate::pipeline::services::{self, How};
use crate::pipeline::site::Site;
use crate::pipeline::steps::{At, Place, command_order, run_one};
use crate::pipeline::{boxes, parking, plan as plans, recover as recovery, worker};
use crate::project::ids::{ObjectId, ProjectName};
use crate::project::outcome::Outcome;
use crate::project::request::{Options, Request, Want};
use crate::project::stage::Stage;
use crate::report::event::{Event, Record, Work};
use crate::report::history::{self, Entry};
use crate::report::ledger::Last;
use crate::report::stream::Reporter;
use crate::report::terminal;
use crate::sys::error::{Context, Error, Kind, Result};
use crate::sys::escape::hint_lines;
use crate::sys::lock::Lock;
use crate::sys::process;

/// `deploy`.
///
/// # Errors
/// If the commit does not exist or the worker cannot be started.
pub fn deploy(cli: &Cli, args: &DeployArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let named = [("only", &args.only), ("only-steps", &args.only_steps)];
    let named = named.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
    let given: Vec<String> = args.options.iter().cloned().chain(named).collect();
    let mut options = options::parse(&given)?;
    // Some of the stages or states of what serves already are wanted again.
    options.deploy |= args.force || args.only.is_some() || args.only_steps.is_some();
    let commit = commit_of(&site, args.commit.as_deref())?;
    let request = Request { wait_seconds: args.wait, ..request(&site, Want::Deploy { commit }, options) };
    show(&site, &request)
}

/// `plan`.
///
/// # Errors
/// If the commit does not exist or cannot be deployed at all.
pub fn plan(cli: &Cli, args: &PlanArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let repo = site.repo()?;
    let commit = commit_of(&site, args.commit.as_deref())?;
    let pillar = worker::pillar_head(&site)?;
    let version = Version::load(&site, &repo, &commit, pillar.as_ref(), site.config.mode)?;
    boxes::refuse_demands(&site, &version.recipe)?;
    let live = crate::pipeline::activate::live_of(&site, &repo)?;
    let lines = plans::lines(&site, &repo, &version, live.as_ref())?;
    if args.json {
        screen::json(&serde_json::json!({"project": site.place.name(), "commit": commit, "plan": lines}))?;
    } else {
        lines.iter().for_each(screen::line);
    }
    Ok(0)
}

/// `rollback`.
///
/// # Errors
/// If there is nothing to go back to, or the question was answered with no.
pub fn rollback(cli: &Cli, args: &RollbackArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let with_data = args.with == Some(With::Data);
    parking::refuse_rollback(&site).map_err(|error| site.typed(error))?;
    // A slip of the pen is told here, before anything is started; what is interrupted may still become a target.
    if !Last::read(&site.place)?.is_some_and(|last| last.open) {
        let serves = site.serves()?;
        let entries = history::read(&site.place, None)?;
        let target = history::find_serving(&entries, serves.as_ref(), args.to.as_deref().unwrap_or("-1"))
            .map_err(|error| site.typed(error))?;
        if args.to.is_none() {
            tell_undone(&site, &entries, target);
        }
    }
    if with_data {
        tell_data_changes(&site, args)?;
    }
    let options = Options { reason: args.reason.clone(), ..Options::default() };
    show(&site, &request(&site, Want::Rollback { to: args.to.clone(), with_data }, options))
}

/// Says that what serves was brought back by a rollback, and that going to the version before undoes it: whoever types the
/// command twice means to go further back.
fn tell_undone(site: &Site, entries: &[Entry], target: &Entry) {
    let Some(live) = entries.iter().rev().find(|entry| entry.was_live) else { return };
    if live.work == Work::Rollback {
        let (number, name) = (live.seq, site.place.name());
        screen::line(format!("note: this undoes the rollback #{number} and makes {} live again", target.label()));
        screen::line(format!("      to go further back: {} rollback {name} --to ID, see history", site.command()));
    }
}

/// Says what was written since the restore point, and asks.
fn tell_data_changes(site: &Site, args: &RollbackArgs) -> Result<()> {
    let entries = history::read(&site.place, None)?;
    let target = history::find_serving(&entries, site.serves()?.as_ref(), args.to.as_deref().unwrap_or("-1"))?;
    let point = recovery::data_point(site, &target.id)?;
    let (changed, examples) = crate::pipeline::data::written_since(site, &point)?;
    let before = entries
        .iter()
        .find(|entry| entry.id == point)
        .map_or_else(|| point.to_string(), |entry| format!("#{}", entry.seq));
    let differ = if changed == 1 { "1 file differs".to_string() } else { format!("{changed} files differ") };
    screen::line(format!("data/ goes back to what it was before {before}: {differ}"));
    for path in &examples {
        screen::line(format!("  {path}"));
    }
    screen::line(format!(
        "what is there now is kept in the restore point of this rollback below {}",
        site.place.archives().display()
    ));
    if !args.yes && !screen::confirm("go back with the data? (yes/no)", "yes")? {
        return Err(Error::refused("not confirmed; nothing was done"));
    }
    Ok(())
}

/// `recover`.
///
/// # Errors
/// If nothing waits for a decision.
pub fn recover(cli: &Cli, args: &RecoverArgs) -> Result<u8> {
    let Some(name) = &args.name else { return super::node::recover_all(cli) };
    let site = cli.site(name)?;
    let forward = if args.forward { Some(true) } else { args.back.then_some(false) };
    let with_data = args.with == Some(With::Data);
    let request = request(&site, Want::Recover { forward, with_data }, Options::default());
    let outcome = if unit::is_for(&site) { recover_in_unit(&site, &request)? } else { worker::work(&site, &request) };
    if args.json {
        screen::json(&outcome)?;
    } else {
        screen::line(outcome.line());
        outcome.hints.iter().flat_map(|hint| hint_lines(hint)).for_each(screen::line);
    }
    Ok(outcome.exit_code())
}

/// Recovers in a unit of its own: a terminal that goes away must not take the recovery with it.
fn recover_in_unit(site: &Site, request: &Request) -> Result<Outcome> {
    let mut launched = launch(site, request)?;
    match follow(&mut launched, &|_| Vec::new(), &mut Vec::new(), Pace::default())? {
        Ending::Ended(outcome) => {
            exit(site, &mut launched, &outcome);
            Ok(outcome)
        }
        Ending::Died => Err(Error::failed("the worker died before it could say how it ended")),
    }
}

/// Starts what serves: the `start` steps where they are wanted, then the services; `None` if there is nothing to start,
/// else the exit code.
///
/// # Errors
/// If the lock is held or a step cannot be run.
pub fn start_live(site: &Site, with_steps: bool) -> Result<Option<u8>> {
    let _lock = lock_for_a_command(site)?;
    let Some(running) = running(site)? else { return Ok(None) };
    let version = &running.version;
    let steps = if with_steps { version.recipe.steps(Stage::Start) } else { &[] };
    let has_steps = steps.iter().any(|step| step.applies(version.mode));
    if !has_steps && !services::has_some(version) {
        return Ok(None);
    }
    if let Some((_, code)) = steps_by_hand(site, version, Stage::Start, steps)? {
        return Ok(Some(code));
    }
    let work = |telling: &mut Reporter| services::start(site, telling, Some(&running), How::Again, false).map(|_| ());
    Ok(Some(by_hand(site, version, "the start of the services", work)?.unwrap_or(0)))
}

/// Ends the services of a project and forgets them, and runs the `stop` steps of what serves: before it is removed.
///
/// # Errors
/// What could not be stopped.
pub fn stop_services(site: &Site) -> Result<()> {
    services::forget(site)?;
    let Some(version) = running_version(site)? else { return Ok(()) };
    match steps_by_hand(site, &version, Stage::Stop, version.recipe.steps(Stage::Stop))? {
        Some((step, _)) => Err(Error::failed(format!("{} failed", step.title()))),
        None => Ok(()),
    }
}

/// `task`.
///
/// # Errors
/// If there is no such task or nothing is deployed.
pub fn task(cli: &Cli, args: &TaskArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let version = live_version(&site)?;
    let names: Vec<&str> = version.recipe.tasks.keys().map(String::as_str).collect();
    let Some(task) = &args.task else {
        names.iter().for_each(screen::line);
        return Ok(0);
    };
    // As makina-states takes it: with the ending of its file.
    let steps = version.recipe.tasks.get(task.strip_suffix(".sls").unwrap_or(task));
    let Some(steps) = steps.or_else(|| version.recipe.tasks.get(&format!("task_{task}"))) else {
        let known = if names.is_empty() { "the recipe has none".to_string() } else { names.join(", ") };
        return Err(Error::usage(format!("there is no task `{}`", crate::sys::escape::visible(task)))
            .hint(format!("tasks: {known}")));
    };
    let failed = steps_by_hand(&site, &version, Stage::PostInstall, steps)?;
    Ok(failed.map_or(0, |(_, code)| code))
}

/// Runs those steps that are for this mode, in order; the one that failed, with its exit code.
///
/// # Errors
/// If one cannot be run.
pub fn steps_by_hand<'a>(
    site: &Site,
    version: &Version,
    stage: Stage,
    steps: &'a [crate::project::recipe::Step],
) -> Result<Option<(&'a crate::project::recipe::Step, u8)>> {
    for step in steps.iter().filter(|step| step.applies(version.mode)) {
        if let Some(code) = step_by_hand(site, version, stage, step)? {
            return Ok(Some((step, code)));
        }
    }
    Ok(None)
}

/// Runs one step outside of a deployment, its output shown; `Some` is the exit code of a failed one.
fn step_by_hand(
    site: &Site,
    version: &Version,
    stage: Stage,
    step: &crate::project::recipe::Step,
) -> Result<Option<u8>> {
    if let Some(warning) = crate::pipeline::steps::ready_for(site, version, stage)? {
        screen::error_line(format!("warning: {}", crate::sys::escape::visible(&warning)));
    }
    let place = Place { at: At::Run, setting: version.setting(site, None) };
    let work = |telling: &mut Reporter| run_one(site, telling, version, (stage, step), &place, false).map(drop);
    by_hand(site, version, &step.title(), work)
}

/// Does something outside of a deployment, its output shown afterwards; `Some` is the exit code of what failed.
///
/// # Errors
/// If it cannot be told.
pub fn by_hand(
    site: &Site,
    version: &Version,
    title: &str,
    work: impl FnOnce(&mut Reporter) -> Pipelined,
) -> Result<Option<u8>> {
    let id = worker::new_id();
    let mut telling = Reporter::new(&site.place, &id, None);
    telling.set_secrets(&version.secret_values());
    let done = work(&mut telling);
    telling.emit(Event::Closed)?;
    let mut follower = launch::follower(&site.place, &id);
    while let Some(record) = follower.next(std::time::Duration::ZERO)? {
        if let Event::Output { line } = &record.event {
            screen::line(line);
        }
    }
    match done {
        Ok(()) => Ok(None),
        Err(halt) => {
            screen::error_line(format!("error: {title} failed: {}", halt.reason));
            Ok(Some(1))
        }
    }
}

/// `run`: the command takes our place, in the environment of the live version.
///
/// # Errors
/// If nothing is deployed or the command cannot be started.
pub fn run(cli: &Cli, args: &RunArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let version = live_version(&site)?;
    version.write_config(&site)?;
    process::run_attached(&command_order(&site, &version, &args.command)?)
}

/// `watch`: until it is ended, or editable mode is.
///
/// # Errors
/// If the project is not in editable mode, or its clone cannot be read any more.
pub fn watch_files(cli: &Cli, name: &ProjectName) -> Result<u8> {
    crate::entrance::watch::watch(&cli.site(name)?, &mut Printing)?;
    Ok(0)
}

/// The hidden `work`.
///
/// # Errors
/// If the request cannot be understood.
pub fn work(root: &Path) -> Result<u8> {
    let mut order = Vec::new();
    std::io::stdin().take(1024 * 1024).read_to_end(&mut order).context(|| "cannot read the request".to_string())?;
    launch::work(root, &order)
}

fn request(site: &Site, want: Want, options: Options) -> Request {
    Request {
        project: site.place.name().clone(),
        id: worker::new_id(),
        want,
        update: None,
        options,
        pusher: call::commander(),
        key: crate::entrance::call::commander_key(),
        push: None,
        wait_seconds: Some(site.node.config.wait.as_secs()),
    }
}

/// Starts the worker and shows what it does.
fn show(site: &Site, request: &Request) -> Result<u8> {
    let mut launched = launch(site, request)?;
    let style = screen::style();
    let render = |record: &Record| terminal::lines(record, &style);
    match follow(&mut launched, &render, &mut Printing, Pace::default())? {
        Ending::Ended(outcome) => Ok(exit(site, &mut launched, &outcome)),
        Ending::Died => Err(Error::failed("the worker died before it could say how it ended")
            .hint(format!("mc_project recover {}", site.place.name()))),
    }
}

/// A command waits until everything is settled, so that the next one finds the project free.
fn exit(site: &Site, launched: &mut dyn crate::entrance::Run, outcome: &Outcome) -> u8 {
    while !launched.is_gone() && crate::sys::lock::holder(&site.place.lock()).ok().flatten().is_some() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    outcome.exit_code()
}

struct Printing;

impl Tell for Printing {
    fn line(&mut self, text: &str) {
        screen::line(text);
    }
}

/// The commit that was named, or the head of the deploy branch.
fn commit_of(site: &Site, revision: Option<&str>) -> Result<ObjectId> {
    let repo = site.repo()?;
    if let Some(revision) = revision {
        repo.resolve_commit(revision)?.ok_or_else(|| {
            let shown = crate::sys::escape::visible(revision);
            Error::usage(format!("`{shown}` is no commit in {}", site.place.git_project().display()))
                .hint("push it first: git push NODE HEAD:some-branch")
        })
    } else {
        let branch = site.deploy_branch()?.ok_or_else(|| no_commit(site))?;
        repo.read_ref(&branch)?.ok_or_else(|| no_commit(site))
    }
}

fn no_commit(site: &Site) -> Error {
    Error::usage("nothing was pushed yet").hint(format!("git push {} main", site.place.git_project().display()))
}

fn live_version(site: &Site) -> Result<Version> {
    running_version(site)?.ok_or_else(|| Error::new(Kind::Refused, "nothing is deployed yet").hint("git push"))
}

/// The version whose steps run by hand: what the clone is at in editable mode, also where its last deployment failed; else
/// what serves.
fn running_version(site: &Site) -> Result<Option<Version>> {
    Ok(running(site)?.map(|running| running.version))
}

/// The same, with the deployment that made it so.
///
/// # Errors
/// If its record is damaged.
pub fn running(site: &Site) -> Result<Option<Deployed>> {
    let found = if let Some(record) = parking::read(site)? {
        parking::held_version(site, &record)
    } else {
        let repo = site.repo()?;
        crate::pipeline::activate::live_of(site, &repo)?.and_then(|live| live.deployed())
    };
    if let Some(running) = &found {
        running.version.recall_secrets(site);
    }
    Ok(found)
}

/// Takes the project's lock, and finishes what was interrupted.
///
/// # Errors
/// If it is held, or what was interrupted cannot be finished.
pub fn lock_for_a_command(site: &Site) -> Result<Lock> {
    let lock = Lock::take(&site.place.lock(), Some(std::time::Instant::now()), |_| Ok(()))?;
    recovery::finish_interrupted(site)?;
    Ok(lock)
}

//! Commands about a whole machine: making it a node, and finishing everything that its last stop interrupted.

use std::path::Path;

use super::deploying;
use super::screen;
use super::{Cli, SetupArgs};
use crate::entrance::unit;
use crate::pipeline::draft::Version;
use crate::pipeline::outbox;
use crate::pipeline::setup::salt::{SaltSetup, VERSION};
use crate::pipeline::setup::{self, Wish};
use crate::pipeline::site::{Node, Site};
use crate::pipeline::worker;
use crate::pipeline::{parking, recover, services};
use crate::project::ids::ProjectName;
use crate::project::mode::Environment;
use crate::project::outcome::Verdict;
use crate::project::place::NodePlace;
use crate::project::request::{Options, Request, Want};
use crate::project::stage::Stage;
use crate::project::system::System;
use crate::report::ledger::Last;
use crate::sys::error::{Error, ExitCode, Result};
use crate::sys::{clock, fault, fs, lock, machine, process};

/// What follows `setup`, as it is typed on the node.
pub const NEXT: &str = "mc_project init NAME";

/// `setup`.
///
/// # Errors
/// If we are not root or something is in the way.
pub fn setup(cli: &Cli, args: &SetupArgs) -> Result<u8> {
    if args.packages || args.binary.is_some() {
        return Err(
            Error::usage("--packages and --binary are for another machine").hint("mc_project --node root@HOST setup")
        );
    }
    let wish = Wish {
        root: cli.absolute_root()?,
        receiver: args.receiver.clone().unwrap_or_else(|| System::RECEIVER.to_string()),
        environment: args.environment.unwrap_or(Environment::Staging),
    };
    let is_directory = wish.root != Path::new("/") && !fs::exists(&NodePlace::new(&wish.root).system());
    if args.salt && is_directory {
        return set_up_salt(&NodePlace::new(&wish.root), args.plan).map(|()| 0);
    }
    let plan = setup::plan(&wish)?;
    for change in &plan.changes {
        if args.plan {
            screen::line(format!("would {change}"));
        } else {
            setup::apply(change)?;
            screen::line(format!("done: {change}"));
        }
    }
    plan.notes.iter().for_each(|note| screen::line(format!("note: {note}")));
    match (plan.changes.is_empty(), args.plan) {
        (true, _) => screen::line("nothing to do"),
        (false, true) => screen::line("this is a plan; nothing was done"),
        (false, false) => screen::line(format!("this machine is a node; next: {NEXT}")),
    }
    if args.salt {
        set_up_salt(&NodePlace::new(&wish.root), args.plan)?;
    }
    Ok(0)
}

/// Salt, where it is wanted.
fn set_up_salt(place: &NodePlace, is_plan: bool) -> Result<()> {
    let salt = SaltSetup::of(place);
    if salt.is_done() {
        screen::line(format!("Salt {VERSION} is there"));
        return Ok(());
    }
    if is_plan {
        screen::line(format!("would {}", salt.words()));
        return Ok(());
    }
    screen::line(format!("{} (this takes a minute or two)", salt.words()));
    salt.install()?;
    screen::line(format!("done: {}", salt.words()));
    Ok(())
}

/// `recover --all`: every project, one line each; the worst exit code.
///
/// # Errors
/// If the node cannot be read at all; what cannot be recovered is told and is no error.
pub fn recover_all(cli: &Cli) -> Result<u8> {
    let node = cli.node()?;
    let mut worst = 0;
    let mut names = node.projects()?;
    // What may take long comes last: nobody waits for it.
    names.sort_by_cached_key(|name| takes_long(&node, name).unwrap_or(false));
    for name in names {
        let (code, text) = match recover_one(&node, &name) {
            Ok(told) => told,
            Err(error) => (error.kind().exit_code() as u8, error.one_line()),
        };
        worst = worst.max(code);
        screen::line(format!("{name}: {text}"));
    }
    Ok(worst)
}

/// Whether more is to be done for a project than to start its services.
fn takes_long(node: &Node, name: &ProjectName) -> Result<bool> {
    let site = Site::open(node, name)?;
    if Last::read(&site.place)?.is_some_and(|last| last.open) || parking::needs_resume(&site)? {
        return Ok(true);
    }
    let has_steps = |version: &Version| version.recipe.steps(Stage::Start).iter().any(|it| it.applies(version.mode));
    Ok(deploying::running(&site)?.is_some_and(|running| has_steps(&running.version)))
}

fn recover_one(node: &Node, name: &ProjectName) -> Result<(u8, String)> {
    let site = Site::open(node, name)?;
    let (code, text) = recover_site(&site)?;
    // What could not be sent before the machine stopped. Mail that waits is no fault of the recovery.
    match outbox::ensure_postman(&site) {
        Ok(()) => Ok((code, text)),
        Err(error) => Ok((code, format!("{text}; warning: mail is not sent: {}", error.one_line()))),
    }
}

fn recover_site(site: &Site) -> Result<(u8, String)> {
    let name = site.place.name();
    let dropped = unit::drop_orders(site)?;
    let last = Last::read(&site.place)?;
    if let Some(holder) = lock::holder(&site.place.lock())? {
        // Whoever takes the lock recovers first.
        return Ok((0, format!("process {} {}", holder.pid, holder.what)));
    }
    if last.as_ref().is_some_and(|last| last.open) || parking::needs_resume(site)? {
        let moves = parking::read(site)?.is_some_and(|record| record.moving.is_some());
        let request = Request {
            project: name.clone(),
            id: worker::new_id(),
            want: Want::Recover { forward: None, with_data: false },
            update: None,
            options: Options::default(),
            pusher: process::user_name(),
            key: None,
            push: None,
            wait_seconds: Some(0),
        };
        let outcome = worker::work(site, &request);
        // What was interrupted and is whole again is a success of the recovery.
        let code = if outcome.verdict == Verdict::Interrupted { 0 } else { outcome.exit_code() };
        if outcome.verdict == Verdict::NeedsPerson {
            start_known_after_boot(site)?;
            return Ok((code, outcome.line()));
        }
        let has_started = last.as_ref().filter(|last| last.open).map(|last| recover::has_started(site, &last.id));
        let with_steps = !moves && !has_started.transpose()?.unwrap_or(false);
        return match start_after_boot(site, with_steps)? {
            Some(started) if started != 0 => {
                Ok((started, format!("{}; it does not start: {} start {name}", outcome.line(), site.command())))
            }
            _ => Ok((code, outcome.line())),
        };
    }
    if let Some(why) = last.and_then(|last| last.needs_person) {
        start_known_after_boot(site)?;
        return Ok((ExitCode::NeedsPerson as u8, format!("a person is needed: {why}")));
    }
    let text = match dropped.last() {
        Some(id) => {
            format!("{id} was ordered and not begun; what the branch says now: {} deploy {name}", site.command())
        }
        None => "nothing was interrupted".to_string(),
    };
    match start_after_boot(site, true)? {
        Some(0) => Ok((0, format!("{text}; started"))),
        Some(code) => Ok((code, format!("{text}; it does not start: {} start {name}", site.command()))),
        None => Ok((0, text)),
    }
}

/// What ran ended with the machine: it is started again, once in each boot. Steps that a recovery has run already are not
/// run again.
fn start_after_boot(site: &Site, with_steps: bool) -> Result<Option<u8>> {
    once_in_this_boot(site, |is_first| deploying::start_live(site, with_steps && is_first)).map(Option::flatten)
}

/// While a person is to decide which version it shall be, the services run that ran last.
fn start_known_after_boot(site: &Site) -> Result<()> {
    once_in_this_boot(site, |_| services::start_known(site)).map(|_| ())
}

/// Starts unless this boot has seen it done. One that was killed on its way is repeated; `start` is told whether it is the
/// first, since steps are never run twice.
fn once_in_this_boot<T>(site: &Site, start: impl FnOnce(bool) -> Result<T>) -> Result<Option<T>> {
    let boot = clock::boot_id();
    let begun = format!("{boot} begun");
    let said = fs::read_if_there(&site.place.started())?.unwrap_or_default();
    if !machine::at_boot() || said == boot.as_bytes() {
        return Ok(None);
    }
    fs::write_durable(&site.place.started(), begun.as_bytes(), 0o600)?;
    fault::point("boot.begun")?;
    let done = start(said != begun.as_bytes())?;
    fs::write_durable(&site.place.started(), boot.as_bytes(), 0o600)?;
    Ok(Some(done))
}

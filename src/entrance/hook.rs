//! The hooks, one function each.
//!
//! pre-receive refuses early: whatever it refuses refuses the whole push, and git throws the pushed objects away.
//! [`proc_receive`](crate::entrance::proc_receive) deploys before git answers. post-receive is the contract of the
//! project: it deploys every accepted update that no earlier hook has deployed, and says what becomes of the others.
//! Its exit status changes nothing (the push exits 0), so its words must be plain.

use std::io::{Read, Write};

use crate::entrance::call::{Call, HookName};
use crate::entrance::receive::{Decision, Pushed, Update, decide};
use crate::entrance::relay::{Pace, Tell};
use crate::entrance::session::{Session, Told, deploys, ref_update};
use crate::entrance::{Desk, RepoKind, VerdictAt, options, proc_receive};
use crate::report::event::Record;
use crate::sys::error::{Error, ExitCode, Result};
use crate::sys::escape::visible;

/// What connects a hook with git and with the pusher.
pub struct HookIo<'a> {
    /// What git says: standard input.
    pub input: &'a mut dyn Read,
    /// What git hears, from proc-receive only: standard output.
    pub output: &'a mut dyn Write,
    /// What the pusher reads: standard error.
    pub tell: &'a mut dyn Tell,
    /// Turns events into lines for the pusher.
    pub render: &'a dyn Fn(&Record) -> Vec<String>,
    /// The times of following.
    pub pace: Pace,
}

/// Does the work of one hook and says how the process ends.
pub fn run(call: &Call, desk: &dyn Desk, io: HookIo<'_>) -> ExitCode {
    let HookIo { input, output, tell, render, pace } = io;
    let done = match call.hook {
        HookName::PreReceive => pre_receive(call, desk, input, tell, render),
        HookName::ProcReceive => proc_receive::run(call, desk, HookIo { input, output, tell, render, pace }),
        HookName::PostReceive => post_receive(call, desk, HookIo { input, output, tell, render, pace }),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            tell_error(tell, &error);
            error.kind().exit_code()
        }
    }
}

/// Tells why a hook could not do its job; also for `main`, where a call that is no hook's ends.
pub fn tell_error(tell: &mut dyn Tell, error: &Error) {
    tell.line(&format!("mc_project: {}", visible(&error.one_line())));
    if let Some(hint) = error.hint_text() {
        tell.line(&format!("hint: {}", visible(hint)));
    }
}

fn pre_receive(
    call: &Call,
    desk: &dyn Desk,
    input: &mut dyn Read,
    tell: &mut dyn Tell,
    render: &dyn Fn(&Record) -> Vec<String>,
) -> Result<ExitCode> {
    let pushed = Pushed::read(input)?;
    let options = options::parse(&call.options)?;
    let facts = desk.facts()?;
    options::check(&options, &facts)?;
    let decisions = decide(call.kind, &facts, &options, &pushed.updates);
    let mut session = Session { call, desk, facts, options, tell, render, pace: Pace::default() };
    let refused = refusals(&mut session, &pushed.updates, &decisions);
    if refused > 0 {
        session.tell.line("mc_project: the push is refused as a whole; nothing was changed");
        return Ok(ExitCode::Failed);
    }
    if decisions.iter().any(deploys) {
        session.check_person()?;
    }
    if pushed.updates.iter().any(|update| !update.is_deletion()) {
        desk.check_space()?;
    }
    if session.facts.verdict == VerdictAt::Later {
        // With `verdict: push` proc-receive does this, and refuses the one ref instead of the push.
        for (update, decision) in pushed.updates.iter().zip(&decisions) {
            if counts(decision) {
                session.examine(update)?;
            }
        }
    }
    if desk.run_foreign_hook("pre-receive", &pushed.bytes)? == Some(false) {
        return Err(Error::refused("the repository's own hook hooks/pre-receive.local refused the push"));
    }
    Ok(ExitCode::Done)
}

/// Tells every refusal and counts them.
fn refusals(session: &mut Session<'_>, updates: &[Update], decisions: &[Decision]) -> usize {
    let mut count = 0;
    for (update, decision) in updates.iter().zip(decisions) {
        let Decision::Refuse { reason } = decision else { continue };
        count += 1;
        // A push of a hundred thousand bad names is refused without a hundred thousand lines.
        if count <= 10 {
            session.tell.line(&format!("mc_project: {reason}"));
        }
        if update.is_deletion() && count == 1 && session.facts.branch.is_some() {
            let name = &session.facts.name;
            session.tell.line(&format!("hint: mc_project stop {name}, or mc_project destroy {name}"));
        }
    }
    count
}

/// Whether the update is of the branch that counts, so that its rules hold even where nothing is deployed.
pub(super) fn counts(decision: &Decision) -> bool {
    matches!(decision, Decision::Deploy | Decision::Pillar { .. } | Decision::Store { chooses_branch: true, .. })
}

fn post_receive(call: &Call, desk: &dyn Desk, io: HookIo<'_>) -> Result<ExitCode> {
    let pushed = Pushed::read(io.input)?;
    let done = deploy_accepted(call, desk, &pushed, io.tell, io.render, io.pace);
    // The own hook of the repository runs whatever became of the deployment: git accepted the push.
    let foreign = desk.run_foreign_hook("post-receive", &pushed.bytes);
    let code = done.map_err(|error| {
        io.tell.line("mc_project: git accepted this push, but NOTHING WAS DEPLOYED");
        error
    })?;
    if foreign? == Some(false) {
        io.tell.line("warning: the repository's own hook hooks/post-receive.local failed");
    }
    Ok(code)
}

fn deploy_accepted(
    call: &Call,
    desk: &dyn Desk,
    pushed: &Pushed,
    tell: &mut dyn Tell,
    render: &dyn Fn(&Record) -> Vec<String>,
    pace: Pace,
) -> Result<ExitCode> {
    let facts = desk.facts()?;
    let options = options::parse(&call.options)?;
    options::check(&options, &facts)?;
    let decisions = decide(call.kind, &facts, &options, &pushed.updates);
    let mut session = Session { call, desk, facts, options, tell, render, pace };
    let mut code = ExitCode::Done;
    for (update, decision) in pushed.updates.iter().zip(decisions) {
        let failed = match decision {
            Decision::Nothing => None,
            Decision::Store { message, chooses_branch } => {
                if chooses_branch {
                    session.choose_branch(update)?;
                }
                session.tell.line(&message);
                None
            }
            Decision::Refuse { reason } => Some(reason),
            Decision::Deploy => deploy_update(&mut session, update)?,
            Decision::Pillar { deploy } => take_pillar(&mut session, update, deploy)?,
        };
        if let Some(reason) = failed {
            tell_loudly(&mut session, update, &reason);
            code = ExitCode::Failed;
        }
    }
    Ok(code)
}

/// Deploys an accepted update unless proc-receive of the same push has done so; the reason if that failed.
fn deploy_update(session: &mut Session<'_>, update: &Update) -> Result<Option<String>> {
    if was_deployed(session, update)? {
        return Ok(None);
    }
    let commit = match session.desk.peel_to_commit(&update.new)? {
        Some(commit) => commit,
        None => return Ok(Some(format!("{} is no commit, or it is gone", update.new.short()))),
    };
    let told = session.deploy(commit, ref_update(update, false), Some(update));
    if told == Told::Prepared {
        session.tell.line(&format!(
            "{}: stored by git (verdict: later), not deployed; to deploy it: mc_project deploy {}",
            update.shown(),
            session.facts.name
        ));
    }
    Ok(failure(told))
}

fn take_pillar(session: &mut Session<'_>, update: &Update, deploy: bool) -> Result<Option<String>> {
    session.choose_branch(update)?;
    if !deploy {
        session.tell.line(&format!(
            "{}: pillar stored; it is used by the next deployment (git push -o deploy deploys at once)",
            update.shown()
        ));
        return Ok(None);
    }
    if was_deployed(session, update)? {
        return Ok(None);
    }
    match session.commit_for_pillar()? {
        Some(commit) => Ok(failure(session.deploy(commit, None, None))),
        None => {
            session.tell.line("pillar stored; nothing to deploy yet: push the project first");
            Ok(None)
        }
    }
}

fn was_deployed(session: &Session<'_>, update: &Update) -> Result<bool> {
    match (&session.call.push, &update.refname) {
        (Some(push), Some(refname)) => session.desk.was_deployed_by_push(push, refname, &update.new),
        _ => Ok(false),
    }
}

fn failure(told: Told) -> Option<String> {
    match told {
        Told::Failed(reason) => Some(reason),
        Told::Accepted | Told::Prepared | Told::Runs => None,
    }
}

/// git says `main -> main` and exits 0 whatever happens here, so the words must not be overlooked.
fn tell_loudly(session: &mut Session<'_>, update: &Update, reason: &str) {
    let what = match session.call.kind {
        RepoKind::Project => format!("{} {}", update.shown(), update.new.short()),
        RepoKind::Pillar => format!("pillar {}", update.new.short()),
    };
    let frame = "!".repeat(72);
    session.tell.line(&frame);
    session.tell.line(&format!("!! git accepted the push, but {what} was NOT DEPLOYED:"));
    session.tell.line(&format!("!! {}", visible(reason)));
    session.tell.line(&format!("!! to try again: mc_project deploy {}", session.facts.name));
    session.tell.line(&frame);
}

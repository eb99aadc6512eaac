//! The hooks, one function each.
//!
//! pre-receive refuses early: whatever it refuses refuses the whole push, and git throws the pushed objects away.
//! [`proc_receive`](crate::entrance::proc_receive) deploys before git answers. post-receive is the contract of the
//! project: it deploys every accepted update that no earlier hook has deployed, and says what becomes of the others.
//! Its exit status changes nothing (the push exits 0), so its words must be plain.

use std::io::{Read, Write};

use crate::entrance::call::{Call, HookName};
use crate::entrance::event_lines::EventLines;
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
    let mut as_events = EventLines::new(tell, options::wants_events(&call.options));
    let tell: &mut dyn Tell = &mut as_events;
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
    tell.refusal(error);
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
    let HookIo { input, tell, render, pace, .. } = io;
    let pushed = Pushed::read(input)?;
    let done = deploy_accepted(call, desk, &pushed, tell, render, pace);
    // The own hook of the repository runs whatever became of the deployment: git accepted the push.
    let foreign = desk.run_foreign_hook("post-receive", &pushed.bytes);
    if done.is_err() {
        tell.line("mc_project: git accepted this push, but NOTHING WAS DEPLOYED:");
    }
    let code = done?;
    if foreign? == Some(false) {
        tell.line("warning: the repository's own hook hooks/post-receive.local failed");
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
    let Some(commit) = session.desk.peel_to_commit(&update.new)? else {
        return Ok(Some(format!("{} is no commit, or it is gone", update.new.short())));
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
    let Some(commit) = session.commit_for_pillar()? else {
        session.tell.line("pillar stored; nothing to deploy yet: push the project first");
        return Ok(None);
    };
    // proc-receive of the same push may have done so; it moves the pillar itself, so its order names the code alone.
    if let Some(push) = &session.call.push
        && session.desk.was_deployed_by_push(push, &super::PILLAR_PUSH.parse()?, &commit)?
    {
        return Ok(None);
    }
    Ok(failure(session.deploy(commit, None, None)))
}

fn was_deployed(session: &Session<'_>, update: &Update) -> Result<bool> {
    match (&session.call.push, &update.refname) {
        (Some(push), Some(refname)) => session.desk.was_deployed_by_push(push, refname, &update.new),
        _ => Ok(false),
    }
}

fn failure(told: Told) -> Option<String> {
    match told {
        Told::Failed(reason) | Told::Left(reason) => Some(reason),
        Told::Accepted | Told::Prepared | Told::Runs => None,
    }
}

/// git says `main -> main` and exits 0 whatever happens here, so the words must not be overlooked.
fn tell_loudly(session: &mut Session<'_>, update: &Update, reason: &str) {
    let what = what(session, update);
    tell_framed(session, &format!("git accepted the push, but {what} was NOT DEPLOYED:"), reason);
}

/// In editable mode the push stands as soon as its commit is checked out: git says that all is well. Gives the answer back.
pub(super) fn tell_left<T>(session: &mut Session<'_>, update: &Update, reason: &str, answer: T) -> T {
    let what = what(session, update);
    tell_framed(session, &format!("{what} is checked out, so the push stands, but its deployment FAILED:"), reason);
    answer
}

fn what(session: &Session<'_>, update: &Update) -> String {
    match session.call.kind {
        RepoKind::Project => format!("{} {}", update.shown(), update.new.short()),
        RepoKind::Pillar => format!("pillar {}", update.new.short()),
    }
}

fn tell_framed(session: &mut Session<'_>, headline: &str, reason: &str) {
    let frame = "!".repeat(72);
    session.tell.line(&frame);
    session.tell.line(&format!("!! {headline}"));
    session.tell.line(&format!("!! {}", visible(reason)));
    session.tell.line(&format!("!! to try again: mc_project deploy {}", session.facts.name));
    session.tell.line(&frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrance::Force;
    use crate::entrance::fake::{FakeDesk, facts, id, zero};
    use crate::project::outcome::Verdict;
    use crate::project::request::Want;
    use crate::report::event::Event;

    fn call(hook: HookName, kind: RepoKind, options: &[&str]) -> Call {
        Call {
            hook,
            repository: "/nowhere/git/project".into(),
            kind,
            options: options.iter().map(|option| option.as_bytes().to_vec()).collect(),
            push: Some("7-8".to_string()),
            pusher: "alice".to_string(),
            key: None,
            quarantine: None,
            shallow_file: None,
        }
    }

    fn render(record: &Record) -> Vec<String> {
        match &record.event {
            Event::End { outcome } => vec![outcome.line()],
            _ => Vec::new(),
        }
    }

    fn lines(updates: &[(char, char, &str)]) -> String {
        let line = |(old, new, name): &(char, char, &str)| format!("{} {} {name}\n", id(*old), id(*new));
        updates.iter().map(line).collect::<Vec<_>>().concat()
    }

    fn run_with(call: &Call, desk: &FakeDesk, input: &str) -> (ExitCode, Vec<String>) {
        let (mut told, mut output) = (Vec::new(), Vec::new());
        let io = HookIo {
            input: &mut input.as_bytes(),
            output: &mut output,
            tell: &mut told,
            render: &render,
            pace: Pace::default(),
        };
        let code = run(call, desk, io);
        assert!(output.is_empty(), "only proc-receive answers on standard output");
        (code, told)
    }

    fn pre(desk: &FakeDesk, options: &[&str], updates: &[(char, char, &str)]) -> (ExitCode, Vec<String>) {
        run_with(&call(HookName::PreReceive, RepoKind::Project, options), desk, &lines(updates))
    }

    fn post(desk: &FakeDesk, options: &[&str], updates: &[(char, char, &str)]) -> (ExitCode, Vec<String>) {
        run_with(&call(HookName::PostReceive, RepoKind::Project, options), desk, &lines(updates))
    }

    const MAIN: (char, char, &str) = ('a', 'b', "refs/heads/main");

    #[test]
    fn a_good_push_passes_pre_receive_in_silence_and_starts_nothing() {
        let desk = FakeDesk::new(facts(Some("main")));
        let (code, told) = pre(&desk, &["reason=x"], &[MAIN, ('0', 'b', "refs/tags/v1")]);
        assert_eq!((code, told.len()), (ExitCode::Done, 0));
        assert!(desk.started.borrow().is_empty());
    }

    #[test]
    fn pre_receive_refuses_the_whole_push_and_names_every_reason() {
        let desk = FakeDesk::new(facts(Some("main")));
        let (code, told) = pre(
            &desk,
            &[],
            &[MAIN, ('a', '0', "refs/heads/main"), ('0', 'b', "refs/deploys/current"), ('0', 'b', "refs/heads/a..b")],
        );
        assert_eq!(code, ExitCode::Failed);
        let text = told.join("\n");
        for part in
            ["main is the deploy branch", "refs/deploys/current is written by", "`a..b` is no good", "as a whole"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn bad_push_options_refuse_the_push_before_anything_else() {
        let desk = FakeDesk::new(facts(Some("main")));
        let (code, told) = pre(&desk, &["pln"], &[MAIN]);
        assert_eq!(code, ExitCode::Usage);
        assert!(told[0].contains("did you mean `plan`?") && told[1].starts_with("hint: "), "{told:?}");
        let (code, told) = pre(&desk, &["mode=editable"], &[MAIN]);
        assert_eq!(code, ExitCode::Usage);
        assert!(
            told.join(" ").contains("does not allow that mode hint: the allowed modes are: cooking, final"),
            "{told:?}"
        );
        assert!(desk.done.borrow().is_empty());
    }

    #[test]
    fn a_project_that_needs_a_person_takes_other_branches_and_no_deployment() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.facts.needs_person = Some("rollback failed".to_string());
        let (code, told) = pre(&desk, &[], &[MAIN]);
        assert_eq!(code, ExitCode::NeedsPerson);
        assert!(told[0].contains("rollback failed") && told[1].contains("mc_project status shop"), "{told:?}");
        assert_eq!(pre(&desk, &[], &[('0', 'b', "refs/heads/dev")]).0, ExitCode::Done);
        assert_eq!(pre(&desk, &["no-deploy"], &[MAIN]).0, ExitCode::Done);
    }

    #[test]
    fn a_full_disk_refuses_every_push_that_brings_something() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.no_space = true;
        assert_eq!(pre(&desk, &[], &[('0', 'b', "refs/heads/dev")]).0, ExitCode::Failed);
        assert_eq!(pre(&desk, &[], &[('b', '0', "refs/heads/dev")]).0, ExitCode::Done);
    }

    #[test]
    fn the_repositorys_own_pre_receive_hook_gets_the_input_and_its_refusal_counts() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.foreign = Some(false);
        let (code, told) = pre(&desk, &[], &[MAIN]);
        assert_eq!(code, ExitCode::Failed);
        assert!(told[0].contains("pre-receive.local refused"), "{told:?}");
        assert_eq!(*desk.done.borrow(), [format!("pre-receive.local {}", lines(&[MAIN]).len())]);
    }

    #[test]
    fn a_forced_push_is_refused_by_policy_or_warned_about_with_the_lost_commits() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.ancestor = false;
        desk.facts.verdict = VerdictAt::Later;
        let (code, told) = pre(&desk, &[], &[MAIN]);
        assert_eq!(code, ExitCode::Done);
        assert!(told[0].contains("forced push: 12 commits no longer in main"), "{told:?}");
        assert!(told[1].contains("aaaaaaaa00 work 0") && told.iter().any(|line| line.contains("and 2 more")));
        assert!(told.last().unwrap().contains("git push REMOTE +aaaaaaaaaa:main"));
        desk.facts.force = Force::Refuse;
        let (code, told) = pre(&desk, &[], &[MAIN]);
        assert_eq!(code, ExitCode::Failed);
        assert!(told[0].contains("not a fast-forward") && told[0].contains("12 commits out of main"), "{told:?}");
    }

    #[test]
    fn bad_input_is_a_usage_error_and_nothing_is_done() {
        let desk = FakeDesk::new(facts(Some("main")));
        for hook in [HookName::PreReceive, HookName::PostReceive] {
            for input in ["", "x\n", "a b c\n"] {
                let (code, _) = run_with(&call(hook, RepoKind::Project, &[]), &desk, input);
                assert_eq!(code, ExitCode::Usage, "{hook:?} {input:?}");
            }
        }
        assert!(desk.started.borrow().is_empty() && desk.done.borrow().is_empty());
    }

    #[test]
    fn post_receive_deploys_what_no_earlier_hook_has_deployed() {
        let desk = FakeDesk::new(facts(Some("main")));
        let (code, told) = post(&desk, &["reason=new prices"], &[('0', 'c', "refs/heads/dev"), MAIN]);
        assert_eq!(code, ExitCode::Done);
        assert!(told[0].starts_with("dev: stored, not deployed"), "{told:?}");
        let started = desk.started.borrow();
        assert_eq!(started.len(), 1);
        assert_eq!(started[0].want, Want::Deploy { commit: id('b') });
        assert!(!started[0].update.as_ref().unwrap().moved_by_worker);
        assert_eq!(started[0].options.reason.as_deref(), Some("new prices"));
        assert_eq!((started[0].pusher.as_str(), started[0].push.as_deref()), ("alice", Some("7-8")));
        assert_eq!(started[0].wait_seconds, Some(60));
    }

    #[test]
    fn post_receive_ignores_what_did_not_move_and_what_proc_receive_deployed() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        let (code, told) = post(&desk, &["plan"], &[('a', 'a', "refs/heads/main"), ('0', '0', "refs/heads/main")]);
        assert_eq!((code, told.len()), (ExitCode::Done, 0));
        desk.handled = true;
        let (code, told) = post(&desk, &[], &[MAIN]);
        assert_eq!((code, told.len()), (ExitCode::Done, 0));
        assert!(desk.started.borrow().is_empty());
    }

    #[test]
    fn post_receive_says_loudly_that_an_accepted_push_was_not_deployed() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.verdict = Some(Verdict::Failed);
        let (code, told) = post(&desk, &[], &[MAIN]);
        assert_eq!(code, ExitCode::Failed);
        let text = told.join("\n");
        assert!(text.contains("git accepted the push, but main bbbbbbbbbb was NOT DEPLOYED"), "{text}");
        assert!(text.contains("!! failed at build: exit 2; run still serves cccccccccc"), "{text}");
        desk.verdict = None;
        let text = post(&desk, &[], &[MAIN]).1.join("\n");
        assert!(text.contains("the worker died; to recover: mc_project recover shop"), "{text}");
    }

    #[test]
    fn the_first_push_chooses_the_branch_and_a_look_does_not() {
        let desk = FakeDesk::new(facts(None));
        post(&desk, &["plan"], &[('0', 'b', "refs/heads/master")]);
        assert!(!desk.done.borrow().contains(&"branch master".to_string()));
        let (_, told) = post(&desk, &[], &[('0', 'b', "refs/heads/master")]);
        assert!(desk.done.borrow().contains(&"branch master".to_string()));
        assert!(told.contains(&"master is the deploy branch of shop from now on".to_string()), "{told:?}");
    }

    #[test]
    fn no_deploy_stores_says_so_and_still_chooses_the_branch() {
        let desk = FakeDesk::new(facts(None));
        let (code, told) = post(&desk, &["no-deploy"], &[('0', 'b', "refs/heads/main")]);
        assert_eq!(code, ExitCode::Done);
        assert!(told.iter().any(|line| line.contains("main: stored, not deployed (no-deploy)")), "{told:?}");
        assert!(desk.started.borrow().is_empty());
        assert_eq!(desk.done.borrow()[0], "branch main");
    }

    #[test]
    fn async_does_not_wait_and_says_how_to_follow() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.verdict = None;
        let (code, told) = post(&desk, &["async"], &[MAIN]);
        assert_eq!(code, ExitCode::Done);
        assert!(told[0].contains("to follow it: mc_project logs shop -f"), "{told:?}");
    }

    #[test]
    fn a_pillar_push_is_validated_and_used_later_or_at_once() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.facts.verdict = VerdictAt::Later;
        desk.pillar_error = true;
        let pillar = |hook, options: &[&str]| call(hook, RepoKind::Pillar, options);
        let (code, told) = run_with(&pillar(HookName::PreReceive, &[]), &desk, &lines(&[MAIN]));
        assert_eq!(code, ExitCode::Invalid);
        assert!(told[0].contains("init.sls:3:5: a tab"), "{told:?}");
        desk.pillar_error = false;
        let (_, told) = run_with(&pillar(HookName::PostReceive, &[]), &desk, &lines(&[MAIN]));
        assert!(told[0].contains("used by the next deployment") && desk.started.borrow().is_empty());
        let (_, told) = run_with(&pillar(HookName::PostReceive, &["deploy"]), &desk, &lines(&[MAIN]));
        assert!(told[0].contains("nothing to deploy yet") && desk.started.borrow().is_empty(), "{told:?}");
        desk.head = Some(id('d'));
        run_with(&pillar(HookName::PostReceive, &["deploy"]), &desk, &lines(&[MAIN]));
        let started = desk.started.borrow();
        assert_eq!(started[0].want, Want::Deploy { commit: id('d') });
        assert!(started[0].update.is_none() && started[0].options.deploy);
    }

    #[test]
    fn a_commit_that_is_gone_is_told_and_not_deployed() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.gone = true;
        let (code, told) = post(&desk, &[], &[('a', 'b', "refs/heads/main")]);
        assert_eq!(code, ExitCode::Failed);
        assert!(told.join("\n").contains("bbbbbbbbbb is no commit, or it is gone"), "{told:?}");
        assert!(zero().is_zero() && desk.started.borrow().is_empty());
    }
}

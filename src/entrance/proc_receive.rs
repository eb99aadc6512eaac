//! proc-receive: the deployment runs before git answers, so that the push tells the truth.
//!
//! `receive.procReceiveRefs` should be `refs`: then every update passes here, those that are not ours are handed back
//! to git (`option fall-through`), and an atomic push is seen as a whole. What git 2.47 does (each was tried):
//! * receive-pack sends `version=1`, with `\0push-options atomic` as they apply, and hears our version before it
//!   sends the commands; command lines have no line feed; there is no quarantine any more.
//! * `ok REF` + `option new-oid OLD` moves nothing, exits 0, and post-receive sees old = new, for a new ref (OLD zero)
//!   too. The pusher reads `* [new branch] main -> main` then, so we say that nothing moved.
//! * `ok REF` + `option fall-through` makes git do the update: its checks, the `update` hook, deletions and shallow
//!   pushes work as without us, and in an atomic push these refs share one transaction.
//! * After `ng` of one ref an atomic push still stores what we answered with `ok`; and when its transaction fails,
//!   git tells that our ref was rejected although it has moved. So an atomic push is looked at before it deploys.
//! * A ref that we move while the push brings a *new* shallow boundary aborts receive-pack ("BUG: connectivity check
//!   skipped"), forced pushes of existing refs included; with `ng` or `fall-through` it does not. The boundaries are
//!   in the file that GIT_SHALLOW_FILE names.
//! * A reason may have any length and holds any bytes, which the pusher's terminal gets raw: we escape and cut it.
//! * A hook that dies, or leaves a ref out, is "fail to run proc-receive hook": rejected, exit 1.

use std::io::Write;

use crate::entrance::call::Call;
use crate::entrance::event_lines::EventLines;
use crate::entrance::hook::{HookIo, counts, tell_left};
use crate::entrance::options::{self, MAX_OPTION, MAX_OPTIONS};
use crate::entrance::pktline;
use crate::entrance::receive::{Decision, MAX_UPDATES, Update, decide};
use crate::entrance::relay::Tell;
use crate::entrance::session::{Session, Told, deploys, ref_update};
use crate::entrance::{Desk, ProjectFacts, RepoKind};
use crate::project::ids::ObjectId;
use crate::project::request::Options;
use crate::sys::error::{Error, ExitCode, Result};
use crate::sys::escape::visible;
use crate::sys::fs;

/// The longest reason of a refusal, in characters.
const MAX_REASON: usize = 400;
/// The longest list of shallow boundaries that is read.
const MAX_SHALLOW: u64 = 4 * 1024 * 1024;

/// What is answered for one update.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// It is done: the worker, or we, moved the ref.
    Ok,
    /// It succeeded and the ref stays where it is.
    Keep,
    /// Git does it.
    FallThrough,
    /// It is rejected.
    No(String),
}

/// What receive-pack sent.
struct Order {
    atomic: bool,
    updates: Vec<Update>,
    options: Vec<Vec<u8>>,
}

/// Speaks the protocol and deploys.
///
/// # Errors
/// If git says something that is not the protocol, or does not listen any more.
pub fn run(call: &Call, desk: &dyn Desk, io: HookIo<'_>) -> Result<ExitCode> {
    let HookIo { input, output, tell, render, pace } = io;
    let order = receive(input, output)?;
    let mut as_events = EventLines::new(tell, options::wants_events(&order.options));
    let tell: &mut dyn Tell = &mut as_events;
    let answers = match prepare(desk, &order) {
        Ok((facts, options)) => {
            let mut session = Session { call, desk, facts, options, tell, render, pace };
            answer_all(&mut session, &order)
        }
        Err(error) => {
            tell.refusal(&error);
            order.updates.iter().map(|_| Answer::No(error.one_line())).collect()
        }
    };
    report(output, &order.updates, &answers)?;
    // The answers tell the outcome; another exit status would only add "exited abnormally".
    Ok(ExitCode::Done)
}

fn receive(input: &mut dyn std::io::Read, output: &mut dyn Write) -> Result<Order> {
    let hello = pktline::read_section(input, "version lines", 10, 1000)?;
    let first = hello.first().map(Vec::as_slice).unwrap_or_default();
    let mut parts = first.splitn(2, |b| *b == 0);
    if parts.next() != Some(b"version=1".as_slice()) {
        return Err(Error::refused("this git speaks a proc-receive protocol that is newer than we are")
            .hint("set `verdict: later` in node.yaml and run mc_project init again"));
    }
    let offered: Vec<&[u8]> = parts.next().unwrap_or_default().split(|b| *b == b' ').collect();
    let atomic = offered.contains(&b"atomic".as_slice());
    let with_options = offered.contains(&b"push-options".as_slice());
    let mut ours = Vec::new();
    ours.extend(with_options.then_some("push-options"));
    ours.extend(atomic.then_some("atomic"));
    let reply = if ours.is_empty() { "version=1".to_string() } else { format!("version=1\0{}", ours.join(" ")) };
    pktline::write(output, reply.as_bytes())?;
    pktline::write_flush(output)?;
    let lines = pktline::read_section(input, "ref updates", MAX_UPDATES, pktline::MAX_PACKET)?;
    let updates = lines.iter().map(|line| Update::parse(line)).collect::<Result<Vec<_>>>()?;
    let options =
        if with_options { pktline::read_section(input, "push options", MAX_OPTIONS, MAX_OPTION)? } else { Vec::new() };
    Ok(Order { atomic, updates, options })
}

fn prepare(desk: &dyn Desk, order: &Order) -> Result<(ProjectFacts, Options)> {
    let options = options::parse(&order.options)?;
    let facts = desk.facts()?;
    options::check(&options, &facts)?;
    Ok((facts, options))
}

/// Answers for every update, in git's order.
fn answer_all(session: &mut Session<'_>, order: &Order) -> Vec<Answer> {
    let decisions = decide(session.call.kind, &session.facts, &session.options, &order.updates);
    let mut answers: Vec<Answer> = Vec::with_capacity(decisions.len());
    for (update, decision) in order.updates.iter().zip(&decisions) {
        answers.push(first_answer(session, update, decision).unwrap_or_else(|error| refused(session, &error)));
    }
    let acting = (0..decisions.len()).find(|&i| deploys(&decisions[i]) && answers[i] == Answer::FallThrough);
    if order.atomic {
        let others = acting.map(|i| without(&order.updates, i)).unwrap_or_default();
        if let Some(reason) = atomic_problem(session, order, &answers, &others) {
            reject_others(&mut answers, &reason);
            return answers;
        }
    }
    let Some(i) = acting else { return answers };
    let update = &order.updates[i];
    answers[i] = match decisions[i] {
        Decision::Pillar { .. } => deploy_pillar(session, update).unwrap_or_else(|error| refused(session, &error)),
        _ => deploy(session, update),
    };
    if order.atomic && matches!(answers[i], Answer::No(_)) {
        reject_others(&mut answers, &format!("the push is atomic, and {} was not deployed", update.shown()));
    }
    answers
}

/// The answer before anything is deployed: [`Answer::FallThrough`], or why not.
fn first_answer(session: &mut Session<'_>, update: &Update, decision: &Decision) -> Result<Answer> {
    if let Decision::Refuse { reason } = decision {
        return Ok(Answer::No(reason.clone()));
    }
    if deploys(decision) {
        session.check_person()?;
        refuse_shallow(session)?;
    }
    if counts(decision) {
        session.examine(update)?;
    }
    Ok(Answer::FallThrough)
}

/// Why the atomic push would not be taken as a whole, as far as that can be known before.
fn atomic_problem(session: &Session<'_>, order: &Order, answers: &[Answer], others: &[Update]) -> Option<String> {
    let first = answers.iter().position(|answer| matches!(answer, Answer::No(_)));
    if let Some(i) = first {
        return Some(format!("the push is atomic, and {} is refused", order.updates[i].shown()));
    }
    let moves: Vec<_> = others.iter().filter_map(|update| ref_update(update, false)).collect();
    if moves.is_empty() {
        return None;
    }
    match session.desk.cannot_move(&moves) {
        Ok(None) => None,
        Ok(Some(reason)) => Some(format!("the push is atomic, and {reason}")),
        Err(error) => Some(error.one_line()),
    }
}

fn without(updates: &[Update], index: usize) -> Vec<Update> {
    updates.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, update)| update.clone()).collect()
}

fn reject_others(answers: &mut [Answer], reason: &str) {
    for answer in answers.iter_mut().filter(|answer| !matches!(answer, Answer::No(_))) {
        *answer = Answer::No(reason.to_string());
    }
}

fn refused(session: &mut Session<'_>, error: &Error) -> Answer {
    session.tell.refusal(error);
    Answer::No(error.one_line())
}

fn deploy(session: &mut Session<'_>, update: &Update) -> Answer {
    let Some(refname) = ref_update(update, true) else {
        return Answer::No(format!("{} is no branch", update.shown()));
    };
    match session.deploy(update.new.clone(), Some(refname), Some(update)) {
        Told::Accepted => Answer::Ok,
        Told::Left(reason) => tell_left(session, update, &reason, Answer::Ok),
        Told::Failed(reason) => Answer::No(reason),
        Told::Runs => {
            session.tell.line(&format!("{} moves when the deployment has succeeded", update.shown()));
            Answer::Keep
        }
        Told::Prepared => {
            tell_unmoved(session, update);
            Answer::Keep
        }
    }
}

/// git reports the update as done; say what is true.
fn tell_unmoved(session: &mut Session<'_>, update: &Update) {
    let what =
        if update.old.is_zero() { "was not created".to_string() } else { format!("stays at {}", update.old.short()) };
    session.tell.line(&format!("nothing was deployed: {} {what}, whatever git reports below", update.shown()));
}

/// Moves the pillar, deploys what serves with it, and moves it back if that did not succeed: the push then is refused,
/// and the next deployment does not meet a pillar that is known to fail.
fn deploy_pillar(session: &mut Session<'_>, update: &Update) -> Result<Answer> {
    let (Some(commit), Some(refname)) = (session.commit_for_pillar()?, &update.refname) else {
        return Ok(Answer::FallThrough);
    };
    if !session.desk.move_ref(refname, &update.old, &update.new)? {
        return Ok(Answer::No("stale: somebody else pushed; fetch first".into()));
    }
    let answer = match session.deploy(commit, None, None) {
        Told::Accepted | Told::Runs => return Ok(Answer::Ok),
        Told::Left(reason) => return Ok(tell_left(session, update, &reason, Answer::Ok)),
        Told::Prepared => Answer::Keep,
        Told::Failed(reason) => Answer::No(reason),
    };
    if !session.desk.move_ref(refname, &update.new, &update.old)? {
        session.tell.line("warning: the pillar was pushed again meanwhile and stays as it is now");
        return Ok(match answer {
            Answer::Keep => Answer::Ok,
            other => other,
        });
    }
    if answer == Answer::Keep {
        tell_unmoved(session, update);
    }
    Ok(answer)
}

/// Refuses a push from a shallow clone if git could not take it from us.
fn refuse_shallow(session: &Session<'_>) -> Result<()> {
    let Some(file) = &session.call.shallow_file else { return Ok(()) };
    let known = boundaries(&session.call.repository.join("shallow"))?;
    for commit in boundaries(file)? {
        if !known.contains(&commit) && session.desk.is_cut(&commit)? {
            let what = match session.call.kind {
                RepoKind::Project => "deployed",
                RepoKind::Pillar => "taken",
            };
            return Err(Error::refused(format!(
                "a shallow clone's push that brings a cut-off history cannot be {what}; run git fetch --unshallow"
            ))
            .hint("git fetch --unshallow (in GitHub Actions: actions/checkout with fetch-depth: 0), then push again"));
        }
    }
    Ok(())
}

/// The commits that a `shallow` file lists, one per line.
fn boundaries(file: &std::path::Path) -> Result<Vec<ObjectId>> {
    let bytes = fs::read_bounded(file, MAX_SHALLOW)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.trim().parse().ok()).collect())
}

fn report(output: &mut dyn Write, updates: &[Update], answers: &[Answer]) -> Result<()> {
    let mut buffered = std::io::BufWriter::new(output);
    for (update, answer) in updates.iter().zip(answers) {
        let line = |verb: &[u8]| [verb, b" ", &update.name].concat();
        match answer {
            Answer::Ok => pktline::write(&mut buffered, &line(b"ok"))?,
            Answer::FallThrough => {
                pktline::write(&mut buffered, &line(b"ok"))?;
                pktline::write(&mut buffered, b"option fall-through")?;
            }
            Answer::Keep => {
                pktline::write(&mut buffered, &line(b"ok"))?;
                pktline::write(&mut buffered, format!("option new-oid {}", update.old).as_bytes())?;
            }
            Answer::No(reason) => {
                let reason = one_line(reason);
                pktline::write(&mut buffered, &[&line(b"ng")[..], b" ", reason.as_bytes()].concat())?;
            }
        }
    }
    pktline::write_flush(&mut buffered)
}

/// A reason as one line that is safe on a terminal and not too long for one.
fn one_line(reason: &str) -> String {
    let flat: Vec<&str> = reason.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect();
    let text = visible(&flat.join("; "));
    match text.char_indices().nth(MAX_REASON) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None if text.is_empty() => "refused".to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrance::call::HookName;
    use crate::entrance::fake::{FakeDesk, facts, id, serving};
    use crate::entrance::relay::Pace;
    use crate::entrance::{Force, hook};
    use crate::project::outcome::Verdict;
    use crate::report::event::Record;

    type Updates<'a> = &'a [(char, char, &'a str)];

    /// What receive-pack sends, byte by byte as git 2.47 does.
    fn sent(capabilities: &str, updates: Updates<'_>, options: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let hello = if capabilities.is_empty() { "version=1\n".into() } else { format!("version=1\0{capabilities}\n") };
        pktline::write(&mut bytes, hello.as_bytes()).unwrap();
        pktline::write_flush(&mut bytes).unwrap();
        for (old, new, name) in updates {
            pktline::write(&mut bytes, format!("{} {} {name}", id(*old), id(*new)).as_bytes()).unwrap();
        }
        pktline::write_flush(&mut bytes).unwrap();
        if capabilities.contains("push-options") {
            for option in options {
                pktline::write(&mut bytes, option.as_bytes()).unwrap();
            }
            pktline::write_flush(&mut bytes).unwrap();
        }
        bytes
    }

    struct Answered {
        code: ExitCode,
        hello: Vec<Vec<u8>>,
        lines: Vec<String>,
        told: Vec<String>,
    }

    fn speak(call: &Call, desk: &FakeDesk, input: &[u8]) -> (ExitCode, Vec<u8>, Vec<String>) {
        let (mut told, mut output) = (Vec::new(), Vec::new());
        let io = HookIo {
            input: &mut &*input,
            output: &mut output,
            tell: &mut told,
            render: &|_: &Record| Vec::new(),
            pace: Pace::default(),
        };
        let code = hook::run(call, desk, io);
        (code, output, told)
    }

    fn call(kind: RepoKind) -> Call {
        Call {
            hook: HookName::ProcReceive,
            repository: "/nowhere/git/project".into(),
            kind,
            options: Vec::new(),
            push: Some("7-8".to_string()),
            pusher: "alice".to_string(),
            key: None,
            quarantine: None,
            shallow_file: None,
        }
    }

    fn push_to(call: &Call, desk: &FakeDesk, capabilities: &str, updates: Updates<'_>, options: &[&str]) -> Answered {
        let (code, output, told) = speak(call, desk, &sent(capabilities, updates, options));
        let mut input = &output[..];
        let hello = pktline::read_section(&mut input, "x", 10, 1000).unwrap();
        let lines = pktline::read_section(&mut input, "x", 1000, 60_000).unwrap();
        assert!(input.is_empty());
        let lines = lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
        Answered { code, hello, lines, told }
    }

    fn push(desk: &FakeDesk, updates: Updates<'_>, options: &[&str]) -> Answered {
        push_to(&call(RepoKind::Project), desk, "push-options", updates, options)
    }

    const MAIN: (char, char, &str) = ('a', 'b', "refs/heads/main");
    const TAG: (char, char, &str) = ('0', 'b', "refs/tags/v1");

    #[test]
    fn a_deployed_push_is_ok_in_exactly_these_bytes() {
        let desk = FakeDesk::new(facts(Some("main")));
        let (code, output, _) = speak(&call(RepoKind::Project), &desk, &sent("", &[MAIN], &[]));
        assert_eq!(code, ExitCode::Done);
        assert_eq!(output, b"000dversion=100000016ok refs/heads/main0000");
        let started = desk.started.borrow();
        let update = started[0].update.as_ref().unwrap();
        assert!(update.moved_by_worker);
        assert_eq!((&update.old, &update.new, update.name.as_str()), (&id('a'), &id('b'), "refs/heads/main"));
    }

    #[test]
    fn only_offered_features_are_answered() {
        let desk = FakeDesk::new(facts(Some("main")));
        let hello = |capabilities| push_to(&call(RepoKind::Project), &desk, capabilities, &[TAG], &[]).hello;
        assert_eq!(hello(""), [b"version=1".to_vec()]);
        assert_eq!(hello("push-options atomic object-format=sha1"), [b"version=1\0push-options atomic".to_vec()]);
        let (code, output, told) = speak(&call(RepoKind::Project), &desk, b"000eversion=2\n0000");
        assert_eq!(code, ExitCode::Failed);
        assert!(output.is_empty() && told[1].contains("verdict: later"), "{told:?}");
    }

    #[test]
    fn a_failed_deployment_is_rejected_with_the_verdict_line() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.verdict = Some(Verdict::Failed);
        let answered = push(&desk, &[MAIN], &[]);
        assert_eq!(answered.code, ExitCode::Done);
        assert_eq!(answered.lines, ["ng refs/heads/main failed at build: exit 2; run still serves cccccccccc"]);
        desk.unreadable = true;
        let unseen = push(&desk, &[MAIN], &[]).lines;
        assert!(unseen[0].contains("the deployment goes on unseen: mc_project status shop"), "{unseen:?}");
        desk.unreadable = false;
        desk.verdict = None;
        let died = push(&desk, &[MAIN], &[]).lines;
        assert_eq!(died, ["ng refs/heads/main the worker died; to recover: mc_project recover shop"]);
    }

    #[test]
    fn plan_stage_only_and_async_succeed_and_move_nothing_for_new_refs_too() {
        for (option, verdict) in [
            ("plan", Verdict::Prepared),
            ("stage-only", Verdict::Prepared),
            ("async", Verdict::Deployed),
            ("plan", Verdict::Unchanged),
        ] {
            for old in ['a', '0'] {
                let mut desk = FakeDesk::new(facts(Some("main")));
                desk.verdict = Some(verdict);
                let answered = push(&desk, &[(old, 'b', "refs/heads/main")], &[option]);
                let expected = ["ok refs/heads/main".to_string(), format!("option new-oid {}", id(old))];
                assert_eq!(answered.lines, expected, "{option}");
                assert!(answered.told.iter().any(|line| line.contains("main ")), "{option}: {:?}", answered.told);
            }
        }
    }

    #[test]
    fn other_refs_and_no_deploy_are_handed_back_to_git() {
        let desk = FakeDesk::new(facts(Some("main")));
        let answered = push(&desk, &[TAG, ('0', 'b', "refs/heads/main/x"), MAIN], &["no-deploy"]);
        let names = ["refs/tags/v1", "refs/heads/main/x", "refs/heads/main"];
        let expected: Vec<_> =
            names.iter().flat_map(|name| [format!("ok {name}"), "option fall-through".to_string()]).collect();
        assert_eq!(answered.lines, expected);
        assert!(desk.started.borrow().is_empty() && answered.told.is_empty(), "post-receive tells it");
    }

    #[test]
    fn one_push_of_many_refs_deploys_once_and_answers_in_order() {
        let desk = FakeDesk::new(facts(None));
        let updates =
            [TAG, ('0', 'b', "refs/heads/master"), ('0', 'c', "refs/heads/main"), ('0', 'd', "refs/notes/deploys")];
        let answered = push(&desk, &updates, &[]);
        assert_eq!(
            answered.lines[..4],
            ["ok refs/tags/v1", "option fall-through", "ok refs/heads/master", "ok refs/heads/main"]
        );
        assert!(answered.lines[5].starts_with("ng refs/notes/deploys refs/notes/deploys is written by"));
        assert_eq!(desk.started.borrow().len(), 1);
        assert_eq!(*desk.done.borrow(), ["start", "branch master"]);
    }

    #[test]
    fn an_atomic_push_is_refused_before_it_deploys_when_another_ref_cannot_move() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.immovable = Some("refs/tags/v1 exists".to_string());
        let atomic = |desk: &FakeDesk, updates: Updates<'_>| {
            push_to(&call(RepoKind::Project), desk, "push-options atomic", updates, &[]).lines
        };
        let lines = atomic(&desk, &[MAIN, TAG]);
        assert_eq!(lines[0], "ng refs/heads/main the push is atomic, and refs/tags/v1 exists");
        assert!(lines[1].starts_with("ng refs/tags/v1 ") && desk.started.borrow().is_empty(), "{lines:?}");
        assert_eq!(*desk.done.borrow(), ["asked refs/tags/v1"]);
        let lines = atomic(&desk, &[MAIN, ('0', 'b', "refs/deploys/x")]);
        assert_eq!(lines[0], "ng refs/heads/main the push is atomic, and refs/deploys/x is refused");
        assert!(desk.started.borrow().is_empty());
        desk.immovable = None;
        assert_eq!(atomic(&desk, &[MAIN, TAG]), ["ok refs/heads/main", "ok refs/tags/v1", "option fall-through"]);
        desk.verdict = Some(Verdict::Failed);
        let lines = atomic(&desk, &[TAG, MAIN]);
        assert_eq!(lines[0], "ng refs/tags/v1 the push is atomic, and main was not deployed");
        assert!(lines[1].starts_with("ng refs/heads/main failed at build"), "{lines:?}");
    }

    #[test]
    fn a_shallow_push_with_a_new_boundary_is_refused_early_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("shallow_X"), format!("{}\n", id('b'))).unwrap();
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.cut = true;
        let mut shallow = call(RepoKind::Project);
        shallow.repository = dir.path().to_path_buf();
        shallow.shallow_file = Some(dir.path().join("shallow_X"));
        let lines = |desk: &FakeDesk, updates| push_to(&shallow, desk, "push-options", updates, &[]).lines;
        assert!(lines(&desk, &[MAIN])[0].contains("git fetch --unshallow"));
        assert!(desk.started.borrow().is_empty());
        assert_eq!(lines(&desk, &[TAG]), ["ok refs/tags/v1", "option fall-through"], "git can take it");
        desk.cut = false;
        assert_eq!(lines(&desk, &[MAIN]), ["ok refs/heads/main"], "the node has the rest of the history");
        desk.cut = true;
        std::fs::write(dir.path().join("shallow"), format!("{}\n", id('b'))).unwrap();
        assert_eq!(lines(&desk, &[MAIN]), ["ok refs/heads/main"], "the node is cut off there itself");
    }

    #[test]
    fn forced_pushes_tags_and_gone_objects_on_the_deploy_branch_are_refused() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.ancestor = false;
        desk.facts.force = Force::Refuse;
        assert!(
            push(&desk, &[MAIN], &[]).lines[0].contains("not a fast-forward: it would take 12 commits out of main")
        );
        assert!(
            push(&desk, &[MAIN], &["no-deploy"]).lines[0].contains("not a fast-forward"),
            "also without deployment"
        );
        desk.facts.force = Force::Allow;
        desk.peeled = Some(id('e'));
        assert!(push(&desk, &[MAIN], &[]).lines[0].contains("is a tag; push its commit eeeeeeeeee"));
        desk.gone = true;
        assert!(push(&desk, &[MAIN], &[]).lines[0].contains("is no commit"));
        assert!(desk.started.borrow().is_empty());
    }

    #[test]
    fn bad_options_and_a_needed_person_reject_every_ref_and_start_nothing() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        let lines = push(&desk, &[MAIN, TAG], &["cmd=rm"]).lines;
        assert!(
            lines.len() == 2 && lines.iter().all(|line| line.contains("unknown push option `cmd=rm`")),
            "{lines:?}"
        );
        desk.facts.needs_person = Some("data differ".to_string());
        assert!(push(&desk, &[MAIN], &[]).lines[0].contains("a person is needed first: data differ"));
        assert!(desk.started.borrow().is_empty());
    }

    #[test]
    fn an_invalid_pillar_is_rejected_and_a_good_one_is_stored_by_git() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        let pillar = |desk: &FakeDesk| push_to(&call(RepoKind::Pillar), desk, "", &[MAIN], &[]);
        assert_eq!(pillar(&desk).lines, ["ok refs/heads/main", "option fall-through"]);
        desk.pillar_error = true;
        let answered = pillar(&desk);
        assert_eq!(answered.lines, ["ng refs/heads/main init.sls:3:5: a tab"]);
        assert_eq!(answered.told, ["hint: use spaces"]);
    }

    #[test]
    fn a_pillar_push_with_deploy_goes_back_when_the_deployment_fails() {
        let mut desk = FakeDesk::new(facts(Some("main")));
        desk.facts.serves = Some(serving('c'));
        let lines = |desk: &FakeDesk, option| {
            push_to(&call(RepoKind::Pillar), desk, "push-options", &[MAIN], &["deploy", option]).lines
        };
        assert_eq!(lines(&desk, "reason=x"), ["ok refs/heads/main"]);
        assert_eq!(*desk.done.borrow(), ["move refs/heads/main a>b", "start"]);
        assert!(desk.started.borrow()[0].update.is_none());
        desk.done.borrow_mut().clear();
        desk.verdict = Some(Verdict::RolledBack);
        assert!(lines(&desk, "reason=x")[0].starts_with("ng refs/heads/main rolled back at build"));
        assert_eq!(*desk.done.borrow(), ["move refs/heads/main a>b", "start", "move refs/heads/main b>a"]);
        desk.verdict = Some(Verdict::Prepared);
        assert_eq!(lines(&desk, "plan"), ["ok refs/heads/main".to_string(), format!("option new-oid {}", id('a'))]);
    }

    #[test]
    fn reasons_are_one_bounded_line_without_terminal_codes() {
        assert_eq!(one_line("a\nb\r\n\n \u{1b}[31mc"), "a; b; \\u{1b}[31mc");
        assert_eq!(one_line(&"é".repeat(1000)).chars().count(), MAX_REASON + 1);
        assert_eq!(one_line("\n"), "refused");
    }

    #[test]
    fn input_that_is_not_the_protocol_ends_without_an_answer_and_without_a_start() {
        let desk = FakeDesk::new(facts(Some("main")));
        let good = sent("push-options", &[MAIN], &["plan"]);
        for cut in 0..good.len() {
            let (code, _, _) = speak(&call(RepoKind::Project), &desk, &good[..cut]);
            assert_ne!(code, ExitCode::Done, "cut after {cut}");
        }
        let mut bad = sent("", &[], &[]);
        bad.truncate(bad.len() - 4);
        pktline::write(&mut bad, b"x y refs/heads/main").unwrap();
        pktline::write_flush(&mut bad).unwrap();
        assert_ne!(speak(&call(RepoKind::Project), &desk, &bad).0, ExitCode::Done);
        assert!(desk.started.borrow().is_empty());
    }
}

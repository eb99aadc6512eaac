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
use crate::entrance::hook::{HookIo, counts};
use crate::entrance::options::{self, MAX_OPTION, MAX_OPTIONS};
use crate::entrance::pktline;
use crate::entrance::receive::{Decision, MAX_UPDATES, Update, decide};
use crate::entrance::session::{Session, Told, deploys, ref_update};
use crate::entrance::{Desk, RepoKind};
use crate::project::ids::ObjectId;
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
    let answers = match prepare(desk, &order) {
        Ok((facts, options)) => {
            let mut session = Session { call, desk, facts, options, tell, render, pace };
            answer_all(&mut session, &order)
        }
        Err(error) => {
            if let Some(hint) = error.hint_text() {
                tell.line(&format!("hint: {}", visible(hint)));
            }
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

fn prepare(
    desk: &dyn Desk,
    order: &Order,
) -> Result<(crate::entrance::ProjectFacts, crate::project::request::Options)> {
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
    session.tell_hint(error);
    Answer::No(error.one_line())
}

fn deploy(session: &mut Session<'_>, update: &Update) -> Answer {
    let Some(refname) = ref_update(update, true) else {
        return Answer::No(format!("{} is no branch", update.shown()));
    };
    match session.deploy(update.new.clone(), Some(refname), Some(update)) {
        Told::Accepted => Answer::Ok,
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
    let told = session.deploy(commit, None, None);
    let answer = match told {
        Told::Accepted | Told::Runs => return Ok(Answer::Ok),
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

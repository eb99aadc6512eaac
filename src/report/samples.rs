//! Deployments for the tests of this folder.

use super::event::{Begin, Event, Record, Work};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::{Environment, Mode};
use crate::project::outcome::{Outcome, Serving, Verdict};
use crate::project::place::{NodePlace, Place};
use crate::project::stage::Stage;

/// A project in a directory of its own, with its `state/` and without anything else.
pub fn place() -> (tempfile::TempDir, Place) {
    let dir = tempfile::tempdir().unwrap();
    let place = NodePlace::new(dir.path()).project(&"shop".parse().unwrap());
    std::fs::create_dir_all(place.state()).unwrap();
    (dir, place)
}

/// The n-th id.
pub fn id(n: u64) -> DeploymentId {
    format!("20261120T1504{:02}Z-0199e5a0-0000-7000-8000-{n:012x}", n % 60).parse().unwrap()
}

/// A commit whose id begins with the hexadecimal digits of `start`.
pub fn commit(start: &str) -> ObjectId {
    format!("{start:0<40}").parse().unwrap()
}

/// A moment of the deployment.
pub fn record(seconds: u64, event: Event) -> Record {
    let base: jiff::Timestamp = "2026-11-20T15:04:05Z".parse().unwrap();
    Record { at: base + jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap()), event }
}

/// The beginning of deployment number `seq`.
pub fn begin(seq: u64) -> Event {
    Event::Begin(Box::new(begin_facts(seq)))
}

/// What is known at the beginning of deployment number `seq`.
pub fn begin_facts(seq: u64) -> Begin {
    Begin {
        id: id(seq),
        seq,
        project: "shop".into(),
        work: Work::Deploy,
        mode: Mode::Cooking,
        environment: Environment::Staging,
        commit: commit("1a2b3c4d5e"),
        subject: "cart: no empty orders".into(),
        author: "Alice <alice@example.org>".into(),
        pillar: None,
        refname: Some("refs/heads/main".parse().unwrap()),
        old: None,
        moves_ref: true,
        pusher: "alice".into(),
        key: None,
        reason: None,
        serves: None,
        target: None,
        with_data: false,
        push: Some("4711-99".into()),
    }
}

/// The end with this verdict; `serves` is the number of the deployment that serves, and its commit.
pub fn end(verdict: Verdict, stage: Option<Stage>, reason: Option<&str>, serves: Option<(u64, &str)>) -> Event {
    Event::End {
        outcome: Outcome {
            verdict,
            stage,
            reason: reason.map(str::to_string),
            serves: serves.map(|(n, start)| Serving { id: id(n), commit: commit(start) }),
            hints: Vec::new(),
            exit: None,
        },
    }
}

/// What a mail about deployment number 12 tells besides its entry.
pub fn mail_facts() -> super::mail::MailFacts {
    super::mail::MailFacts {
        project: "shop".into(),
        node: "web1.example.org".into(),
        from: "mc_project@web1.example.org".into(),
        occasion: crate::project::recipe::NotifyOn::Failure,
        branch: Some("main".into()),
        commits: vec![super::mail::CommitLine {
            id: "1a2b3c4d5e".into(),
            subject: "cart".into(),
            author: "Alice <a@x.org>".into(),
        }],
        more_commits: 2,
        tail: vec!["Traceback:".into(), "\tno such column".into()],
        drift: vec!["templates/ 2 files".into()],
        taken_back: vec!["code and configuration: those of 9f8e7d6c5b".into()],
        kept: vec!["what failed: /archives/x/run.failed".into()],
        warnings: vec!["disk is 91 % full".into()],
        log: "/var/log/mc_project/shop/x.log".into(),
        command: "mc_project".into(),
        from_afar: None,
    }
}

/// The entry of deployment number 12, rolled back at `upgrade`.
pub fn rolled_back_entry() -> super::history::Entry {
    let mut end_event = end(Verdict::RolledBack, Some(Stage::Upgrade), Some("exit 2"), Some((9, "9f8e7d6c5b")));
    if let Event::End { outcome } = &mut end_event {
        outcome.hints = vec!["mc_project logs shop".into()];
    }
    let events = [
        begin(12),
        Event::StageDone { stage: Stage::Build, ms: 12_400, note: Some("3 steps".into()) },
        Event::StageFailed { stage: Stage::Upgrade, ms: 2_100, reason: "exit 2".into(), tail: Vec::new() },
        end_event,
    ];
    let records: Vec<Record> = events.into_iter().enumerate().map(|(n, event)| record(n as u64, event)).collect();
    super::history::summarise(&records).unwrap()
}

//! A desk for the tests of hooks: it answers from fields and remembers what it was asked to do.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use super::receive::Update;
use super::{Desk, Force, ProjectFacts, Run, VerdictAt};
use crate::project::ids::{DeploymentId, ObjectId, RefName};
use crate::project::mode::{Environment, Mode};
use crate::project::outcome::{Outcome, Serving, Verdict};
use crate::project::request::{RefUpdate, Request};
use crate::project::stage::Stage;
use crate::report::event::{Event, Record};
use crate::sys::error::{Error, Result};

pub fn id(digit: char) -> ObjectId {
    digit.to_string().repeat(40).parse().unwrap()
}

pub fn zero() -> ObjectId {
    id('0')
}

pub fn update(old: &ObjectId, new: &ObjectId, name: &str) -> Update {
    Update::parse(format!("{old} {new} {name}").as_bytes()).unwrap()
}

pub fn serving(digit: char) -> Serving {
    Serving { id: DeploymentId::new(jiff::Timestamp::UNIX_EPOCH), commit: id(digit) }
}

pub fn facts(branch: Option<&str>) -> ProjectFacts {
    ProjectFacts {
        name: "shop".parse().unwrap(),
        environment: Environment::Staging,
        mode: Mode::Cooking,
        allowed_modes: vec![Mode::Cooking, Mode::Final],
        verdict: VerdictAt::Push,
        force: Force::Allow,
        branch: branch.map(str::to_string),
        needs_person: None,
        serves: None,
        wait_seconds: Some(60),
    }
}

pub fn record(event: Event) -> Record {
    Record { at: jiff::Timestamp::UNIX_EPOCH, event }
}

pub fn end(verdict: Verdict) -> Record {
    let failed = !verdict.accepts_push() && verdict != Verdict::Prepared;
    record(Event::End {
        outcome: Outcome {
            verdict,
            stage: failed.then_some(Stage::Build),
            reason: failed.then(|| "exit 2".to_string()),
            serves: Some(serving('c')),
            hints: Vec::new(),
            exit: None,
        },
    })
}

pub struct FakeRun {
    records: VecDeque<Record>,
    /// How many looks find nothing before the worker is gone.
    pub silent: usize,
    /// What is found only after it is gone.
    pub last_words: Vec<Record>,
    /// The events cannot be read.
    pub unreadable: bool,
}

impl FakeRun {
    pub fn of(records: Vec<Record>) -> Self {
        Self { records: records.into(), silent: 0, last_words: Vec::new(), unreadable: false }
    }
}

impl Run for FakeRun {
    fn next(&mut self, wait: Duration) -> Result<Option<Record>> {
        if self.unreadable {
            return Err(Error::failed("cannot read the events"));
        }
        let record = self.records.pop_front();
        if record.is_none() {
            std::thread::sleep(wait.min(Duration::from_millis(5)));
        }
        Ok(record)
    }

    fn is_gone(&mut self) -> bool {
        if self.silent > 0 {
            self.silent -= 1;
            return false;
        }
        self.records.extend(std::mem::take(&mut self.last_words));
        true
    }
}

pub struct FakeDesk {
    pub facts: ProjectFacts,
    /// How deployments end; `None`: the worker dies.
    pub verdict: Option<Verdict>,
    pub unreadable: bool,
    pub ancestor: bool,
    /// What an object peels to, if not to itself.
    pub peeled: Option<ObjectId>,
    /// No object is found.
    pub gone: bool,
    pub pillar_error: bool,
    pub no_space: bool,
    pub cut: bool,
    pub immovable: Option<String>,
    pub head: Option<ObjectId>,
    pub handled: bool,
    pub foreign: Option<bool>,
    pub started: RefCell<Vec<Request>>,
    /// Everything else that was done, in order.
    pub done: RefCell<Vec<String>>,
}

impl FakeDesk {
    pub fn new(facts: ProjectFacts) -> Self {
        Self {
            facts,
            verdict: Some(Verdict::Deployed),
            unreadable: false,
            ancestor: true,
            peeled: None,
            gone: false,
            pillar_error: false,
            no_space: false,
            cut: false,
            immovable: None,
            head: None,
            handled: false,
            foreign: None,
            started: RefCell::default(),
            done: RefCell::default(),
        }
    }

    fn note(&self, text: String) {
        self.done.borrow_mut().push(text);
    }
}

impl Desk for FakeDesk {
    fn facts(&self) -> Result<ProjectFacts> {
        Ok(self.facts.clone())
    }

    fn peel_to_commit(&self, id: &ObjectId) -> Result<Option<ObjectId>> {
        Ok((!self.gone).then(|| self.peeled.clone().unwrap_or_else(|| id.clone())))
    }

    fn is_ancestor(&self, _old: &ObjectId, _new: &ObjectId) -> Result<bool> {
        Ok(self.ancestor)
    }

    fn commits_lost(&self, _old: &ObjectId, _new: &ObjectId) -> Result<Vec<String>> {
        Ok((0..12).map(|i| format!("aaaaaaaa{i:02} work {i}")).collect())
    }

    fn is_cut(&self, _commit: &ObjectId) -> Result<bool> {
        Ok(self.cut)
    }

    fn cannot_move(&self, updates: &[RefUpdate]) -> Result<Option<String>> {
        let names: Vec<_> = updates.iter().map(|update| update.name.as_str()).collect();
        self.note(format!("asked {}", names.join(",")));
        Ok(self.immovable.clone())
    }

    fn record_branch(&self, branch: &str) -> Result<()> {
        self.note(format!("branch {branch}"));
        Ok(())
    }

    fn check_space(&self) -> Result<()> {
        if self.no_space { Err(Error::refused("no space: 5 MiB are missing")) } else { Ok(()) }
    }

    fn validate_pillar(&self, _environment: Environment, _commit: &ObjectId, _fits: bool) -> Result<Vec<String>> {
        if self.pillar_error { Err(Error::invalid("init.sls:3:5: a tab").hint("use spaces")) } else { Ok(Vec::new()) }
    }

    fn project_head(&self) -> Result<Option<ObjectId>> {
        Ok(self.head.clone())
    }

    fn start(&self, request: &Request) -> Result<Box<dyn Run>> {
        self.started.borrow_mut().push(request.clone());
        self.note("start".to_string());
        let mut run = FakeRun::of(self.verdict.map(end).into_iter().collect());
        run.unreadable = self.unreadable;
        Ok(Box::new(run))
    }

    fn was_deployed_by_push(&self, _push: &str, _refname: &RefName, _new: &ObjectId) -> Result<bool> {
        Ok(self.handled)
    }

    fn move_ref(&self, name: &RefName, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.note(format!("move {name} {}>{}", &old.as_str()[..1], &new.as_str()[..1]));
        Ok(true)
    }

    fn run_foreign_hook(&self, hook: &str, input: &[u8]) -> Result<Option<bool>> {
        self.note(format!("{hook}.local {}", input.len()));
        Ok(self.foreign)
    }
}

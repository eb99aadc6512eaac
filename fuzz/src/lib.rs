//! What the fuzz targets share: a desk that answers from its fields, and what every text that is shown must keep.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use mc_project::entrance::call::{Call, HookName};
use mc_project::entrance::hook::{self, HookIo};
use mc_project::entrance::relay::Pace;
use mc_project::entrance::{Desk, Force, ProjectFacts, RepoKind, Run, VerdictAt};
use mc_project::project::ids::{DeploymentId, ObjectId, RefName};
use mc_project::project::mode::{Environment, Mode};
use mc_project::project::outcome::{Outcome, Verdict};
use mc_project::project::request::{RefUpdate, Request};
use mc_project::report::event::{Event, Record};
use mc_project::report::terminal;
use mc_project::sys::error::{Error, ExitCode, Result};

pub mod archive;

/// Takes single bytes and blocks from the front of an input; what is left decides the rest.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte; 0 at the end.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    /// What stands before `separator`, which is taken too; everything if it does not stand there.
    pub fn until(&mut self, separator: &[u8]) -> &'a [u8] {
        let found = self.0.windows(separator.len()).position(|window| window == separator);
        let (part, rest) =
            found.map_or((self.0, &self.0[self.0.len()..]), |at| (&self.0[..at], &self.0[at + separator.len()..]));
        self.0 = rest;
        part
    }
}

/// Asserts that a text for people holds nothing that a terminal would obey; line ends where `lines` says so.
#[track_caller]
pub fn assert_shown(text: &str, lines: bool) {
    for c in text.chars() {
        let hidden =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        assert!((!c.is_control() || (lines && c == '\n')) && !hidden, "{c:?} in {text:?}");
    }
}

/// Asserts that an error can be shown and is no book.
#[track_caller]
pub fn assert_error(error: &Error) {
    assert!(error.one_line().len() < 4000, "{} bytes", error.one_line().len());
    assert_shown(&mc_project::sys::escape::visible(&error.one_line()), false);
    if let Some(hint) = error.hint_text() {
        assert!(hint.len() < 4000, "{} bytes", hint.len());
    }
}

/// The facts that a byte chooses.
pub fn facts(choice: u8) -> ProjectFacts {
    ProjectFacts {
        name: "shop".parse().expect("a name"),
        environment: Environment::Staging,
        mode: Mode::Cooking,
        allowed_modes: vec![Mode::Cooking, Mode::Final],
        verdict: if choice & 1 == 0 { VerdictAt::Push } else { VerdictAt::Later },
        force: if choice & 2 == 0 { Force::Allow } else { Force::Refuse },
        branch: (choice & 4 == 0).then(|| "main".to_string()),
        needs_person: (choice & 24 == 24).then(|| "the rollback failed".to_string()),
        serves: None,
        wait_seconds: Some(60),
    }
}

/// A desk that knows everything and remembers what it was asked to start.
pub struct FuzzDesk {
    facts: ProjectFacts,
    fails: bool,
    descends: bool,
    /// Every deployment that was ordered.
    pub started: RefCell<Vec<Request>>,
    /// Every branch that was recorded.
    pub branches: RefCell<Vec<String>>,
}

impl FuzzDesk {
    /// The desk that a byte chooses.
    pub fn new(choice: u8) -> Self {
        let (started, branches) = (RefCell::default(), RefCell::default());
        Self { facts: facts(choice), fails: choice & 32 != 0, descends: choice & 64 != 0, started, branches }
    }
}

struct Ended(VecDeque<Record>);

impl Run for Ended {
    fn next(&mut self, _: Duration) -> Result<Option<Record>> {
        Ok(self.0.pop_front())
    }

    fn is_gone(&mut self) -> bool {
        true
    }
}

impl Desk for FuzzDesk {
    fn facts(&self) -> Result<ProjectFacts> {
        Ok(self.facts.clone())
    }
    fn peel_to_commit(&self, id: &ObjectId) -> Result<Option<ObjectId>> {
        // Every object whose id ends in f is none.
        Ok((!id.as_str().ends_with('f')).then(|| id.clone()))
    }
    fn is_ancestor(&self, _: &ObjectId, _: &ObjectId) -> Result<bool> {
        Ok(self.descends)
    }
    fn commits_lost(&self, old: &ObjectId, _: &ObjectId) -> Result<Vec<String>> {
        Ok(vec![format!("{} work", old.short())])
    }
    fn is_cut(&self, _: &ObjectId) -> Result<bool> {
        Ok(false)
    }
    fn cannot_move(&self, _: &[RefUpdate]) -> Result<Option<String>> {
        Ok(None)
    }
    fn record_branch(&self, branch: &str) -> Result<()> {
        self.branches.borrow_mut().push(branch.to_string());
        Ok(())
    }
    fn check_space(&self) -> Result<()> {
        Ok(())
    }
    fn validate_pillar(&self, _: Environment, _: &ObjectId, _: bool) -> Result<Vec<String>> {
        Ok(vec!["a word".to_string()])
    }
    fn project_head(&self) -> Result<Option<ObjectId>> {
        Ok(Some("a".repeat(40).parse()?))
    }
    fn start(&self, request: &Request) -> Result<Box<dyn Run>> {
        self.started.borrow_mut().push(request.clone());
        let verdict = if self.fails { Verdict::Failed } else { Verdict::Deployed };
        let reason = self.fails.then(|| "exit 2".to_string());
        let outcome = Outcome { verdict, stage: None, reason, serves: None, hints: Vec::new(), exit: None };
        let end = Record { at: jiff::Timestamp::UNIX_EPOCH, event: Event::End { outcome } };
        Ok(Box::new(Ended(VecDeque::from([end]))))
    }
    fn was_deployed_by_push(&self, _: &str, _: &RefName, _: &ObjectId) -> Result<bool> {
        Ok(false)
    }
    fn move_ref(&self, _: &RefName, _: &ObjectId, _: &ObjectId) -> Result<bool> {
        Ok(true)
    }
    fn run_foreign_hook(&self, _: &str, _: &[u8]) -> Result<Option<bool>> {
        Ok(None)
    }
}

/// Runs one hook on these bytes of standard input; its end, what it answered git, and what the pusher read.
pub fn run_hook(
    hook: HookName,
    kind: RepoKind,
    desk: &FuzzDesk,
    options: Vec<Vec<u8>>,
    mut input: &[u8],
) -> (ExitCode, Vec<u8>, Vec<String>) {
    let call = Call {
        hook,
        repository: "/nowhere/git/project".into(),
        kind,
        options,
        push: Some("7-8".to_string()),
        pusher: "alice".to_string(),
        key: None,
        quarantine: None,
        shallow_file: None,
    };
    let (mut told, mut output) = (Vec::new(), Vec::new());
    let pace = Pace { wait: Duration::from_millis(1), ..Pace::default() };
    let io = HookIo { input: &mut input, output: &mut output, tell: &mut told, render: &terminal::plain, pace };
    let code = hook::run(&call, desk, io);
    (code, output, told)
}

/// A sample id of a deployment.
pub fn deployment() -> DeploymentId {
    "20260921T132000Z-01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id")
}

//! `mc_project push`, on the developer's side: the pillar first where it changed, then the code; what the node does is shown
//! as it happens, and the deployment's own exit code is ours.
//!
//! The pushing is git's ([`git`]), asked to relay events (`-o events=1`, [`super::event_lines`]). The first of them names the
//! deployment. If the connection is lost after it, [`attach`] asks the node for the same deployment again; before it, nothing
//! is known to have begun, and the push may be repeated: a deployment that began all the same is found by it.

use std::collections::HashSet;

use crate::entrance::far::Far;
use crate::entrance::far::checkout::Checkout;
use crate::entrance::far::trouble;
use crate::entrance::options;
use crate::project::address::Address;
use crate::project::ids::{DeploymentId, ProjectName};
use crate::project::outcome::Outcome;
use crate::report::event::{Event, Record};
use crate::sys::clock;
use crate::sys::error::{Error, ExitCode, Result};
use crate::sys::escape::visible;

pub mod attach;
pub mod git;
pub mod pillar;

use git::{GitPush, Pushed};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What to push, as git takes it; the checked out branch if empty.
    pub refs: Vec<String>,
    /// Push options.
    pub options: Vec<String>,
    /// Whether commits may be taken away from the branch there.
    pub force: bool,
    /// Whether the pillar is left alone.
    pub without_pillar: bool,
}

/// Shows what happens to a person or a program.
pub trait Show {
    /// Shows an event; `line` is the JSON that it came as.
    fn record(&mut self, record: &Record, line: &str);
    /// Shows an event of a newer node that means nothing to us.
    fn unknown(&mut self, line: &str);
    /// Is called a few times each second.
    fn tick(&mut self);
}

/// What is known of the deployment that a push started.
pub struct Watched<'a> {
    show: &'a mut dyn Show,
    /// The project and the id, once the node has told them.
    ordered: Option<(ProjectName, DeploymentId)>,
    outcome: Option<Outcome>,
    /// Events come again when the deployment is attached to again; each tells its time, so that no two are equal.
    seen: HashSet<blake3::Hash>,
    /// Lines of others that came before the first event: those of a node that knows no events are said only when that is
    /// known.
    held: Vec<String>,
    holds: bool,
}

impl<'a> Watched<'a> {
    /// Nothing is known yet.
    pub fn new(show: &'a mut dyn Show) -> Self {
        Self { show, ordered: None, outcome: None, seen: HashSet::new(), held: Vec::new(), holds: true }
    }

    /// Takes a line that the node wrote: an event, or a word of something else there.
    pub fn hear(&mut self, line: &str) {
        if !line.starts_with('{') {
            if self.holds {
                self.held.push(line.to_string());
                return;
            }
            return self.say(line);
        }
        self.say_held();
        if !self.seen.insert(blake3::hash(line.as_bytes())) {
            return;
        }
        let Ok(record) = serde_json::from_str::<Record>(line) else { return self.show.unknown(line) };
        match &record.event {
            Event::Output { .. } => return,
            // What is asked for again and typed by people is a name, whatever the node writes.
            Event::Ordered { project, id } => self.ordered = project.parse().ok().map(|project| (project, id.clone())),
            Event::End { outcome } => self.outcome = Some(outcome.clone()),
            _ => {}
        }
        self.show.record(&record, line);
    }

    /// Says something of our own, as an event like all others.
    pub fn say(&mut self, text: &str) {
        let record = Record { at: clock::now(), event: Event::Note { text: visible(text) } };
        if let Ok(line) = record.ascii_line() {
            self.show.record(&record, &line);
        }
    }

    /// Says what was held back, and holds nothing back any more.
    fn say_held(&mut self) {
        self.holds = false;
        for line in std::mem::take(&mut self.held) {
            self.say(&line);
        }
    }

    /// Time passes.
    pub fn tick(&mut self) {
        self.show.tick();
    }

    fn heard(&self) -> usize {
        self.seen.len()
    }
}

/// Pushes to a node and shows what it does; the exit code is the deployment's.
///
/// # Errors
/// If nothing can be pushed, or what became of it cannot be learned.
pub fn push(checkout: &Checkout, far: &Far, wanted: &Wanted, show: &mut dyn Show) -> Result<u8> {
    let to = destination(far)?;
    let mut code = code_push(checkout, far, wanted, &to)?;
    if !wanted.without_pillar
        && let Some(pillar) = pillar::push_of(far, &to, wanted)?
    {
        match pillar::push_first(pillar, &code, far, show)? {
            pillar::Then::PushCode => {}
            pillar::Then::Done(code) => return Ok(code),
        }
    }
    code.options.push(options::EVENTS.to_string());
    let mut watched = Watched::new(show);
    let pushed = code.run(&mut watched)?;
    conclude(far, &code, &pushed, &mut watched)
}

/// Where the code of the node's project goes.
fn destination(far: &Far) -> Result<Address> {
    far.repository.clone().ok_or_else(|| {
        Error::usage(format!("it is not said which project of {} is meant", far.name))
            .hint("say `project: NAME` for this node in nodes.yaml, or: git remote add node mc@HOST:NAME")
    })
}

fn code_push(checkout: &Checkout, far: &Far, wanted: &Wanted, to: &Address) -> Result<GitPush> {
    let top = checkout.top.clone().ok_or_else(|| {
        Error::usage("this directory is in no git repository").hint("cd into the project's checkout, or: git init")
    })?;
    if !checkout.has_commit()? {
        return Err(Error::usage("there is no commit to push yet").hint("git add -A && git commit"));
    }
    let refs = match &wanted.refs[..] {
        [] => {
            let branch = checkout.branch()?;
            vec![format!("refs/heads/{branch}:refs/heads/{branch}")]
        }
        named => named.to_vec(),
    };
    let options = wanted.options.iter().filter(|option| *option != options::EVENTS).cloned().collect();
    Ok(GitPush {
        dir: top,
        to: far.remote.clone().unwrap_or_else(|| to.url()),
        ssh: far.ssh_for(to),
        shown: to.login.as_ref().map_or_else(|| to.path.clone(), |login| login.host.clone()),
        refs,
        options,
        force: wanted.force,
        dry_run: false,
    })
}

/// What became of a push: learned from the events, from git's answer, or by asking the node again.
fn conclude(far: &Far, push: &GitPush, pushed: &Pushed, watched: &mut Watched<'_>) -> Result<u8> {
    if pushed.is_option_unknown() {
        return push_plainly(far, push, watched);
    }
    watched.say_held();
    let is_async = push.options.iter().any(|option| option == "async");
    if watched.outcome.is_none() && watched.ordered.is_some() && !is_async {
        attach::attach(far, watched)?;
    }
    if let Some(outcome) = &watched.outcome {
        let code = outcome.exit_code();
        // What was asked for besides the deployment and refused is a failure too.
        return Ok(if code == 0 && pushed.rejected().next().is_some() { ExitCode::Failed as u8 } else { code });
    }
    if let Some(line) = pushed.rejected().next() {
        return Err(pushed.refusal(line, push));
    }
    if !pushed.is_ok() {
        let trouble = trouble::of_push(&pushed.heard, push.login(), &push.shown);
        let hint = trouble.error.hint_text().unwrap_or_default().to_string();
        if !trouble.may_pass {
            return Err(trouble.error);
        }
        return Err(Error::failed(format!("{}; no deployment was seen to begin", trouble.error.message()))
            .hint(format!("it is safe to push again; {hint}")));
    }
    if pushed.is_up_to_date() {
        watched.say(&format!("nothing to push: {} has this commit already", push.shown));
        let project = far.project.as_ref().map_or("NAME", |project| project.as_str());
        watched.say(&format!("to deploy it again: {}", far.typed(&format!("deploy {project} --force"))));
    }
    Ok(0)
}

/// A push to a node that knows no events: its lines are shown as they come.
fn push_plainly(far: &Far, push: &GitPush, watched: &mut Watched<'_>) -> Result<u8> {
    watched.say(&format!(
        "mc_project on {} is older than here ({}): its lines are shown as they are, and a lost connection is not taken up again",
        push.shown,
        env!("CARGO_PKG_VERSION")
    ));
    watched.say(&format!("to bring this version there: {}", far.typed("setup")));
    watched.held.clear();
    watched.holds = false;
    let mut plain = push.clone();
    plain.options.retain(|option| option != options::EVENTS);
    let pushed = plain.run(watched)?;
    if let Some(line) = pushed.rejected().next() {
        return Err(pushed.refusal(line, &plain));
    }
    if pushed.is_ok() { Ok(0) } else { Err(trouble::of_push(&pushed.heard, push.login(), &push.shown).error) }
}

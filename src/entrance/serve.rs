//! Root's side of the door: one process for one connection, which answers one question and ends.
//!
//! Whoever connects must be the receiver of pushes or root (the kernel says who it is), and everything that they say is
//! judged again ([`super::check`]). What may be slow or dead at the other end is a hook or a person's terminal: each
//! write has a deadline, and what runs for them (a worker, a command that changes something) goes on without them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use crate::entrance::check;
use crate::entrance::desk::NodeDesk;
use crate::entrance::door::{self, Answer, Ask, Order, Person, Pushed, Stream};
use crate::entrance::handover;
use crate::entrance::launch;
use crate::entrance::shell::words;
use crate::entrance::{Desk, ProjectFacts, Run};
use crate::pipeline::people::People;
use crate::pipeline::site::{Node, Site};
use crate::project::access::Role;
use crate::project::ids::{ObjectId, ProjectName};
use crate::project::request::{RefUpdate, Request};
use crate::project::wanted::Wanted;
use crate::report::event::Event;
use crate::sys::accounts::Account;
use crate::sys::error::{Error, Result};
use crate::sys::escape::{output_line, visible_bounded};
use crate::sys::process::{LINE_LIMIT, Said, StepStatus, Tick, run_relayed, self_exe};
use crate::sys::socket::{Channel, Received};
use crate::sys::{clock, fs};

/// How long somebody who has connected may take to ask.
const QUESTION: Duration = Duration::from_secs(10);
/// How long they may take nothing of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one wait for an event lasts.
const PACE: Duration = Duration::from_secs(1);

/// Answers the one question of a connection.
///
/// # Errors
/// If the other side cannot be heard or told; what is wrong with its question is told to it and is no error of ours.
pub fn serve(node: &Node, channel: &mut Channel) -> Result<()> {
    let mut service = Service { node, channel };
    let asked = service.question();
    match asked.and_then(|ask| service.answer(ask)) {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::info!("{}", error.one_line());
            service.tell(&Answer::failed(&error))
        }
    }
}

/// Tells whoever asks why this node answers nobody.
///
/// # Errors
/// If the other side cannot be heard or told.
pub fn cannot(channel: &mut Channel, error: &Error) -> Result<()> {
    // Who is still asking when we hang up would be told that instead.
    channel.receive(QUESTION)?;
    channel.send(&door::write_answer(&Answer::failed(error))?, PATIENCE)
}

struct Service<'a> {
    node: &'a Node,
    channel: &'a mut Channel,
}

impl Service<'_> {
    /// The question, if whoever asks may ask anything at all.
    fn question(&mut self) -> Result<Ask> {
        let system = self.node.system.as_ref().ok_or_else(|| {
            Error::refused(format!("{} is no whole-machine node", self.node.place.root().display()))
                .hint("as root: mc_project setup")
        })?;
        let peer = self.channel.peer()?;
        let receiver = Account::of(&system.receiver)?.map(|account| account.uid);
        if peer.uid != 0 && Some(peer.uid) != receiver {
            return Err(Error::refused(format!("this socket is for {} and root", system.receiver)));
        }
        match self.channel.receive(QUESTION)? {
            Received::Line(line) => door::read_question(&line),
            Received::Nothing => Err(Error::refused("nothing was asked in time")),
            Received::End => Err(Error::refused("nothing was asked")),
        }
    }

    fn answer(&mut self, ask: Ask) -> Result<()> {
        let answer = match ask {
            Ask::Facts { of } => Answer::Facts(Box::new(self.desk(&of)?.facts()?)),
            Ask::CheckSpace { of } => {
                self.desk(&of)?.check_space()?;
                Answer::Done
            }
            Ask::RecordBranch { of, branch } => {
                let desk = self.desk(&of)?;
                check::first_branch(&branch, &desk.facts()?)?;
                desk.record_branch(&branch)?;
                Answer::Done
            }
            Ask::ProjectHead { of } => Answer::Head(self.desk(&of)?.project_head()?),
            Ask::WasDeployed { of, push, refname, new } => {
                if !super::call::is_push_id(&push) {
                    return Err(Error::refused("the order is refused: this names no push"));
                }
                Answer::Deployed(self.desk(&of)?.was_deployed_by_push(&push, &refname, &new)?)
            }
            Ask::Start { of, order } => return self.start(&of, &order),
            Ask::Command { who, words } => return self.command(&who, &words),
            Ask::Deliverable { who, wanted } => return self.deliverable(&who, &wanted),
        };
        self.tell(&answer)
    }

    /// The desk of a repository; the project is looked up among those that there are.
    fn desk(&self, of: &Pushed) -> Result<NodeDesk> {
        let known = self.node.projects()?.into_iter().find(|name| *name == of.project);
        let name = known.ok_or_else(|| Error::refused(format!("there is no project {} here", of.project)))?;
        Ok(NodeDesk::of_site(Site::open(self.node, &name)?, of.kind))
    }

    fn tell(&mut self, answer: &Answer) -> Result<()> {
        self.channel.send(&door::write_answer(answer)?, PATIENCE)
    }

    fn start(&mut self, of: &Pushed, order: &Order) -> Result<()> {
        let desk = self.desk(of)?;
        let facts = desk.facts()?;
        let request = check::request(of, order, &facts, clock::now())?;
        check_unused(desk.site(), &request)?;
        match &request.update {
            Some(update) => check_ref(desk.site(), update)?,
            None => check_pillar(&desk, &facts, &order.commit)?,
        }
        let mut run = desk.start(&request)?;
        self.tell(&Answer::Started)?;
        self.follow(run.as_mut())
    }

    /// Hands on what the worker says until everything is told or nobody listens any more.
    fn follow(&mut self, run: &mut dyn Run) -> Result<()> {
        loop {
            let record = match run.next(PACE)? {
                Some(record) => record,
                None if run.is_gone() => match run.next(Duration::ZERO)? {
                    // It may have spoken between our last look and its death.
                    Some(record) => record,
                    None => return self.tell(&Answer::Gone),
                },
                None if self.channel.is_hung_up() => return Ok(()),
                None => continue,
            };
            let is_last = record.event == Event::Closed;
            self.tell(&Answer::Record(Box::new(record)))?;
            if is_last {
                return self.tell(&Answer::End);
            }
        }
    }

    fn command(&mut self, who: &Person, words: &[String]) -> Result<()> {
        if words.len() > door::MAX_WORDS {
            return Err(Error::usage(format!("a command of more than {} words", door::MAX_WORDS)));
        }
        let checked = words::check(words)?;
        let known = self.node.projects()?.into_iter().any(|name| name == checked.project);
        // Whether a project is here is told to those only who may see it.
        if !known || self.role(who, &checked.project)?.is_none_or(|role| role < checked.role) {
            return Err(not_allowed(who, &checked.project, checked.role));
        }
        let mut args = vec!["--root".into(), self.node.place.root().as_os_str().to_os_string()];
        args.extend(checked.words.iter().map(OsString::from));
        let mut listens = true;
        let status = run_relayed(self_exe().as_os_str(), &args, &environment(who), &mut |said| {
            let line = |to, bytes: &[u8]| Answer::Output { to, line: output_line(bytes, LINE_LIMIT) };
            let answer = match said {
                Said::Out(bytes) => Some(line(Stream::Out, bytes)),
                Said::Err(bytes) => Some(line(Stream::Err, bytes)),
                Said::Runs => None,
            };
            listens = listens && !self.channel.is_hung_up();
            if let Some(answer) = answer.filter(|_| listens) {
                listens = self.tell(&answer).is_ok();
            }
            if listens || checked.changes { Tick::GoOn } else { Tick::Cancel }
        })?;
        if !listens {
            return Ok(());
        }
        match status {
            StepStatus::Ok => self.tell(&Answer::Exit(0)),
            StepStatus::Exit(code) => self.tell(&Answer::Exit(u8::try_from(code).unwrap_or(1))),
            other => Err(Error::failed(format!("the command ended with {}", other.words()))),
        }
    }
}

impl Service<'_> {
    /// Hands over a part of a deliverable to whoever may read the project.
    fn deliverable(&mut self, who: &Person, wanted: &Wanted) -> Result<()> {
        let project = &wanted.project;
        let known = self.node.projects()?.contains(project);
        if !known || self.role(who, project)?.is_none() {
            return Err(not_allowed(who, project, Role::Read));
        }
        handover::give(&Site::open(self.node, project)?, wanted, self.channel)
    }

    /// What the node's own list lets this person do with this project; the key that they name must be one of theirs.
    fn role(&self, who: &Person, project: &ProjectName) -> Result<Option<Role>> {
        let access = People::open(self.node)?.read()?;
        let Some(person) = access.person(&who.name) else { return Ok(None) };
        let has_key = who.key.as_ref().is_none_or(|key| person.keys.iter().any(|own| own.fingerprint() == *key));
        Ok(if has_key { person.role(project) } else { None })
    }
}

/// An id is used once: nothing may be written over, or under the name of, another deployment.
fn check_unused(site: &Site, request: &Request) -> Result<()> {
    let (place, id) = (&site.place, &request.id);
    let used =
        [place.journal(id), place.events(id), place.log(id), place.request(id), place.archive(id), place.release(id)];
    if used.iter().any(|path| fs::exists(path)) {
        return Err(Error::refused(format!("the order is refused: {id} has been used already")));
    }
    Ok(())
}

/// A ref that the worker does not move must have been moved by git.
fn check_ref(site: &Site, update: &RefUpdate) -> Result<()> {
    if update.moved_by_worker {
        return Ok(());
    }
    let repo = site.repo()?;
    let is_there = match repo.read_ref(&update.name)? {
        Some(now) if now == update.new => true,
        // Another push came meanwhile.
        Some(now) if repo.peel_to_commit(&update.new)?.is_some() => repo.is_ancestor(&update.new, &now)?,
        Some(_) | None => false,
    };
    if is_there {
        return Ok(());
    }
    Err(Error::refused(format!("the order is refused: {} is not at {}", update.name.shown(), update.new.short())))
}

/// A push of the pillar deploys what serves, or else the head of the deploy branch.
fn check_pillar(desk: &NodeDesk, facts: &ProjectFacts, commit: &ObjectId) -> Result<()> {
    let expected = match &facts.serves {
        Some(serving) => Some(serving.commit.clone()),
        None => desk.project_head()?,
    };
    if expected.as_ref() == Some(commit) {
        return Ok(());
    }
    Err(Error::refused(format!("the order is refused: {} does not serve any more", commit.short()))
        .hint("push the pillar again"))
}

fn not_allowed(who: &Person, project: &ProjectName, role: Role) -> Error {
    let need = role.name();
    let name = visible_bounded(who.name.as_bytes(), 100);
    Error::refused(format!("{name} may not do this with {project} (it needs the role {need})"))
        .hint(format!("on the node, as root: mc_project keys list {name}"))
}

/// The environment of a command: nothing but who asks.
fn environment(who: &Person) -> BTreeMap<String, String> {
    let mut env = launch::environment();
    env.insert("MC_PUSHER".to_string(), visible_bounded(who.name.as_bytes(), 100));
    if let Some(key) = &who.key {
        env.insert("MC_KEY".to_string(), visible_bounded(key.as_bytes(), 100));
    }
    env
}

//! The receiver's side of the door: a desk that asks root for what only root may know and do.
//!
//! What needs nothing but the repository is done here, by the receiver: it owns the objects and refs.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::entrance::call::Call;
use crate::entrance::desk::NodeDesk;
use crate::entrance::door::{self, Answer, Ask, Order, Person, Pushed, Stream};
use crate::entrance::relay::{Screen, Tell};
use crate::entrance::repository::Repository;
use crate::entrance::{Desk, ProjectFacts, Run};
use crate::pipeline::site::{HOOKS_IDENTITY, Identity, read_identity};
use crate::project::ids::{ObjectId, RefName};
use crate::project::mode::Environment;
use crate::project::place::NodePlace;
use crate::project::request::{RefUpdate, Request, Want};
use crate::report::event::Record;
use crate::sys::error::{Context, Error, Result};
use crate::sys::socket::{Channel, Received};
use crate::sys::{fs, seal};

/// How long root may take to answer; a node under load starts a worker slowly.
const ANSWER: Duration = Duration::from_mins(2);
/// How long root may take to take a question.
const PATIENCE: Duration = Duration::from_secs(10);

/// The desk for this call of a hook: our own, or one that asks root.
///
/// # Errors
/// If the repository belongs to no project, or to one that we may know nothing of.
pub fn desk_of(call: &Call) -> Result<Box<dyn Desk>> {
    if let Some(identity) = identity_for_receiver(&call.repository)? {
        return Ok(Box::new(RemoteDesk::new(call, &identity)));
    }
    Ok(Box::new(NodeDesk::new(call)?))
}

/// The identity of the project of a repository, where its state is not ours to read.
fn identity_for_receiver(repository: &Path) -> Result<Option<Identity>> {
    if rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let repository = fs::canonical(repository)?;
    let project = repository.parent().and_then(Path::parent).unwrap_or(&repository);
    match read_identity(&project.join("state/project.json")) {
        Err(error) if error.errno() == Some(rustix::io::Errno::ACCESS.raw_os_error()) => {}
        // Readable, missing, damaged: the desk of a directory node tells.
        _ => return Ok(None),
    }
    let path = repository.join(HOOKS_IDENTITY);
    let Some(bytes) = fs::read_of_root(&path, fs::CONFIG_LIMIT)? else { return Ok(None) };
    let identity = seal::understood(&bytes).context(|| format!("cannot understand {}", path.display()))?;
    Ok(Some(identity))
}

/// Asks root one question; the connection stays open for what follows the first answer.
///
/// # Errors
/// If root cannot be reached, or refuses.
pub fn ask(socket: &Path, ask: &Ask) -> Result<(Channel, Answer)> {
    let line = door::write_question(ask)?;
    let mut channel = Channel::connect(socket, door::ANSWER_LIMIT).map_err(|error| {
        error.hint("on the node, as root: systemctl start mc_project.socket (without systemd: mc_project serve)")
    })?;
    // What listens there decides what becomes of the push: it must be root, whoever made the path.
    if channel.peer()?.uid != 0 {
        return Err(Error::refused(format!("it is not root who listens at {}", socket.display())));
    }
    let answer = match channel.send(&line, PATIENCE) {
        Ok(()) => answer(&mut channel, ANSWER)?,
        // Where too many ask at once, systemd closes the connection without a word.
        Err(error) if error.errno() == Some(rustix::io::Errno::PIPE.raw_os_error()) => None,
        Err(error) => return Err(error),
    };
    let answer = answer.ok_or_else(|| no_answer(socket))?;
    Ok((channel, answer.or_error()?))
}

/// The next answer; `None` if none came within the time or the connection has ended.
fn answer(channel: &mut Channel, at_most: Duration) -> Result<Option<Answer>> {
    match channel.receive(at_most)? {
        Received::Line(line) => door::read_answer(&line).map(Some),
        Received::Nothing | Received::End => Ok(None),
    }
}

fn no_answer(socket: &Path) -> Error {
    Error::failed(format!("the node's service at {} gave no answer; perhaps too many ask at once", socket.display()))
        .hint(
            "try again in a minute; what it says, on the node, as root: journalctl -u mc_project.socket -u 'mc_project@*' \
             (without systemd: what mc_project serve prints)",
        )
}

/// The error where root gives an answer to another question.
#[must_use]
pub fn unexpected(answer: &Answer) -> Error {
    Error::bug(format!("the node's service gave an answer to another question: {answer:?}"))
}

/// The desk for a repository whose project is root's to handle.
#[derive(Debug)]
pub struct RemoteDesk {
    of: Pushed,
    socket: PathBuf,
    repository: Repository,
}

impl RemoteDesk {
    /// The desk for the repository that git called us in.
    #[must_use]
    pub fn new(call: &Call, identity: &Identity) -> Self {
        Self {
            of: Pushed { project: identity.name.clone(), kind: call.kind },
            socket: NodePlace::new(&identity.root).socket(),
            repository: Repository::of(call),
        }
    }

    fn ask(&self, question: &Ask) -> Result<Answer> {
        ask(&self.socket, question).map(|(_, answer)| answer)
    }

    fn ask_done(&self, question: &Ask) -> Result<()> {
        match self.ask(question)? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

impl Desk for RemoteDesk {
    fn facts(&self) -> Result<ProjectFacts> {
        match self.ask(&Ask::Facts { of: self.of.clone() })? {
            Answer::Facts(facts) => Ok(*facts),
            other => Err(unexpected(&other)),
        }
    }

    fn peel_to_commit(&self, id: &ObjectId) -> Result<Option<ObjectId>> {
        self.repository.peel_to_commit(id)
    }

    fn is_ancestor(&self, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.repository.is_ancestor(old, new)
    }

    fn commits_lost(&self, old: &ObjectId, new: &ObjectId) -> Result<Vec<String>> {
        self.repository.commits_lost(old, new)
    }

    fn is_cut(&self, commit: &ObjectId) -> Result<bool> {
        self.repository.is_cut(commit)
    }

    fn cannot_move(&self, updates: &[RefUpdate]) -> Result<Option<String>> {
        self.repository.cannot_move(updates)
    }

    fn record_branch(&self, branch: &str) -> Result<()> {
        self.ask_done(&Ask::RecordBranch { of: self.of.clone(), branch: branch.to_string() })
    }

    fn check_space(&self) -> Result<()> {
        self.ask_done(&Ask::CheckSpace { of: self.of.clone() })
    }

    fn validate_pillar(&self, environment: Environment, commit: &ObjectId, fits: bool) -> Result<Vec<String>> {
        self.repository.validate_pillar(&self.of.project, environment, commit, fits)
    }

    fn project_head(&self) -> Result<Option<ObjectId>> {
        match self.ask(&Ask::ProjectHead { of: self.of.clone() })? {
            Answer::Head(head) => Ok(head),
            other => Err(unexpected(&other)),
        }
    }

    fn start(&self, request: &Request) -> Result<Box<dyn Run>> {
        let Want::Deploy { commit } = &request.want else {
            return Err(Error::bug("a hook orders deployments only"));
        };
        let order = Order {
            id: request.id.clone(),
            commit: commit.clone(),
            update: request.update.clone(),
            options: request.options.clone(),
            pusher: request.pusher.clone(),
            key: request.key.clone(),
            push: request.push.clone(),
            wait_seconds: request.wait_seconds,
        };
        match ask(&self.socket, &Ask::Start { of: self.of.clone(), order: Box::new(order) })? {
            (channel, Answer::Started) => Ok(Box::new(RemoteRun { channel, end: None })),
            (_, other) => Err(unexpected(&other)),
        }
    }

    fn was_deployed_by_push(&self, push: &str, refname: &RefName, new: &ObjectId) -> Result<bool> {
        let (push, refname, new) = (push.to_string(), refname.clone(), new.clone());
        match self.ask(&Ask::WasDeployed { of: self.of.clone(), push, refname, new })? {
            Answer::Deployed(is_so) => Ok(is_so),
            other => Err(unexpected(&other)),
        }
    }

    fn move_ref(&self, name: &RefName, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.repository.move_ref(name, old, new)
    }

    fn run_foreign_hook(&self, hook: &str, input: &[u8]) -> Result<Option<bool>> {
        self.repository.run_foreign_hook(hook, input)
    }
}

/// A deployment that root follows for us.
#[derive(Debug)]
struct RemoteRun {
    channel: Channel,
    end: Option<RunEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunEnd {
    /// Everything was told, or the worker is gone.
    Over,
    /// Root's process is gone before that: how the deployment ends is not known here.
    Lost,
}

impl Run for RemoteRun {
    fn next(&mut self, wait: Duration) -> Result<Option<Record>> {
        match self.end {
            Some(RunEnd::Over) => return Ok(None),
            Some(RunEnd::Lost) => return Err(Error::failed("the connection to the node's service was lost")),
            None => {}
        }
        match self.channel.receive(wait)? {
            Received::Line(line) => match door::read_answer(&line)?.or_error()? {
                Answer::Record(record) => Ok(Some(*record)),
                Answer::End | Answer::Gone => {
                    self.end = Some(RunEnd::Over);
                    Ok(None)
                }
                other => Err(unexpected(&other)),
            },
            Received::Nothing => Ok(None),
            Received::End => {
                self.end = Some(RunEnd::Lost);
                self.next(wait)
            }
        }
    }

    fn is_gone(&mut self) -> bool {
        self.end.is_some()
    }
}

/// Runs a command on the node as root, if this person may, and shows what it says; its exit code.
///
/// # Errors
/// If it is refused or cannot be run.
pub fn run_command(root: &Path, who: &Person, words: &[String]) -> Result<u8> {
    let socket = NodePlace::new(root).socket();
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let mut out = Screen::new(stdout.as_fd(), Screen::PATIENCE);
    let mut err = Screen::new(stderr.as_fd(), Screen::PATIENCE);
    let (mut channel, mut answer) = ask(&socket, &Ask::Command { who: who.clone(), words: words.to_vec() })?;
    loop {
        match answer {
            Answer::Output { to: Stream::Out, line } => out.line(&line),
            Answer::Output { to: Stream::Err, line } => err.line(&line),
            Answer::Exit(code) => return Ok(code),
            other => return Err(unexpected(&other)),
        }
        if !out.listens() && !err.listens() {
            return Err(Error::failed("nobody reads what the command says"));
        }
        answer = loop {
            match channel.receive(ANSWER)? {
                Received::Line(line) => break door::read_answer(&line)?.or_error()?,
                // A command may be silent for as long as it likes.
                Received::Nothing => {}
                Received::End => return Err(no_answer(&socket)),
            }
        };
    }
}

//! How work comes in: git calls us as a hook.
//!
//! A hook turns what git hands it into typed, validated data ([`receive`], [`options`], [`pktline`]), asks the
//! [`Desk`] for facts and for a detached worker, and relays what the worker says to the pusher ([`relay`]). It holds
//! no lock and changes nothing itself: it may be killed, stopped or forgotten at any moment.
//!
//! On a developer's machine [`push`] and [`far`] are the other end of this.

pub mod call;
pub mod check;
pub mod desk;
pub mod door;
pub mod event_lines;
#[cfg(test)]
mod fake;
pub mod far;
pub mod handover;
pub mod hello;
pub mod hook;
pub mod launch;
pub mod listen;
pub mod options;
pub mod pktline;
pub mod proc_receive;
pub mod push;
pub mod receive;
pub mod relay;
pub mod remote;
pub mod repository;
pub mod serve;
pub mod session;
pub mod shell;
pub mod unit;
pub mod watch;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::project::ids::{ObjectId, ProjectName, RefName};
use crate::project::mode::{Environment, Mode};
use crate::project::outcome::Serving;
use crate::project::request::{RefUpdate, Request};
use crate::report::event::Record;
use crate::sys::error::Result;

/// When a pusher is told how the deployment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictAt {
    /// Before git answers (proc-receive): the push fails when the deployment fails.
    Push,
    /// After git has accepted the push (post-receive).
    Later,
}

/// What happens with a push that takes commits out of the deploy branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Force {
    /// It is deployed, with a warning that names the lost commits.
    Allow,
    /// It is refused.
    Refuse,
}

/// Which of a project's two repositories was pushed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepoKind {
    /// `git/project`: code.
    Project,
    /// `git/pillar`: configuration.
    Pillar,
}

/// What a hook must know about the project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectFacts {
    /// The project.
    pub name: ProjectName,
    /// The environment.
    pub environment: Environment,
    /// The mode of a push without `mode=`.
    pub mode: Mode,
    /// The modes that the node allows.
    pub allowed_modes: Vec<Mode>,
    /// When the pusher is told.
    pub verdict: VerdictAt,
    /// Whether forced pushes are taken.
    pub force: Force,
    /// The branch of the pushed repository that counts, configured or recorded; `None` while none is chosen.
    pub branch: Option<String>,
    /// Why a person is needed, if one is.
    pub needs_person: Option<String>,
    /// What serves.
    pub serves: Option<Serving>,
    /// How long a deployment waits for the lock, in seconds.
    pub wait_seconds: Option<u64>,
}

/// The name under which it is noted that a push of the pillar was deployed: no ref, its order has none.
pub const PILLAR_PUSH: &str = "refs/mc_project/pillar";

/// What a hook needs from the rest of the program; one desk stands for the one repository that was pushed to.
pub trait Desk {
    /// The facts about the project.
    ///
    /// # Errors
    /// If its state or configuration cannot be read.
    fn facts(&self) -> Result<ProjectFacts>;

    /// The commit that this object is or points to; `None` if it is gone, a tree or a blob.
    ///
    /// In pre-receive the pushed objects are in git's quarantine ([`call::Call::quarantine`]), which the desk must see.
    ///
    /// # Errors
    /// If the repository cannot be read.
    fn peel_to_commit(&self, id: &ObjectId) -> Result<Option<ObjectId>>;

    /// Whether `old` is reachable from `new`.
    ///
    /// # Errors
    /// If the repository cannot be read.
    fn is_ancestor(&self, old: &ObjectId, new: &ObjectId) -> Result<bool>;

    /// The commits that are reachable from `old` and not from `new`, newest first, one line each, escaped; a bounded number.
    ///
    /// # Errors
    /// If the repository cannot be read.
    fn commits_lost(&self, old: &ObjectId, new: &ObjectId) -> Result<Vec<String>>;

    /// Whether a parent of this commit is missing from the repository, so that its history is cut off here.
    ///
    /// # Errors
    /// If the repository cannot be read.
    fn is_cut(&self, commit: &ObjectId) -> Result<bool>;

    /// Why these refs could not be moved together, if they could not (`update-ref --stdin`: start, update, prepare, abort).
    ///
    /// # Errors
    /// If the repository cannot be read.
    fn cannot_move(&self, updates: &[RefUpdate]) -> Result<Option<String>>;

    /// Records the branch that the first push chose; HEAD follows.
    ///
    /// # Errors
    /// If it cannot be written.
    fn record_branch(&self, branch: &str) -> Result<()>;

    /// Refuses when the disk is too full to begin.
    ///
    /// # Errors
    /// If there is too little space, with what is missing and what to do.
    fn check_space(&self) -> Result<()>;

    /// Checks the configuration that this commit of the pillar makes, and with `fits` against what the code that serves asks for;
    /// returns what whoever wrote it may not have meant.
    ///
    /// # Errors
    /// Of kind `Invalid` with file, line and reason.
    fn validate_pillar(&self, environment: Environment, commit: &ObjectId, fits: bool) -> Result<Vec<String>>;

    /// The commit that a pillar push with `-o deploy` deploys when nothing serves yet: the head of the deploy branch.
    ///
    /// # Errors
    /// If the project's repository cannot be read.
    fn project_head(&self) -> Result<Option<ObjectId>>;

    /// Starts the detached worker with this order.
    ///
    /// # Errors
    /// If it cannot be started.
    fn start(&self, request: &Request) -> Result<Box<dyn Run>>;

    /// Whether [`Desk::start`] was called for this push, ref and value; true from the moment it returned, in every process.
    ///
    /// For the pillar `refname` and `new` are those of the pillar's ref.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn was_deployed_by_push(&self, push: &str, refname: &RefName, new: &ObjectId) -> Result<bool>;

    /// Moves a ref of the pushed repository by compare-and-swap; false if it had moved.
    ///
    /// # Errors
    /// If it cannot be written.
    fn move_ref(&self, name: &RefName, old: &ObjectId, new: &ObjectId) -> Result<bool>;

    /// Runs the repository's own hook `hooks/<hook>.local` with this standard input; `None` if there is none, else
    /// whether it succeeded.
    ///
    /// # Errors
    /// If it cannot be started.
    fn run_foreign_hook(&self, hook: &str, input: &[u8]) -> Result<Option<bool>>;

    /// Gives to the receiver what git wrote into the repository as root, if that is who pushed.
    ///
    /// # Errors
    /// If something cannot be given.
    fn give_back(&self) -> Result<()> {
        Ok(())
    }
}

/// A deployment that was started, as the hook follows it.
pub trait Run {
    /// The next event; `None` if none came within `wait`.
    ///
    /// # Errors
    /// If the events cannot be read.
    fn next(&mut self, wait: Duration) -> Result<Option<Record>>;

    /// Whether worker and watcher are both dead.
    fn is_gone(&mut self) -> bool;
}

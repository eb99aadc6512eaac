//! What a hook or a command asks the worker to do: typed, validated, passed as JSON.

use serde::{Deserialize, Serialize};

use super::ids::{DeploymentId, ObjectId, ProjectName, RefName};
use super::mode::Mode;
use super::recipe::SlsName;
use super::stage::Stage;
use crate::sys::error::{Context, Result};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "want", rename_all = "snake_case")]
pub enum Want {
    /// Deploy this commit.
    Deploy {
        /// The commit.
        commit: ObjectId,
    },
    /// Make a kept release live again.
    Rollback {
        /// As the user named it (`None`: the one before): whole id, `#42`, prefix, commit, `-1`.
        to: Option<String>,
        /// Bring the data back too.
        with_data: bool,
    },
    /// Finish what was interrupted.
    Recover {
        /// The person's decision, where one is needed: `Some(true)` keep the new version, `Some(false)` go back.
        forward: Option<bool>,
        /// With `forward: Some(false)`: data go back too.
        with_data: bool,
    },
}

/// The ref that a push wants to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefUpdate {
    /// The full name of the ref.
    pub name: RefName,
    /// What the pusher believes it is (zero: new).
    pub old: ObjectId,
    /// What it shall become.
    pub new: ObjectId,
    /// Whether the worker moves the ref (proc-receive) or git has done so already (post-receive).
    pub moved_by_worker: bool,
}

/// The push options that change a deployment (`git push -o`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// `mode=`: another of the modes that the node allows.
    pub mode: Option<Mode>,
    /// `plan`: show what would happen, deploy nothing.
    pub plan: bool,
    /// `stage-only`: prepare everything, do not switch.
    pub stage_only: bool,
    /// `only=a,b`: run the recipe's steps of these stages only.
    pub only: Vec<Stage>,
    /// `skip=a,b`: do not run the recipe's steps of these stages.
    pub skip: Vec<Stage>,
    /// `only-steps=a,b`: of the states of Salt that are installed, run only these.
    pub only_steps: Vec<SlsName>,
    /// `reason=`: told in history and mail.
    pub reason: Option<String>,
    /// `async`: do not wait for the end.
    pub asynchronous: bool,
    /// `no-deploy`: take the commit, deploy nothing.
    pub no_deploy: bool,
    /// `deploy`: a pillar push also deploys; a live commit is deployed again.
    pub deploy: bool,
    /// `keep-aside`: in editable mode, what was changed in the clone is kept aside instead of refusing the push.
    pub keep_aside: bool,
    /// `events=1`: the pusher is a program, and reads events instead of lines. The worker has nothing to do with it.
    #[serde(skip)]
    pub events: bool,
}

/// One order for the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The project.
    pub project: ProjectName,
    /// The id that the deployment shall have.
    pub id: DeploymentId,
    /// What is wanted.
    #[serde(flatten)]
    pub want: Want,
    /// The pushed ref, if a push is behind it.
    pub update: Option<RefUpdate>,
    /// Push options.
    #[serde(default)]
    pub options: Options,
    /// Who asks.
    pub pusher: String,
    /// The fingerprint of the ssh key that the pusher came with, where it is known.
    #[serde(default)]
    pub key: Option<String>,
    /// Identifies the receive-pack process (its pid and start time).
    pub push: Option<String>,
    /// How long to wait for the lock, in seconds; `None`: as long as it takes.
    pub wait_seconds: Option<u64>,
}

impl Request {
    /// Reads an order.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).context(|| "cannot understand the request".to_string())
    }
}

//! What can be typed behind each command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{access, keeping, signing};
use crate::project::ids::{DeploymentId, ProjectName};
use crate::project::mode::Environment;
use crate::project::recipe::ServiceName;
use crate::sys::escape::visible;

/// A project alone.
#[derive(Debug, Args)]
pub struct OneName {
    /// The project
    pub name: ProjectName,
}

/// A project, and whether to print JSON.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The project
    pub name: ProjectName,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Whether to print JSON.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The object format of new repositories.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Format {
    /// sha1, git's default
    #[default]
    Sha1,
    /// sha256
    Sha256,
}

/// `setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Say what would be changed, and change nothing
    #[arg(long)]
    pub plan: bool,
    /// The account that receives pushes; mc if not given
    #[arg(long, value_name = "NAME")]
    pub receiver: Option<String>,
    /// What a new node.yaml says that the node is for; staging if not given
    #[arg(long, value_enum)]
    pub environment: Option<Environment>,
    /// With --node: install git and the ssh server there if they are missing
    #[arg(long)]
    pub packages: bool,
    /// Install Salt too, from PyPI into an environment of its own; of a node in a directory (--root) this is all
    #[arg(long)]
    pub salt: bool,
    /// With --node: send this program instead of the running one, for another kind of machine
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
}

/// `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The node: a name of nodes.yaml, a remote of this repository, or an address; if not given, the remote that is a node
    pub to: Option<String>,
    /// What to push, as git takes it; the checked out branch if not given
    #[arg(value_name = "REF")]
    pub refs: Vec<String>,
    /// A push option: -o plan, -o reason=…
    #[arg(short = 'o', value_name = "OPTION")]
    pub options: Vec<String>,
    /// Push even if commits are taken out of the branch there
    #[arg(long)]
    pub force: bool,
    /// Leave the pillar alone
    #[arg(long)]
    pub no_pillar: bool,
    /// Print each event as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `follow`.
#[derive(Debug, Args)]
pub struct FollowArgs {
    /// The project
    pub name: ProjectName,
    /// Which deployment; the one that runs, or the last one, if not given
    #[arg(allow_hyphen_values = true)]
    pub id: Option<String>,
    /// Print each event as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `after-death`.
#[derive(Debug, Args)]
pub struct AfterArgs {
    /// The project
    pub name: ProjectName,
    /// The deployment
    pub id: DeploymentId,
}

/// `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The project: a letter, then at most 30 of a-z 0-9 and -
    pub name: ProjectName,
    /// What the node is for: staging cooks and deploys, prod deploys what was cooked
    #[arg(long, value_enum)]
    pub environment: Option<Environment>,
    /// The object format of the repositories
    #[arg(long, value_enum, default_value_t)]
    pub object_format: Format,
}

/// `deploy`.
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// The project
    pub name: ProjectName,
    /// The commit; the deploy branch if not given
    #[arg(long, value_name = "REV")]
    pub commit: Option<String>,
    /// Deploy even if this commit is live already; --only and --only-steps do so too
    #[arg(long)]
    pub force: bool,
    /// Run the steps of these stages only, as -o only=…
    #[arg(long, value_name = "STAGES")]
    pub only: Option<String>,
    /// Of the states of Salt that are installed, run these only, as -o only-steps=…
    #[arg(long, value_name = "NAMES")]
    pub only_steps: Option<String>,
    /// Another of the modes that the node allows, and other push options: -o mode=…, -o skip=…, -o reason=…
    #[arg(short = 'o', value_name = "OPTION")]
    pub options: Vec<String>,
    /// How long to wait for the lock, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub wait: Option<u64>,
}

/// `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The project
    pub name: ProjectName,
    /// The commit; the deploy branch if not given
    #[arg(long, value_name = "REV")]
    pub commit: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What may be rolled back beside code and pillar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum With {
    /// The data as they were when that version was replaced
    Data,
}

/// `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The project
    pub name: ProjectName,
    /// Whose state: an id, the beginning of one, #42, a commit, or -1 (the good one before, the default)
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// Bring the data back too; says what was written since and asks
    #[arg(long, value_enum)]
    pub with: Option<With>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Why, for history and mail
    #[arg(long)]
    pub reason: Option<String>,
}

/// `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The project
    pub name: ProjectName,
    /// How many, newest first
    #[arg(short = 'n', long, default_value_t = 20)]
    pub limit: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `start`, `stop`, `restart`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// The project
    pub name: ProjectName,
    /// These services alone; all of them, and the steps, if none is given
    pub services: Vec<ServiceName>,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The project; all of them if not given
    pub name: Option<ProjectName>,
    /// Ask the checks of the services now, each once
    #[arg(long, conflicts_with = "disk")]
    pub check: bool,
    /// What it costs on the disk, by part, kept deployment and restore point. Parts and what removing a deployment frees are
    /// measured in disk blocks; what a deployment would take alone and what it shares are derived from manifests
    #[arg(long)]
    pub disk: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The project
    pub name: ProjectName,
    /// Which deployment: an id, the beginning of one, #42, a commit, -1; the last one if not given
    #[arg(allow_hyphen_values = true)]
    pub id: Option<String>,
    /// Print all of its log, not the end of it
    #[arg(long)]
    pub log: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The project
    pub name: ProjectName,
    /// One kept release
    #[arg(allow_hyphen_values = true)]
    pub a: String,
    /// The other one; what is live if not given
    #[arg(allow_hyphen_values = true)]
    pub b: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The project
    #[arg(required_unless_present = "all")]
    pub name: Option<ProjectName>,
    /// All projects of this node
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The project
    pub name: ProjectName,
    /// The log of this deployment; without it, what deployments and services wrote last, in one view
    #[arg(allow_hyphen_values = true, conflicts_with_all = ["service", "since", "lines", "json"])]
    pub id: Option<String>,
    /// Go on with what comes; a deployment is followed to its end
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// What this service wrote, alone
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<ServiceName>,
    /// Nothing before: 10m, 2h, 3d, or a time such as 2026-11-27T20:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,
    /// How many lines that are there already; 100 if nothing else is given
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub lines: Option<usize>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// A moment, as it is typed: how long ago, or when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(jiff::Timestamp),
}

impl Since {
    /// The moment, if it is now `now`.
    #[must_use]
    pub fn moment(self, now: jiff::Timestamp) -> jiff::Timestamp {
        match self {
            Self::Ago(time) => now.checked_sub(time).unwrap_or(jiff::Timestamp::MIN),
            Self::At(at) => at,
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is no time: 10m, 2h, 3d, or 2026-11-27T20:00Z", visible(text));
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        let unit = text.chars().last().ok_or_else(bad)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(bad()),
        };
        let count: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
        count.checked_mul(seconds).map(|all| Self::Ago(Duration::from_secs(all))).ok_or_else(bad)
    }
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The project
    pub name: ProjectName,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `task`.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// The project
    pub name: ProjectName,
    /// The task
    pub task: Option<String>,
}

/// `recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The project
    #[arg(required_unless_present = "all")]
    pub name: Option<ProjectName>,
    /// All projects of this node, one line each: what the machine does at boot
    #[arg(long, conflicts_with_all = ["name", "forward", "back", "json"])]
    pub all: bool,
    /// A person's decision: keep what is in run
    #[arg(long, conflicts_with = "back")]
    pub forward: bool,
    /// A person's decision: go back to the version before
    #[arg(long)]
    pub back: bool,
    /// With --back: the data too
    #[arg(long, value_enum, requires = "back")]
    pub with: Option<With>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `release …`.
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// List kept releases and deliverables
    List(NameArgs),
    /// Pack a kept release as a deliverable
    Pack(PickArgs),
    /// Write a kept or failed release as a tree into a new directory
    Checkout {
        /// The project
        name: ProjectName,
        /// Which release
        #[arg(allow_hyphen_values = true)]
        id: String,
        /// The directory; it must not exist
        dir: PathBuf,
    },
    /// Check the deliverable of a commit or release: signature, digests, content; prints where it came from
    Verify(PickArgs),
    /// Bring a deliverable from another node (`release_sources: [ssh://…]`) into releases/, and deploy nothing
    Fetch(keeping::FetchArgs),
    /// Hands deliverables to another node: the forced command of its key in authorized_keys (for sshd)
    #[command(hide = true)]
    Serve(OneName),
}

/// A project and one of its releases.
#[derive(Debug, Args)]
pub struct PickArgs {
    /// The project
    pub name: ProjectName,
    /// Which release; what is live if not given
    #[arg(allow_hyphen_values = true)]
    pub id: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `keys …`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Let a person in: their public key, and their role for projects. May be repeated
    Add(access::AddArgs),
    /// Take a person, a role or a key away
    Remove(access::RemoveArgs),
    /// List who may come in and what they may do
    List(access::ListArgs),
    /// Print the key that signs this node's deliverables, the keys that it trusts, the key with which it fetches from other
    /// nodes, and the machines that it knows
    Show(JsonArgs),
    /// Accept deliverables that are signed with this key
    Trust(signing::TrustArgs),
    /// Accept them no longer
    Distrust(signing::DistrustArgs),
    /// Know another node by its ssh key, so that deliverables can be fetched from it: shows the key and asks
    Host(signing::HostArgs),
}

/// `destroy`.
#[derive(Debug, Args)]
pub struct DestroyArgs {
    /// The project
    pub name: ProjectName,
    /// Do not ask for the name
    #[arg(long)]
    pub yes: bool,
    /// Remove the data, and what editable mode kept, too
    #[arg(long, value_enum)]
    pub with: Option<With>,
}

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where to build the node; a new directory below the temporary one if not given
    pub dir: Option<PathBuf>,
}

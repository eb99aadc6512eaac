//! The stages of every pipeline, in order (the RFC's names; `design` of the pipelines: README, "Modes").

use serde::{Deserialize, Serialize};

/// One stage of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Lock, recover, look for space; the walk that proves the spare begins.
    Accept,
    /// `project/` and `pillar/` become the pushed commits; variables are gathered.
    Checkout,
    /// The layout; the recipe's steps before a build.
    PreInstall,
    /// The build steps, seen at the path of `run`.
    Build,
    /// The steps after a build; what stands now is the deliverable.
    PostBuild,
    /// Find and verify the deliverable of the commit (final).
    Fetch,
    /// The spare becomes the new version.
    Candidate,
    /// Configuration is written into the candidate.
    Configure,
    /// The candidate is tested before it is activated.
    Check,
    /// The services of the old version stop.
    Stop,
    /// Data snapshot and dumps.
    Backup,
    /// The exchange of `run` and the candidate.
    Deploy,
    /// Steps right after the exchange, services still stopped.
    PostDeploy,
    /// The services of the new version start.
    Start,
    /// Steps after the start.
    PostInstall,
    /// Upgrade steps (migrations).
    Upgrade,
    /// The health of what runs now.
    Health,
    /// The durable record, the ref, `deploy/current`.
    Commit,
    /// Undo, when something failed after the exchange.
    Rollback,
    /// The steps that bring dumps back.
    Restore,
    /// Pack, drift, rotate, proof: can only warn.
    Settle,
    /// Tell people.
    Notify,
}

impl Stage {
    /// Every stage, in the order of the pipelines.
    pub const ALL: [Self; 22] = [
        Self::Accept,
        Self::Checkout,
        Self::PreInstall,
        Self::Build,
        Self::PostBuild,
        Self::Fetch,
        Self::Candidate,
        Self::Configure,
        Self::Check,
        Self::Stop,
        Self::Backup,
        Self::Deploy,
        Self::PostDeploy,
        Self::Start,
        Self::PostInstall,
        Self::Upgrade,
        Self::Health,
        Self::Commit,
        Self::Rollback,
        Self::Restore,
        Self::Settle,
        Self::Notify,
    ];

    /// The stages that may carry steps of the recipe.
    pub const WITH_STEPS: [Self; 15] = [
        Self::PreInstall,
        Self::Build,
        Self::PostBuild,
        Self::Configure,
        Self::Check,
        Self::Stop,
        Self::Backup,
        Self::Deploy,
        Self::PostDeploy,
        Self::Start,
        Self::PostInstall,
        Self::Upgrade,
        Self::Health,
        Self::Restore,
        Self::Notify,
    ];

    /// The name as it stands in YAML, options and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Checkout => "checkout",
            Self::PreInstall => "pre_install",
            Self::Build => "build",
            Self::PostBuild => "post_build",
            Self::Fetch => "fetch",
            Self::Candidate => "candidate",
            Self::Configure => "configure",
            Self::Check => "check",
            Self::Stop => "stop",
            Self::Backup => "backup",
            Self::Deploy => "deploy",
            Self::PostDeploy => "post_deploy",
            Self::Start => "start",
            Self::PostInstall => "post_install",
            Self::Upgrade => "upgrade",
            Self::Health => "health",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::Restore => "restore",
            Self::Settle => "settle",
            Self::Notify => "notify",
        }
    }

    /// The stage of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

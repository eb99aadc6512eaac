//! How a deployment ended: data, from which words, colours and exit codes are derived.

use serde::{Deserialize, Serialize};

use super::ids::{DeploymentId, ObjectId};
use super::stage::Stage;
use crate::sys::error::ExitCode;

/// The verdict on a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The new version serves.
    Deployed,
    /// The commit is live already; nothing was done.
    Unchanged,
    /// The plan was shown, or everything was prepared and not switched, as asked.
    Prepared,
    /// Refused before anything changed.
    Refused,
    /// Failed before the switch; nothing changed.
    Failed,
    /// Failed after the switch; the old version was brought back.
    RolledBack,
    /// Failed in editable mode, after the commit was checked out: `run` is left as it is.
    LeftAsItIs,
    /// Neither version could be brought up by ourselves.
    NeedsPerson,
    /// The worker died; recovery brought the old version back.
    Interrupted,
}

impl Verdict {
    /// The words for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Deployed => "deployed",
            Self::Unchanged => "unchanged",
            Self::Prepared => "prepared",
            Self::Refused => "refused",
            Self::Failed | Self::LeftAsItIs => "failed",
            Self::RolledBack => "rolled back",
            Self::NeedsPerson => "needs a person",
            Self::Interrupted => "interrupted",
        }
    }

    /// The exit code of a command that ended so.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Deployed | Self::Unchanged | Self::Prepared => ExitCode::Done,
            Self::Refused | Self::Failed | Self::RolledBack | Self::LeftAsItIs | Self::Interrupted => ExitCode::Failed,
            Self::NeedsPerson => ExitCode::NeedsPerson,
        }
    }

    /// Whether the pushed ref moves. In editable mode it does as soon as the commit is checked out.
    #[must_use]
    pub fn accepts_push(self) -> bool {
        matches!(self, Self::Deployed | Self::Unchanged | Self::LeftAsItIs)
    }
}

/// How `run` is switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchKind {
    /// One exchange of two directories.
    Exchange,
    /// File by file, because `run` is a mount point or on another file system.
    InPlace,
}

/// What serves at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The deployment that made it live.
    pub id: DeploymentId,
    /// The commit.
    pub commit: ObjectId,
}

/// How a deployment ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// The stage that decided it, where it was not `commit`.
    pub stage: Option<Stage>,
    /// Why, in one line (`exit 2`, `no deliverable of 1a2b3c4d5e in /srv/releases`).
    pub reason: Option<String>,
    /// What serves now; `None` before the first successful deployment.
    pub serves: Option<Serving>,
    /// What to do or look at next, one line each, best a command.
    pub hints: Vec<String>,
    /// The exit code, where it says more than the verdict does (invalid recipe: 3, busy: 4).
    pub exit: Option<u8>,
}

impl Outcome {
    /// The one verdict line: what happened, at which stage, why, and what serves now.
    #[must_use]
    pub fn line(&self) -> String {
        let mut text = self.verdict.words().to_string();
        if let Some(stage) = self.stage {
            text.push_str(" at ");
            text.push_str(stage.name());
        }
        if let Some(reason) = &self.reason {
            text.push_str(": ");
            text.push_str(reason);
        }
        text.push_str("; ");
        text.push_str(&self.serves_words());
        text
    }

    /// `run serves 1a2b3c4d5e`, `run still serves …` or `nothing was deployed yet`.
    #[must_use]
    pub fn serves_words(&self) -> String {
        match (&self.serves, self.verdict) {
            (None, Verdict::LeftAsItIs) => "run is left as it is".to_string(),
            (Some(s), Verdict::LeftAsItIs) => {
                format!("run is left as it is; the last good one was {}", s.commit.short())
            }
            (None, _) => "nothing is deployed yet".to_string(),
            (Some(s), Verdict::Deployed) => format!("run serves {}", s.commit.short()),
            (Some(s), Verdict::RolledBack | Verdict::Interrupted) => format!("run serves {} again", s.commit.short()),
            (Some(s), _) => format!("run still serves {}", s.commit.short()),
        }
    }

    /// The exit code of the command that made this deployment.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.exit.unwrap_or(self.verdict.exit_code() as u8)
    }
}

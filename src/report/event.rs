//! The one stream of events of a deployment; journal, pusher's lines, log, mail and history are its readers.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::project::ids::{DeploymentId, ObjectId, RefName};
use crate::project::mode::{Environment, Mode};
use crate::project::outcome::{Outcome, Serving, SwitchKind, Verdict};
use crate::project::stage::Stage;
use crate::sys::error::{Context, Result};

/// What kind of work a deployment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A commit was pushed or named.
    Deploy,
    /// A kept release is made live again by hand.
    Rollback,
}

/// Everything that is known when a deployment begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The deployment.
    pub id: DeploymentId,
    /// Its place in the order of this project's deployments, from 1.
    pub seq: u64,
    /// The project's name.
    pub project: String,
    /// Deploy or rollback.
    pub work: Work,
    /// The mode.
    pub mode: Mode,
    /// The environment.
    pub environment: Environment,
    /// The commit to deploy.
    pub commit: ObjectId,
    /// First line of the commit's message, unescaped.
    pub subject: String,
    /// The commit's author, `Name <address>`, unescaped.
    pub author: String,
    /// The pillar's commit, if the pillar has one.
    pub pillar: Option<ObjectId>,
    /// The ref that was pushed, if one was.
    pub refname: Option<RefName>,
    /// The value of that ref before the push.
    pub old: Option<ObjectId>,
    /// Whether the worker moves the ref (it runs before git answers) or git has done so already.
    pub moves_ref: bool,
    /// Who pushed or ran the command.
    pub pusher: String,
    /// The fingerprint of the ssh key that they came with, where it is known.
    #[serde(default)]
    pub key: Option<String>,
    /// The user's reason (`-o reason=…`).
    pub reason: Option<String>,
    /// What serves at this moment.
    pub serves: Option<Serving>,
    /// For a rollback, the deployment whose release is made live again.
    pub target: Option<DeploymentId>,
    /// Whether data go back too.
    pub with_data: bool,
    /// Identifies the receive-pack process that the push came through.
    pub push: Option<String>,
}

/// One path that a restore exchanges, with the inodes on both sides before (0: nothing there).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreUnit {
    /// The path, relative to `data/`; `.` is all of it.
    pub path: String,
    /// The inode in `data/`.
    pub live: u64,
    /// The inode in the snapshot.
    pub snapshot: u64,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The deployment has the lock and begins.
    Begin(Box<Begin>),
    /// The deployment waits for the lock (not in the journal: it has none yet).
    Waiting {
        /// Who holds it.
        holder: String,
    },
    /// A deployment was ordered; how it is asked for from now on (told to a pusher's program only).
    Ordered {
        /// The project.
        project: String,
        /// The deployment.
        id: DeploymentId,
    },
    /// Nothing else was told for a while (told to a pusher's program only).
    Still {
        /// What still runs.
        text: String,
    },
    /// A stage begins.
    Stage {
        /// Which one.
        stage: Stage,
    },
    /// A stage ended well.
    StageDone {
        /// Which one.
        stage: Stage,
        /// How long it took, in milliseconds.
        ms: u64,
        /// What it did, in a few words (`12 files changed`).
        note: Option<String>,
    },
    /// A stage failed.
    StageFailed {
        /// Which one.
        stage: Stage,
        /// How long it took, in milliseconds.
        ms: u64,
        /// Why, in one line.
        reason: String,
        /// The last lines of the failed step's output, escaped.
        tail: Vec<String>,
    },
    /// A step of the recipe begins.
    Step {
        /// The stage it belongs to.
        stage: Stage,
        /// The command as written in the recipe, escaped.
        title: String,
    },
    /// A step ended.
    StepDone {
        /// The stage it belongs to.
        stage: Stage,
        /// The exit status in words (`ok`, `exit 2`, `killed by SIGKILL`, `timeout after 15m`).
        status: String,
        /// How long it took, in milliseconds.
        ms: u64,
    },
    /// One line of output of a step, escaped (never in the journal).
    Output {
        /// The line.
        line: String,
    },
    /// Something that is told once.
    Note {
        /// The text, escaped.
        text: String,
    },
    /// Something that is wrong but does not fail the deployment.
    Warning {
        /// The text, escaped.
        text: String,
    },
    /// The candidate is complete: the manifest stands in `deploy/<id>/`.
    Prepared,
    /// The old services are asked to stop; from here on they must be started again if we fail.
    Stopping,
    /// The restore point `archives/<id>/` is complete.
    BackedUp,
    /// The exchange is about to be made.
    Switching {
        /// How.
        how: SwitchKind,
        /// The inode of `run` before.
        run_ino: u64,
        /// The inode of `deploy/spare` before.
        spare_ino: u64,
    },
    /// The new version is at `run`.
    Switched {
        /// The boot that this is, for the judgement of a recovery.
        boot: String,
        /// Milliseconds since boot.
        uptime_ms: u64,
    },
    /// A step or service of the new version is about to run: data may change from here on.
    Touched,
    /// The worker still lives (written while waiting for a step after the switch).
    Heartbeat {
        /// The boot that this is.
        boot: String,
        /// Milliseconds since boot.
        uptime_ms: u64,
    },
    /// In editable mode: the clone is about to be moved.
    CheckingOut {
        /// Where it stood; `None`: there was no clone yet.
        from: Option<ObjectId>,
    },
    /// In editable mode: the clone is at the commit, and the push is accepted.
    CheckedOut,
    /// Committed: the deployment is final, from here on it is only finished.
    Commit {
        /// The release that is live from now on.
        serves: Serving,
    },
    /// The rollback begins.
    RollingBack {
        /// Why.
        reason: String,
        /// The stage that failed.
        stage: Stage,
        /// Whether data must go back.
        data: bool,
    },
    /// Paths below `data/` are about to be exchanged with the snapshot of a restore point.
    RestoringData {
        /// The deployment whose restore point it is.
        from: DeploymentId,
        /// The paths, with what stood on both sides before.
        units: Vec<RestoreUnit>,
    },
    /// `run` is the old version again.
    RolledBack,
    /// All data are as they were at the restore point.
    DataRestored,
    /// The end; nothing follows but mail and settling.
    End {
        /// How it ended.
        outcome: Outcome,
    },
    /// After the end: a tree of so many entries is looked at for what was changed in it by hand, which is told.
    Looking {
        /// How many.
        entries: usize,
    },
    /// Nothing that is told from here on concerns whoever waits for the end: a pusher is let go.
    LetGo,
    /// Everything is settled; followers may stop reading.
    Closed,
}

impl Event {
    /// Whether the event belongs in the durable journal (output and waiting do not).
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !matches!(
            self,
            Self::Output { .. }
                | Self::Waiting { .. }
                | Self::Looking { .. }
                | Self::LetGo
                | Self::Closed
                | Self::Ordered { .. }
                | Self::Still { .. }
        )
    }

    /// Whether a recovery goes by this event: everything else is only told.
    #[must_use]
    pub fn is_milestone(&self) -> bool {
        matches!(
            self,
            Self::Begin(_)
                | Self::Prepared
                | Self::Stopping
                | Self::BackedUp
                | Self::Switched { .. }
                | Self::End { .. }
        ) || self.must_be_synced()
    }

    /// Whether the act that follows must not begin before this event, and all before it, are on disk. What precedes no such
    /// act waits for the next one that does: see [`super::journal`].
    #[must_use]
    pub fn must_be_synced(&self) -> bool {
        match self {
            Self::Switching { .. }
            | Self::Touched
            | Self::CheckingOut { .. }
            | Self::CheckedOut
            | Self::Commit { .. }
            | Self::RollingBack { .. }
            | Self::RestoringData { .. }
            | Self::RolledBack
            | Self::DataRestored => true,
            // That it was deployed is said by the record of the commit already.
            Self::End { outcome } => outcome.verdict != Verdict::Deployed,
            _ => false,
        }
    }
}

/// An event with its time, as it stands in the journal and in the events file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Wall time, a label.
    pub at: jiff::Timestamp,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// The record as one line of JSON in ASCII, for programs. No character of it is one that a terminal would obey or that is
    /// rewritten on the way (by git before it shows what a hook says, by ssh's forced command).
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn ascii_line(&self) -> Result<String> {
        let text = serde_json::to_string(self).context(|| "cannot write an event".to_string())?;
        let mut line = String::with_capacity(text.len());
        for c in text.chars() {
            if matches!(c, ' '..='~') {
                line.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_programs_is_ascii_and_says_the_same() {
        let text = "é \u{1f600} \u{202e}\u{7f} \"quoted\" \n\u{1b}[31m";
        let record = Record { at: jiff::Timestamp::UNIX_EPOCH, event: Event::Note { text: text.into() } };
        let line = record.ascii_line().unwrap();
        assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}

//! What is said through the supervisor's socket: one JSON object a line. A connection asks once; the answer is some lines
//! that a failing service wrote, then one word that ends it.
//!
//! The supervisor may be older or newer than whoever asks. [`Ask::Hello`] and [`Ask::HandOver`] are understood by every
//! version as they stand here; everything else only between equal versions. A supervisor of another version is asked to
//! hand over: it ends and leaves the services running, and one of the asker's version goes on with them.

use serde::{Deserialize, Serialize};

use crate::service::backend::{Failure, Look};
use crate::service::definition::{Definition, Instance};

/// The version of this protocol and of the state file.
pub const PROTOCOL: u32 = 1;
/// The longest line: the definitions of all services with their environments.
pub const LINE: usize = 32 * 1024 * 1024;

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Its protocol.
    pub protocol: u32,
    /// The version of its program.
    pub version: String,
    /// Its process.
    pub pid: u32,
}

impl Greeting {
    /// Our own.
    #[must_use]
    pub fn ours() -> Self {
        let version = pretended_version().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_string());
        Self { protocol: PROTOCOL, version, pid: std::process::id() }
    }

    /// Whether the two understand each other.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        (self.protocol, &self.version) == (other.protocol, &other.version)
    }
}

/// The variable by which a test makes one binary another version.
pub const PRETENDED: &str = "MC_PRETENDED_VERSION";

/// The version that a test wants; never in a build without fault points.
#[must_use]
pub fn pretended_version() -> Option<String> {
    if cfg!(feature = "failpoints") { std::env::var(PRETENDED).ok() } else { None }
}

/// What is asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Who are you?
    Hello,
    /// End, and leave everything running.
    HandOver,
    /// See [`crate::service::backend::Backend::converge`].
    Converge {
        /// What is to run.
        wanted: Vec<Definition>,
    },
    /// Stop these.
    Stop {
        /// Which.
        which: Vec<Instance>,
    },
    /// Start these.
    Start {
        /// Which.
        which: Vec<Instance>,
    },
    /// How are they?
    Look,
    /// Stop everything, forget it, and end.
    Forget,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Say {
    /// The answer to a hello.
    Hello(Greeting),
    /// It is at work still: whoever waits hears this, or anything else, again and again.
    Busy,
    /// A line of a service that failed.
    Line(String),
    /// It is done.
    Done,
    /// A service did not come up.
    Failed(Failed),
    /// How they are.
    Looks(Vec<Look>),
    /// It cannot be done.
    Error(String),
}

/// A [`Failure`] as it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failed {
    /// Which one.
    pub instance: Instance,
    /// Why.
    pub reason: String,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { instance: failure.instance, reason: failure.reason }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self { instance: failed.instance, reason: failed.reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_questions_of_every_version_are_written_as_ever() {
        let text = |ask: &Ask| serde_json::to_string(ask).unwrap();
        assert_eq!((text(&Ask::Hello), text(&Ask::HandOver)), ("\"hello\"".into(), "\"hand-over\"".into()));
        let ours = Greeting::ours();
        assert!(ours.fits(&Greeting { pid: 1, ..ours.clone() }));
        assert!(!ours.fits(&Greeting { version: "0.0.1".into(), ..ours.clone() }));
        assert!(!ours.fits(&Greeting { protocol: 2, ..ours.clone() }));
    }
}

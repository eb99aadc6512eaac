//! The first word between two copies of the program on two machines: which versions they are, and what can be asked for.

use serde::{Deserialize, Serialize};

use super::shell::words;
use crate::sys::escape::visible_bounded;

/// What a program asks another one for: `mc_project hello`.
pub const COMMAND: &str = "hello";
/// The version of what the two say to each other. It changes only where an older program would misunderstand a newer one;
/// what is new otherwise is told by [`Hello::commands`].
pub const PROTOCOL: u32 = 1;

/// Behind what the program answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behind {
    /// A forced command: only what the table serves, for the project's people.
    ForcedCommand,
    /// A shell: everything that this user may do.
    Shell,
}

/// The answer. Fields that a newer program adds are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program's version.
    pub mc_project: String,
    /// What it speaks.
    pub protocol: u32,
    /// Behind what it answers.
    pub behind: Behind,
    /// Who it runs as there.
    pub uid: u32,
    /// What is served, behind a forced command.
    #[serde(default)]
    pub commands: Vec<String>,
}

impl Hello {
    /// What this program answers.
    #[must_use]
    pub fn ours(behind: Behind) -> Self {
        Self {
            mc_project: env!("CARGO_PKG_VERSION").to_string(),
            protocol: PROTOCOL,
            behind,
            uid: rustix::process::geteuid().as_raw(),
            commands: match behind {
                Behind::ForcedCommand => words::names().map(str::to_string).collect(),
                Behind::Shell => Vec::new(),
            },
        }
    }

    /// The version, safe to show.
    #[must_use]
    pub fn version(&self) -> String {
        visible_bounded(self.mc_project.as_bytes(), 40)
    }
}

//! Environments and the modes they choose.

use serde::{Deserialize, Serialize};

/// How a project is deployed on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `run` is the developer's own checkout.
    Editable,
    /// Build here, deploy here, produce deliverables.
    Cooking,
    /// Deploy a deliverable that was cooked elsewhere; never build.
    Final,
}

impl Mode {
    /// The name as it stands in YAML, options and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Editable => "editable",
            Self::Cooking => "cooking",
            Self::Final => "final",
        }
    }
}

/// What a node is for; it chooses the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// A developer's machine: editable.
    Dev,
    /// The default: cooking.
    #[default]
    Staging,
    /// As staging.
    Test,
    /// As staging.
    Qa,
    /// As staging.
    Preprod,
    /// Production: final where `release_sources` are configured, else cooking.
    Prod,
}

impl Environment {
    /// The name as it stands in YAML, options and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Staging => "staging",
            Self::Test => "test",
            Self::Qa => "qa",
            Self::Preprod => "preprod",
            Self::Prod => "prod",
        }
    }

    /// The mode of this environment; production without a source of releases cooks.
    #[must_use]
    pub fn mode(self, has_release_sources: bool) -> Mode {
        match self {
            Self::Dev => Mode::Editable,
            Self::Prod if has_release_sources => Mode::Final,
            Self::Staging | Self::Test | Self::Qa | Self::Preprod | Self::Prod => Mode::Cooking,
        }
    }
}

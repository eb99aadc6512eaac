//! What `node.yaml` says of one project.

use std::str::FromStr;

use serde::Deserialize;
use serde::de::Deserializer;

use super::{Allow, Answer};
use crate::project::ids::{ProjectName, RefName};
use crate::project::limits::{StepLimits, StepLimitsFile};
use crate::project::mode::{Environment, Mode};
use crate::project::service_limits::{ServiceLimits, ServiceLimitsFile};
use crate::project::yaml::scalar::{Size, from_text, message_of};
use crate::project::yaml::with_hint;

/// What the file says of one project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub environment: Option<Environment>,
    pub mode: Option<Mode>,
    pub branch: Option<String>,
    pub answer: Option<Answer>,
    pub force: Option<bool>,
    pub trust_root: bool,
    pub user: Option<String>,
    pub steps: StepLimits,
    pub services: ServiceLimits,
    pub allow: Allow,
    pub disk: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectFile {
    environment: Option<Environment>,
    mode: Option<Mode>,
    branch: Option<Branch>,
    verdict: Option<Answer>,
    force: Option<Permission>,
    trust: Trust,
    user: Option<LoginName>,
    steps: StepLimitsFile,
    services: ServiceLimitsFile,
    allow: Allow,
    disk: Option<Size>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    Allow,
    Refuse,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    #[default]
    User,
    Root,
}

impl ProjectFile {
    /// The words as values.
    pub fn resolve(self) -> Overrides {
        Overrides {
            environment: self.environment,
            mode: self.mode,
            branch: self.branch.map(|branch| branch.0),
            answer: self.verdict,
            force: self.force.map(|word| word == Permission::Allow),
            trust_root: self.trust == Trust::Root,
            user: self.user.map(|user| user.0),
            steps: self.steps.resolve(),
            services: self.services.resolve(),
            allow: self.allow,
            disk: self.disk.map(|size| size.0),
        }
    }
}

/// The name of an account, as useradd(8) takes it; root is none that a project may have.
pub struct LoginName(String);

impl<'de> Deserialize<'de> for LoginName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "the name of an account", |name| {
            let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
            let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
            if name == "root" {
                return Err(with_hint("a project may not run as root", "`trust: root` lets single steps do so"));
            }
            if !first || !rest || name.len() > 32 {
                return Err(with_hint("this is no name of an account", "a-z, 0-9, _ and -, at most 32"));
            }
            Ok(Self(name.to_string()))
        })
    }
}

pub struct Branch(pub String);

impl<'de> Deserialize<'de> for Branch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "the name of a branch", |name| match RefName::of_branch(name) {
            Ok(_) if name.starts_with("refs/") => {
                Err(with_hint("this is a ref", "write the branch's name alone: main"))
            }
            Ok(_) => Ok(Self(name.to_string())),
            Err(error) => Err(message_of(&error)),
        })
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct ProjectKey(pub ProjectName);

impl<'de> Deserialize<'de> for ProjectKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "the name of a project", |name| {
            ProjectName::from_str(name).map(Self).map_err(|error| message_of(&error))
        })
    }
}

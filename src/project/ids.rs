//! Names and ids that come from outside, each a type that cannot hold a bad value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::error::{Error, Result};

pub use crate::sys::names::{ObjectId, RefName};

/// The name of a project: `^[a-z][a-z0-9-]{0,30}$` and not reserved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProjectName(String);

const RESERVED_NAMES: [&str; 4] = ["root", "git", "salt", "makina-projects"];

impl ProjectName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProjectName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = text.as_bytes();
        let shaped = matches!(bytes.first(), Some(b'a'..=b'z'))
            && bytes.len() <= 31
            && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !shaped || RESERVED_NAMES.contains(&text) || text.starts_with("mc-") {
            let shown = crate::sys::escape::visible(&text.chars().take(64).collect::<String>());
            return Err(Error::usage(format!("`{shown}` is no project name")).hint(
                "a name begins with a letter, has at most 31 of a-z 0-9 and -, and is none of root, git, salt, mc-*",
            ));
        }
        Ok(Self(text.to_string()))
    }
}

/// The id of one deployment: `<DATETIME>-<UUID>`, DATETIME in UTC.
///
/// The id is a label; order comes from the sequence number in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeploymentId(String);

impl DeploymentId {
    /// Makes a new id at the moment `now`.
    #[must_use]
    pub fn new(now: jiff::Timestamp) -> Self {
        let label = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        Self(format!("{label}-{}", uuid::Uuid::now_v7()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A short form for people: the last twelve digits, which are random.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[self.0.len() - 12..]
    }
}

impl FromStr for DeploymentId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let good = text.len() == 16 + 1 + 36
            && text.is_ascii()
            && text.as_bytes()[..16].iter().enumerate().all(|(i, b)| match i {
                8 => *b == b'T',
                15 => *b == b'Z',
                _ => b.is_ascii_digit(),
            })
            && text.as_bytes()[16] == b'-'
            && uuid::Uuid::try_parse(&text[17..]).is_ok_and(|u| u.to_string() == text[17..]);
        if !good {
            return Err(Error::usage(format!(
                "`{}` is no deployment id",
                crate::sys::escape::visible(&text.chars().take(80).collect::<String>())
            ))
            .hint("mc_project history NAME lists the ids"));
        }
        Ok(Self(text.to_string()))
    }
}

macro_rules! text_like {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
            }
        }
    )*};
}

text_like!(ProjectName, DeploymentId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_names_are_checked_by_pattern() {
        for good in ["a", "shop", "foo", "foobar", "a-b-9"] {
            assert!(good.parse::<ProjectName>().is_ok(), "{good}");
        }
        let long = "a".repeat(300);
        for bad in
            ["..", ".", "", "-rf", "a/b", "a;b", "é", "ROOT", "root", "git", "mc-x", "a\0", "a\n", "9a", "a_b", &long]
        {
            assert!(bad.parse::<ProjectName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_deployment_id_reads_back_and_bad_ones_do_not() {
        let id = DeploymentId::new(jiff::Timestamp::from_second(1_790_000_000).unwrap());
        assert_eq!(id.as_str().parse::<DeploymentId>().unwrap(), id);
        assert!(id.as_str().starts_with("20260921T"));
        for bad in ["", "x", "../../etc", &id.as_str()[1..], &format!("{id}/"), &id.as_str().to_uppercase()] {
            assert!(bad.parse::<DeploymentId>().is_err(), "{bad:?}");
        }
    }
}

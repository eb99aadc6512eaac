//! Names and ids that come from outside, each a type that cannot hold a bad value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::error::{Error, Result};

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

/// A git object id of 40 (sha1) or 64 (sha256) lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(String);

impl ObjectId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the all-zero id that stands for "no object" in hooks (githooks(5)).
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.bytes().all(|b| b == b'0')
    }

    /// The first ten digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..10]
    }

    /// The all-zero id with as many digits as this one.
    #[must_use]
    pub fn zero_like(&self) -> Self {
        Self("0".repeat(self.0.len()))
    }
}

impl FromStr for ObjectId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let good = matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good {
            Ok(Self(text.to_string()))
        } else {
            Err(Error::usage(format!(
                "`{}` is no object id",
                crate::sys::escape::visible(&text.chars().take(80).collect::<String>())
            )))
        }
    }
}

/// A full, well-formed ref name such as `refs/heads/main`, at most 1024 bytes long.
///
/// It may hold any byte that git-check-ref-format(1) allows, so it is escaped before it is shown and is never
/// part of a shell text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName(String);

impl RefName {
    /// The full name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The branch that this ref is, if it is one directly below `refs/heads/`.
    #[must_use]
    pub fn branch(&self) -> Option<&str> {
        self.0.strip_prefix("refs/heads/")
    }

    /// The ref of the branch `name`.
    ///
    /// # Errors
    /// If the name makes no valid ref.
    pub fn of_branch(name: &str) -> Result<Self> {
        format!("refs/heads/{name}").parse()
    }

    /// The name for people: without `refs/heads/`, escaped, at most 256 bytes.
    #[must_use]
    pub fn shown(&self) -> String {
        let name = self.branch().unwrap_or(&self.0);
        crate::sys::escape::visible_bounded(name.as_bytes(), 256)
    }
}

impl FromStr for RefName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad_char = |c: char| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
        let good = text.starts_with("refs/")
            && text.len() <= 8192
            && !text.contains("..")
            && !text.contains("@{")
            && !text.contains(bad_char)
            && text.split('/').all(|part| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && std::path::Path::new(part).extension().is_none_or(|e| e != "lock")
                    && !part.ends_with('.')
            });
        if good {
            Ok(Self(text.to_string()))
        } else {
            Err(Error::usage(format!("`{}` is no ref name", crate::sys::escape::visible_bounded(text.as_bytes(), 256))))
        }
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

text_like!(ProjectName, DeploymentId, ObjectId, RefName);

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

    #[test]
    fn object_ids_have_40_or_64_lowercase_digits() {
        for (len, good) in [(39, false), (40, true), (41, false), (64, true), (65, false)] {
            assert_eq!("a".repeat(len).parse::<ObjectId>().is_ok(), good, "{len}");
        }
        assert!("A".repeat(40).parse::<ObjectId>().is_err());
        assert!("0".repeat(64).parse::<ObjectId>().unwrap().is_zero());
    }

    #[test]
    fn ref_names_follow_git_check_ref_format() {
        for good in ["refs/heads/main", "refs/heads/a;id", "refs/heads/$(id)", "refs/heads/-x", "refs/tags/v1"] {
            assert!(good.parse::<RefName>().is_ok(), "{good}");
        }
        for bad in ["main", "refs/heads/../x", "refs/heads/a b", "refs/heads/x.lock", "refs//x", "refs/heads/a\u{1b}"] {
            assert!(bad.parse::<RefName>().is_err(), "{bad}");
        }
    }
}

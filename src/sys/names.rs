//! The names that git gives: object ids and refs, each a type that cannot hold a bad value.
//!
//! They stand here and not in the project's words, which pass them on, because the door to git speaks in them and
//! imports nothing from above.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// A git object id of 40 (sha1) or 64 (sha256) lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
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
                super::escape::visible(&text.chars().take(80).collect::<String>())
            )))
        }
    }
}

/// A full, well-formed ref name such as `refs/heads/main`, at most 1024 bytes long.
///
/// It may hold any byte that git-check-ref-format(1) allows, so it is escaped before it is shown and is never
/// part of a shell text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
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
        super::escape::visible_bounded(name.as_bytes(), 256)
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
            Err(Error::usage(format!("`{}` is no ref name", super::escape::visible_bounded(text.as_bytes(), 256))))
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ObjectId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RefName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

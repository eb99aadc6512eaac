//! The whole-machine node: what `setup` recorded, and which accounts its projects have.

use serde::{Deserialize, Serialize};

use super::ids::ProjectName;
use crate::sys::error::{Context, Error, Result};

/// The longest login name that useradd(8) takes.
const LONGEST_LOGIN: usize = 32;

/// `etc/mc_project/system.json`: its presence makes a node a whole-machine node, where the receiver of pushes, every
/// project and root are different users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Format of this file.
    pub format: u32,
    /// The account that receives pushes.
    pub receiver: String,
}

impl System {
    /// The receiver's account where nothing else was asked for.
    pub const RECEIVER: &str = "mc";

    /// Reads the record.
    ///
    /// # Errors
    /// If it is damaged or of a newer version.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let system: Self = serde_json::from_slice(bytes).context(|| format!("cannot understand {file}"))?;
        if system.format > 1 {
            return Err(Error::refused(format!("{file} was written by a newer mc_project")));
        }
        Ok(system)
    }

    /// The account of a project: `mc-NAME`, shortened with a digest where that is too long for a login name.
    #[must_use]
    pub fn project_account(name: &ProjectName) -> String {
        let whole = format!("mc-{name}");
        if whole.len() <= LONGEST_LOGIN {
            return whole;
        }
        let digest = blake3::hash(name.as_str().as_bytes()).to_hex();
        format!("{}-{}", &whole[..LONGEST_LOGIN - 7], &digest.as_str()[..6])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_project_has_a_login_name_of_its_own() {
        let of = |name: &str| System::project_account(&name.parse().unwrap());
        assert_eq!(of("shop"), "mc-shop");
        let (one, other) = ("a".repeat(31), format!("{}b", "a".repeat(30)));
        assert_eq!((of(&one).len(), of(&other).len()), (32, 32));
        assert_ne!(of(&one), of(&other));
    }

    #[test]
    fn a_record_of_the_future_is_not_read() {
        assert!(System::parse("s", br#"{"format": 1, "receiver": "mc"}"#).is_ok());
        assert!(System::parse("s", br#"{"format": 2, "receiver": "mc"}"#).is_err());
        assert!(System::parse("s", br#"{"format": 1, "receiver": "mc", "more": 1}"#).is_err());
    }
}

//! Accounts of the machine: who a name is, in numbers.

use std::ffi::CString;

use super::error::{Context, Error, Result};
use super::step_exec::RunAs;

/// A user of the machine with all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// First group.
    pub gid: u32,
    /// All groups, the first one among them (getgrouplist(3)).
    pub groups: Vec<u32>,
}

impl Account {
    /// The account of this name; `None` if there is none.
    ///
    /// # Errors
    /// If the machine's accounts cannot be read.
    pub fn of(name: &str) -> Result<Option<Self>> {
        let doing = || format!("cannot look up the account {name}");
        let Some(user) = nix::unistd::User::from_name(name).context(doing)? else { return Ok(None) };
        let text = CString::new(name).map_err(|_| Error::invalid("the name of an account holds a NUL byte"))?;
        let groups = nix::unistd::getgrouplist(&text, user.gid).context(doing)?;
        Ok(Some(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        }))
    }

    /// The identity that a program of this account takes.
    #[must_use]
    pub fn run_as(&self) -> RunAs {
        RunAs { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_a_stranger_is_not() {
        let root = Account::of("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        assert_eq!(Account::of("no-such-account-here").unwrap(), None);
    }
}

//! Accounts of the machine: who a name is, in numbers.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::path::Path;
use std::time::Duration;

use super::error::{Context, Error, Result};
use super::process::run_captured;
use super::step_exec::RunAs;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

    /// Makes a system account with a group of its own, without a password and without a login (useradd(8)).
    ///
    /// # Errors
    /// If there is one already, or useradd fails.
    pub fn make(name: &str, home: &Path) -> Result<Self> {
        let doing = || format!("cannot make the account {name}");
        let env = BTreeMap::from([("PATH".to_string(), PATH.to_string()), ("LC_ALL".to_string(), "C".to_string())]);
        let home = home.as_os_str().to_os_string();
        let words = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "--home-dir"];
        let args: Vec<OsString> = words.iter().map(OsString::from).chain([home, "--".into(), name.into()]).collect();
        let done = run_captured("useradd", &args, &env, &[], Duration::from_mins(1))?;
        if !done.status.is_ok() {
            let why = if done.last_words().is_empty() { done.status.words() } else { done.last_words() };
            return Err(Error::failed(doing()).because(Error::failed(why)).hint(format!("useradd --system {name}")));
        }
        Self::of(name)?.ok_or_else(|| Error::failed(doing()).because(Error::failed("it is not there afterwards")))
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

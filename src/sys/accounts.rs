//! Accounts of the machine: who a name is, in numbers.

use std::ffi::{CString, OsString};
use std::path::Path;
use std::time::Duration;

use super::error::{Context, Error, Result};
use super::process::{base_environment, run_captured};
use super::step_exec::RunAs;

/// No password that anybody can type; unlike `!` it does not lock the account: sshd without PAM lets nobody into a locked
/// one, not even with a key.
const NO_PASSWORD: &str = "*";

/// How somebody may come in as an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// Nobody may.
    Never,
    /// By ssh, with a key; it has a shell for sshd to start the forced command with.
    ByKey,
}

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

    /// Makes a system account with a group of its own and without a password that anybody can type (useradd(8)).
    ///
    /// # Errors
    /// If there is one already, or useradd fails.
    pub fn make(name: &str, home: &Path, comment: &str, login: Login) -> Result<Self> {
        let doing = || format!("cannot make the account {name}");
        let words: &[&str] = match login {
            Login::Never => &["--shell", "/usr/sbin/nologin"],
            Login::ByKey => &["--shell", "/bin/sh", "--password", NO_PASSWORD],
        };
        let always = ["--system", "--user-group", "--no-create-home", "--comment", comment];
        let mut args: Vec<OsString> = always.iter().chain(words).map(OsString::from).collect();
        args.extend(["--home-dir".into(), home.into(), "--".into(), name.into()]);
        run("useradd", &args).context(doing).map_err(|error| error.hint(format!("useradd --system {name}")))?;
        Self::of(name)?.ok_or_else(|| Error::failed(doing()).because(Error::failed("it is not there afterwards")))
    }

    /// Lets keys in where a locked account would let nobody in (usermod(8)).
    ///
    /// # Errors
    /// If usermod fails.
    pub fn unlock(name: &str) -> Result<()> {
        run("usermod", &["--password", NO_PASSWORD, "--", name].map(OsString::from))
            .context(|| format!("cannot unlock the account {name}"))
    }

    /// The identity that a program of this account takes.
    #[must_use]
    pub fn run_as(&self) -> RunAs {
        RunAs { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }
}

fn run(program: &str, args: &[OsString]) -> Result<()> {
    let done = run_captured(program, args, &base_environment(Path::new("/")), &[], Duration::from_mins(1))?;
    if done.status.is_ok() {
        return Ok(());
    }
    let why = if done.last_words().is_empty() { done.status.words() } else { done.last_words() };
    Err(Error::failed(format!("{program} failed")).because(Error::failed(why)))
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

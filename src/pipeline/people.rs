//! The people of a whole-machine node on the disk: `access.json`, and the receiver's `authorized_keys` made from it.
//!
//! The list is written first. A key that was taken away is refused by the forced command from that moment on, whatever
//! `authorized_keys` still says; a key that was added is let in when the second file is there too. Each change writes
//! both files whole, so that repeating a command repairs what a crash left between them.

use std::path::Path;
use std::time::{Duration, Instant};

use super::site::Node;
use crate::project::access::key::SshKey;
use crate::project::access::{self, Access, Forced};
use crate::sys::accounts::Account;
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Kind, Result};
use crate::sys::fs;
use crate::sys::lock::Lock;

/// How long a change waits for another one.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that is read of `authorized_keys`.
const KEYS_LIMIT: u64 = 16 * 1024 * 1024;

/// The people of a node, opened by root.
#[derive(Debug)]
pub struct People<'a> {
    node: &'a Node,
    receiver: Account,
}

/// What a change did.
#[derive(Debug)]
pub struct Changed<T> {
    /// What the change returned.
    pub done: T,
    /// Everybody, after it.
    pub access: Access,
    /// What is wrong with lines of `authorized_keys` that are not ours, in words.
    pub warnings: Vec<String>,
}

impl<'a> People<'a> {
    /// Opens the people of this node.
    ///
    /// # Errors
    /// Of kind `Usage` on a directory node, which has one user; of kind `Refused` if we are not root.
    pub fn open(node: &'a Node) -> Result<Self> {
        let Some(system) = &node.system else {
            return Err(Error::usage(format!(
                "{} is a directory node: everything in it belongs to one user, so there are no other people to let in",
                node.place.root().display()
            ))
            .hint("for several people that push over ssh, make this machine a node: sudo mc_project setup"));
        };
        if !rustix::process::geteuid().is_root() {
            return Err(Error::refused("who may come in is root's to say").hint("sudo mc_project keys …"));
        }
        let receiver = Account::of(&system.receiver)?.ok_or_else(|| {
            Error::refused(format!("the account {} that receives pushes is missing", system.receiver))
                .hint("mc_project setup")
        })?;
        Ok(Self { node, receiver })
    }

    /// The account that receives pushes.
    #[must_use]
    pub fn receiver(&self) -> &Account {
        &self.receiver
    }

    /// Everybody who may come in.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub fn read(&self) -> Result<Access> {
        let path = self.node.place.access();
        match fs::read_bounded(&path, access::LIMIT)? {
            Some(bytes) => Access::parse(&path.display().to_string(), &bytes),
            None => Ok(Access::default()),
        }
    }

    /// Changes the list and writes both files; nothing is written if `change` fails. Two at once follow each other.
    ///
    /// # Errors
    /// What `change` says, or if a file cannot be read or written.
    pub fn change<T>(&self, change: impl FnOnce(&mut Access) -> Result<T>) -> Result<Changed<T>> {
        let place = &self.node.place;
        let lock = Lock::take(&place.access_lock(), Some(Instant::now() + PATIENCE), |_| Ok(()));
        let _lock = lock.map_err(|error| match error.kind() {
            Kind::Busy => Error::new(Kind::Busy, "another command changes who may come in").hint("try again"),
            _ => error,
        })?;
        let mut access = self.read()?;
        let before = access.clone();
        let done = change(&mut access)?;
        access.set_projects_dir(&self.node.config.projects_dir);
        let binary = self.node.program()?;
        let lines = access.lines(&Forced { binary: &binary, root: &fs::canonical(place.root())? })?;
        let authorized = self.authorized_keys()?;
        let text = access::with_block(&authorized, &lines)?;
        let gid = self.receiver.gid;
        fs::write_durable_for(&place.access(), &access.to_json()?, 0o640, gid)?;
        // sshd reads it as the receiver, and wants it writable by nobody but its owner.
        fs::write_durable_for(&place.authorized_keys(), text.as_bytes(), 0o644, 0)?;
        let warnings = warnings(&authorized, &before, &access)?;
        Ok(Changed { done, access, warnings })
    }

    /// The text of `authorized_keys`, empty if there is none; its directories are made where they are missing.
    fn authorized_keys(&self) -> Result<String> {
        let path = self.node.place.authorized_keys();
        for dir in [Some(self.node.place.receiver_home().as_path()), path.parent()].into_iter().flatten() {
            ensure_root_dir(dir)?;
        }
        let bytes = fs::read_bounded(&path, KEYS_LIMIT)?.unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| Error::refused(format!("{} is no text", path.display())))
    }
}

/// A directory that only root can write to; whoever could exchange it for another one could let anybody in.
fn ensure_root_dir(dir: &Path) -> Result<()> {
    if !fs::exists(dir) {
        fs::ensure_dir(dir, 0o755)?;
        fs::set_mode(dir, 0o755)?;
    }
    let meta = Dir::open_real(dir)?.stat_self()?;
    if meta.uid != 0 || meta.mode & 0o022 != 0 {
        return Err(Error::refused(format!(
            "{} can be written by others than root, who could let anybody in",
            dir.display()
        ))
        .hint(format!("chown root:root {0}; chmod 755 {0}", dir.display())));
    }
    // sshd goes through it as the receiver.
    if meta.mode & 0o005 != 0o005 {
        fs::set_mode(dir, 0o755)?;
    }
    Ok(())
}

/// Lines that were put in by hand and hold a key of ours: they let its owner in without a forced command as soon as our
/// line is gone.
fn warnings(authorized: &str, before: &Access, after: &Access) -> Result<Vec<String>> {
    let foreign = access::foreign_lines(authorized)?;
    let holds = |key: &SshKey| foreign.iter().any(|line| line.split_whitespace().any(|word| word == key.blob()));
    let people = before.people().iter().chain(after.people());
    let keys = people.flat_map(|(name, person)| person.keys.iter().map(move |key| (name, key)));
    let mut found: Vec<String> = keys
        .filter(|(_, key)| holds(key))
        .map(|(name, key)| {
            format!("a line in authorized_keys that is not ours lets {name}'s key {} in as well", key.fingerprint())
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

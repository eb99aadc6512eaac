//! What git says of the developer's checkout: its remotes, its branch, and how git calls ssh.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::project::address::Address;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible;
use crate::sys::process::{Beside, Said, StepStatus, Tick, run_beside};

/// The key of git's configuration that says where the pillar's checkout is.
pub const PILLAR_KEY: &str = "mcproject.pillar";

/// What git sets for its hooks and aliases: it would mean another repository than the directory says.
pub const OF_ONE_REPOSITORY: &[&str] = &[
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
];

/// A checkout, or a directory that is in none.
#[derive(Debug)]
pub struct Checkout {
    dir: PathBuf,
    /// Its work tree; `None` outside of one.
    pub top: Option<PathBuf>,
    config: BTreeMap<String, String>,
}

/// What a program of git's printed.
struct Printed {
    status: StepStatus,
    out: Vec<u8>,
    last: String,
}

impl Checkout {
    /// The checkout that `dir` is in.
    ///
    /// # Errors
    /// If there is no git on this machine.
    pub fn around(dir: &Path) -> Result<Self> {
        let top = git(dir, &["rev-parse", "--show-toplevel"])?;
        let top = (top.status == StepStatus::Ok).then(|| PathBuf::from(OsStr::from_bytes(&top.out)));
        let listed = git(dir, &["config", "--null", "--list"])?;
        let mut config = BTreeMap::new();
        for entry in listed.out.split(|b| *b == 0) {
            let text = String::from_utf8_lossy(entry);
            if let Some((key, value)) = text.split_once('\n') {
                // The last one wins, as in git.
                config.insert(key.to_string(), value.to_string());
            }
        }
        Ok(Self { dir: dir.to_path_buf(), top, config })
    }

    /// A directory that is in no checkout.
    #[must_use]
    pub fn nowhere(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), top: None, config: BTreeMap::new() }
    }

    /// How git calls ssh: a line of sh.
    #[must_use]
    pub fn ssh_command(&self) -> String {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        set("GIT_SSH_COMMAND")
            .or_else(|| self.config.get("core.sshcommand").cloned())
            .or_else(|| {
                set("GIT_SSH").map(|program| super::ssh::quoted(OsStr::new(&program)).to_string_lossy().into_owned())
            })
            .unwrap_or_else(|| "ssh".to_string())
    }

    /// The names of the remotes, sorted.
    #[must_use]
    pub fn remotes(&self) -> Vec<String> {
        let name = |key: &String| Some(key.strip_prefix("remote.")?.strip_suffix(".url")?.to_string());
        self.config.keys().filter_map(name).filter(|name| !name.starts_with('-')).collect()
    }

    /// Where a push to this remote goes, if ssh or this machine's disk leads there.
    ///
    /// # Errors
    /// If git cannot be run.
    pub fn push_address(&self, remote: &str) -> Result<Option<Address>> {
        let said = git(&self.dir, &["remote", "get-url", "--push", "--", remote])?;
        let url = String::from_utf8_lossy(&said.out).into_owned();
        if said.status != StepStatus::Ok {
            return Ok(None);
        }
        Ok(Address::parse(&url).map(|address| self.absolute(address)))
    }

    /// A path of this machine is taken from the work tree, as git takes it.
    fn absolute(&self, address: Address) -> Address {
        match (&address.login, &self.top) {
            (None, Some(top)) if !address.path.starts_with('/') => {
                Address { path: top.join(&address.path).display().to_string(), ..address }
            }
            _ => address,
        }
    }

    /// Where the pillar's checkout is, if git's configuration says so; from the work tree on.
    #[must_use]
    pub fn pillar(&self) -> Option<PathBuf> {
        let (value, top) = (self.config.get(PILLAR_KEY)?, self.top.as_ref()?);
        match (value.strip_prefix("~/"), std::env::var_os("HOME")) {
            (Some(rest), Some(home)) => Some(PathBuf::from(home).join(rest)),
            _ => Some(top.join(value)),
        }
    }

    /// The branch that is checked out.
    ///
    /// # Errors
    /// If none is.
    pub fn branch(&self) -> Result<String> {
        let said = git(&self.dir, &["symbolic-ref", "--quiet", "--short", "HEAD"])?;
        let branch = String::from_utf8_lossy(&said.out).into_owned();
        if said.status == StepStatus::Ok && !branch.is_empty() {
            return Ok(branch);
        }
        Err(Error::usage("no branch is checked out here, so it is not clear what to push")
            .hint("name it: mc_project push NODE HEAD:main"))
    }

    /// Whether there is a commit.
    ///
    /// # Errors
    /// If git cannot be run.
    pub fn has_commit(&self) -> Result<bool> {
        Ok(git(&self.dir, &["rev-parse", "--quiet", "--verify", "HEAD^{commit}"])?.status == StepStatus::Ok)
    }

    /// Whether files that git knows differ from the commit.
    ///
    /// # Errors
    /// If git cannot say so.
    pub fn is_changed(&self) -> Result<bool> {
        let said = git(&self.dir, &["status", "--porcelain", "--untracked-files=no"])?;
        match said.status {
            StepStatus::Ok => Ok(!said.out.is_empty()),
            _ => Err(Error::failed(format!("git cannot look at {}: {}", self.dir.display(), said.last))),
        }
    }
}

/// Runs a command of git that only looks; what it prints without the last line's end.
fn git(dir: &Path, args: &[&str]) -> Result<Printed> {
    let words = std::iter::once("git").chain(args.iter().copied()).map(OsString::from).collect();
    let order = Beside {
        dir: Some(dir.to_path_buf()),
        env: vec![("LC_ALL", "C.UTF-8".into())],
        without: OF_ONE_REPOSITORY,
        ..Beside::new(words)
    };
    let (mut out, mut last) = (Vec::new(), String::new());
    let status = run_beside(order, &mut |said| {
        match said {
            Said::Out(line) => {
                if !out.is_empty() {
                    out.push(b'\n');
                }
                out.extend_from_slice(line);
            }
            Said::Err(line) => last = visible(&String::from_utf8_lossy(line)),
            Said::Runs => {}
        }
        Tick::GoOn
    })
    .map_err(|error| error.hint("apt install git"))?;
    Ok(Printed { status, out, last })
}

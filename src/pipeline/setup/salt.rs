//! Salt for a node: an environment of Python of its own with `salt` from PyPI, which nothing else of the machine uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::project::place::NodePlace;
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::lock::{Holder, Lock};
use crate::sys::process::{self, StepStatus, run_captured};

/// The version that is installed: the one that the tests ran with.
pub const VERSION: &str = "3008.3";
/// How long pip may take.
const PATIENCE: Duration = Duration::from_mins(30);

/// What is to be done.
#[derive(Debug)]
pub struct SaltSetup {
    /// The link to the environment that is used.
    link: PathBuf,
}

impl SaltSetup {
    /// For a node.
    #[must_use]
    pub fn of(place: &NodePlace) -> Self {
        Self { link: place.salt() }
    }

    /// Whether the version that we want is there and runs.
    #[must_use]
    pub fn is_done(&self) -> bool {
        fs::link_target(&self.link).is_some_and(|target| is_of_our_version(&target.to_string_lossy()))
            && version(&self.link).is_ok_and(|version| version.contains(VERSION))
    }

    /// What will be done, in a sentence.
    #[must_use]
    pub fn words(&self) -> String {
        format!("install Salt {VERSION} from PyPI into {}-{VERSION}", self.link.display())
    }

    /// Makes the environment beside the one that is used, and switches to it when it runs. Those that were left before are
    /// removed; the one that was used until now stays until the next time, because a deployment may be using it.
    ///
    /// # Errors
    /// If Python is missing, pip fails, or what it installed does not run.
    pub fn install(&self) -> Result<()> {
        let parent = self.link.parent().unwrap_or(&self.link);
        fs::ensure_dir(parent, 0o755)?;
        let mut lock = Lock::take(&self.link.with_extension("lock"), Some(Instant::now()), |_| Ok(()))?;
        let what = "installs Salt".to_string();
        lock.describe(&Holder {
            what,
            id: None,
            pid: std::process::id(),
            since: crate::sys::clock::now().to_string(),
        })?;
        let used = fs::link_target(&self.link);
        let is_used = |name: &str| used.as_deref() == Some(Path::new(name));
        let own = |name: &&String| name.starts_with("salt-") && !is_used(name);
        for left in fs::names(parent)?.iter().filter(own) {
            Dir::open_real(parent)?.remove_tree(Path::new(left))?;
        }
        let first = format!("salt-{VERSION}");
        let name = if is_used(&first) { format!("{first}-again") } else { first };
        let dir = parent.join(&name);
        // Whoever runs states must be able to read it, whatever root's own mask is.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let made = make(&dir);
        nix::sys::stat::umask(before);
        made?;
        version(&dir)?;
        fs::put_symlink(&self.link, Path::new(&name)).map(drop)
    }
}

/// Whether an environment's name says that it has our version.
fn is_of_our_version(name: &str) -> bool {
    name.strip_prefix("salt-").is_some_and(|rest| rest == VERSION || rest == format!("{VERSION}-again"))
}

fn make(dir: &Path) -> Result<()> {
    let shown = dir.display().to_string();
    if let Err(why) = run("python3", &["-m", "venv", &shown])? {
        return Err(Error::failed(format!("python3 cannot make an environment in {shown}: {why}"))
            .hint("apt install python3-venv"));
    }
    let pip = dir.join("bin/pip").display().to_string();
    let package = format!("salt=={VERSION}");
    let options = ["install", "--quiet", "--disable-pip-version-check", "--no-input", &package];
    match run(&pip, &options)? {
        Ok(()) => Ok(()),
        Err(why) => Err(Error::failed(format!("pip cannot install {package}: {why}")).hint(
            "it is fetched from PyPI: PIP_INDEX_URL and HTTPS_PROXY say where from; a salt-call that is there already: `salt: PATH` in node.yaml",
        )),
    }
}

/// What the program in an environment says of itself.
fn version(dir: &Path) -> Result<String> {
    let program = dir.join("bin/salt-call").display().to_string();
    match run_captured(&program, &["--version"], &environment(), &[], Duration::from_mins(2))? {
        ended if ended.status == StepStatus::Ok => Ok(String::from_utf8_lossy(&ended.stdout).trim().to_string()),
        ended => Err(Error::failed(format!("{program} does not run: {}", ended.last_words()))),
    }
}

/// Runs a program; the inner error is its last line.
fn run(program: &str, args: &[&str]) -> Result<std::result::Result<(), String>> {
    let ended = run_captured(program, args, &environment(), &[], PATIENCE)?;
    Ok(match &ended.status {
        StepStatus::Ok => Ok(()),
        StepStatus::CouldNotStart(why) => Err(why.clone()),
        status => Err(format!("{} ({})", ended.last_words(), status.words())),
    })
}

/// A clean environment with what says how PyPI is reached.
fn environment() -> BTreeMap<String, String> {
    let mut env = process::base_environment(Path::new("/nonexistent"));
    let is_about_the_way = |name: &str| {
        let lower = name.to_lowercase();
        lower == "home" || lower.starts_with("pip_") || lower.ends_with("_proxy") || lower.starts_with("ssl_cert_")
    };
    env.extend(std::env::vars().filter(|(name, _)| is_about_the_way(name)));
    env
}

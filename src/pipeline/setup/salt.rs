//! Salt for a node: an environment of Python of its own with `salt` from PyPI, which nothing else of the machine uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pipeline::salt::own_program;
use crate::project::place::NodePlace;
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
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
    /// The environment itself.
    dir: PathBuf,
    program: PathBuf,
}

impl SaltSetup {
    /// For a node.
    #[must_use]
    pub fn of(place: &NodePlace) -> Self {
        let link = place.salt();
        Self { dir: link.with_file_name(format!("salt-{VERSION}")), link, program: own_program(place) }
    }

    /// Whether the version that we want is there and runs.
    #[must_use]
    pub fn is_done(&self) -> bool {
        fs::link_target(&self.link).is_some_and(|target| Some(target.as_os_str()) == self.dir.file_name())
            && self.version().is_ok_and(|version| version.contains(VERSION))
    }

    /// What will be done, in a sentence.
    #[must_use]
    pub fn words(&self) -> String {
        format!("install Salt {VERSION} from PyPI into {}", self.dir.display())
    }

    /// Makes the environment beside an older one, and switches to it when it runs.
    ///
    /// # Errors
    /// If Python is missing, pip fails, or what it installed does not run.
    pub fn install(&self) -> Result<()> {
        let parent = self.link.parent().unwrap_or(&self.link);
        fs::ensure_dir(parent, 0o755)?;
        if let Some(name) = self.dir.file_name().filter(|_| fs::exists(&self.dir)) {
            // Left by one that was interrupted, or does not run any more.
            Dir::open_real(parent)?.remove_tree(Path::new(name))?;
        }
        let dir = self.dir.display().to_string();
        let made = Self::run("python3", &["-m", "venv", &dir])?;
        if let Err(why) = made {
            return Err(Error::failed(format!("python3 cannot make an environment in {dir}: {why}"))
                .hint("apt install python3-venv"));
        }
        let pip = self.dir.join("bin/pip").display().to_string();
        let package = format!("salt=={VERSION}");
        let options = ["install", "--quiet", "--disable-pip-version-check", "--no-input", &package];
        if let Err(why) = Self::run(&pip, &options)? {
            return Err(Error::failed(format!("pip cannot install {package}: {why}")).hint(
                "it is fetched from PyPI: PIP_INDEX_URL and HTTPS_PROXY say where from; a salt-call that is there already: `salt: PATH` in node.yaml",
            ));
        }
        let before = fs::link_target(&self.link);
        let name = self.dir.file_name().map(PathBuf::from).unwrap_or_default();
        fs::put_symlink(&self.link, &name)?;
        self.version()?;
        if let Some(old) = before.filter(|old| *old != name && old.components().count() == 1) {
            Dir::open_real(parent)?.remove_tree(&old)?;
        }
        Ok(())
    }

    fn version(&self) -> Result<String> {
        let program = self.program.display().to_string();
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

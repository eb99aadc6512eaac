//! The desk of this program: what a hook may know and ask for, on a real node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::call::Call;
use super::launch::launch;
use super::{Desk, Force, ProjectFacts, RepoKind, Run, VerdictAt};
use crate::pipeline::draft::read_pillar_in;
use crate::pipeline::site::Site;
use crate::project::ids::{ObjectId, RefName};
use crate::project::node::Answer;
use crate::project::request::{RefUpdate, Request};
use crate::report::ledger::Last;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::git::Repo;
use crate::sys::process::{StepStatus, run_captured};
use crate::sys::{fs, process};

/// How many lost commits are named.
const LOST: usize = 5;
/// How long a foreign hook may take.
const FOREIGN: Duration = Duration::from_mins(10);

/// The desk for one repository of one project.
#[derive(Debug)]
pub struct NodeDesk {
    site: Site,
    kind: RepoKind,
    repository: PathBuf,
    quarantine: Option<PathBuf>,
}

impl NodeDesk {
    /// The desk for the repository that git called us in.
    ///
    /// # Errors
    /// If the repository belongs to no project.
    pub fn new(call: &Call) -> Result<Self> {
        let site = Site::of_repository(&call.repository)?;
        Ok(Self { site, kind: call.kind, repository: call.repository.clone(), quarantine: call.quarantine.clone() })
    }

    fn repo(&self) -> Result<Repo> {
        let repository = fs::canonical(&self.repository)?;
        match (&self.quarantine, self.kind) {
            // Only we can read what we just pushed.
            (Some(objects), _) => Repo::open_with_objects(&repository, objects),
            (None, RepoKind::Project) => self.site.repo(),
            (None, RepoKind::Pillar) => self.site.pillar_repo(),
        }
    }

    /// Gives to the receiver what git wrote into the repository as root, if that is who pushed.
    ///
    /// # Errors
    /// If something cannot be given.
    pub fn give_back(&self) -> Result<()> {
        crate::pipeline::rights::give_back(&self.site, &fs::canonical(&self.repository)?).map(|_| ())
    }

    fn pushes(&self) -> PathBuf {
        self.site.place.state().join("pushes")
    }
}

impl Desk for NodeDesk {
    fn facts(&self) -> Result<ProjectFacts> {
        let (site, config) = (&self.site, &self.site.config);
        let last = Last::read(&site.place)?;
        let branch = match self.kind {
            RepoKind::Project => site.deploy_branch()?.and_then(|name| name.branch().map(str::to_string)),
            RepoKind::Pillar => None,
        };
        Ok(ProjectFacts {
            name: site.place.name().clone(),
            environment: config.environment,
            mode: config.mode,
            allowed_modes: config.modes.clone(),
            verdict: if config.answer == Answer::Push { VerdictAt::Push } else { VerdictAt::Later },
            force: if config.allow_force { Force::Allow } else { Force::Refuse },
            branch,
            needs_person: last.as_ref().and_then(|last| last.needs_person.clone()),
            serves: last.and_then(|last| last.serves),
            wait_seconds: Some(site.node.config.wait.as_secs()),
        })
    }

    fn peel_to_commit(&self, id: &ObjectId) -> Result<Option<ObjectId>> {
        self.repo()?.peel_to_commit(id)
    }

    fn is_ancestor(&self, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.repo()?.is_ancestor(old, new)
    }

    fn commits_lost(&self, old: &ObjectId, new: &ObjectId) -> Result<Vec<String>> {
        let lost = self.repo()?.log(old, Some(new), LOST)?;
        let line = |info: &crate::sys::git::CommitInfo| {
            format!("{} {}", info.id.short(), visible_bounded(info.subject.as_bytes(), 100))
        };
        Ok(lost.iter().map(line).collect())
    }

    fn is_cut(&self, commit: &ObjectId) -> Result<bool> {
        let repo = self.repo()?;
        for parent in repo.commit(commit)?.parents {
            if repo.peel_to_commit(&parent)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn cannot_move(&self, updates: &[RefUpdate]) -> Result<Option<String>> {
        let repo = self.repo()?;
        for update in updates {
            let now = repo.read_ref(&update.name)?;
            let expected = if update.old.is_zero() { None } else { Some(update.old.clone()) };
            if now != expected {
                return Ok(Some(format!("{} is not where it was", update.name.shown())));
            }
        }
        Ok(None)
    }

    fn record_branch(&self, branch: &str) -> Result<()> {
        if self.kind == RepoKind::Project {
            self.site.record_branch(branch)?;
        }
        self.repo()?.set_head(&RefName::of_branch(branch)?)
    }

    fn check_space(&self) -> Result<()> {
        let free = Dir::open(self.site.place.dir())?.free_space()?;
        let reserve = self.site.node.config.reserve.of(free.total);
        if free.bytes < reserve || free.inodes < 1000 {
            return Err(Error::refused(format!(
                "no space: {} bytes and {} inodes are free, {reserve} bytes and 1000 inodes stay free",
                free.bytes, free.inodes
            ))
            .hint("free some space on the node (df -h, df -i), then push again"));
        }
        Ok(())
    }

    fn validate_pillar(&self, commit: &ObjectId) -> Result<()> {
        read_pillar_in(&self.repo()?, &self.site, commit).map(|_| ())
    }

    fn project_head(&self) -> Result<Option<ObjectId>> {
        match self.site.deploy_branch()? {
            Some(branch) => self.site.repo()?.read_ref(&branch),
            None => Ok(None),
        }
    }

    fn start(&self, request: &Request) -> Result<Box<dyn Run>> {
        let launched = launch(&self.site, request)?;
        if let (Some(push), Some(update)) = (&request.push, &request.update) {
            remember(&self.pushes(), push, &update.name, &update.new)?;
        }
        Ok(Box::new(launched))
    }

    fn was_deployed_by_push(&self, push: &str, refname: &RefName, new: &ObjectId) -> Result<bool> {
        let Some(bytes) = fs::read_if_there(&self.pushes().join(push))? else { return Ok(false) };
        let line = format!("{new} {refname}");
        Ok(String::from_utf8_lossy(&bytes).lines().any(|known| known == line))
    }

    fn move_ref(&self, name: &RefName, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.repo()?.move_ref(name, old, new, "mc_project: taken, not deployed")
    }

    fn run_foreign_hook(&self, hook: &str, input: &[u8]) -> Result<Option<bool>> {
        let path = self.repository.join("hooks").join(format!("{hook}.local"));
        if !fs::is_executable(&path) {
            return Ok(None);
        }
        let mut env = process::base_environment(Path::new("/nonexistent"));
        env.insert("GIT_DIR".to_string(), self.repository.display().to_string());
        let ended = run_captured(&path, &[] as &[&str], &env, input, FOREIGN)?;
        if ended.status != StepStatus::Ok {
            tracing::warn!("{}: {}", path.display(), ended.last_words());
        }
        Ok(Some(ended.status == StepStatus::Ok))
    }
}

/// Notes that a push was taken up, for the later hooks of the same push; notes of pushes that are over are removed.
fn remember(dir: &Path, push: &str, refname: &RefName, new: &ObjectId) -> Result<()> {
    fs::ensure_dir(dir, 0o700)?;
    for name in fs::names(dir)? {
        let pid = name.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
        if name != push && pid.and_then(super::call::push_id).as_deref() != Some(name.as_str()) {
            fs::remove_file(&dir.join(&name))?;
        }
    }
    let mut known = fs::read_if_there(&dir.join(push))?.unwrap_or_default();
    known.extend(format!("{new} {refname}\n").into_bytes());
    fs::write_in_place(&dir.join(push), &known).context(|| "cannot note a push".to_string())
}

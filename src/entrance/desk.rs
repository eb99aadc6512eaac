//! The desk of this program: what a hook may know and ask for, on a real node.

use std::path::{Path, PathBuf};

use super::call::Call;
use super::launch::launch;
use super::repository::Repository;
use super::{Desk, Force, ProjectFacts, RepoKind, Run, VerdictAt};
use crate::pipeline::preflight;
use crate::pipeline::site::Site;
use crate::project::ids::{ObjectId, RefName};
use crate::project::mode::Environment;
use crate::project::node::Answer;
use crate::project::request::{RefUpdate, Request, Want};
use crate::report::ledger::Last;
use crate::sys::error::{Context, Result};
use crate::sys::fs;

/// The desk for one repository of one project.
#[derive(Debug)]
pub struct NodeDesk {
    site: Site,
    repository: Repository,
}

impl NodeDesk {
    /// The desk for the repository that git called us in.
    ///
    /// # Errors
    /// If the repository belongs to no project.
    pub fn new(call: &Call) -> Result<Self> {
        let site = Site::of_repository(&call.repository)?;
        let repository = Repository { reader: site.receiver_identity(), ..Repository::of(call) };
        Ok(Self { site, repository })
    }

    /// The desk for a repository of a project, where nobody was called by git: root's side of the socket.
    #[must_use]
    pub fn of_site(site: Site, kind: RepoKind) -> Self {
        let path = match kind {
            RepoKind::Project => site.place.git_project(),
            RepoKind::Pillar => site.place.git_pillar(),
        };
        let repository = Repository { kind, path, quarantine: None, reader: site.receiver_identity() };
        Self { site, repository }
    }

    /// The project.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    fn pushes(&self) -> PathBuf {
        self.site.place.state().join("pushes")
    }
}

impl Desk for NodeDesk {
    fn facts(&self) -> Result<ProjectFacts> {
        let (site, config) = (&self.site, &self.site.config);
        let last = Last::read(&site.place)?;
        let branch = match self.repository.kind {
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
        self.repository.peel_to_commit(id)
    }

    fn is_ancestor(&self, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.repository.is_ancestor(old, new)
    }

    fn commits_lost(&self, old: &ObjectId, new: &ObjectId) -> Result<Vec<String>> {
        self.repository.commits_lost(old, new)
    }

    fn is_cut(&self, commit: &ObjectId) -> Result<bool> {
        self.repository.is_cut(commit)
    }

    fn cannot_move(&self, updates: &[RefUpdate]) -> Result<Option<String>> {
        self.repository.cannot_move(updates)
    }

    fn record_branch(&self, branch: &str) -> Result<()> {
        if self.repository.kind == RepoKind::Project {
            self.site.record_branch(branch)?;
        }
        self.site.point_head(&self.repository.path, &RefName::of_branch(branch)?)
    }

    fn check_space(&self) -> Result<()> {
        preflight::refuse_full(&self.site)
    }

    fn validate_pillar(&self, environment: Environment, commit: &ObjectId, fits: bool) -> Result<Vec<String>> {
        self.repository.validate_pillar(self.site.place.name(), environment, commit, fits)
    }

    fn project_head(&self) -> Result<Option<ObjectId>> {
        match self.site.deploy_branch()? {
            Some(branch) => self.site.repo()?.read_ref(&branch),
            None => Ok(None),
        }
    }

    fn start(&self, request: &Request) -> Result<Box<dyn Run>> {
        let launched = launch(&self.site, request)?;
        if let Some(push) = &request.push {
            match (&request.update, &request.want) {
                (Some(update), _) => remember(&self.pushes(), push, &update.name, &update.new)?,
                (None, Want::Deploy { commit }) => {
                    remember(&self.pushes(), push, &super::PILLAR_PUSH.parse()?, commit)?;
                }
                _ => {}
            }
        }
        Ok(Box::new(launched))
    }

    fn was_deployed_by_push(&self, push: &str, refname: &RefName, new: &ObjectId) -> Result<bool> {
        let Some(bytes) = fs::read_if_there(&self.pushes().join(push))? else { return Ok(false) };
        let line = format!("{new} {refname}");
        Ok(String::from_utf8_lossy(&bytes).lines().any(|known| known == line))
    }

    fn move_ref(&self, name: &RefName, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.repository.move_ref(name, old, new)
    }

    fn give_back(&self) -> Result<()> {
        crate::pipeline::rights::give_back(&self.site, &fs::canonical(&self.repository.path)?).map(|_| ())
    }

    fn run_foreign_hook(&self, hook: &str, input: &[u8]) -> Result<Option<bool>> {
        self.repository.run_foreign_hook(hook, input)
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

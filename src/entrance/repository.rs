//! The repository that was pushed to, as a hook sees it: what any desk does without the state of the project.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::entrance::RepoKind;
use crate::entrance::call::Call;
use crate::pipeline::configuration::{Sources, Trust, facts_without_site};
use crate::project::ids::{ObjectId, ProjectName, RefName};
use crate::project::mode::Environment;
use crate::project::recipe::{Defaults, Recipe};
use crate::project::request::RefUpdate;
use crate::report::notes::CURRENT;
use crate::sys::error::Result;
use crate::sys::escape::visible_bounded;
use crate::sys::git::{CommitInfo, Repo};
use crate::sys::process::{StepStatus, run_captured};
use crate::sys::step_exec::RunAs;
use crate::sys::{fs, process};

/// How many lost commits are named.
const LOST: usize = 5;
/// How long a foreign hook may take.
const FOREIGN: Duration = Duration::from_mins(10);

/// The repository in which git called us.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Which of the project's repositories it is.
    pub kind: RepoKind,
    /// The bare repository.
    pub path: PathBuf,
    /// Where pre-receive finds the pushed objects.
    pub quarantine: Option<PathBuf>,
    /// Whom the objects belong to and who therefore reads them, if that is another user than we are.
    pub reader: Option<RunAs>,
}

impl Repository {
    /// The repository of this call.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        Self { kind: call.kind, path: call.repository.clone(), quarantine: call.quarantine.clone(), reader: None }
    }

    /// The repository, opened, with the objects of the push.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self) -> Result<Repo> {
        let path = fs::canonical(&self.path)?;
        match (&self.quarantine, &self.reader) {
            // Only we can read what we just pushed.
            (Some(objects), _) => Repo::open_with_objects(&path, objects),
            (None, Some(reader)) => Repo::open_as(&path, reader),
            (None, None) => Repo::open(&path),
        }
    }

    /// As [`crate::entrance::Desk::peel_to_commit`].
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn peel_to_commit(&self, id: &ObjectId) -> Result<Option<ObjectId>> {
        self.open()?.peel_to_commit(id)
    }

    /// As [`crate::entrance::Desk::is_ancestor`].
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn is_ancestor(&self, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.open()?.is_ancestor(old, new)
    }

    /// As [`crate::entrance::Desk::commits_lost`].
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn commits_lost(&self, old: &ObjectId, new: &ObjectId) -> Result<Vec<String>> {
        let lost = self.open()?.log(old, Some(new), LOST)?;
        let line = |info: &CommitInfo| format!("{} {}", info.id.short(), visible_bounded(info.subject.as_bytes(), 100));
        Ok(lost.iter().map(line).collect())
    }

    /// As [`crate::entrance::Desk::is_cut`].
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn is_cut(&self, commit: &ObjectId) -> Result<bool> {
        let repo = self.open()?;
        for parent in repo.commit(commit)?.parents {
            if repo.peel_to_commit(&parent)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As [`crate::entrance::Desk::cannot_move`].
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn cannot_move(&self, updates: &[RefUpdate]) -> Result<Option<String>> {
        let repo = self.open()?;
        for update in updates {
            let now = repo.read_ref(&update.name)?;
            let expected = if update.old.is_zero() { None } else { Some(update.old.clone()) };
            if now != expected {
                return Ok(Some(format!("{} is not where it was", update.name.shown())));
            }
        }
        Ok(None)
    }

    /// As [`crate::entrance::Desk::validate_pillar`].
    ///
    /// # Errors
    /// Of kind `Invalid` with file, line and reason.
    pub fn validate_pillar(
        &self,
        project: &ProjectName,
        environment: Environment,
        commit: &ObjectId,
        fits: bool,
    ) -> Result<Vec<String>> {
        let (private, code) = (self.open()?, self.code()?);
        let live = code.as_ref().map(|code| code.read_ref(&CURRENT.parse()?)).transpose()?.flatten();
        let code = code.as_ref().zip(live.as_ref());
        let sources = Sources { project, code, pillar: Some((&private, commit)) };
        // A recipe that was deployed is valid, but perhaps not for this version of the program.
        let defaults = Defaults::default();
        let recipe = sources.recipe(&defaults, Trust::Project).unwrap_or_else(|_| Recipe::without_file(&defaults));
        // The pillar's repository is `git/pillar` of the project's directory.
        let path = fs::canonical(&self.path)?;
        let dir = path.ancestors().nth(2).unwrap_or(&path);
        let (pillar, _) = sources.read(&recipe, &facts_without_site(project, environment, dir)?)?;
        if let Some(live) = live.as_ref().filter(|_| fits) {
            sources.check(&recipe, &pillar).map_err(|error| {
                let said = error.hint_text().map(|hint| format!("{hint}\n")).unwrap_or_default();
                let against = format!("it was held against {}, which serves", live.short());
                error.hint(format!("{said}{against}; if the code changes too: git push -o no-deploy, then the code"))
            })?;
        }
        Ok(pillar.warnings().to_vec())
    }

    /// The code's repository beside the pillar's, where it can be opened.
    fn code(&self) -> Result<Option<Repo>> {
        let path = fs::canonical(&self.path)?.with_file_name("project");
        if !fs::exists(&path) {
            return Ok(None);
        }
        match &self.reader {
            Some(reader) if self.quarantine.is_none() => Repo::open_as(&path, reader).map(Some),
            _ => Repo::open(&path).map(Some),
        }
    }

    /// As [`crate::entrance::Desk::move_ref`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn move_ref(&self, name: &RefName, old: &ObjectId, new: &ObjectId) -> Result<bool> {
        self.open()?.move_ref(name, old, new, "mc_project: taken, not deployed")
    }

    /// As [`crate::entrance::Desk::run_foreign_hook`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run_foreign_hook(&self, hook: &str, input: &[u8]) -> Result<Option<bool>> {
        let path = self.path.join("hooks").join(format!("{hook}.local"));
        if !fs::is_executable(&path) {
            return Ok(None);
        }
        let mut env = process::base_environment(Path::new("/nonexistent"));
        env.insert("GIT_DIR".to_string(), self.path.display().to_string());
        let ended = run_captured(&path, &[] as &[&str], &env, input, FOREIGN)?;
        if ended.status != StepStatus::Ok {
            tracing::warn!("{}: {}", path.display(), ended.last_words());
        }
        Ok(Some(ended.status == StepStatus::Ok))
    }
}

//! One push while a hook works on it: the checks and the deployment that its hooks have in common.

use crate::entrance::call::Call;
use crate::entrance::receive::{Decision, Update};
use crate::entrance::relay::{Ending, Pace, Tell, follow};
use crate::entrance::{Desk, Force, ProjectFacts, RepoKind};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::outcome::Verdict;
use crate::project::request::{Options, RefUpdate, Request, Want};
use crate::report::event::Record;
use crate::sys::clock;
use crate::sys::error::{Error, Kind, Result};

/// How many lost commits of a forced push are named.
const LOST_SHOWN: usize = 10;

/// How a deployment that a hook started looks from the hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The commit serves.
    Accepted,
    /// It was planned or prepared, as asked; nothing moves.
    Prepared,
    /// It was asked not to wait: the worker goes on alone.
    Runs,
    /// In editable mode: the commit is checked out, so the push stands, and what came then failed, for this reason.
    Left(String),
    /// It did not come to serve, for this reason in one line.
    Failed(String),
}

/// How many warnings about a pillar are told.
const MOST_WARNINGS: usize = 10;

/// What is known about the push, and whom it is told to.
pub struct Session<'a> {
    /// How git called.
    pub call: &'a Call,
    /// The rest of the program.
    pub desk: &'a dyn Desk,
    /// The project.
    pub facts: ProjectFacts,
    /// The understood push options.
    pub options: Options,
    /// The pusher.
    pub tell: &'a mut dyn Tell,
    /// Turns events into lines.
    pub render: &'a dyn Fn(&Record) -> Vec<String>,
    /// The times of following.
    pub pace: Pace,
}

impl Session<'_> {
    /// Checks the objects of an update that counts, and tells what a forced push loses.
    ///
    /// # Errors
    /// Of kind `Refused` or `Invalid` if the update must not be taken, with the reason.
    pub fn examine(&mut self, update: &Update) -> Result<ObjectId> {
        let new = &update.new;
        let commit = self.desk.peel_to_commit(new)?.ok_or_else(|| {
            Error::refused(format!("{} is no commit, or it is not in the repository any more", new.short()))
        })?;
        if commit != *new {
            return Err(Error::refused(format!("{} is a tag; push its commit {}", new.short(), commit.short()))
                .hint("git push REMOTE 'TAG^{commit}:refs/heads/BRANCH'"));
        }
        if update.is_change() && !self.desk.is_ancestor(&update.old, new)? {
            self.examine_force(update)?;
        }
        if self.call.kind == RepoKind::Pillar {
            // Code and pillar may have to change together: without a deployment it need not fit what serves.
            let fits = !self.options.no_deploy;
            let warnings = self.desk.validate_pillar(self.facts.environment, &commit, fits)?;
            warnings.iter().take(MOST_WARNINGS).for_each(|text| self.tell.line(&format!("warning: {text}")));
            if let Some(more) = warnings.len().checked_sub(MOST_WARNINGS).filter(|more| *more > 0) {
                self.tell.line(&format!("warning: and {more} more; mc_project config {} shows them", self.facts.name));
            }
        }
        Ok(commit)
    }

    /// git's own `denyNonFastForwards` does not hold for refs that proc-receive answers for, so this is our check.
    fn examine_force(&mut self, update: &Update) -> Result<()> {
        let lost = self.desk.commits_lost(&update.old, &update.new)?;
        let branch = update.shown();
        if self.facts.force == Force::Refuse {
            let first = lost.first().map(|line| format!(", the newest of them {line}")).unwrap_or_default();
            return Err(Error::refused(format!(
                "not a fast-forward: it would take {} out of {branch}{first}; forced pushes are refused here",
                commits(lost.len())
            ))
            .hint("git pull --rebase, then push again (or `force: allow` in node.yaml)"));
        }
        self.tell.line(&format!("warning: forced push: {} no longer in {branch}:", commits(lost.len())));
        for line in lost.iter().take(LOST_SHOWN) {
            self.tell.line(&format!("warning:   {line}"));
        }
        if lost.len() > LOST_SHOWN {
            self.tell.line(&format!("warning:   and {} more", lost.len() - LOST_SHOWN));
        }
        self.tell.line(&format!("warning: to have them back: git push REMOTE +{}:{branch}", update.old.short()));
        Ok(())
    }

    /// Refuses a deployment while a person is needed.
    ///
    /// # Errors
    /// Of kind `NeedsPerson`, with the command that shows what to decide.
    pub fn check_person(&self) -> Result<()> {
        match &self.facts.needs_person {
            Some(why) => Err(Error::new(Kind::NeedsPerson, format!("a person is needed first: {why}"))
                .hint(format!("mc_project status {}", self.facts.name))),
            None => Ok(()),
        }
    }

    /// Records the branch of the first push, and tells it once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn choose_branch(&mut self, update: &Update) -> Result<()> {
        let (None, Some(branch)) = (&self.facts.branch, update.branch()) else { return Ok(()) };
        self.desk.record_branch(branch)?;
        let what = match self.call.kind {
            RepoKind::Project => "is the deploy branch of",
            RepoKind::Pillar => "is the pillar's branch of",
        };
        self.tell.line(&format!("{} {what} {} from now on", update.shown(), self.facts.name));
        self.facts.branch = Some(branch.to_string());
        Ok(())
    }

    /// Starts a deployment and, unless it was asked not to, follows it to its end.
    ///
    /// `chosen` is the update that chooses the deploy branch if none is recorded yet. It is recorded as soon as the
    /// worker is started: a hook that dies later must not leave the choice open.
    pub fn deploy(&mut self, commit: ObjectId, update: Option<RefUpdate>, chosen: Option<&Update>) -> Told {
        match self.try_deploy(commit, update, chosen) {
            Ok(told) => told,
            Err(error) => {
                self.tell.refusal(&error);
                Told::Failed(error.one_line())
            }
        }
    }

    fn try_deploy(&mut self, commit: ObjectId, update: Option<RefUpdate>, chosen: Option<&Update>) -> Result<Told> {
        let request = Request {
            project: self.facts.name.clone(),
            id: DeploymentId::new(clock::now()),
            want: Want::Deploy { commit },
            update,
            options: self.options.clone(),
            pusher: self.call.pusher.clone(),
            key: self.call.key.clone(),
            push: self.call.push.clone(),
            wait_seconds: self.facts.wait_seconds,
        };
        let mut run = self.desk.start(&request)?;
        self.tell.ordered(&request);
        if let Some(update) = chosen.filter(|_| !self.only_looks()) {
            // The deployment runs: a failure to record the branch is told and takes nothing back.
            if let Err(error) = self.choose_branch(update) {
                self.tell.line(&format!("warning: {}", error.one_line()));
            }
        }
        if self.options.asynchronous {
            let name = &self.facts.name;
            let line = format!("deployment {} runs; to follow it: mc_project logs {name} -f", request.id.short());
            self.tell.line(&line);
            return Ok(Told::Runs);
        }
        match follow(run.as_mut(), self.render, self.tell, self.pace) {
            // We do not know how it ends; only the worker does.
            Err(error) => Ok(Told::Failed(format!(
                "{}; the deployment goes on unseen: mc_project status {}",
                error.one_line(),
                self.facts.name
            ))),
            Ok(Ending::Died) => {
                Ok(Told::Failed(format!("the worker died; to recover: mc_project recover {}", self.facts.name)))
            }
            Ok(Ending::Ended(outcome)) => Ok(match outcome.verdict {
                Verdict::LeftAsItIs => Told::Left(outcome.line()),
                verdict if verdict.accepts_push() && !self.only_looks() => Told::Accepted,
                verdict if verdict.accepts_push() || verdict == Verdict::Prepared => Told::Prepared,
                _ => Told::Failed(outcome.line()),
            }),
        }
    }

    /// Whether the push options say that nothing may come to serve.
    #[must_use]
    pub fn only_looks(&self) -> bool {
        self.options.plan || self.options.stage_only
    }

    /// The commit that a pillar push with `-o deploy` deploys: what serves, else the head of the deploy branch.
    ///
    /// # Errors
    /// If the project's repository cannot be read.
    pub fn commit_for_pillar(&self) -> Result<Option<ObjectId>> {
        match &self.facts.serves {
            Some(serving) => Ok(Some(serving.commit.clone())),
            None => self.desk.project_head(),
        }
    }
}

/// The update as the worker gets it; `None` for names that are nothing to us.
#[must_use]
pub fn ref_update(update: &Update, moved_by_worker: bool) -> Option<RefUpdate> {
    let name = update.refname.clone()?;
    Some(RefUpdate { name, old: update.old.clone(), new: update.new.clone(), moved_by_worker })
}

/// Whether this decision leads to a deployment.
#[must_use]
pub fn deploys(decision: &Decision) -> bool {
    matches!(decision, Decision::Deploy | Decision::Pillar { deploy: true })
}

fn commits(count: usize) -> String {
    match count {
        1 => "1 commit".to_string(),
        n => format!("{n} commits"),
    }
}

//! A project on this node, opened: its paths, its configuration, and who we are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::project::ids::{ProjectName, RefName};
use crate::project::mode::Environment;
use crate::project::node::{NodeConfig, ProjectConfig};
use crate::project::outcome::Serving;
use crate::project::place::{NodePlace, Place};
use crate::project::system::System;
use crate::report::ledger::Last;
use crate::sys::accounts::Account;
use crate::sys::error::{Error, Result};
use crate::sys::git::Repo;
use crate::sys::keys::{PublicKey, ReleaseKey, TrustedKey, TrustedKeys};
use crate::sys::step_exec::RunAs;
use crate::sys::{fs, process, seal};
use crate::tree::layout::Owners;
use crate::tree::scan::Own;

/// Where in a repository the hooks find their node if they may not read `state/`: a copy of `state/project.json`.
pub const HOOKS_IDENTITY: &str = "info/mc_project.json";

/// What `state/project.json` says: how a hook finds its node from the repository that it stands in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Format of this file.
    pub format: u32,
    /// The project's name.
    pub name: ProjectName,
    /// The node's root.
    pub root: PathBuf,
    /// The environment that `init` was told.
    pub environment: Option<Environment>,
}

/// A node: its root and its configuration.
#[derive(Debug, Clone)]
pub struct Node {
    /// The paths.
    pub place: NodePlace,
    /// The configuration.
    pub config: NodeConfig,
    /// What `setup` recorded; `None` on a directory node, where everything belongs to one user.
    pub system: Option<System>,
}

impl Node {
    /// Opens the node below `root`; a missing `node.yaml` means defaults.
    ///
    /// # Errors
    /// If `node.yaml` is invalid.
    pub fn open(root: &Path) -> Result<Self> {
        let place = NodePlace::new(root);
        let path = place.config();
        let config = match fs::read_bounded(&path, fs::CONFIG_LIMIT)? {
            Some(bytes) => NodeConfig::parse(&path.display().to_string(), &bytes)?,
            None => NodeConfig::default(),
        };
        let system = place.system();
        let system = match fs::read_bounded(&system, fs::CONFIG_LIMIT)? {
            Some(bytes) => Some(System::parse(&system.display().to_string(), &bytes)?),
            None => None,
        };
        let place = place.with_projects_dir(&config.projects_dir);
        Ok(Self { place, config, system })
    }

    /// The program that hooks, keys and units name: on a whole-machine node the installed one, which every account may
    /// run, wherever the copy stands that is running now.
    ///
    /// # Errors
    /// If the running program is gone.
    pub fn program(&self) -> Result<PathBuf> {
        let installed = self.place.binary();
        if self.system.is_some() && fs::is_executable(&installed) {
            return Ok(installed);
        }
        fs::canonical(process::self_exe())
    }

    /// Whether anything was made here: by `setup`, or by `init` in a directory.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.system.is_some() || fs::exists(self.place.projects())
    }

    /// The names of all projects of this node, sorted.
    ///
    /// # Errors
    /// If the directory of projects cannot be read.
    pub fn projects(&self) -> Result<Vec<ProjectName>> {
        let names = fs::names(self.place.projects())?;
        let names = names.iter().filter_map(|name| name.parse::<ProjectName>().ok());
        Ok(names.filter(|name| fs::exists(&self.place.project(name).identity())).collect())
    }
}

/// Who does what on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rights {
    /// A directory node: one user does everything.
    OneUser,
    /// A whole-machine node: root works on trees, the receiver on repositories, the project's user runs the steps.
    Separate {
        /// Who receives pushes and owns the objects and refs of repositories.
        receiver: Account,
        /// Whose trees and steps they are.
        project: Account,
    },
}

/// A project, opened.
#[derive(Debug, Clone)]
pub struct Site {
    /// The node.
    pub node: Node,
    /// The paths.
    pub place: Place,
    /// What holds for this project on this node.
    pub config: ProjectConfig,
    /// Whose files are recorded without an owner.
    pub own: Own,
    /// Who does what.
    pub rights: Rights,
}

impl Site {
    /// Opens a project of a node.
    ///
    /// # Errors
    /// If there is no such project or its state is of a newer version.
    pub fn open(node: &Node, name: &ProjectName) -> Result<Self> {
        let place = node.place.project(name);
        let Some(identity) = read_identity(&place.identity())? else {
            let known = node.projects()?;
            let known: Vec<&str> = known.iter().map(ProjectName::as_str).collect();
            let hint = if known.is_empty() {
                format!("make it: mc_project init {name}")
            } else {
                format!("projects here: {}; to make another: mc_project init {name}", known.join(", "))
            };
            return Err(
                Error::usage(format!("there is no project `{name}` in {}", node.place.projects().display())).hint(hint)
            );
        };
        let config = node.config.for_project(name, identity.environment);
        let rights = Rights::of(node, name, config.user.as_deref())?;
        let own = match &rights {
            Rights::OneUser => Own::current(),
            Rights::Separate { project, .. } => Own { uid: project.uid, gid: project.gid },
        };
        Ok(Self { node: node.clone(), place, config, own, rights })
    }

    /// The identity of the project's steps; `None` where they are run as we are.
    #[must_use]
    pub fn project_identity(&self) -> Option<RunAs> {
        match &self.rights {
            Rights::OneUser => None,
            Rights::Separate { project, .. } => Some(project.run_as()),
        }
    }

    /// The users of a whole-machine node, as numbers; `None` where everything is one user's.
    #[must_use]
    pub fn owners(&self) -> Option<Owners> {
        self.rights.owners()
    }

    /// Whose files a tree of ours holds: `project/` and `pillar/` are the node's own, everything else is the project's.
    #[must_use]
    pub fn own_at(&self, tree: &Path) -> Own {
        let is_ours = tree == self.place.project() || tree == self.place.pillar();
        if is_ours { Own::current() } else { self.own }
    }

    /// Who reads and writes the repositories, if that is another user than we are.
    #[must_use]
    pub fn receiver_identity(&self) -> Option<RunAs> {
        match &self.rights {
            Rights::OneUser => None,
            Rights::Separate { receiver, .. } => Some(receiver.run_as()),
        }
    }

    /// The project's repository, read and written as the receiver where that is another user than we are.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn repo(&self) -> Result<Repo> {
        self.open_repo(&self.place.git_project())
    }

    /// The pillar's repository, as [`Site::repo`].
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn pillar_repo(&self) -> Result<Repo> {
        self.open_repo(&self.place.git_pillar())
    }

    fn open_repo(&self, path: &Path) -> Result<Repo> {
        match &self.rights {
            Rights::OneUser => Repo::open(path),
            Rights::Separate { receiver, .. } => Repo::open_as(path, &receiver.run_as()),
        }
    }

    /// Makes HEAD of one of the project's repositories name this branch.
    ///
    /// On a whole-machine node HEAD is root's and stands in a directory that the receiver can write to: it is written
    /// by ourselves, as a new file, and git is not asked.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn point_head(&self, repository: &Path, branch: &RefName) -> Result<()> {
        if self.rights == Rights::OneUser {
            return Repo::open(repository)?.set_head(branch);
        }
        let (path, text) = (repository.join("HEAD"), format!("ref: {branch}\n"));
        if fs::read_bounded(&path, 1024)?.is_some_and(|bytes| bytes == text.as_bytes()) {
            return Ok(());
        }
        fs::write_durable(&path, text.as_bytes(), 0o644)
    }

    /// Opens the project that a hook stands in: `dir` is the bare repository.
    ///
    /// # Errors
    /// If `dir` is no repository of an initialised project.
    pub fn of_repository(dir: &Path) -> Result<Self> {
        let dir = fs::canonical(dir)?;
        let project = dir.parent().and_then(Path::parent).unwrap_or(&dir);
        let path = project.join("state/project.json");
        let Some(identity) = read_identity(&path)? else {
            return Err(Error::usage(format!("{} belongs to no project of a node", dir.display()))
                .hint("the hook works in git/project or git/pillar of a project made by: mc_project init NAME"));
        };
        Self::open(&Node::open(&identity.root)?, &identity.name)
    }

    /// How the command is called for this node.
    #[must_use]
    pub fn command(&self) -> String {
        let root = self.place.node().root();
        if root == Path::new("/") { "mc_project".to_string() } else { format!("mc_project --root {}", root.display()) }
    }

    /// Hints as they can be typed here: those who wrote them knew neither the project's name nor the node's root.
    #[must_use]
    pub fn hints(&self, hints: &[String]) -> Vec<String> {
        let command = format!("{} ", self.command());
        let named = hints.iter().map(|hint| hint.replace(" NAME", &format!(" {}", self.place.name())));
        // One that knew the root already does not get it twice.
        named.map(|hint| hint.replace(&command, "mc_project ").replace("mc_project ", &command)).collect()
    }

    /// An error whose hint can be typed here.
    #[must_use]
    pub fn typed(&self, error: Error) -> Error {
        match error.hint_text().map(|hint| self.hints(&[hint.to_string()]).concat()) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// What serves now; `None` before the first successful deployment.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn serves(&self) -> Result<Option<Serving>> {
        Ok(Last::read(&self.place)?.and_then(|last| last.serves))
    }

    /// The keys whose deliverables this node accepts: those of `node.yaml`, those that were trusted by command, its own.
    ///
    /// # Errors
    /// If a key cannot be read.
    pub fn trusted_keys(&self) -> Result<TrustedKeys> {
        let keys = self.place.node().keys();
        let configured = &self.node.config.trusted_release_keys;
        let mut all: Vec<PublicKey> = configured.iter().map(|key| PublicKey::from_bytes(key.0)).collect();
        all.extend(TrustedKey::read_all(&keys)?.into_iter().map(|trusted| trusted.key));
        if fs::exists(&keys.join("release.key")) {
            all.push(ReleaseKey::load_or_make(&keys)?.public());
        }
        Ok(TrustedKeys::new(all))
    }

    /// The deploy branch: configured, or recorded by the first push.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn deploy_branch(&self) -> Result<Option<RefName>> {
        if let Some(branch) = &self.config.branch {
            return RefName::of_branch(branch).map(Some);
        }
        match fs::read_if_there(&self.place.branch())? {
            Some(bytes) => RefName::of_branch(String::from_utf8_lossy(&bytes).trim()).map(Some),
            None => Ok(None),
        }
    }

    /// Records the deploy branch that the first push chose.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record_branch(&self, branch: &str) -> Result<()> {
        fs::write_durable(&self.place.branch(), format!("{branch}\n").as_bytes(), 0o644)
    }
}

impl Rights {
    /// The users of a whole-machine node, as numbers.
    #[must_use]
    pub fn owners(&self) -> Option<Owners> {
        match self {
            Self::OneUser => None,
            Self::Separate { receiver, project } => {
                Some(Owners { project: (project.uid, project.gid), receiver: (receiver.uid, receiver.gid) })
            }
        }
    }

    /// The rights for a project; `user` is the account that `node.yaml` names for it.
    ///
    /// # Errors
    /// If an account is missing, or we are not root on a whole-machine node.
    pub fn of(node: &Node, name: &ProjectName, user: Option<&str>) -> Result<Self> {
        let Some(system) = &node.system else { return Ok(Self::OneUser) };
        if !rustix::process::geteuid().is_root() {
            return Err(Error::refused(format!(
                "the projects of {} are root's to handle",
                node.place.root().display()
            ))
            .hint(format!("sudo mc_project …, or by ssh: ssh {}@NODE …", system.receiver)));
        }
        let default = System::project_account(name);
        let account = |name: &str, hint: String| {
            let found = Account::of(name)?;
            found.ok_or_else(|| Error::refused(format!("the account {name} is missing")).hint(hint))
        };
        let project = account(user.unwrap_or(&default), format!("mc_project init {name}"))?;
        if project.uid == 0 {
            return Err(Error::refused(format!("the project {name} may not run as root"))
                .hint("name another user in node.yaml, or none"));
        }
        Ok(Self::Separate { receiver: account(&system.receiver, "mc_project setup".to_string())?, project })
    }
}

/// Reads an identity; `None` if there is none.
///
/// # Errors
/// If it is damaged or of a newer version.
pub fn read_identity(path: &Path) -> Result<Option<Identity>> {
    let Some(identity) = seal::read::<Identity>(path)? else { return Ok(None) };
    if identity.format > 1 {
        return Err(Error::refused(format!("{} was written by a newer mc_project", path.display())));
    }
    Ok(Some(identity))
}

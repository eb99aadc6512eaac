//! Where everything of a node and of a project is: the disk contract as paths (README, "On disk").

use std::path::{Path, PathBuf};

use super::ids::{DeploymentId, ProjectName};

/// The paths of a node below its root (`/`, or the directory of `--root`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlace {
    root: PathBuf,
    projects: PathBuf,
}

impl NodePlace {
    /// The node below `root`, with its projects in the default directory `srv/projects`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), projects: root.join("srv/projects") }
    }

    /// The same node with its projects elsewhere; an absolute `dir` is taken below the root.
    #[must_use]
    pub fn with_projects_dir(mut self, dir: &Path) -> Self {
        self.projects = self.root.join(dir.strip_prefix("/").unwrap_or(dir));
        self
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node's configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("etc/mc_project/node.yaml")
    }

    /// What `setup` recorded of a whole-machine node.
    #[must_use]
    pub fn system(&self) -> PathBuf {
        self.root.join("etc/mc_project/system.json")
    }

    /// Who may do what on a whole-machine node.
    #[must_use]
    pub fn access(&self) -> PathBuf {
        self.root.join("etc/mc_project/access.json")
    }

    /// The lock of those who change [`NodePlace::access`].
    #[must_use]
    pub fn access_lock(&self) -> PathBuf {
        self.root.join("etc/mc_project/access.lock")
    }

    /// Where hooks of the receiver reach root on a whole-machine node.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join("run/mc_project.sock")
    }

    /// The program that `setup` installs: what hooks and units of a whole-machine node name.
    #[must_use]
    pub fn binary(&self) -> PathBuf {
        self.root.join("usr/local/bin/mc_project")
    }

    /// The home of the receiver of pushes, which belongs to root.
    #[must_use]
    pub fn receiver_home(&self) -> PathBuf {
        self.root.join("var/lib/mc_project")
    }

    /// The environment of Salt that `setup --salt` makes.
    #[must_use]
    pub fn salt(&self) -> PathBuf {
        self.receiver_home().join("salt")
    }

    /// The keys that sshd lets in as the receiver.
    #[must_use]
    pub fn authorized_keys(&self) -> PathBuf {
        self.receiver_home().join(".ssh/authorized_keys")
    }

    /// The directory of the node's release keys.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.root.join("etc/mc_project/keys")
    }

    /// The directory that holds the projects.
    #[must_use]
    pub fn projects(&self) -> &Path {
        &self.projects
    }

    /// The default maildir of a node without a mail configuration.
    #[must_use]
    pub fn maildir(&self) -> PathBuf {
        self.root.join("var/mail/mc_project")
    }

    /// The project of this name.
    #[must_use]
    pub fn project(&self, name: &ProjectName) -> Place {
        Place { node: self.clone(), name: name.clone(), dir: self.projects.join(name.as_str()) }
    }
}

/// The paths of one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    node: NodePlace,
    name: ProjectName,
    dir: PathBuf,
}

macro_rules! below {
    ($($(#[$doc:meta])* $name:ident => $rel:literal;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> PathBuf {
            self.dir.join($rel)
        }
    )*};
}

impl Place {
    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodePlace {
        &self.node
    }

    /// The project's name.
    #[must_use]
    pub fn name(&self) -> &ProjectName {
        &self.name
    }

    /// The project's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    below! {
        /// The bare repository to push code to.
        git_project => "git/project";
        /// The bare repository to push configuration to.
        git_pillar => "git/pillar";
        /// The checkout of the pushed commit.
        project => "project";
        /// The checkout of the pillar.
        pillar => "pillar";
        /// All persistent data.
        data => "data";
        /// The recipe's shared paths.
        data_shared => "data/shared";
        /// Everything about building.
        build => "build";
        /// Where build steps work.
        build_tree => "build/tree";
        /// The home directory of steps: download caches of build tools.
        build_home => "build/home";
        /// The directories that running states work with.
        salt_runs => "build/salt";
        /// What states set owners and modes with.
        reset_perms => "build/reset-perms";
        /// Where the sockets of services are held.
        sockets => "build/sockets";
        /// The temporary files of builds, on a whole-machine node.
        build_tmp => "build/tmp";
        /// Those of all other steps and of what they leave running.
        service_tmp => "build/service-tmp";
        /// What runs.
        run => "run";
        /// Kept deployments.
        deploy => "deploy";
        /// The link to the live deployment.
        current => "deploy/current";
        /// The second physical tree.
        spare => "deploy/spare";
        /// In editable mode, the tree that ran before, as it was left.
        cooked => "deploy/cooked";
        /// In editable mode, the checkout that stood at `project` before.
        checkout => "deploy/checkout";
        /// A clone in the making, which is about to become `run`.
        new_clone => "build/clone";
        /// New commits on their way into the clone.
        bundle => "build/bundle";
        /// In editable mode: since when, and what is parked.
        editable => "state/editable.json";
        /// The pool of file contents.
        store => "deploy/store";
        /// Deliverables.
        releases => "releases";
        /// Restore points.
        archives => "archives";
        /// The newest data snapshot, a private full copy.
        snapshot => "archives/data";
        /// The contents that older data snapshots need.
        snapshot_store => "archives/store";
        /// State that only we write.
        state => "state";
        /// The lock.
        lock => "state/lock";
        /// The last deployment: number, id, whether it is open, what serves.
        last => "state/last.json";
        /// One line per finished deployment.
        history => "state/history.jsonl";
        /// Journals, one per deployment.
        journals => "state/journal";
        /// Unsent mail.
        spool => "state/spool";
        /// Pushes that wait for the lock.
        waiting => "state/waiting";
        /// The boot in which the start steps were run last by the recovery unit.
        started => "state/started";
        /// What the embedded supervisor knows: its socket, its lock, what is to run.
        supervisor => "state/supervisor";
        /// What the checks of services said last.
        health => "state/health.json";
        /// What systemd was told to run, and the environments of those units.
        services => "state/services";
        /// The deploy branch, once one is chosen.
        branch => "state/branch";
        /// There where somebody took the links below `srv/salt` and `srv/pillar` away.
        unlinked => "state/unlinked";
        /// Orders of workers that run as units, one file each until the worker is gone.
        requests => "state/requests";
        /// Name, root and environment: how a hook finds its node.
        identity => "state/project.json";
    }

    /// The directory of a kept deployment.
    #[must_use]
    pub fn release(&self, id: &DeploymentId) -> PathBuf {
        self.deploy().join(id.as_str())
    }

    /// The restore point of a deployment: what was before it.
    #[must_use]
    pub fn archive(&self, id: &DeploymentId) -> PathBuf {
        self.archives().join(id.as_str())
    }

    /// The journal of a deployment.
    #[must_use]
    pub fn journal(&self, id: &DeploymentId) -> PathBuf {
        self.journals().join(format!("{id}.jsonl"))
    }

    /// The order of a worker that runs as a unit.
    #[must_use]
    pub fn request(&self, id: &DeploymentId) -> PathBuf {
        self.requests().join(format!("{id}.json"))
    }

    /// The witness of a physical tree (`run`, `spare`, `build`, `project`, `snapshot`).
    #[must_use]
    pub fn witness(&self, tree: &str) -> PathBuf {
        self.state().join(format!("witness-{tree}"))
    }

    /// The directory of this project's logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.node.root.join("var/log/mc_project").join(self.name.as_str())
    }

    /// The logs of the services that the embedded supervisor keeps running.
    #[must_use]
    pub fn service_logs(&self) -> PathBuf {
        self.logs().join("services")
    }

    /// The log of what was sent about deployments.
    #[must_use]
    pub fn mail_log(&self) -> PathBuf {
        self.logs().join("mail.log")
    }

    /// The readable log of a deployment.
    #[must_use]
    pub fn log(&self, id: &DeploymentId) -> PathBuf {
        self.logs().join(format!("{id}.log"))
    }

    /// The events of a deployment, for those who follow it.
    #[must_use]
    pub fn events(&self, id: &DeploymentId) -> PathBuf {
        self.logs().join(format!("{id}.events"))
    }
}

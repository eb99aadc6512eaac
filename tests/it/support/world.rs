//! A whole node in a private directory, and the developer's account beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use mc_project::report::ledger::Last;
use serde_json::Value;

use super::{Finished, Home, Mail, Tree, WorkTree, digest, digest_without, wait_until};

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_mc_project");

/// Variables that a machine behind a proxy, or with authorities of its own, needs to reach the package registries;
/// handed to the steps by the node.
const NETWORK: [&str; 11] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
];

/// A node and a developer.
pub struct World {
    home: Home,
}

impl World {
    /// A node without any configuration.
    pub fn new() -> Self {
        let home = Home::new();
        std::fs::create_dir(home.path("node")).unwrap();
        Self { home }
    }

    /// A node with this `node.yaml`; none, where there is nothing to write.
    pub fn with_config(yaml: &str) -> Self {
        let world = Self::new();
        if !yaml.is_empty() {
            world.configure(yaml);
        }
        world
    }

    /// A node with one project, `shop`, in staging.
    #[track_caller]
    pub fn with_shop() -> Self {
        let world = Self::new();
        world.mc(&["init", "shop"]).ok();
        world
    }

    /// A node whose project `shop` serves a first version with these files; also the work tree and the commit.
    #[track_caller]
    pub fn serving(files: &[(&str, &str)]) -> (Self, String) {
        let world = Self::with_shop();
        let commit = {
            let work = world.clone_of("shop");
            let commit = work.commit("first version", files);
            work.push(&["main"]).ok();
            commit
        };
        assert_eq!(world.serves("shop").as_deref(), Some(commit.as_str()));
        (world, commit)
    }

    /// Writes `node.yaml`.
    pub fn configure(&self, yaml: &str) {
        let path = self.root().join("etc/mc_project/node.yaml");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, yaml).unwrap();
    }

    /// Lines for `node.yaml` with which steps reach the package registries from behind this machine's proxy.
    pub fn network_config() -> String {
        let set: Vec<_> = NETWORK.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect();
        if set.is_empty() {
            return String::new();
        }
        set.iter().fold("env:\n".to_string(), |text, (name, value)| format!("{text}  {name}: {value:?}\n"))
    }

    /// The account that everything is done from.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The node's root.
    pub fn root(&self) -> PathBuf {
        self.home.path("node")
    }

    /// A project's directory.
    pub fn project(&self, name: &str) -> PathBuf {
        self.root().join("srv/projects").join(name)
    }

    /// A path in what runs.
    pub fn run_path(&self, name: &str, path: &str) -> PathBuf {
        self.project(name).join("run").join(path)
    }

    /// The text of a file in what runs.
    #[track_caller]
    pub fn run_text(&self, name: &str, path: &str) -> String {
        let at = self.run_path(name, path);
        std::fs::read_to_string(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()))
    }

    /// A command of the program, on this node.
    pub fn mc_command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(PROGRAM);
        command.env("MC_ROOT", self.root()).args(args);
        command
    }

    /// Runs the program on this node.
    #[track_caller]
    pub fn mc(&self, args: &[&str]) -> Finished {
        Finished::of(self.mc_command(args))
    }

    /// A new, empty work tree that pushes to the project's code repository.
    #[track_caller]
    pub fn clone_of(&self, name: &str) -> WorkTree<'_> {
        self.work_tree(&self.project(name).join("git/project"))
    }

    /// A new work tree of what is on the node's branch `main`.
    #[track_caller]
    pub fn checkout_of(&self, name: &str) -> WorkTree<'_> {
        let work = self.clone_of(name);
        work.git(&["pull", "--quiet", "node", "main"]).ok();
        work
    }

    /// A new, empty work tree that pushes to the project's pillar.
    #[track_caller]
    pub fn pillar_of(&self, name: &str) -> WorkTree<'_> {
        self.work_tree(&self.project(name).join("git/pillar"))
    }

    /// A new work tree of what is on the branch `main` of the project's pillar.
    #[track_caller]
    pub fn checkout_of_pillar(&self, name: &str) -> WorkTree<'_> {
        let work = self.pillar_of(name);
        work.git(&["pull", "--quiet", "node", "main"]).ok();
        work
    }

    #[track_caller]
    fn work_tree(&self, url: &Path) -> WorkTree<'_> {
        let dir = tempfile::Builder::new().prefix("work-").tempdir_in(self.home.dir()).unwrap().keep();
        WorkTree::new(&self.home, dir, url.to_str().unwrap())
    }

    /// What a ref of the project's code repository is on the node.
    #[track_caller]
    pub fn node_ref(&self, name: &str, refname: &str) -> Option<String> {
        let bare = self.project(name).join("git/project");
        let seen = self.home.git(&bare, &["for-each-ref", "--format=%(objectname)", refname]).ok();
        seen.stdout.lines().next().map(str::to_string)
    }

    /// The commit that serves, as the node's own record has it.
    #[track_caller]
    pub fn serves(&self, name: &str) -> Option<String> {
        self.last(name)?.serves.map(|serving| serving.commit.to_string())
    }

    /// The record of the last deployment.
    #[track_caller]
    pub fn last(&self, name: &str) -> Option<Last> {
        let bytes = std::fs::read(self.project(name).join("state/last.json")).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// Waits until no deployment of the project is under way.
    #[track_caller]
    pub fn settle(&self, name: &str) {
        wait_until("nothing is under way", || {
            let lock = std::fs::File::open(self.project(name).join("state/lock"));
            lock.map_or(true, |file| file.try_lock().is_ok()) && self.last(name).is_none_or(|last| !last.open)
        });
    }

    /// The history, oldest first.
    #[track_caller]
    pub fn history(&self, name: &str) -> Vec<Value> {
        let mut entries = self.mc(&["history", name, "--json"]).ok().json().as_array().unwrap().clone();
        entries.sort_by_key(|entry| entry["seq"].as_u64());
        entries
    }

    /// The newest entry of the history.
    #[track_caller]
    pub fn newest(&self, name: &str) -> Value {
        self.history(name).last().expect("a history").clone()
    }

    /// Everything in `run`.
    pub fn run_tree(&self, name: &str) -> Tree {
        digest(&self.project(name).join("run"))
    }

    /// Everything on the node that a refused push must not change: all but the project's bare repositories, its state
    /// and its log, its working copies (the spare, the newest snapshot, the pools of contents), and but the mails.
    pub fn unchangeable(&self, name: &str) -> Tree {
        let p = format!("srv/projects/{name}");
        let except = [
            format!("{p}/git"),
            format!("{p}/state"),
            format!("{p}/build"),
            format!("{p}/project"),
            format!("{p}/pillar"),
            format!("{p}/deploy/spare"),
            format!("{p}/deploy/store"),
            format!("{p}/archives/data"),
            format!("{p}/archives/store"),
            format!("var/log/mc_project/{name}"),
            "var/mail".to_string(),
        ];
        // Which restore point the newest snapshot belongs to is told by a link to that working copy.
        let points = std::fs::read_dir(self.root().join(&p).join("archives")).into_iter().flatten().flatten();
        let links = points.map(|point| point.path().join("data")).filter(|path| path.is_symlink());
        let links = links.map(|path| path.strip_prefix(self.root()).unwrap().to_string_lossy().into_owned());
        let except: Vec<String> = except.into_iter().chain(links).collect();
        digest_without(&self.root(), &except.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Every mail in the node's maildir, oldest first.
    #[track_caller]
    pub fn mails(&self) -> Vec<Mail> {
        let Ok(entries) = std::fs::read_dir(self.root().join("var/mail/mc_project/new")) else { return Vec::new() };
        let mut mails: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.metadata().unwrap().modified().unwrap(), std::fs::read_to_string(&path).unwrap()))
            .collect();
        mails.sort();
        mails.into_iter().map(|(_, raw)| Mail::read(raw)).collect()
    }
}

impl Drop for World {
    /// Ends the services, which would go on for a moment after their node is gone.
    fn drop(&mut self) {
        let projects = std::fs::read_dir(self.root().join("srv/projects")).into_iter().flatten().flatten();
        for project in projects.filter(|project| project.path().join("state/supervisor").exists()) {
            let name = project.file_name();
            let _ = self.mc_command(&["destroy", name.to_str().unwrap_or_default(), "--yes"]).output();
        }
    }
}

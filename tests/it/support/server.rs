//! A machine that `setup` made a node, as the server's chapter of the README does it, with its people and an application.

use std::path::PathBuf;

use mc_project::report::ledger::Last;
use serde_json::Value;

use super::{Finished, Machine, Mail, PROGRAM_AT, Tree, WorkTree, digest, wait_until};

/// The account that receives pushes.
pub const RECEIVER: &str = "mc";

/// A machine that is a node.
pub struct Server {
    machine: Machine,
}

impl Server {
    /// Boots a machine, sets it up with this `node.yaml`, and makes the projects; `None` where no machine can run.
    #[track_caller]
    pub fn boot(node_yaml: &str, projects: &[&str]) -> Option<Self> {
        let server = Self { machine: Machine::boot("node1")? };
        if !node_yaml.is_empty() {
            server.machine.write("/etc/mc_project/node.yaml", node_yaml, 0o600);
        }
        let init: Vec<String> = projects.iter().map(|name| format!(" && mc_project init {name}")).collect();
        server.machine.run(&format!("{PROGRAM_AT} setup{}", init.concat())).ok();
        Some(server)
    }

    /// A machine that is not set up yet.
    #[track_caller]
    pub fn bare() -> Option<Self> {
        Some(Self { machine: Machine::boot("node1")? })
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, to cut its power.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// The program in the machine, as root.
    #[track_caller]
    pub fn mc(&self, args: &[&str]) -> Finished {
        let mut command = self.machine.command("mc_project");
        command.args(args);
        Finished::of(command)
    }

    /// A line of sh in the machine as this account, with its groups and in no session.
    #[track_caller]
    pub fn as_user(&self, user: &str, line: &str) -> Finished {
        let mut command = self.machine.command("sh");
        let become_user =
            "cd / && HOME=/nonexistent exec setpriv --reuid=$1 --regid=$(id -g $1) --init-groups sh -c \"$2\"";
        command.args(["-c", become_user, "sh", user, line]);
        Finished::of(command)
    }

    /// Lets a person in whose public key is on the developer's side.
    #[track_caller]
    pub fn let_in(&self, person: &str, project: &str, role: &str) -> Finished {
        let file = format!("/root/{person}.pub");
        self.machine.write(&file, format!("{}\n", self.machine.public_key(person)), 0o644);
        self.mc(&["keys", "add", person, "--project", project, "--role", role, "--key", &file]).ok()
    }

    /// `ssh mc@machine COMMAND` with the key of `person`.
    #[track_caller]
    pub fn ssh(&self, person: &str, command: &str) -> Finished {
        self.machine.ssh_as(RECEIVER, person, &[command])
    }

    /// A new work tree of `person` that pushes to `mc@machine:NAME` (or `NAME/pillar`).
    #[track_caller]
    pub fn work(&self, person: &str, name: &str) -> WorkTree<'_> {
        self.work_at(person, &format!("{RECEIVER}@{}:{name}", self.machine.address()))
    }

    /// A new work tree of root, by the old habit: `root@machine:/srv/projects/NAME/git/project`.
    #[track_caller]
    pub fn work_of_root(&self, name: &str) -> WorkTree<'_> {
        let url = format!("root@{}:/srv/projects/{name}/git/project", self.machine.address());
        self.work_at(super::machine::ROOTS_KEY, &url)
    }

    #[track_caller]
    fn work_at(&self, person: &str, url: &str) -> WorkTree<'_> {
        let work = self.machine.work_tree(person, "nobody", "/nothing");
        work.git(&["remote", "set-url", "node", url]).ok();
        work
    }

    // --- what there is, seen from outside

    /// A project's directory, as this test sees it.
    pub fn project(&self, name: &str) -> PathBuf {
        self.machine.root().join("srv/projects").join(name)
    }

    /// The record of the last deployment.
    #[track_caller]
    pub fn last(&self, name: &str) -> Option<Last> {
        let bytes = std::fs::read(self.project(name).join("state/last.json")).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// The commit that serves, as the node's own record has it.
    #[track_caller]
    pub fn serves(&self, name: &str) -> Option<String> {
        self.last(name)?.serves.map(|serving| serving.commit.to_string())
    }

    /// Waits until no deployment of the project is under way.
    #[track_caller]
    pub fn settle(&self, name: &str) {
        wait_until("nothing is under way", || {
            // A lock that is held in the machine is held for us: it is one kernel.
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

    /// Everything in `run`.
    pub fn run_tree(&self, name: &str) -> Tree {
        digest(&self.project(name).join("run"))
    }

    /// Everything of a project that a refused push must not change, and what decides in its repositories.
    pub fn unchangeable(&self, name: &str) -> Tree {
        let (project, mut entries) = (self.project(name), Vec::new());
        for part in ["run", "data", "deploy", "archives", "releases", "pillar", "git/project/hooks", "git/project/info"]
        {
            entries.push((part.to_string(), format!("{:?}", digest(&project.join(part)))));
        }
        for file in ["git/project/config", "git/project/HEAD", "state/last.json", "state/history.jsonl"] {
            entries.push((file.to_string(), format!("{:?}", std::fs::read(project.join(file)).ok())));
        }
        Tree::of(entries.into_iter())
    }

    /// Every mail in the node's maildir, oldest first.
    #[track_caller]
    pub fn mails(&self) -> Vec<Mail> {
        let dir = self.machine.root().join("var/mail/mc_project/new");
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        let mut mails: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.metadata().unwrap().modified().unwrap(), std::fs::read_to_string(&path).unwrap()))
            .collect();
        mails.sort();
        mails.into_iter().map(|(_, raw)| Mail::read(raw)).collect()
    }

    /// What an application of [`app`] says at its port.
    #[track_caller]
    pub fn page(&self, port: u16) -> String {
        let ask = format!("import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/').read().decode())");
        let mut command = self.machine.command("python3");
        command.args(["-c", &ask]);
        Finished::of(command).ok().stdout.trim().to_string()
    }

    /// Whether anybody answers at a port.
    #[track_caller]
    pub fn listens(&self, port: u16) -> bool {
        self.machine.run(&format!("timeout 2 bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'")).exit_code() == Some(0)
    }

    /// Asserts that the node and its projects are as they should be.
    #[track_caller]
    pub fn assert_sound(&self) {
        let said = self.mc(&["doctor"]).ok();
        assert!(said.stdout.lines().all(|line| !line.starts_with('✗')), "{said}");
        self.mc(&["verify", "--all"]).ok();
    }
}

const START: &str = r#"#!/bin/sh
set -eu
setsid python3 -u -m http.server --bind 127.0.0.1 --directory "$MC_RUN/public" "$PORT" < /dev/null >> "$MC_DATA/web.log" 2>&1 &
echo $! > "$MC_DATA/web.pid"
"#;

const STOP: &str = r#"#!/bin/sh
pid=$(cat "$MC_DATA/web.pid" 2> /dev/null) || exit 0
kill "$pid" 2> /dev/null || exit 0
while kill -0 "$pid" 2> /dev/null; do sleep 0.05; done
"#;

const HEALTH: &str = r#"#!/usr/bin/python3
import os, sys, time, urllib.request
wanted = open(os.environ["MC_RUN"] + "/public/index.html").read()
for _ in range(100):
    try:
        sys.exit(urllib.request.urlopen("http://127.0.0.1:" + os.environ["PORT"]).read().decode() != wanted)
    except OSError:
        time.sleep(0.05)
sys.exit("nobody answers")
"#;

/// A small application: a page is built, a server is started and asked, and the data get a line for each version.
pub fn app(port: u16, upgrade: &str) -> Vec<(String, String)> {
    let recipe = format!(
        "env: {{PORT: \"{port}\"}}
stages:
  build: ['mkdir -p public; echo \"$MC_PROJECT $(cat version) built by $(id -un)\" > public/index.html']
  check: [test -s public/index.html]
  stop: [bin/stop]
  start: [bin/start]
  upgrade: ['cat version >> $MC_DATA/db', '{upgrade}']
  health: [bin/health]
sync: {{ignore_drift: [__pycache__/]}}
"
    );
    [("mc_project.yaml", recipe.as_str()), ("bin/start", START), ("bin/stop", STOP), ("bin/health", HEALTH)]
        .map(|(path, text)| (path.to_string(), text.to_string()))
        .to_vec()
}

impl WorkTree<'_> {
    /// Commits a version of [`app`].
    #[track_caller]
    pub fn commit_app(&self, version: &str, port: u16, upgrade: &str) -> String {
        let files = app(port, upgrade);
        let mut files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        files.push(("version", version));
        self.commit(&format!("version {version}"), &files)
    }
}

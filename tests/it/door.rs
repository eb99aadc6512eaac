//! The door between the receiver of pushes and root, with both sides as real processes of different users.
//!
//! The node is a whole-machine node below a directory of its own; accounts that every machine has stand for the
//! receiver and for the project. It needs root.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Finished, Running, WorkTree, World, assert_has, assert_lacks, wait_until};

/// Who receives pushes here, and whom the project belongs to.
const RECEIVER: &str = "nobody";
const PROJECT: &str = "daemon";

fn account(name: &str) -> nix::unistd::User {
    nix::unistd::User::from_name(name).unwrap().unwrap()
}

struct Node {
    world: World,
    service: RefCell<Option<Running>>,
}

impl Node {
    /// A node with the project `shop`, its service running; `None`, said loudly, where we are not root.
    fn start(config: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: a whole-machine node needs root");
            return None;
        }
        let world = World::with_config(&format!("{config}\nprojects: {{shop: {{user: {PROJECT}}}}}\n"));
        let open = |path: &std::path::Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        open(world.home().dir());
        open(&world.home().path("home"));
        std::fs::write(world.home().path("gitconfig"), "[safe]\n\tdirectory = *\n").unwrap();
        std::fs::set_permissions(world.root().join("etc/mc_project/node.yaml"), std::fs::Permissions::from_mode(0o600))
            .unwrap();
        let system = json!({"format": 1, "receiver": RECEIVER}).to_string();
        std::fs::write(world.root().join("etc/mc_project/system.json"), system).unwrap();
        world.mc(&["init", "shop"]).ok();
        let node = Self { world, service: RefCell::default() };
        node.serve();
        Some(node)
    }

    fn serve(&self) {
        *self.service.borrow_mut() = Some(Running::start(self.world.mc_command(&["serve"])));
        wait_until("the service listens", || UnixStream::connect(self.socket()).is_ok());
    }

    fn end_service(&self) {
        if let Some(service) = self.service.take() {
            service.signal(Signal::SIGKILL);
            service.wait();
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.world.root().join("run/mc_project.sock")
    }

    /// A work tree that the receiver can write to.
    fn work(&self) -> WorkTree<'_> {
        let work = self.world.clone_of("shop");
        self.give(&work);
        work
    }

    fn give(&self, work: &WorkTree<'_>) {
        let mut chown = self.world.home().command("chown");
        chown.args(["-R", RECEIVER]).arg(work.dir());
        Finished::of(chown).ok();
    }

    fn commit(&self, work: &WorkTree<'_>, files: &[(&str, &str)]) -> String {
        // Root makes the commit, with its own eyes for whose repository it is.
        let mut chown = self.world.home().command("chown");
        chown.args(["-R", "root"]).arg(work.dir());
        Finished::of(chown).ok();
        let commit = work.commit("a commit", files);
        self.give(work);
        commit
    }

    /// The same command as the receiver.
    fn as_receiver(&self, command: &Command) -> Command {
        let user = account(RECEIVER);
        let mut as_user = Command::new("setpriv");
        as_user.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid), "--clear-groups".into()]);
        as_user.arg(command.get_program()).args(command.get_args()).env_clear();
        for (name, value) in command.get_envs() {
            as_user.env(name, value.unwrap());
        }
        as_user.env("GIT_CONFIG_GLOBAL", self.world.home().path("gitconfig"));
        as_user.current_dir(command.get_current_dir().unwrap());
        as_user
    }

    fn push_command(&self, work: &WorkTree<'_>, args: &[&str]) -> Command {
        let mut command = self.as_receiver(&work.push_command(args));
        command.env("MC_PUSHER", "alice");
        command
    }

    fn push(&self, work: &WorkTree<'_>, args: &[&str]) -> Finished {
        Finished::of(self.push_command(work, args))
    }

    /// One line to the service as this user; everything that it answers.
    fn ask_as(&self, user: &str, line: &[u8]) -> Vec<Value> {
        let user = account(user);
        let script = "import socket, sys
s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1])
s.sendall(sys.stdin.buffer.read())
while True:
    try: got = s.recv(65536)
    except ConnectionResetError: break
    if not got: break
    sys.stdout.buffer.write(got)
";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(self.socket())
            .uid(user.uid.as_raw())
            .gid(account(RECEIVER).gid.as_raw())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // A line that is too long is not read to its end.
        let _ = child.stdin.take().unwrap().write_all(line);
        let output = child.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn ask(&self, ask: &Value) -> Value {
        let line = format!("{}\n", json!({"version": 1, "ask": ask}));
        let mut answers = self.ask_as(RECEIVER, line.as_bytes());
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    fn deployments(&self) -> usize {
        let text = std::fs::read_to_string(self.world.project("shop").join("state/history.jsonl")).unwrap_or_default();
        text.lines().count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end_service();
    }
}

fn refusal(answer: &Value) -> String {
    answer["failed"]["message"].as_str().unwrap_or_else(|| panic!("not refused: {answer}")).to_string()
}

#[test]
fn a_push_as_the_receiver_deploys_through_the_door_and_is_told_everything() {
    let Some(node) = Node::start("") else { return };
    let work = node.work();
    let one = node.commit(&work, &[("a", "1"), ("mc_project.yaml", "stages: {build: [id -un]}\n")]);
    let told = node.push(&work, &["-o", "reason=first", "main"]).ok();
    assert_has(&told.stderr, &format!("deployed; run serves {}", &one[..10]));
    assert_has(&told.stderr, "main is the deploy branch of shop from now on");
    assert_eq!(node.world.serves("shop"), Some(one.clone()));
    assert_eq!(node.world.run_text("shop", "a"), "1");
    let history = node.world.mc(&["history", "shop", "--json"]).ok().stdout;
    let history: Value = serde_json::from_str(&history).unwrap();
    assert_eq!((history[0]["pusher"].as_str(), history[0]["why"].as_str()), (Some("alice"), Some("first")));

    node.commit(&work, &[("mc_project.yaml", "stages: {build: ['exit 2']}\n")]);
    let failed = node.push(&work, &["main"]).code(1);
    assert_eq!(failed.rejected("main -> main"), format!("failed at build: exit 2; run still serves {}", &one[..10]));
    assert_eq!(node.deployments(), 2);
    let head = std::fs::metadata(node.world.project("shop").join("git/project/HEAD")).unwrap();
    assert_eq!((head.uid(), head.mode() & 0o777), (0, 0o644));
}

#[test]
fn verdict_later_the_pillar_and_other_branches_go_the_same_way() {
    let Some(node) = Node::start("verdict: later") else { return };
    let work = node.work();
    let one = node.commit(&work, &[("a", "1")]);
    node.push(&work, &["main"]).ok().tells("deployed; run serves");
    assert_eq!(node.world.serves("shop"), Some(one));
    assert_has(&node.push(&work, &["main:dev"]).ok().stderr, "dev: stored, not deployed");
    assert_eq!(node.deployments(), 1);

    let pillar = node.world.pillar_of("shop");
    node.commit(&pillar, &[("init.sls", "makina-projects.shop: {data: {x: [}}\n")]);
    node.push(&pillar, &["main"]).code(1);
    node.commit(&pillar, &[("init.sls", "makina-projects.shop: {data: {x: 1}}\n")]);
    node.push(&pillar, &["-o", "deploy", "main"]).ok().tells("deployed; run serves");
    assert_eq!(node.deployments(), 2);
}

#[test]
fn without_its_service_a_push_is_refused_with_the_remedy_and_nothing_changes() {
    let Some(node) = Node::start("") else { return };
    node.end_service();
    let work = node.work();
    node.commit(&work, &[("a", "1")]);
    let refused = node.push(&work, &["main"]).code(1);
    assert_has(&refused.stderr, "nobody answers at");
    assert_has(&refused.stderr, "mc_project serve");
    node.serve();
    node.push(&work, &["main"]).ok();
}

#[test]
fn a_pusher_who_is_killed_and_a_service_that_is_killed_do_not_stop_the_deployment() {
    let Some(node) = Node::start("") else { return };
    let work = node.work();
    let wait = "stages: {build: ['touch waiting; while [ ! -e $MC_DATA/go ]; do sleep 0.05; done']}\n";
    let one = node.commit(&work, &[("a", "1"), ("mc_project.yaml", wait)]);
    let tree = node.world.project("shop").join("build/tree");
    let running = Running::start(node.push_command(&work, &["main"]));
    wait_until("the build runs", || tree.join("waiting").exists());
    running.signal(Signal::SIGKILL);
    node.end_service();
    std::fs::write(node.world.project("shop").join("data/go"), "").unwrap();
    wait_until("the deployment ends by itself", || node.world.serves("shop").as_deref() == Some(&one));
}

/// An order that an honest hook would give, for a commit that is in the repository.
fn order(commit: &str, id: &str) -> Value {
    json!({
        "id": id, "commit": commit,
        "update": {"name": "refs/heads/main", "old": "0".repeat(40), "new": commit, "moved_by_worker": true},
        "options": {}, "pusher": "alice", "key": null, "push": null, "wait_seconds": 60,
    })
}

fn new_id() -> String {
    mc_project::project::ids::DeploymentId::new(mc_project::sys::clock::now()).to_string()
}

#[test]
fn what_a_hostile_receiver_asks_for_is_refused_and_changes_nothing() {
    let Some(node) = Node::start("") else { return };
    let work = node.work();
    let one = node.commit(&work, &[("a", "1")]);
    node.push(&work, &["main"]).ok();
    node.push(&work, &["main:dev"]).ok();
    let of = json!({"project": "shop", "kind": "project"});
    let start = |order: Value| node.ask(&json!({"start": {"of": of, "order": order}}));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut order = order(&one, &new_id());
        change(&mut order);
        start(order)
    };
    let used = std::fs::read_dir(node.world.project("shop").join("state/journal")).unwrap().next().unwrap().unwrap();
    let used = used.file_name().to_str().unwrap().trim_end_matches(".jsonl").to_string();
    for (answer, part) in [
        (node.ask(&json!({"facts": {"of": {"project": "blog", "kind": "project"}}})), "no project blog"),
        (node.ask(&json!({"facts": {"of": {"project": "../shop", "kind": "project"}}})), "no question"),
        (node.ask(&json!({"destroy": {"of": of}})), "no question"),
        (node.ask(&json!({"record_branch": {"of": of, "branch": "dev"}})), "main is the branch"),
        (
            node.ask(&json!({"was_deployed": {"of": of, "push": "../last.json",
                "refname": "refs/heads/main", "new": one}})),
            "names no push",
        ),
        (with(&|order| order["id"] = json!(used.as_str())), "used already"),
        (with(&|order| order["update"]["name"] = json!("refs/heads/dev")), "not the deploy branch"),
        (with(&|order| order["update"]["name"] = json!("refs/deploys/current")), "is no branch"),
        (with(&|order| order["want"] = json!("rollback")), "no question"),
        (with(&|order| order["options"]["mode"] = json!("editable")), "does not allow that mode"),
        (with(&|order| order["options"]["user"] = json!("root")), "no question"),
        (
            with(&|order| {
                order["commit"] = json!("b".repeat(40));
                order["update"]["new"] = json!("b".repeat(40));
                order["update"]["moved_by_worker"] = json!(false);
            }),
            "is not at bbbbbbbbbb",
        ),
        (
            node.ask(&json!({"command": {"who": {"name": "alice", "key": null}, "words": ["destroy", "shop"]}})),
            "not served here",
        ),
        (
            node.ask(&json!({"command": {"who": {"name": "mallory", "key": null}, "words": ["status", "shop"]}})),
            "mallory may not",
        ),
    ] {
        assert_has(&refusal(&answer), part);
    }
    let answers = node.ask_as(RECEIVER, b"{\"version\":2}\n");
    assert_has(&refusal(&answers[0]), "version 2");
    let answers = node.ask_as(RECEIVER, &vec![b'['; 200_000]);
    assert!(answers.is_empty() || refusal(&answers[0]).contains("longer than"), "{answers:?}");
    let facts = format!("{}\n", json!({"version": 1, "ask": {"facts": {"of": of}}}));
    // Whoever could get at the socket with the receiver's group is still somebody else.
    assert_has(&refusal(&node.ask_as(PROJECT, facts.as_bytes())[0]), "for nobody and root");
    assert_eq!(node.ask_as("root", facts.as_bytes())[0]["facts"]["branch"], json!("main"));
    assert_eq!((node.deployments(), node.world.serves("shop")), (1, Some(one)));
    let state = std::fs::metadata(node.world.project("shop").join("state")).unwrap();
    assert_eq!(state.mode() & 0o077, 0);
}

#[test]
fn a_command_from_afar_is_run_as_root_with_the_role_that_the_nodes_own_list_gives() {
    let Some(node) = Node::start("") else { return };
    let people = json!({"format": 1, "projects_dir": "/srv/projects", "people": {
        "alice": {"keys": [], "grants": {"shop": "admin"}},
        "bob": {"keys": [], "grants": {"*": "read"}},
        "carol": {"keys": [], "grants": {"blog": "admin"}},
    }});
    let list = node.world.root().join("etc/mc_project/access.json");
    std::fs::write(&list, people.to_string()).unwrap();
    let shell = |person: &str, typed: &str| {
        let root = node.world.root();
        let mut command = node.world.mc_command(&["--root", root.to_str().unwrap(), "shell", person]);
        command.env("SSH_ORIGINAL_COMMAND", typed);
        Finished::of(node.as_receiver(&command))
    };
    let work = node.work();
    let one =
        node.commit(&work, &[("a", "1"), ("mc_project.yaml", "tasks: {colour: [\"printf '\\\\033[31mred\\\\n'\"]}\n")]);
    node.push(&work, &["main"]).ok();

    let status: Value = serde_json::from_str(&shell("bob", "status shop --json").ok().stdout).unwrap();
    assert_eq!(status["serves"]["commit"], json!(one));
    let told = shell("alice", "deploy shop --force -o 'reason=from afar'").ok().stdout;
    assert_has(&told, "deployed; run serves");
    let history: Value = serde_json::from_str(&shell("alice", "history shop --json").ok().stdout).unwrap();
    assert_eq!((history[0]["pusher"].as_str(), history[0]["why"].as_str()), (Some("alice"), Some("from afar")));
    assert_lacks(&shell("alice", "task shop colour").ok().stdout, "\u{1b}");
    assert_has(&shell("alice", "show shop '#99'").code(2).stderr, "#99");

    shell("bob", "rollback shop").code(1);
    shell("carol", "status shop").code(1);
    // What a receiver that lies about roles gets.
    for (person, part) in [("bob", "bob may not do this"), ("carol", "carol may not do this")] {
        let who = json!({"name": person, "key": null});
        let answer = node.ask(&json!({"command": {"who": who, "words": ["stop", "shop"]}}));
        assert_has(&refusal(&answer), part);
    }
}

#[test]
fn a_configuration_of_the_node_that_cannot_be_read_is_told_to_who_pushes() {
    let Some(node) = Node::start("") else { return };
    let work = node.work();
    node.commit(&work, &[("a", "1")]);
    std::fs::write(node.world.root().join("etc/mc_project/node.yaml"), "nonsense: 1\n").unwrap();
    let told = node.push(&work, &["main"]).fails();
    assert_has(&told.stderr, "node.yaml");
    assert_has(&told.stderr, "nonsense");
    assert_lacks(&told.stderr, "no answer");
}

#[test]
fn a_project_that_is_removed_is_in_nobodys_grants_any_more() {
    let Some(node) = Node::start("") else { return };
    let people = json!({"format": 1, "projects_dir": "/srv/projects", "people": {
        "alice": {"keys": [], "grants": {"shop": "admin", "blog": "read"}},
        "bob": {"keys": [], "grants": {"*": "read"}},
    }});
    let list = node.world.root().join("etc/mc_project/access.json");
    std::fs::write(&list, people.to_string()).unwrap();
    let said = node.world.mc(&["destroy", "shop", "--yes"]).ok().stdout;
    assert_has(&said, "alice: no longer admin on shop");
    // The account is one that the operator named: it is theirs.
    assert_lacks(&said, "userdel");
    let left: Value = serde_json::from_str(&std::fs::read_to_string(&list).unwrap()).unwrap();
    assert_eq!(left["people"]["alice"]["grants"], json!({"blog": "read"}));
    assert_eq!(left["people"]["bob"]["grants"], json!({"*": "read"}));
}

#[test]
fn who_connects_and_says_nothing_or_reads_nothing_keeps_nobody_from_pushing() {
    let Some(node) = Node::start("") else { return };
    let mut silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(node.socket()).unwrap()).collect();
    let work = node.work();
    let one = node.commit(&work, &[("a", "1")]);
    let begin = Instant::now();
    node.push(&work, &["main"]).ok();
    assert_eq!(node.world.serves("shop"), Some(one));
    wait_until("the silent are sent away", || {
        let mut answer = String::new();
        let first = &mut silent[0];
        first.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        first.read_to_string(&mut answer).is_ok_and(|_| answer.contains("in time"))
    });
    assert!(begin.elapsed() < Duration::from_secs(100));
}

#[test]
fn the_socket_is_for_the_receiver_and_a_second_service_is_refused() {
    let Some(node) = Node::start("") else { return };
    let meta = std::fs::metadata(node.socket()).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, account(RECEIVER).gid.as_raw(), 0o660));
    assert_has(&node.world.mc(&["serve"]).code(1).stderr, "somebody listens there already");
    let plain = World::with_shop();
    assert_has(&plain.mc(&["serve"]).code(1).stderr, "no whole-machine node");
    let mut serve = node.as_receiver(&node.world.mc_command(&["serve"]));
    serve.env("MC_ROOT", node.world.root());
    assert_lacks(&Finished::of(serve).code(1).stdout, "serves");
}

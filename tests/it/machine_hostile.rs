//! What comes over ssh and means harm: refs, names, trees, options, commands, and a receiver that speaks to the socket
//! itself. Nothing changes, and each is refused in words.

use std::process::Command;

use crate::bad_pushes::{HOSTILE, Planter};
use crate::support::server::{RECEIVER, Server};
use crate::support::{Finished, WorkTree, assert_has, assert_lacks};

/// A node whose shop serves a first version of alice's.
fn node() -> Option<(Server, String)> {
    let server = Server::boot("", &["shop", "blog"])?;
    server.let_in("alice", "shop", "admin");
    let commit = {
        let work = fast(&server, "alice", "shop");
        let commit = work.commit("one", &[("a", "1")]);
        work.push(&["main"]).ok();
        commit
    };
    server.settle("shop");
    Some((server, commit))
}

/// Options with which many calls of ssh share one connection.
fn shared(server: &Server) -> [String; 3] {
    let control = server.machine().home().path("ssh-%C");
    ["-oControlMaster=auto".into(), format!("-oControlPath={}", control.display()), "-oControlPersist=120".into()]
}

/// A work tree whose pushes share one connection.
fn fast<'a>(server: &'a Server, person: &str, name: &str) -> WorkTree<'a> {
    let work = server.work(person, name);
    let ssh = format!("{} {}", server.machine().git_ssh_command(person), shared(server).join(" "));
    work.git(&["config", "core.sshCommand", &ssh]).ok();
    work.git(&["config", "ssh.variant", "ssh"]).ok();
    let _ = work.git(&["pull", "--quiet", "node", "main"]);
    work
}

/// `ssh mc@machine COMMAND` on the shared connection.
fn ssh(server: &Server, command: &str) -> Finished {
    let [master, path, persist] = shared(server);
    let mut ssh: Command = server.machine().ssh_command(RECEIVER, "alice", &[&master, &path, &persist]);
    ssh.args(["--", command]);
    Finished::of(ssh)
}

/// Everything that must stay as it is, of both projects and of the node.
struct Before<'a> {
    server: &'a Server,
    trees: Vec<crate::support::Tree>,
    machine: crate::support::Tree,
}

impl<'a> Before<'a> {
    fn of(server: &'a Server) -> Self {
        server.settle("shop");
        let trees = ["shop", "blog"].map(|name| server.unchangeable(name)).into();
        Self { server, trees, machine: crate::support::digest(&server.machine().root().join("etc")) }
    }

    #[track_caller]
    fn assert_unchanged(&self, what: &str) {
        let now = Self::of(self.server);
        for (before, after) in self.trees.iter().zip(&now.trees) {
            before.assert_same(after, what);
        }
        self.machine.assert_same(&now.machine, what);
    }
}

/// What was refused is told in lines that are safe on a terminal and not too long for one.
#[track_caller]
fn assert_readable(said: &Finished) {
    let ours = said.stderr.lines().filter(|line| line.starts_with("remote: ") || line.starts_with("mc_project: "));
    for line in ours {
        let line = line.trim_end();
        assert!(line.len() < 1300 && !line.contains(['\u{1b}', '\u{202e}', '\r']), "{line:?}\n{said}");
    }
    assert!(!said.stderr.contains("panicked") && !said.stderr.contains("BUG"), "{said}");
}

#[test]
fn hostile_refs_options_and_trees_over_ssh_change_nothing() {
    let Some((server, first)) = node() else { return };
    let work = fast(&server, "alice", "shop");
    work.commit("two", &[("a", "2")]);
    let before = Before::of(&server);
    let history = server.history("shop").len();
    let long = format!("refs/heads/{}", vec!["x".repeat(200); 10].join("/"));
    let stored = [
        "refs/heads/a;id",
        "refs/heads/$(touch${IFS}pwned)",
        "refs/heads/`id`",
        "refs/heads/a|b&c<d>e",
        "refs/heads/it's\"quoted\"",
        "refs/heads/-x",
        "refs/heads/--upload-pack=x",
        "refs/heads/MAIN",
        "refs/heads/%s%n{a,b}",
        "refs/heads/ünï\u{202e}cödé",
        "refs/tags/main",
        "refs/notes/main",
        "refs/pull/1/head",
        "refs/replace/1111111111111111111111111111111111111111",
        long.as_str(),
    ];
    let refspecs: Vec<String> = stored.iter().map(|name| format!("HEAD:{name}")).collect();
    let push = work.push(&refspecs.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    assert_readable(&push.does_not_tell("deployed; run serves"));
    for name in ["refs/deploys/current", "refs/deploys/inflight/x", "refs/notes/deploys"] {
        let push = work.push(&["--force", &format!("HEAD:{name}")]).code(1);
        assert_has(&push.stderr, "remote rejected");
        assert_readable(&push);
    }
    before.assert_unchanged("pushes of other refs");

    for option in ["mode=editable", "mode=final;id", "user=root", "cmd=id", "only=../x", "plan=\u{1b}[2J", "root=/", ""]
    {
        let push = work.push(&["-o", option, "main:refs/heads/main"]).code(1);
        assert_has(&push.stderr, "remote rejected");
        assert_readable(&push);
    }
    let many: Vec<String> = (0..200).flat_map(|n| ["-o".to_string(), format!("reason={n}")]).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.push("main:refs/heads/main");
    assert_readable(&work.push(&many).code(1).tells("push options"));
    before.assert_unchanged("pushes with hostile options");

    let planter = Planter::new(server.machine().home(), work.dir());
    for (what, make, _) in HOSTILE {
        let commit = planter.commit(&make(&planter), &first);
        let push = work.push(&["--force", &format!("{commit}:refs/heads/main")]).fails();
        assert_readable(&push);
        assert_eq!(server.serves("shop").as_deref(), Some(first.as_str()), "{what}\n{push}");
    }
    // What the check of the objects let through was refused by a deployment, which is told in the history and nowhere else.
    let added = server.history("shop").split_off(history);
    assert!(added.iter().all(|entry| entry["verdict"] == "refused" || entry["verdict"] == "failed"), "{added:?}");
    server.assert_sound();
    let commit = work.commit("an honest one", &[("a", "3")]);
    work.push(&["main:refs/heads/main"]).ok().tells("deployed; run serves");
    assert_eq!(server.serves("shop"), Some(commit));
}

#[test]
fn hostile_commands_and_names_over_ssh_are_refused_in_one_line() {
    let Some((server, _)) = node() else { return };
    let before = Before::of(&server);
    let long = "a".repeat(20_000);
    for command in [
        "git-receive-pack '../../etc'",
        "git-receive-pack 'shop' ; id",
        "git-receive-pack 'shop' && id",
        "git-receive-pack $(id)",
        "git-receive-pack `id`",
        "git-receive-pack shop > /tmp/x",
        "git-receive-pack",
        "git-receive-pack ''",
        "git-receive-pack '--upload-pack=id' 'shop'",
        "git-receive-pack '-x'",
        "git-receive-pack 'shop",
        "git-receive-pack '/etc'",
        "git-receive-pack '/srv/projects/shop/git/project/../../../../../etc'",
        "git-receive-pack '/srv/projects/blog/git/project'",
        "git-receive-pack 'shop/../blog'",
        "git-receive-pack 'SHOP'",
        "git-receive-pack 'shop\nid'",
        "git-upload-pack --strict 'shop'",
        "git-upload-archive 'shop'",
        "git shell",
        "git -c core.pager=id log",
        "--upload-pack=id",
        "scp -t /",
        "internal-sftp",
        "rsync --server -vlogDtpre.iLsfxC . /",
        "id",
        "/bin/sh -c id",
        "status shop --root /",
        "status blog",
        "run shop id",
        "keys add eve --project shop",
        "shell alice",
        "destroy shop --yes",
        "setup",
        "serve-connection",
        "after-death shop 20261121T000000Z-01a1fd2d-c315-748b-8ffd-3af3f6521b38",
        "work",
        "logs shop ../../../../etc/shadow",
        "show shop ../blog",
        "rollback shop --to ../../blog",
        "deploy shop --commit --exec=id",
        "deploy shop -o mode=editable",
        "task shop ../x",
        "\u{1b}[31m",
        &long,
    ] {
        let said = ssh(&server, command);
        assert!(matches!(said.exit_code(), Some(1 | 2)), "{command:?}: {said}");
        assert_readable(&said);
        let told = said.stdout.lines().chain(said.stderr.lines());
        assert_eq!(told.filter(|line| !line.trim_start().starts_with("hint: ")).count(), 1, "{command:?}: {said}");
        assert_lacks(&said.stdout, "uid=");
    }
    before.assert_unchanged("hostile commands");
    // Neither a terminal, nor a tunnel, nor another program.
    let machine = server.machine();
    for options in
        [vec!["-tt"], vec!["-N", "-oExitOnForwardFailure=yes", "-R", "9000:127.0.0.1:22"], vec!["-s", "sftp"]]
    {
        let said = machine.ssh_as(RECEIVER, "alice", &options);
        assert!(said.exit_code() != Some(0) || said.stdout.starts_with("alice (key SHA256:"), "{said}");
    }
    let mut tunnel = machine.ssh_command(RECEIVER, "alice", &["-W", "127.0.0.1:22"]);
    tunnel.stdin(std::process::Stdio::null());
    assert_lacks(&Finished::of(tunnel).stdout, "SSH-2.0");
}

/// Says each line to the socket and prints the answer of each as one line.
const ASK: &str = r#"
import json, socket, sys
for line in json.load(sys.stdin):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect("/run/mc_project.sock")
    said = b""
    try:
        s.sendall(line.encode("utf-8", "surrogateescape") + b"\n")
        while part := s.recv(65536):
            said += part
    except OSError:
        pass
    print(json.dumps(said.decode()))
"#;

/// What a receiver that was taken over asks of root, and a word of the refusal.
fn questions(first: &str, used: &str) -> Vec<(String, &'static str)> {
    use serde_json::{Value, json};
    let of = json!({"project": "shop", "kind": "project"});
    let ask = |ask: Value| json!({"version": 1, "ask": ask}).to_string();
    let other = "b".repeat(40);
    let order = |change: &dyn Fn(&mut Value)| {
        let id = mc_project::project::ids::DeploymentId::new(mc_project::sys::clock::now()).to_string();
        let mut order = json!({
            "id": id, "commit": other,
            "update": {"name": "refs/heads/main", "old": first, "new": other, "moved_by_worker": true},
            "options": {}, "pusher": "alice", "key": null, "push": null, "wait_seconds": 1,
        });
        change(&mut order);
        ask(json!({"start": {"of": of, "order": order}}))
    };
    let command = |words: Value| ask(json!({"command": {"who": {"name": "alice", "key": null}, "words": words}}));
    let shown = |name: &str| ask(json!({"facts": {"of": {"project": name, "kind": "project"}}}));
    vec![
        (String::new(), "no question"),
        ("null".into(), "no question"),
        ("{\"version\":2}".into(), "version 2"),
        ("[".repeat(60_000), "no question"),
        ("x".repeat(200_000), "longer than"),
        ("{\"version\":1,\"ask\":{\"destroy\":{\"of\":\"shop\"}}}".into(), "no question"),
        (shown("../shop"), "no question"),
        (shown("nothing"), "no project nothing"),
        (shown("shop\u{0}"), "no question"),
        (ask(json!({"record_branch": {"of": of, "branch": "dev"}})), "main is the branch"),
        (ask(json!({"record_branch": {"of": of, "branch": "../../x"}})), "main is the branch"),
        (
            ask(
                json!({"was_deployed": {"of": of, "push": "../last.json", "refname": "refs/heads/main", "new": first}}),
            ),
            "names no push",
        ),
        (order(&|o| o["id"] = json!(used)), "used already"),
        (order(&|o| o["id"] = json!("../../../etc/x")), "no question"),
        (order(&|o| o["id"] = json!("20200101T000000Z-01a1fd2d-c315-748b-8ffd-3af3f6521b38")), "was not made now"),
        (order(&|o| o["update"]["name"] = json!("refs/heads/dev")), "not the deploy branch"),
        (order(&|o| o["update"]["name"] = json!("refs/heads/../../config")), "no question"),
        (order(&|o| o["update"]["new"] = json!(first)), "the commit is not what the ref becomes"),
        (order(&|o| o["want"] = json!("rollback")), "no question"),
        (order(&|o| o["options"]["mode"] = json!("editable")), "does not allow that mode"),
        (order(&|o| o["options"]["user"] = json!("root")), "no question"),
        (order(&|o| o["key"] = json!("SHA256:x")), "no fingerprint"),
        (order(&|o| o["push"] = json!("../x")), "names no push"),
        (command(json!(["destroy", "shop", "--yes"])), "not served"),
        (command(json!(["status", "shop", "--root", "/tmp"])), "no flag of status"),
        (command(json!(["status", "blog"])), "alice may not"),
        (command(json!(vec!["status"; 1000])), "words"),
        (command(json!([])), "no command"),
        (
            ask(json!({"command": {"who": {"name": "mallory", "key": null}, "words": ["status", "shop"]}})),
            "mallory may not",
        ),
        (ask(json!({"command": {"who": {"name": "\u{1b}[2J", "key": null}, "words": ["status", "shop"]}})), "may not"),
    ]
}

#[test]
fn a_receiver_that_speaks_to_the_socket_itself_gets_refusals_and_keeps_nobody_out_for_long() {
    let Some((server, first)) = node() else { return };
    let machine = server.machine();
    let before = Before::of(&server);
    let used = server.last("shop").unwrap().serves.unwrap().id.to_string();
    let questions = questions(&first, &used);
    machine.write("/usr/local/share/ask.py", ASK, 0o644);
    let lines: Vec<&str> = questions.iter().map(|(line, _)| line.as_str()).collect();
    machine.write("/usr/local/share/lines.json", serde_json::to_string(&lines).unwrap(), 0o644);
    let ask = "python3 /usr/local/share/ask.py < /usr/local/share/lines.json";
    let said = server.as_user(RECEIVER, ask).ok().stdout;
    assert_eq!(said.lines().count(), questions.len(), "{said}");
    for (answer, (line, part)) in said.lines().zip(&questions) {
        let shown: String = line.chars().take(200).collect();
        let answer: String = serde_json::from_str(answer).unwrap();
        // Who says far too much may be cut off before the answer is read.
        if answer.is_empty() && line.len() > 100_000 {
            continue;
        }
        let answer: serde_json::Value =
            serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{shown}: {e}: {answer:?}"));
        let message = answer["failed"]["message"].as_str().unwrap_or_else(|| panic!("{shown}: {answer}"));
        assert!(
            message.contains(part) && !message.contains(['\u{1b}', '\n']),
            "{shown}: expected `{part}` in {message:?}"
        );
    }
    // A commit that is not in the repository was ordered: it is refused by the worker, and nothing moves.
    before.assert_unchanged("questions of a hostile receiver");
    for user in ["nobody", "mc-shop"] {
        server.as_user(user, ask).fails().says("PermissionError");
    }

    // Seventy connections that say nothing: more than systemd serves at once. They are sent away after ten seconds.
    let silent = "import socket, time\nall = [socket.socket(socket.AF_UNIX) for _ in range(70)]\nfor s in all: s.connect('/run/mc_project.sock')\ntime.sleep(60)\n";
    machine.write("/usr/local/share/silent.py", silent, 0o644);
    let work = fast(&server, "alice", "shop");
    machine.run(&format!("setpriv --reuid={RECEIVER} --regid={RECEIVER} --init-groups python3 /usr/local/share/silent.py > /dev/null 2>&1 &")).ok();
    let commit = work.commit("two", &[("a", "2")]);
    let begun = std::time::Instant::now();
    let pushed = loop {
        let push = work.push(&["main"]);
        if push.exit_code() == Some(0) || begun.elapsed().as_secs() > 40 {
            break push.ok();
        }
        assert_readable(&push);
        assert_has(&push.stderr, "gave no answer; perhaps too many ask at once");
        assert_eq!(server.serves("shop").as_ref(), Some(&first));
    };
    pushed.tells("deployed; run serves");
    assert_eq!(server.serves("shop"), Some(commit));
    machine.run("pkill -f silent.py");
    assert_eq!(machine.run("systemctl is-active mc_project.socket").stdout, "active\n");
    server.assert_sound();
}

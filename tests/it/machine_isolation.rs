//! Two projects of two people on one machine, and a receiver that was taken over: what none of them can do.

use std::time::Duration;

use crate::support::server::{RECEIVER, Server};
use crate::support::{Finished, Running, assert_has, assert_lacks, wait_until};

const PROBE: &str = include_str!("support/probe.py");
const SAMPLER: &str = include_str!("support/sampler.py");

/// A build that waits in the middle, with a file in its `/tmp`.
const WAITING: &str = "stages:
  build: ['echo secret > /tmp/of-shop; touch here; while [ ! -e $MC_DATA/go ]; do sleep 0.05; done']
";

/// Writes down everything that there is of shop, and the processes that are its own.
fn write_targets(server: &Server) {
    let machine = server.machine();
    machine.write("/usr/local/share/probe.py", PROBE, 0o644);
    machine
        .run(
            "cd /usr/local/share
            find /srv/projects/shop /var/log/mc_project /var/mail/mc_project /etc/mc_project/node.yaml \
                /etc/mc_project/keys /etc/mc_project/access.json /run/mc_project.sock -print0 > paths
            pgrep -u mc-shop > pids && chmod 644 paths pids",
        )
        .ok();
}

const RUN_PROBE: &str = "python3 /usr/local/share/probe.py /usr/local/share/paths /usr/local/share/pids";

#[test]
fn a_project_can_neither_see_nor_hold_up_another() {
    let Some(server) = Server::boot("steps: {processes: 30}\n", &["shop", "blog"]) else { return };
    let machine = server.machine();
    server.let_in("alice", "shop", "deploy");
    server.let_in("bob", "blog", "deploy");
    let (shop, blog) = (server.work("alice", "shop"), server.work("bob", "blog"));
    let pillar = server.work("alice", "shop/pillar");
    pillar.commit("pillar", &[("init.sls", "makina-projects.shop: {data: {password: geheim-geheim}}\n")]);
    pillar.push(&["main"]).ok();
    shop.commit_app("1", 8001, "true");
    shop.push(&["main"]).ok();
    blog.commit_app("1", 8002, "true");
    blog.push(&["main"]).ok();

    // A deployment of shop is under way while blog looks around.
    shop.commit("two", &[("mc_project.yaml", WAITING)]);
    let waiting = shop.start_push(&["main"]);
    wait_until("shop builds", || server.project("shop").join("build/tree/here").exists());
    write_targets(&server);
    // The control: the same program finds what is the project's own, and nothing that is root's.
    let own = server.as_user("mc-shop", RUN_PROBE).code(1).stdout;
    for part in
        ["list /srv/projects/shop/run", "write /srv/projects/shop/data/db", "read /srv/projects/shop/build/config"]
    {
        assert_has(&own, &format!("COULD {part}"));
    }
    assert!(own.contains("COULD signal ") && own.contains("COULD environ of "), "{own}");
    for part in ["state", "archives", "pillar", "git", "deploy"] {
        assert_lacks(&own, &format!("/srv/projects/shop/{part}/"));
    }
    for lacking in
        ["/var/log/mc_project/", "/var/mail/", "/etc/mc_project/", "connect to", "rename /srv/projects/shop/run\n"]
    {
        assert_lacks(&own, lacking);
    }
    // As blog's account, as a service of blog would; and in a step of blog's.
    server.as_user("mc-blog", RUN_PROBE).ok();
    let step = format!(
        "stages: {{build: ['{RUN_PROBE}', 'ls -A /tmp /var/tmp /dev/shm', 'ls -d /proc/[0-9]*/cwd | wc -l']}}\n"
    );
    blog.commit("a look around", &[("mc_project.yaml", &step)]);
    blog.push(&["main"]).ok().tells("deployed; run serves");
    let log = server.ssh("bob", "logs blog").ok().stdout;
    assert!(!log.contains("of-shop") && !log.contains("COULD"), "{log}");
    machine.run("touch /srv/projects/shop/data/go").ok();
    waiting.wait().ok().tells("deployed; run serves");

    burning(&server);
}

/// While a step of blog's takes what it can get, shop is deployed; and nothing of the fire is left.
fn burning(server: &Server) {
    let (shop, blog) = (server.work("alice", "shop"), server.work("bob", "blog"));
    for work in [&shop, &blog] {
        work.git(&["pull", "--quiet", "node", "main"]).ok();
    }
    let burn = "import os
while True:
    try: os.fork()
    except OSError: pass
";
    blog.commit(
        "burn",
        &[("burn.py", burn), ("mc_project.yaml", "stages: {build: [{run: [python3, burn.py], timeout: 12s}]}\n")],
    );
    let fire = blog.start_push(&["main"]);
    wait_until("it burns", || {
        server.machine().run("pgrep -c -u mc-blog -f burn.py").stdout.trim().parse::<u32>().unwrap_or(0) >= 20
    });
    let commit = shop.commit_app("3", 8001, "true");
    let told = shop.push(&["main"]).ok().tells("deployed; run serves");
    assert!(told.took < Duration::from_secs(40), "{told}");
    assert_eq!(server.serves("shop"), Some(commit));
    assert_has(&fire.wait().code(1).stderr, "[remote rejected]");
    assert_eq!(server.machine().run("pgrep -u mc-blog -f burn.py").stdout, "");
    server.settle("blog");
    server.assert_sound();
}

/// What a receiver that was taken over tries; it tells what it could do.
const TAKE_OVER: &str = r#"
import os, sys
could = []
def attempt(what, act):
    try: act()
    except OSError: return
    could.append(what)
def write(path, text="x"):
    with open(path, "w") as file: file.write(text)
def move(path): os.rename(path, path + ".moved")
def link(path):
    os.symlink("/tmp/evil", path + ".link")
    os.rename(path + ".link", path)
for repo in ["/srv/projects/shop/git/project", "/srv/projects/shop/git/pillar"]:
    for name in ["config", "HEAD", "commondir", "hooks/pre-receive", "info/mc_project.json"]:
        at = f"{repo}/{name}"
        attempt("write " + at, lambda: write(at))
        attempt("remove " + at, lambda: os.unlink(at))
    for name in ["hooks/update", "hooks/post-receive.local", "info/attributes", "info/grafts", "objects/info/alternates",
                 "objects/info/http-alternates", ".git/config"]:
        attempt(f"make {repo}/{name}", lambda: write(f"{repo}/{name}"))
    for name in ["", "/config", "/HEAD", "/commondir", "/.git", "/hooks", "/info", "/objects", "/objects/info", "/refs",
                 "/hooks/pre-receive"]:
        attempt(f"move {repo}{name}", lambda: move(repo + name))
        attempt(f"replace {repo}{name}", lambda: link(repo + name))
        attempt(f"chmod {repo}{name}", lambda: os.chmod(repo + name, 0o777))
    attempt("empty " + repo, lambda: os.rmdir(repo + "/.git"))
for at in ["/srv/projects/shop/git/new", "/srv/projects/shop/new", "/srv/projects/new", "/var/lib/mc_project/.gitconfig",
           "/var/lib/mc_project/.ssh/authorized_keys", "/var/lib/mc_project/.ssh/rc", "/var/lib/mc_project/.ssh/environment",
           "/etc/mc_project/node.yaml", "/etc/mc_project/access.json", "/etc/mc_project/system.json", "/etc/gitconfig",
           "/usr/local/bin/mc_project", "/usr/local/bin/git", "/etc/systemd/system/mc_project.socket", "/run/mc_project.sock.new"]:
    attempt("write " + at, lambda: write(at))
    attempt("move " + at, lambda: move(at))
for at in ["run", "data", "pillar", "state", "archives", "deploy", "build"]:
    attempt("list " + at, lambda: os.listdir("/srv/projects/shop/" + at))
attempt("list the projects", lambda: os.listdir("/srv/projects"))
attempt("list the logs", lambda: os.listdir("/var/log/mc_project"))
print("\n".join("COULD " + what for what in could))
"#;

/// Programs that say as whom they ran, wherever the receiver can put some.
const PLANT: &str = r#"
mkdir -p /tmp/evil/hooks; cd /tmp/evil
printf '#!/bin/sh\necho "$0" >> /tmp/ran-as-$(id -u)\n' > canary; chmod 755 canary
for name in pre-receive proc-receive post-receive update reference-transaction post-update pre-auto-gc fsmonitor-watchman; do
    cp canary hooks/$name
done
printf '[core]\n\trepositoryformatversion = 0\n\tbare = true\n\thooksPath = /tmp/evil/hooks\n\tfsmonitor = /tmp/evil/canary\n\tsshCommand = /tmp/evil/canary\n\talternateRefsCommand = /tmp/evil/canary\n\tpager = /tmp/evil/canary\n\teditor = /tmp/evil/canary\n[diff]\n\texternal = /tmp/evil/canary\n[uploadpack]\n\tpackObjectsHook = /tmp/evil/canary\n[credential]\n\thelper = !/tmp/evil/canary\n' > config
git init -q --bare evil.git; cp -r hooks config evil.git
for repo in /srv/projects/shop/git/project /srv/projects/shop/git/pillar; do
    cd $repo || exit
    common=/tmp/evil/${repo##*/}
    mkdir $common; cp -r /tmp/evil/hooks /tmp/evil/config $common; ln -s $repo/objects $repo/refs $common
    rm -f commondir; echo $common > commondir
    cp /tmp/evil/config config.worktree
    cp -r /tmp/evil/evil.git .git
    mkdir -p worktrees/evil modules/evil remotes branches hooks.d logs
    cp -r /tmp/evil/hooks /tmp/evil/config worktrees/evil; cp -r /tmp/evil/hooks /tmp/evil/config modules/evil
    echo /tmp/evil/evil.git > worktrees/evil/gitdir; echo $common > worktrees/evil/commondir
    cp /tmp/evil/canary hooks.d/post-receive; cp /tmp/evil/canary objects/pack/post-receive
    cp /tmp/evil/canary git; cp /tmp/evil/canary mc_project
done 2> /dev/null
exit 0
"#;

#[test]
fn a_receiver_that_is_taken_over_replaces_nothing_that_decides_and_root_runs_nothing_of_it() {
    let Some(server) = Server::boot("", &["shop"]) else { return };
    let machine = server.machine();
    server.let_in("alice", "shop", "admin");
    let (alice, root) = (server.work("alice", "shop"), server.work_of_root("shop"));
    alice.commit("one", &[("a", "1")]);
    alice.push(&["main"]).ok();
    machine.write("/usr/local/share/take-over.py", TAKE_OVER, 0o644);
    machine.write("/usr/local/share/plant.sh", PLANT, 0o644);
    let take_over = || server.as_user(RECEIVER, "python3 /usr/local/share/take-over.py").ok().stdout;
    let plant = || server.as_user(RECEIVER, "sh /usr/local/share/plant.sh");
    let ran_as_root = || machine.exists("/tmp/ran-as-0");
    let push_as_root = |text: &str| {
        root.git(&["fetch", "--quiet", "node", "main"]).ok();
        root.git(&["reset", "--quiet", "--hard", "FETCH_HEAD"]).ok();
        root.commit("of root", &[("a", text)]);
        root.push(&["main"])
    };

    // The control: without the files of root's that keep them out, the canaries sing, and `init` puts these back.
    let repository = "/srv/projects/shop/git/project";
    machine.run(&format!("rm {repository}/commondir")).ok();
    assert_has(&take_over(), "COULD");
    plant();
    let pushed = push_as_root("2");
    assert!(ran_as_root(), "the control: what is planted must be able to run\n{pushed}");
    let repaired = server.mc(&["init", "shop"]).ok().stdout;
    assert_has(&repaired, "who led git elsewhere; replaced");
    machine.run(&format!("cd {repository}; rm -rf /tmp/ran-as-* /tmp/evil* commondir.moved worktrees modules")).ok();
    server.assert_sound();

    // Now the guards stand.
    let guarded = |server: &Server| server.unchangeable("shop");
    let before = guarded(&server);
    assert_eq!(take_over().trim(), "");
    plant();
    guarded(&server).assert_same(&before, "shop after the receiver was taken over");
    push_as_root("3").ok().tells("deployed; run serves");
    alice.git(&["pull", "--quiet", "node", "main"]).ok();
    let commit = alice.commit("four", &[("a", "4")]);
    alice.push(&["main", "main:refs/heads/other"]).ok().tells("deployed; run serves");
    assert_eq!(server.serves("shop"), Some(commit));
    let pillar = server.work("alice", "shop/pillar");
    pillar.commit("pillar", &[("init.sls", "makina-projects.shop: {data: {a: 1}}\n")]);
    pillar.push(&["-o", "deploy", "main"]).ok().tells("deployed; run serves");
    for args in ["init", "deploy --force", "plan", "rollback", "drift", "recover", "history", "show", "release list"] {
        let (command, flags) = args.split_once(' ').unwrap_or((args, ""));
        let words =
            if command == "release" { "release list shop".to_string() } else { format!("{command} shop {flags}") };
        let said = server.mc(&words.split_whitespace().collect::<Vec<_>>());
        assert!(said.exit_code() == Some(0), "{said}");
    }
    server.assert_sound();
    assert!(!ran_as_root(), "{}", machine.run("cat /tmp/ran-as-0").stdout);
    // Nor as anybody else but the receiver.
    assert_eq!(machine.run(&format!("ls /tmp | grep ran-as- | grep -v ran-as-$(id -u {RECEIVER})$")).stdout, "");
}

#[test]
fn a_secret_of_the_pillar_is_found_nowhere_but_where_it_belongs() {
    let Some(server) = Server::boot("", &["shop", "blog"]) else { return };
    let machine = server.machine();
    server.let_in("alice", "shop", "admin");
    let (canary, exported) = ("Kanarienvogel-4711-gelb", "Wellensittich-0815-blau");
    let pillar = server.work("alice", "shop/pillar");
    let text = format!(
        "makina-projects.shop:\n  data:\n    password: {canary}\n    deep: [{{api_token: {canary}}}]\n    env: {{MY_TOKEN: {exported}}}\n"
    );
    pillar.commit("a pillar", &[("init.sls", &text)]);
    pillar.push(&["main"]).ok();

    machine.write("/usr/local/share/sampler.py", SAMPLER, 0o644);
    let backwards = |word: &str| word.chars().rev().collect::<String>();
    let mut sampler = machine.command("python3");
    sampler.args(["/usr/local/share/sampler.py", "/root/enough", &backwards(canary), &backwards(exported)]);
    let sampler = Running::start(sampler);

    // Steps use the secret, sleep with it, and print it; the second version fails after that.
    let work = server.work("alice", "shop");
    let say = "cat $MC_CONFIG; echo $MY_TOKEN; sleep 0.3";
    let stages = ["build", "check", "stop", "backup", "start", "upgrade", "health"];
    let recipe = stages.map(|stage| format!("  {stage}: ['{say}']\n")).concat();
    let recipe = format!("stages:\n{recipe}notify: {{to: [dev@example.org], on: [failure, recovered, success]}}\n");
    work.commit("one", &[("a", "1"), ("mc_project.yaml", &recipe)]);
    let mut told = vec![work.push(&["main"]).ok()];
    work.commit("two", &[("a", "2"), ("mc_project.yaml", &recipe.replace("upgrade: ['", "upgrade: ['false; "))]);
    told.push(work.push(&["-o", "plan", "main"]).ok());
    told.push(work.push(&["main"]).code(1));
    work.commit(
        "three",
        &[("a", "3"), ("mc_project.yaml", &recipe.replace("start: ['", "start: ['trap \"exit 3\" 0; "))],
    );
    told.push(work.push(&["main"]).code(1));
    server.settle("shop");
    for command in
        ["config shop", "plan shop", "logs shop", "show shop --json", "history shop --json", "status shop --json"]
    {
        told.push(server.ssh("alice", command).ok());
    }
    told.push(machine.run("journalctl --quiet --no-pager --all --output=export"));
    told.push(
        machine
            .run("git -C /srv/projects/shop/git/project cat-file --batch-all-objects --batch --buffer | tr -d '\\0'"),
    );
    told.push(server.mc(&["release", "list", "shop"]).ok());
    machine.write("/root/enough", "", 0o600);
    let seen = sampler.wait().ok().stdout;
    let uid = machine.run("id -u mc-shop").ok().stdout;
    let mails = server.mails();
    assert!(mails.len() >= 2, "{mails:?}");
    for word in [canary, exported] {
        for said in &told {
            assert!(!said.stdout.contains(word) && !said.stderr.contains(word), "{word} is told:\n{said}");
        }
        assert!(mails.iter().all(|mail| !mail.raw.contains(word) && !mail.text.contains(word)), "{word} is mailed");
        packed_without(&server, word);
        written_where_it_belongs(&server, word);
    }
    // What was exported is seen by the project's own steps: so the sampler had its eyes open. Nothing else was.
    let (rounds, seen) = seen.trim().split_once('\n').unwrap();
    assert!(rounds.trim_start_matches("rounds ").parse::<u32>().unwrap() > 20, "{rounds}");
    assert_eq!(seen, format!("word 1 in environ of user {}", uid.trim()));
}

/// No deliverable holds the word.
fn packed_without(server: &Server, word: &str) {
    let mut count = 0;
    for entry in std::fs::read_dir(server.project("shop").join("releases")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "zst") {
            let mut zstd = server.machine().home().command("sh");
            zstd.args(["-c", "zstd -dc \"$1\" | tr -d '\\0'", "sh"]).arg(&path);
            assert_lacks(&Finished::of(zstd).ok().stdout, word);
            count += 1;
        }
    }
    assert!(count > 0, "there are deliverables");
}

/// Of all files of the machine only the pillar's checkout and the project's configuration hold the word, and others
/// than root and the project cannot read them.
fn written_where_it_belongs(server: &Server, word: &str) {
    let machine = server.machine();
    let halves = word.split_at(5);
    let found = machine.run(&format!(
        "word={}; word=${{word}}{}; grep -rlaF \"$word\" / --exclude-dir=proc --exclude-dir=sys 2> /dev/null | sort; true",
        halves.0, halves.1
    ));
    let found = found.ok().stdout;
    let mut files: Vec<&str> = found.lines().collect();
    files.retain(|file| {
        let project = file.strip_prefix("/srv/projects/shop/").unwrap_or_default();
        // What a `start` step and its services print goes straight into a file, which nobody masks and root alone reads.
        let is_output = *file == "/var/log/mc_project/shop/services.log";
        !(project.starts_with("pillar/") || project.starts_with("build/config") || is_output)
    });
    assert!(files.is_empty(), "the secret is in {files:?}");
    assert_has(&found, "/srv/projects/shop/pillar/init.sls");
    for file in found.lines() {
        for user in ["mc-blog", RECEIVER, "nobody"] {
            server.as_user(user, &format!("cat {file}")).fails();
        }
        let mode = machine.run(&format!("stat -c %a {file}")).ok().stdout;
        assert!(matches!(mode.trim(), "640" | "600" | "644"), "{file}: {mode}");
    }
}

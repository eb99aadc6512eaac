//! A whole machine from the developer's side of the wire: made a node from there, pushed to, and asked.

use std::path::Path;
use std::process::Command;

use crate::support::server::{RECEIVER, Server};
use crate::support::{Finished, Machine, Running, assert_has, assert_lacks, cut, wait_until, write_list};

/// The program on the developer's side, with the key of `person`.
fn command(machine: &Machine, person: &str, dir: &Path, args: &[&str]) -> Command {
    let mut command = machine.home().command(env!("CARGO_BIN_EXE_mc_project"));
    command.current_dir(dir).env("GIT_SSH_COMMAND", machine.git_ssh_command(person)).args(args);
    command
}

#[track_caller]
fn mc(machine: &Machine, person: &str, args: &[&str]) -> Finished {
    Finished::of(command(machine, person, &machine.home().path("home"), args))
}

#[test]
fn a_fresh_machine_is_made_a_node_from_afar_and_brought_up_to_date() {
    let Some(server) = Server::bare() else { return };
    let machine = server.machine();
    let root = format!("root@{}", machine.address());
    let me = |args: &[&str]| mc(machine, "root", &[&["--node", &root], args].concat());
    machine.run("rm /root/mc_project").ok();
    me(&["list"]).code(1).says("mc_project is not installed on root@");
    me(&["doctor"]).code(1).says("not installed there").says("Debian").says("setup");

    let planned = me(&["setup", "--plan"]).ok().stdout;
    assert_has(&planned, "this is a plan; nothing was done");
    assert!(!machine.exists("/usr/local/bin/mc_project") && !machine.exists("/root/.mc_project-setup"));
    let done = me(&["setup", "--environment", "staging"]).ok().stdout;
    for part in [
        "Debian",
        "sending the program",
        "it answers there: mc_project",
        "done: make the account mc",
        &format!("this machine is a node; next: mc_project --node {root} init NAME"),
    ] {
        assert_has(&done, part);
    }
    assert!(!machine.exists("/root/.mc_project-setup"), "nothing is left of the way");
    let again = me(&["setup"]).ok().stdout;
    assert_has(&again, "is there already");
    assert!(again.ends_with("nothing to do\n"), "{again}");

    // The rest of the chapter, from here too.
    me(&["init", "shop"]).ok().says("shop is ready");
    let key = machine.private_key("alice").with_extension("pub");
    me(&["keys", "add", "alice", "--project", "shop", "--key", key.to_str().unwrap()])
        .ok()
        .says("next, on alice's machine");
    me(&["keys", "list"]).ok().says("alice").says("shop: deploy");
    me(&["doctor"]).ok();
    let work = server.work("alice", "shop");
    let commit = work.commit_app("1", 8001, "true");
    Finished::of(command(machine, "alice", work.dir(), &["push"])).ok().says("deployed; run serves");
    assert_eq!(server.serves("shop"), Some(commit));

    // An older program, with hooks of its own: the newer one takes its place, and what it must bring up to date. What still
    // runs from the file keeps it: an own file gets its name.
    machine.run("rm /usr/local/bin/mc_project").ok();
    machine.write("/usr/local/bin/mc_project", "#!/bin/sh\necho mc_project 0.0.9\n", 0o755);
    machine.run("rm /srv/projects/shop/git/project/hooks/post-receive").ok();
    let upgraded = me(&["setup"]).ok().stdout;
    assert_has(&upgraded, "mc_project 0.0.9 is there, another one than this");
    assert_has(&upgraded, "done: hooks and directories of shop are those of this version");
    assert!(machine.exists("/srv/projects/shop/git/project/hooks/post-receive"));
    server.settle("shop");
    server.assert_sound();
}

#[test]
fn a_program_that_cannot_run_there_changes_nothing() {
    let Some(server) = Server::boot("", &["shop"]) else { return };
    let machine = server.machine();
    let root = format!("root@{}", machine.address());
    let before = machine.read("/usr/local/bin/mc_project");
    let mut other = std::fs::read("/bin/true").unwrap();
    other[18] = 0xf3; // e_machine (elf(5)): another processor
    let file = machine.home().path("other");
    for content in [other, b"#!/bin/sh\nexit 3\n".to_vec()] {
        std::fs::write(&file, content).unwrap();
        let said = mc(machine, "root", &["--node", &root, "setup", "--binary", file.to_str().unwrap()]).code(1);
        assert_has(&said.stderr, "hint: ");
        assert_eq!(machine.read("/usr/local/bin/mc_project"), before);
        assert!(!machine.exists("/root/.mc_project-setup"));
    }
    // A full disk: the program does not fit, and that is known before it is sent.
    machine.run("mkdir /small && mount -t tmpfs -o size=1m,mode=755 tmpfs /small && sed -i 's|^\\(root:.*\\):/root:|\\1:/small:|' /etc/passwd").ok();
    std::fs::write(&file, std::fs::read(env!("CARGO_BIN_EXE_mc_project")).unwrap()).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.push(0);
    std::fs::write(&file, bytes).unwrap();
    machine.run("mkdir -p -m 700 /small/.ssh && cp /root/.ssh/authorized_keys /small/.ssh/").ok();
    // A new connection, which has the new home.
    cut(machine.home().dir());
    let full = mc(machine, "root", &["--node", &root, "setup", "--binary", file.to_str().unwrap()]).code(1);
    assert_has(&full.stderr, "the disk of root@");
    assert_has(&full.stderr, "make room there");
    assert_eq!(machine.read("/usr/local/bin/mc_project"), before);
}

#[test]
fn people_without_a_shell_and_their_administrator_use_one_name() {
    let Some(server) = Server::boot("", &["shop", "blog"]) else { return };
    let machine = server.machine();
    let at = machine.address();
    server.let_in("alice", "shop", "admin");
    // Alice's key opens root's account too: she administers the machine.
    machine.run("cat /root/alice.pub >> /root/.ssh/authorized_keys").ok();
    write_list(
        machine.home().dir(),
        &format!(
            "nodes:\n  prod: {{ssh: {RECEIVER}@{at}, admin: root@{at}, project: shop}}\n  plain: {{ssh: {RECEIVER}@{at}, project: shop}}\n"
        ),
    );
    let alice = |args: &[&str]| mc(machine, "alice", args);
    let work = server.work("alice", "shop");
    work.git(&["remote", "remove", "node"]).ok();
    for version in ["1", "2"] {
        let commit = work.commit_app(version, 8001, "true");
        let pushed = Finished::of(command(machine, "alice", work.dir(), &["push", "prod"])).ok();
        assert_has(&pushed.stdout, "deployed; run serves");
        assert_eq!(server.serves("shop"), Some(commit));
        server.settle("shop");
    }
    for node in ["prod", "plain"] {
        for words in [
            "status",
            "history",
            "show",
            "logs",
            "diff shop #1 #2",
            "drift",
            "verify",
            "plan",
            "config",
            "list",
            "follow",
            "release list shop",
            "restart",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            alice(&[&["--node", node], &words[..]].concat()).ok();
        }
    }
    alice(&["--node", "plain", "rollback", "--yes", "--reason", "it's \"$(x)\" \\ !"])
        .ok()
        .says("deployed; run serves");
    server.settle("shop");
    let entry = server.history("shop").pop().unwrap();
    assert_eq!(entry["why"], "it's \"$(x)\" \\ !");
    assert!(entry["pusher"].as_str().unwrap().starts_with("alice"), "{entry}");
    alice(&["--node", "prod", "deploy", "shop"]).ok();
    server.settle("shop");
    // What the keys of projects are not served, the administrator is; without one it is said how to have one.
    let ran = alice(&["--node", "prod", "run", "shop", "--", "id", "-un"]).ok();
    assert_eq!(ran.stdout, "mc-shop\n");
    alice(&["--node", "prod", "release", "list"]).ok();
    alice(&["--node", "prod", "doctor"]).ok().says("to the keys of projects");
    alice(&["--node", "plain", "run", "shop", "--", "id"])
        .code(1)
        .says("does not serve `run`")
        .says("admin: root@HOST");
    alice(&["--node", "plain", "setup"]).code(1).says("has no shell for us");
    alice(&["--node", "plain", "status", "blog"]).code(1).says("there is no project `blog` for alice");
    let wrong = mc(machine, "nobody", &["--node", "prod", "status"]).code(1);
    assert_has(&wrong.stderr, "lets no key of yours in as mc");
    server.assert_sound();
}

#[test]
fn an_account_with_sudo_administers_and_one_without_is_told() {
    let Some(server) = Server::bare() else { return };
    let machine = server.machine();
    machine.useradd("alice");
    let node = format!("alice@{}", machine.address());
    let refused = mc(machine, "alice", &["--node", &node, "setup"]).code(1);
    assert_has(&refused.stderr, "is not root, and there is no sudo");
    // The machine has no sudo to install: one that does what counts here, with setpriv as its set-user-id half.
    machine.run("cp /usr/bin/setpriv /usr/local/sbin/as-root && chmod 4755 /usr/local/sbin/as-root").ok();
    let sudo = |asks: &str| {
        let text = format!(
            "#!/bin/sh\n{asks}while [ \"$1\" = -n ] || [ \"$1\" = -- ]; do shift; done\n\
             exec /usr/local/sbin/as-root --reuid=0 --regid=0 --clear-groups -- \"$@\"\n"
        );
        machine.write("/usr/bin/sudo", text, 0o755);
    };
    sudo(
        "if [ \"$1\" = -n ]; then echo 'sudo: a password is required' >&2; exit 1; fi\n\
         printf '[sudo] password: ' > /dev/tty; read -r word < /dev/tty; [ \"$word\" = open-sesame ] || exit 1\n",
    );
    let asks = mc(machine, "alice", &["--node", &node, "setup"]).code(1);
    assert_has(&asks.stderr, "sudo asks");
    assert_has(&asks.stderr, "--node root@HOST");
    assert!(!machine.exists("/usr/local/bin/mc_project"));

    // At a terminal the password is asked for there.
    let said = typed(machine, &format!("--node {node} setup"), "open-sesame\n").ok();
    assert_has(&said.stdout, "[sudo] password: ");
    assert_has(&said.stdout, "this machine is a node");
    assert!(machine.exists("/usr/local/bin/mc_project"));

    // One that asks nothing needs no terminal.
    sudo("");
    let me = |args: &[&str]| mc(machine, "alice", &[&["--node", &node], args].concat());
    me(&["setup"]).ok().says("is there already").says("nothing to do");
    me(&["init", "shop"]).ok().says("shop is ready");
    me(&["list"]).ok().says("shop");
    me(&["doctor"]).ok();
}

/// The program at a terminal with alice's key, and what a person types when they are asked.
#[track_caller]
fn typed(machine: &Machine, words: &str, answer: &str) -> Finished {
    let inner = command(machine, "alice", &machine.home().path("home"), &[]);
    let mut command = Command::new("script");
    command.args(["-qefc", &format!("{} {words}", env!("CARGO_BIN_EXE_mc_project")), "/dev/null"]).env_clear();
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
    let (reader, mut writer) = std::io::pipe().unwrap();
    command.current_dir(machine.home().path("home")).stdin(reader);
    let shown = machine.home().path("shown");
    command.stdout(std::fs::File::create(&shown).unwrap());
    let running = Running::start_with_output(command);
    wait_until("it asks", || std::fs::read_to_string(&shown).is_ok_and(|text| text.contains("password: ")));
    std::io::Write::write_all(&mut writer, answer.as_bytes()).unwrap();
    let mut said = running.wait();
    drop(writer);
    said.stdout = std::fs::read_to_string(&shown).unwrap();
    said
}

#[test]
fn a_push_survives_the_loss_of_the_wire_and_one_deployment_is_shown() {
    let Some(server) = Server::boot("", &["shop"]) else { return };
    let machine = server.machine();
    server.let_in("alice", "shop", "deploy");
    let work = server.work("alice", "shop");
    let waits = "stages: {build: ['touch $MC_DATA/waiting; while [ ! -e $MC_DATA/go ]; do sleep 0.05; done']}\n";
    let commit = work.commit("waits", &[("mc_project.yaml", waits)]);
    let running = Running::start(command(machine, "alice", work.dir(), &["push"]));
    wait_until("the build runs", || machine.exists("/srv/projects/shop/data/waiting"));
    assert!(cut(machine.home().dir()) > 0);
    machine.write("/srv/projects/shop/data/go", "", 0o644);
    let said = running.wait().ok();
    assert_has(&said.stdout, "the connection was lost; the deployment goes on there");
    assert_has(&said.stdout, &format!("deployed; run serves {}", &commit[..10]));
    assert_eq!(said.stdout.matches("shop #1 cooking").count(), 1, "{said}");
    assert_lacks(&said.stderr, "error");
    assert_eq!(server.serves("shop"), Some(commit));
}

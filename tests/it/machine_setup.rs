//! The server's chapter of the README, on a fresh machine: from nothing to two isolated projects that two people push.

use crate::support::server::{RECEIVER, Server};
use crate::support::{Finished, Machine, Tree, assert_has, assert_lacks, digest};

/// Everything that `setup` could change, and the accounts.
fn machine_wide(machine: &Machine) -> Tree {
    let root = machine.root();
    let parts = ["etc", "srv", "usr/local", "var/lib/mc_project", "var/log/mc_project", "root"];
    Tree::of(parts.into_iter().map(|part| (part.to_string(), format!("{:?}", digest(&root.join(part))))))
}

fn scp(machine: &Machine, from: &str, to: &str) {
    let mut command = machine.ssh_command("root", "root", &[]);
    let mut scp = std::process::Command::new(command.get_program());
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    // `nsenter … -- ssh OPTIONS HOST` becomes `nsenter … -- scp OPTIONS FROM HOST:TO`.
    for arg in &args[..args.len() - 1] {
        scp.arg(if arg == "ssh" { "scp".as_ref() } else { arg.as_os_str() });
    }
    scp.arg(from).arg(format!("{}:{to}", args[args.len() - 1].to_str().unwrap()));
    command = scp;
    Finished::of(command).ok();
}

#[test]
fn a_fresh_machine_becomes_a_node_where_two_people_push_two_projects() {
    let Some(server) = Server::bare() else { return };
    let machine = server.machine();
    // The program, as one brings it: by scp. `setup` finds its own place for it.
    scp(machine, env!("CARGO_BIN_EXE_mc_project"), "/root/brought");
    let before = machine_wide(machine);
    for command in ["status", "list", "history shop", "status --disk"] {
        let said = machine.ssh_root(&format!("/root/brought {command}")).code(2);
        assert_has(&said.stderr, "this machine is no node; is MC_ROOT unset?");
    }
    let planned = machine.ssh_root("/root/brought setup --plan").ok().stdout;
    assert_has(&planned, "this is a plan; nothing was done");
    machine_wide(machine).assert_same(&before, "the machine after a plan");
    let done = machine.ssh_root("/root/brought setup").ok().stdout;
    let changes = |text: &str, mark: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix(mark)).map(str::to_string).collect()
    };
    assert_eq!(changes(&planned, "would "), changes(&done, "done: "), "what is planned is what is done");
    assert_has(&done, "this machine is a node; next: mc_project init NAME");
    for again in ["/root/brought setup", "mc_project setup", "mc_project setup --plan"] {
        let again = machine.ssh_root(again).ok().stdout;
        assert!(again.ends_with("nothing to do\n"), "{again}");
    }
    let units =
        "systemctl is-enabled mc_project.socket mc_project-recover.service && systemctl is-active mc_project.socket";
    assert_eq!(machine.ssh_root(units).ok().stdout, "enabled\nenabled\nactive\n");

    // Projects and people; the copy that was brought does for them what the installed program does.
    let made = machine.ssh_root("mc_project init shop && /root/brought init blog").ok().stdout;
    for part in ["shop is ready: cooking mode (staging)", "git remote add node mc@node1:blog", "its account:   mc-blog"]
    {
        assert_has(&made, part);
    }
    for (person, project, program) in [("alice", "shop", "mc_project"), ("bob", "blog", "/root/brought")] {
        machine.write(&format!("/root/{person}.pub"), format!("{}\n", machine.public_key(person)), 0o644);
        let line = format!("{program} keys add {person} --project {project} --key /root/{person}.pub");
        let added = machine.ssh_root(&line).ok().stdout;
        assert_has(&added, &format!("next, on {person}'s machine:\n  git remote add node mc@node1:{project}"));
    }
    machine.ssh_root("rm /root/brought").ok();
    server.assert_sound();

    // Both push.
    for (person, project, port) in [("alice", "shop", 8001), ("bob", "blog", 8002)] {
        let work = server.work(person, project);
        let commit = work.commit_app("1", port, "true");
        let told = work.push(&["main"]).ok();
        assert_has(&told.stderr, &format!("deployed; run serves {}", &commit[..10]));
        assert_eq!(server.serves(project), Some(commit));
        assert_eq!(server.page(port), format!("{project} 1 built by mc-{project}"));
        server.settle(project);
        let subject = format!("{project} staging: deployed");
        crate::support::wait_until("the mail is there", || {
            server.mails().last().is_some_and(|mail| mail.subject.contains(&subject))
        });
        let mail = server.mails().pop().unwrap();
        assert_has(&mail.text, &format!("{person} (SHA256:"));
        assert_has(&mail.text, &format!("ssh mc@node1 show {project} '#1'"));
        assert_has(&mail.text, machine.developers_address().as_str());
    }
    let fingerprint = machine.ssh_root("ssh-keygen -lf /root/alice.pub").ok().stdout;
    let fingerprint = fingerprint.split(' ').nth(1).unwrap();
    let entry = server.history("shop").pop().unwrap();
    assert_eq!((entry["key"].as_str(), entry["verdict"].as_str()), (Some(fingerprint), Some("deployed")));
    assert!(entry["pusher"].as_str().unwrap().starts_with("alice from 10.77."), "{entry}");

    // A failing push is rejected with the reason, and everything is as before, data included.
    let work = server.work("alice", "shop");
    work.git(&["pull", "--quiet", "node", "main"]).ok();
    let (before, run) = (server.serves("shop"), server.run_tree("shop"));
    work.commit_app("2", 8001, "exit 3");
    let failed = work.push(&["main"]);
    assert_has(&failed.rejected("main -> main"), "rolled back at upgrade: exit 3; run serves");
    server.settle("shop");
    assert_eq!(server.serves("shop"), before);
    server.run_tree("shop").assert_same(&run, "run after a push that was rolled back");
    assert_eq!(machine.read_text("/srv/projects/shop/data/db"), "1");
    assert_eq!(server.page(8001), "shop 1 built by mc-shop");
    assert_has(&server.mails().pop().unwrap().subject, " at upgrade");
    server.assert_sound();
}

#[test]
fn people_do_over_ssh_what_their_role_holds_and_root_pushes_as_ever() {
    let Some(server) = Server::boot("", &["shop", "blog"]) else { return };
    let machine = server.machine();
    for (person, project, role) in
        [("alice", "shop", "deploy"), ("bob", "blog", "deploy"), ("rita", "shop", "read"), ("anna", "shop", "admin")]
    {
        server.let_in(person, project, role);
    }
    // Root's old habit, before anybody else has pushed and between pushes of the receiver.
    let (root, alice) = (server.work_of_root("shop"), server.work("alice", "shop"));
    let one = root.commit_app("1", 8001, "true");
    root.push(&["main"]).ok().tells("deployed; run serves").does_not_tell("!");
    alice.git(&["pull", "--quiet", "node", "main"]).ok();
    let two = alice.commit("two", &[("version", "2")]);
    alice.push(&["main"]).ok().tells("deployed; run serves").does_not_tell("!");
    root.git(&["pull", "--quiet", "node", "main"]).ok();
    let three = root.commit("three", &[("version", "3")]);
    root.push(&["main", "main:refs/heads/kept"]).ok().tells("deployed; run serves").does_not_tell("!");
    alice.git(&["pull", "--quiet", "node", "main"]).ok();
    alice.push(&["main:refs/heads/other", ":refs/heads/kept"]).ok().tells("kept: deleted");
    assert_eq!(server.serves("shop"), Some(three));
    server.assert_sound();

    // Everybody looks.
    for person in ["alice", "rita", "anna"] {
        server.ssh(person, "status shop").ok().says("run serves").says("by root from 10.77.");
        server.ssh(person, "logs shop").ok().says("mc_project: deployed; run serves");
        assert_eq!(server.ssh(person, "list").ok().stdout, "shop\n");
    }
    let history = server.ssh("rita", "history shop --json").ok().stdout;
    assert!(history.contains("alice from 10.77.") && history.contains("root from 10.77."), "{history}");

    // What a role does not hold is refused in one line that says whom to ask for what.
    let before = server.unchangeable("shop");
    let refused = |said: Finished, part: &str| {
        let said = said.fails();
        assert_has(&said.stderr, part);
        assert!(said.stderr.lines().filter(|line| line.starts_with("mc_project: ")).count() == 1, "{said}");
    };
    refused(
        server.ssh("alice", "rollback shop"),
        "alice may not run `rollback` for shop (role deploy); ask root of the node: mc_project keys add",
    );
    refused(server.ssh("rita", "restart shop"), "rita may not run `restart` for shop (role read)");
    let work = server.work("rita", "shop");
    work.commit("hers", &[("a", "1")]);
    refused(work.push(&["main"]), "rita may not deploy shop (role read)");
    refused(server.work("rita", "shop/pillar").git(&["fetch", "node"]), "rita may not fetch the pillar of shop");

    // A project of somebody else is in nothing different from one that is not there.
    let told = |command: &dyn Fn(&str) -> Finished| {
        let [theirs, none] = ["shop", "nothing"].map(|name| {
            let said = command(name).fails();
            (said.exit_code(), said.stdout.clone(), said.stderr.replace(name, "NAME"))
        });
        assert_eq!(theirs, none);
    };
    for command in ["status NAME", "logs NAME", "rollback NAME", "history NAME --json", "git-upload-pack 'NAME/pillar'"]
    {
        told(&|name: &str| server.ssh("bob", &command.replace("NAME", name)));
    }
    told(&|name: &str| {
        let work = server.work("bob", name);
        work.commit("his", &[("a", "1")]);
        work.push(&["main"])
    });
    // A stranger's key is no key.
    machine.ssh_as(RECEIVER, "mallory", &["list"]).code(255).says("Permission denied");
    server.unchangeable("shop").assert_same(&before, "shop after what was refused");

    // An admin rolls back; the history says who.
    let back = server.ssh("anna", &format!("rollback shop --to {}", &two[..10])).ok();
    assert_has(&back.stdout, "deployed; run serves");
    assert_eq!(server.serves("shop"), Some(two));
    assert_eq!(server.page(8001), "shop 2 built by mc-shop");
    assert_eq!(server.history("shop").pop().unwrap()["pusher"], "anna");
    assert_eq!(server.ssh("anna", &format!("diff shop {} {}", &one[..10], "-1")).exit_code(), Some(0));

    // A role that is taken away is gone at once.
    server.mc(&["keys", "remove", "alice"]).ok();
    machine.ssh_as(RECEIVER, "alice", &["list"]).code(255).says("Permission denied");
    gone_but_for_the_data(&server);
}

/// `destroy` leaves the data of the project, and nothing else of it.
fn gone_but_for_the_data(server: &Server) {
    let machine = server.machine();
    server.settle("shop");
    let data = digest(&server.project("shop").join("data"));
    let said = server.mc(&["destroy", "shop", "--yes"]).ok().stdout;
    let kept = said.split_whitespace().find(|word| word.starts_with("/srv/projects/shop.data-"));
    let kept = kept.unwrap_or_else(|| panic!("{said}")).to_string();
    assert_has(&said, "anna: no longer admin on shop");
    assert_has(&said, "rita: no longer read on shop");
    assert_has(&said, "to remove it: userdel mc-shop");
    assert_lacks(&server.mc(&["keys", "list"]).ok().stdout, "shop");
    digest(&machine.root().join(kept.trim_start_matches('/'))).assert_same(&data, "the data after destroy");
    let left = machine.run("find / -xdev -name '*shop*' -not -path '/proc/*' -not -path '/usr/*' -not -path '/sys/*'; find /srv -name '*shop*'").ok().stdout;
    let mut left: Vec<&str> = left.lines().collect();
    left.dedup();
    assert_eq!(left, [kept.as_str()], "what is left of shop");
    for (what, line) in [
        ("its services", "pgrep -u mc-shop"),
        ("its safe.directory", "git config --system --get-all safe.directory shop"),
        ("its units", "systemctl list-units --all --no-legend 'mc_project-shop*' | grep ."),
        ("its groups", "find /sys/fs/cgroup -name '*shop*' | grep ."),
    ] {
        assert_lacks(&machine.run(line).fails().stdout, "shop");
        assert_eq!(machine.run(line).stdout, "", "{what}");
    }
    assert!(!server.listens(8001));
    server.assert_sound();
}

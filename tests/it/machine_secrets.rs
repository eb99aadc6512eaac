//! Secrets on a whole-machine node: the project's account alone reads what it is given, whoever writes the pillar gets no more
//! by naming a file than by a step, and a boot gives services theirs again.

use crate::support::server::Server;
use crate::support::{assert_has, assert_lacks, wait_until};

const WEB: &str = "\
secrets: {TOKEN: db}
services:
  web:
    dir: data
    run: printf %s $TOKEN | sha256sum > seen; cat $MC_SECRETS_DIR/db | sha256sum > file; exec sleep 100000
";

#[test]
fn secrets_are_the_projects_alone_and_come_back_with_a_boot() {
    let Some(mut server) = Server::boot("", &["shop", "blog"]) else { return };
    server.let_in("alice", "shop", "deploy");
    server.let_in("bob", "blog", "deploy");
    server.machine().run("printf canary-of-shop | mc_project secret set db --project shop").ok();
    server.machine().run("printf canary-of-root > /root/key; chmod 600 /root/key").ok();
    server.machine().run("printf canary-readable > /etc/readable; chmod 644 /etc/readable").ok();
    let pillar = server.work("alice", "shop/pillar");
    pillar.commit("pillar", &[("init.sls", "secrets: {db: {secret: db}, more: {file: /etc/readable}}\n")]);
    pillar.push(&["main"]).ok();
    let work = server.work("alice", "shop");
    let probe = "stages: {configure: ['stat -f -c %T $MC_SECRETS_DIR > where; stat -c \"%U %a\" $MC_SECRETS_DIR $MC_SECRETS_DIR/db > owner']}\n";
    let commit = work.commit("one", &[("mc_project.yaml", &format!("{WEB}{probe}"))]);
    work.push(&["main"]).ok().tells("deployed; run serves");
    server.settle("shop");
    let run = |path: &str| server.machine().read_text(&format!("/srv/projects/shop/run/{path}"));
    assert_eq!((run("where").as_str(), run("owner").as_str()), ("tmpfs\n", "mc-shop 700\nmc-shop 400\n"));
    let digest = server.machine().run("printf canary-of-shop | sha256sum").ok().stdout;
    let seen = |server: &Server, name: &str| {
        let path = format!("/srv/projects/shop/data/{name}");
        if server.machine().exists(&path) { server.machine().read_text(&path) } else { String::new() }
    };
    wait_until("the service has it", || seen(&server, "seen") == digest && seen(&server, "file") == digest);

    // Another project's account cannot read it, nor may its pillar name what only root reads, or shop's credentials.
    let dir = server.machine().run("echo /run/mc_project/secrets/shop/*").ok().stdout;
    server.as_user("mc-shop", &format!("cat {}/db", dir.trim())).ok();
    server.as_user("mc-blog", &format!("cat {}/db", dir.trim())).fails();
    server.as_user("mc-blog", "ls /run/mc_project/secrets/shop").fails();
    server.as_user("mc", "ls /run/mc_project/secrets/shop").fails();
    let other = server.work("bob", "blog/pillar");
    let blog = server.work("bob", "blog");
    blog.commit("one", &[("a", "1")]);
    for (source, told) in [
        ("{file: /root/key}", "mc-blog cannot read /root/key"),
        ("{file: /srv/projects/shop/state/secrets/db@1}", "mc-blog cannot read "),
        ("{exec: [cat, /root/key]}", "cat ended with exit 1"),
        ("{exec: [sh, -c, 'id -un; cat /root/key']}", "sh ended with exit 1"),
        ("{secret: db}", "nobody has set `db` on this node"),
    ] {
        other.commit("pillar", &[("init.sls", &format!("secrets: {{x: {source}}}\n"))]);
        other.push(&["--force", "main"]).ok();
        let push = blog.push(&["main"]).fails().does_not_tell("canary");
        assert_has(&push.stderr, told);
    }
    other.commit("pillar", &[("init.sls", "secrets: {x: {exec: [id, -un]}}\n")]);
    other.push(&["--force", "main"]).ok();
    blog.commit("two", &[("mc_project.yaml", "stages: {configure: ['cp $MC_SECRETS_DIR/x who']}\n")]);
    blog.push(&["main"]).ok();
    assert_eq!(server.machine().read_text("/srv/projects/blog/run/who"), "mc-blog\n");

    // People ask for secrets in vain, and the node's own records hold none.
    for command in ["secret get db --project shop", "secret list", "config shop --secrets"] {
        let told = server.ssh("alice", command).fails().to_string();
        assert_lacks(&told, "canary");
    }
    assert_lacks(
        &server.machine().run("journalctl --quiet --no-pager --all --output=export").ok().stdout,
        "canary-of-shop",
    );
    assert_lacks(&server.machine().run("systemctl show 'mc-*' --all").ok().stdout, "canary-of-shop");
    let found = server
        .machine()
        .run("grep -rlaF canary-of-shop /srv /etc /var /tmp 2>/dev/null | grep -v /state/ || true")
        .ok()
        .stdout;
    assert_eq!(found, "", "outside of state/, which only root reads");

    server.machine().run("rm /srv/projects/shop/data/seen /srv/projects/shop/data/file").ok();
    server.machine_mut().reboot();
    wait_until("the service has it again", || seen(&server, "seen") == digest && seen(&server, "file") == digest);
    assert_eq!(server.serves("shop"), Some(commit));
    server.assert_sound();
}

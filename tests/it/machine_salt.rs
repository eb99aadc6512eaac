//! States on a whole-machine node: as the project's account, or as root where the node trusts the project so far.

use crate::support::salt::bring;
use crate::support::server::Server;
use crate::support::{assert_has, assert_lacks};

#[test]
fn states_run_as_the_projects_account_and_can_neither_change_nor_show_what_they_were_given() {
    let Some(server) = Server::boot("", &["shop", "blog"]) else { return };
    bring(&server);
    server.let_in("alice", "shop", "deploy");
    let pillar = server.work("alice", "shop/pillar");
    pillar.commit("pillar", &[("init.sls", "makina-projects.shop: {data: {password: canary-1234}}\n")]);
    pillar.push(&["main"]).ok();
    let work = server.work("alice", "shop");
    let state = "\
{% set cfg = opts.ms_project %}
who:
  cmd.run:
    - name: 'id -un > who; sleep 1'
    - cwd: {{cfg.project_root}}
given:
  cmd.run:
    - name: 'cd {{salt[\"config.get\"](\"conf_file\") | replace(\"/conf/minion\", \"\")}}; find . ! -path \"./work*\" -writable ! -type l > {{cfg.data_root}}/writable; stat -c \"%U %G %a\" conf/minion pillar/all.sls work > {{cfg.data_root}}/modes; rm -f tree/makina-projects/shop/100_a.sls && exit 3; echo kept'
page:
  file.managed:
    - name: {{cfg.project_root}}/page
    - contents: {{cfg.data.password | length}}
    - user: {{cfg.user}}
    - group: {{cfg.group}}
";
    let commit = work.commit("one", &[(".salt/100_a.sls", state)]);
    work.push(&["main"]).ok().tells("3 states, 3 changed something").does_not_tell("canary");
    server.settle("shop");
    assert_eq!(server.serves("shop").as_deref(), Some(commit.as_str()));
    let read = |path: &str| server.machine().read_text(&format!("/srv/projects/shop/{path}"));
    assert_eq!((read("run/who").as_str(), read("run/page").trim()), ("mc-shop\n", "11"));
    assert_eq!(read("data/writable"), "");
    assert_eq!(read("data/modes"), "root mc-shop 640\nroot mc-shop 640\nmc-shop mc-shop 700\n");
    assert_eq!(server.machine().run("ls -A /srv/projects/shop/build/salt").ok().stdout, "");
    server.as_user("mc-blog", "ls /srv/projects/shop/build").fails();
    server.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");

    // What only root may do fails, and the version before serves.
    let bad = "etc:\n  file.managed:\n    - name: /etc/by-states\n    - contents: x\n";
    work.commit("two", &[(".salt/200_etc.sls", bad)]);
    let push = work.push(&["main"]).fails().tells("salt:200_etc: file.managed `etc`");
    assert_lacks(&push.stderr, "AS ROOT");
    server.settle("shop");
    assert_eq!(server.serves("shop").as_deref(), Some(commit.as_str()));
    assert!(!server.machine().exists("/etc/by-states"));
    server.assert_sound();
}

#[test]
fn a_trusted_projects_states_are_roots_and_what_they_make_keeps_its_owner() {
    let trusted = "projects: {shop: {trust: root}}\n";
    let Some(server) = Server::boot(trusted, &["shop"]) else { return };
    bring(&server);
    server.let_in("alice", "shop", "deploy");
    let work = server.work("alice", "shop");
    let state = "\
{% set cfg = opts.ms_project %}
{{cfg.name}}-unit:
  file.managed:
    - name: /etc/systemd/system/shop-app.service
    - contents: |
        [Service]
        ExecStart=/bin/sleep 100000
  service.running:
    - name: shop-app
    - watch:
      - file: {{cfg.name}}-unit
{{cfg.name}}-secret:
  file.managed:
    - name: {{cfg.project_root}}/only-root
    - contents: VERSION
    - user: root
    - group: root
    - mode: 600
{{cfg.name}}-conf:
  file.managed:
    - name: {{cfg.project_root}}/conf
    - contents: VERSION
    - user: {{cfg.user}}
    - group: {{cfg.group}}
    - mode: 640
";
    let files = |version: &str| work.commit(version, &[(".salt/100_app.sls", &state.replace("VERSION", version))]);
    let first = files("one");
    work.push(&["main"]).ok().tells("AS ROOT (trust: root in node.yaml): salt:100_app").tells("4 states");
    server.settle("shop");
    let machine = server.machine();
    machine.run("systemctl is-active shop-app").ok();
    let owners = || {
        machine
            .run("cd /srv/projects/shop/run && stat -c '%n %U:%G %a' only-root conf && cat only-root conf")
            .ok()
            .stdout
    };
    let expected = |version: &str| format!("only-root root:root 600\nconf mc-shop:mc-shop 640\n{version}\n{version}\n");
    assert_eq!(owners(), expected("one"));
    server.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");

    files("two");
    work.push(&["main"]).ok();
    server.settle("shop");
    assert_eq!(owners(), expected("two"));
    let bad = "\
bad:
  file.managed:
    - name: {{opts.ms_project.project_root}}/only-root
    - contents: bad
    - mode: 644
  cmd.run:
    - name: 'false'
";
    work.commit("bad", &[(".salt/200_bad.sls", bad)]);
    work.push(&["main"]).fails().tells("salt:200_bad: cmd.run `bad`: exit 1");
    server.settle("shop");
    assert_eq!(owners(), expected("two"), "a rollback brings back what states made");
    server.mc(&["rollback", "shop", "--to", &first[..10]]).ok();
    server.settle("shop");
    assert_eq!(owners(), expected("one"));

    // A second name of a file that the project's account may not read does not become the project's.
    work.git(&["rm", "-q", ".salt/200_bad.sls"]).ok();
    let trap = "trap:\n  cmd.run:\n    - name: ln /srv/only-root {{opts.ms_project.project_root}}/shadow\n";
    machine.run("umask 077; echo secret > /srv/only-root").ok();
    work.commit("trap", &[(".salt/300_trap.sls", trap)]);
    let push = work.push(&["main"]).fails();
    assert_has(
        &push.stderr,
        "rolled back at post_install: run has a file of user 0, that has a second name outside of it: `shadow`",
    );
    server.settle("shop");
    assert_eq!(owners(), expected("one"));
    server.assert_sound();
}

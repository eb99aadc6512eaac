//! What comes back with a boot, and a node that root ran alone before it became one for several people.

use std::time::Duration;

use crate::support::server::Server;
use crate::support::{PROGRAM_AT, assert_has, wait_until};

const SHOP: u16 = 8009;

#[test]
fn a_node_that_root_ran_alone_is_taken_over_and_its_services_come_back_with_every_boot() {
    let Some(mut server) = Server::bare() else { return };
    let machine = server.machine();
    machine.run(&format!("cp {PROGRAM_AT} /usr/local/bin/mc_project && mc_project init shop")).ok();
    let work = server.work_of_root("shop");
    work.commit_app("1", SHOP, "true");
    work.push(&["main"]).ok();
    server.settle("shop");
    server.mc(&["stop", "shop"]).ok();

    machine.run("mc_project setup").ok();
    // What cannot be opened yet is named, and hides nothing else.
    let said = server.mc(&["doctor"]).fails();
    assert_has(&said.stdout, "✗ shop: the account mc-shop is missing");
    assert_has(&said.stdout, "✓ git:");
    let taken = server.mc(&["init", "shop"]).ok();
    assert_has(&taken.stdout, "account mc-shop: made");
    server.mc(&["start", "shop"]).ok();
    server.assert_sound();
    assert_eq!(server.page(SHOP), "shop 1 built by root");
    work.commit_app("2", SHOP, "true");
    work.push(&["main"]).ok();
    server.settle("shop");
    assert_eq!(server.page(SHOP), "shop 2 built by mc-shop");

    server.machine_mut().reboot();
    wait_until("the application runs again", || server.listens(SHOP));
    let journal = server.machine().journal("mc_project-recover.service");
    assert_has(&journal, "shop: nothing was interrupted; started");
    server.machine().run("pgrep -u mc-shop -f http.server").ok();
    // Once in a boot: a recovery by hand starts nothing a second time.
    assert_has(&server.mc(&["recover", "--all"]).ok().stdout, "shop: nothing was interrupted\n");
    server.assert_sound();
}

#[test]
fn a_unit_that_is_ordered_after_the_recovery_neither_waits_for_it_for_ever_nor_runs_half_a_deployment() {
    let allow = "projects: {shop: {allow: {units: [app.service]}}}\n";
    let Some(mut server) = Server::boot(allow, &["shop"]) else { return };
    let unit = "[Unit]\nAfter=mc_project-recover.service\n[Service]\nUser=mc-shop\n\
        ExecStart=/bin/sh -c 'cat /srv/projects/shop/run/version >> /var/tmp/started; exec sleep infinity'\n\
        [Install]\nWantedBy=multi-user.target\n";
    server.machine().write("/etc/systemd/system/app.service", unit, 0o644);
    server.machine().run("systemctl daemon-reload && systemctl enable --quiet app.service").ok();
    server.let_in("alice", "shop", "deploy");
    let recipe = |upgrade: &str| {
        format!(
            "stages:\n  stop: [{{stop: app.service}}]\n  start: [{{start: app.service}}]\n  upgrade: ['{upgrade}']\n"
        )
    };
    let work = server.work("alice", "shop");
    let one = work.commit("1", &[("version", "1\n"), ("mc_project.yaml", &recipe("true"))]);
    work.push(&["main"]).ok();
    server.settle("shop");
    work.commit("2", &[("version", "2\n"), ("mc_project.yaml", &recipe("touch $MC_DATA/upgrading; sleep 300"))]);
    work.push(&["-o", "async", "main"]);
    let upgrading = server.project("shop").join("data/upgrading");
    wait_until("the upgrade runs", || upgrading.exists());
    std::thread::sleep(Duration::from_millis(300));

    // It comes back only if the machine finishes its boot.
    server.machine_mut().power_cut();
    assert_eq!(server.serves("shop"), Some(one));
    let machine = server.machine();
    wait_until("the unit runs", || machine.run("systemctl is-active --quiet app.service").exit_code() == Some(0));
    let started = machine.read_text("/var/tmp/started");
    assert_eq!(started.lines().last(), Some("1"), "{started}");
    assert_eq!(started.lines().filter(|line| *line == "2").count(), 1, "not again after the cut: {started}");
    server.assert_sound();
}

//! Services on a machine that systemd runs.

use std::time::Duration;

use crate::support::server::Server;
use crate::support::service_app::{QUEUE, recipe};
use crate::support::{PROGRAM_AT, assert_has, assert_lacks, wait_until};

const SHOP: u16 = 8020;
const TWO: (u16, u16) = (SHOP, 2);

fn boot() -> Option<Server> {
    let server = Server::boot("", &["shop"])?;
    server.let_in("alice", "shop", "deploy");
    Some(server)
}

impl Server {
    /// What systemd says of a unit.
    #[track_caller]
    fn unit(&self, unit: &str, property: &str) -> String {
        let line = format!("systemctl show --value --property={property} '{unit}'");
        self.machine().run(&line).ok().stdout.trim().to_string()
    }

    /// The version that both instances of the web server answer with.
    #[track_caller]
    fn version(&self) -> String {
        let pages = [self.page(SHOP), self.page(SHOP + 1)];
        let versions = pages.each_ref().map(|page| page.split(' ').next().unwrap().to_string());
        assert_eq!(versions[0], versions[1], "{pages:?}");
        versions[0].clone()
    }

    /// The deployment that the web server was told it belongs to.
    #[track_caller]
    fn deployment(&self) -> String {
        self.page(SHOP).split(' ').nth(3).unwrap().to_string()
    }

    #[track_caller]
    fn assert_serves_what_status_names(&self) {
        let serves = self.last("shop").unwrap().serves.unwrap();
        assert_eq!(self.deployment(), serves.id.to_string());
    }

    fn units(&self) -> String {
        self.machine().run("ls /etc/systemd/system | grep '^mc-' || true").stdout
    }
}

#[test]
fn services_are_units_of_the_projects_account_and_follow_every_deployment() {
    let Some(server) = boot() else { return };
    let pillar = server.work("alice", "shop/pillar");
    pillar.commit("a secret", &[("init.sls", "makina-projects.shop: {env: {TOKEN: 'hunter2 \"$%h\" secret'}}\n")]);
    pillar.push(&["main"]).ok();
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, QUEUE);
    let told = work.push(&["main"]).ok();
    told.tells("all 2 of web are well: GET /healthz at port 8020: status 200, 2 times in a row");
    server.settle("shop");
    let uid = server.machine().run("id -u mc-shop").stdout.trim().to_string();
    assert_has(&server.page(SHOP), &format!("1 web@1 {uid} "));
    assert_has(&server.page(SHOP + 1), &format!("1 web@2 {uid} "));
    server.assert_serves_what_status_names();
    assert_eq!(server.unit("mc-shop.web@1.service", "Slice"), "mc_project-shop.slice");
    assert_eq!(server.unit("mc-shop.web@1.service", "User"), uid);
    assert_lacks(&server.machine().run("systemctl show mc-shop.web@1.service").ok().stdout, "hunter2");
    assert_lacks(&server.machine().run("cat /etc/systemd/system/mc-shop.web@1.service").ok().stdout, "hunter2");
    server.as_user("mc-shop", "cat /srv/projects/shop/state/services/web@1.env").fails();
    assert_has(&server.machine().journal("mc-shop.web@1.service"), "version 1 knows hunter2 \"$%h\" secret");
    let queue = server.unit("mc-shop.queue@1.service", "MainPID");

    // The next version: the web server is another one, the queue is left.
    work.commit_services("2", TWO, QUEUE);
    work.push(&["main"]).ok();
    server.settle("shop");
    assert_eq!(server.version(), "2");
    server.assert_serves_what_status_names();
    assert_eq!(server.unit("mc-shop.queue@1.service", "MainPID"), queue);

    // A value that systemd gives to no service is refused before anything stops.
    pillar.commit("a line end of Windows", &[("init.sls", "makina-projects.shop: {env: {TOKEN: \"a\\r\\nb\"}}\n")]);
    let refused = pillar.push(&["-o", "deploy", "main"]);
    refused.tells("the value of TOKEN holds a control character");
    server.settle("shop");
    assert_eq!(server.version(), "2");
    pillar.commit("a secret", &[("init.sls", "makina-projects.shop: {env: {TOKEN: 'hunter2 \"$%h\" secret'}}\n")]);
    pillar.push(&["main"]).ok();

    // One that is not well: everything goes back, and the push says what was answered.
    work.write("sick", "x");
    work.commit_services("3", TWO, QUEUE);
    let rejected = work.push(&["main"]).rejected("main");
    assert_has(&rejected, "is not well: GET /healthz at port 802");
    server.settle("shop");
    assert_eq!(server.version(), "2");
    server.assert_serves_what_status_names();
    // The last lines of the sick one, none of what ran before it or of what systemd says.
    let mail = format!("{:?}", server.mails().last().unwrap());
    assert_has(&mail, "version 3 knows [secret]");
    for other in ["version 2 knows", "Started mc-", "Starting mc-", "Deactivated"] {
        assert_lacks(&mail, other);
    }

    // A service that leaves the recipe ends, and comes back with its version.
    work.git(&["rm", "--quiet", "sick"]).ok();
    work.commit_services("4", TWO, "");
    work.push(&["main"]).ok();
    server.settle("shop");
    assert_eq!(server.units(), "mc-shop.web@1.service\nmc-shop.web@2.service\n");
    assert_eq!(server.unit("mc-shop.queue@1.service", "LoadState"), "not-found");
    server.mc(&["rollback", "shop"]).ok();
    server.settle("shop");
    assert_eq!(server.version(), "2");
    assert_eq!(server.unit("mc-shop.queue@1.service", "ActiveState"), "active");
    server.assert_serves_what_status_names();
    server.assert_sound();

    server.mc(&["destroy", "shop", "--yes"]).ok();
    assert_eq!(server.units(), "");
    assert!(!server.listens(SHOP));
}

#[test]
fn a_service_that_dies_is_started_again_and_everything_comes_back_with_a_boot() {
    let Some(mut server) = boot() else { return };
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, QUEUE);
    work.push(&["main"]).ok();
    server.settle("shop");
    let before = server.unit("mc-shop.web@1.service", "MainPID");
    server.machine().run(&format!("kill -KILL {before}")).ok();
    wait_until("it runs again", || server.unit("mc-shop.web@1.service", "MainPID") != before && server.listens(SHOP));
    // One that dies at once is told with what it said, and nothing of it is left.
    work.commit_services("2", TWO, "  bad: {run: 'echo no such table; exit 3'}\n");
    let rejected = work.push(&["main"]).rejected("main");
    assert_has(&rejected, "bad@1 died after its start (exit 3)");
    server.settle("shop");
    let shown = server.mc(&["show", "shop"]).ok().stdout;
    assert_has(&shown, "no such table");
    assert_lacks(&shown, "Main process exited");
    assert_eq!(server.version(), "1");
    assert_lacks(&server.units(), "bad");

    server.machine_mut().reboot();
    wait_until("the application runs again", || server.listens(SHOP) && server.listens(SHOP + 1));
    assert_eq!(server.version(), "1");
    assert_eq!(server.unit("mc-shop.queue@1.service", "ActiveState"), "active");
    server.assert_serves_what_status_names();
    server.assert_sound();

    // The plug is pulled while the new version already runs: after the boot it is the old one, and so are its services.
    let work = server.work("alice", "shop");
    work.git(&["fetch", "--quiet", "node"]).ok();
    work.git(&["reset", "--quiet", "--hard", "node/main"]).ok();
    let nap = "stages: {upgrade: ['touch $MC_DATA/upgrading; sleep 300']}\n";
    work.commit_services("3", TWO, &format!("{QUEUE}{nap}"));
    work.push(&["-o", "async", "main"]);
    let upgrading = server.project("shop").join("data/upgrading");
    wait_until("the upgrade runs", || upgrading.exists());
    assert_eq!(server.version(), "3");
    std::thread::sleep(Duration::from_millis(300));
    server.machine_mut().power_cut();
    wait_until("the application runs again", || server.listens(SHOP) && server.listens(SHOP + 1));
    assert_eq!(server.version(), "1");
    server.assert_serves_what_status_names();
    server.assert_sound();
}

#[test]
fn services_of_a_node_that_root_ran_alone_are_taken_over_from_the_supervisor() {
    let Some(server) = Server::bare() else { return };
    let machine = server.machine();
    machine.run(&format!("cp {PROGRAM_AT} /usr/local/bin/mc_project && mc_project init shop")).ok();
    let work = server.work_of_root("shop");
    work.commit_services("1", TWO, QUEUE);
    work.push(&["main"]).ok();
    server.settle("shop");
    assert_has(&server.page(SHOP), "1 web@1 0 ");
    machine.run("pgrep -x mc_supervisor").ok();
    machine.run("mc_project setup && mc_project init shop").ok();
    work.commit_services("2", TWO, QUEUE);
    work.push(&["main"]).ok();
    server.settle("shop");
    let uid = machine.run("id -u mc-shop").stdout.trim().to_string();
    assert_has(&server.page(SHOP), &format!("2 web@1 {uid} "));
    assert_eq!(server.unit("mc-shop.queue@1.service", "ActiveState"), "active");
    assert_eq!(machine.run("pgrep -fcx 'sleep 1000000'").stdout.trim(), "1");
    wait_until("no supervisor is left", || machine.run("pgrep -x mc_supervisor").exit_code() == Some(1));
    assert!(!machine.exists("/srv/projects/shop/state/supervisor"));
    server.assert_sound();
}

#[test]
fn a_service_that_does_not_come_up_at_a_boot_keeps_no_other_from_it() {
    let Some(mut server) = boot() else { return };
    // It needs what a boot takes away, and it is the first.
    let needy = "services:\n  needy: {type: oneshot, run: test -e /run/needed}\n";
    let text = recipe(SHOP, 2, "").replace("services:\n", needy);
    server.machine().run("touch /run/needed").ok();
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, "");
    work.commit("2", &[("version", "2"), ("mc_project.yaml", &text)]);
    work.push(&["main"]).ok();
    server.settle("shop");
    server.machine_mut().reboot();
    wait_until("the others run again", || server.listens(SHOP) && server.listens(SHOP + 1));
    assert_eq!(server.version(), "2");
    let journal = server.machine().journal("mc_project-recover.service");
    assert_has(&journal, "it does not start: mc_project start shop");
    let said = server.mc(&["doctor"]).fails();
    assert_has(&said.stdout, "✗ shop: service needy  FAILED, exit 1");
}

#[test]
fn what_somebody_did_to_the_units_by_hand_is_no_state_that_is_left() {
    let Some(server) = boot() else { return };
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, "");
    work.push(&["main"]).ok();
    server.settle("shop");
    let (unit, file) = ("mc-shop.web@1.service", "/etc/systemd/system/mc-shop.web@1.service");
    // One whose unit is gone still runs: the next version takes its place.
    server.machine().run(&format!("rm {file}")).ok();
    work.commit_services("2", TWO, "");
    work.push(&["main"]).ok();
    server.settle("shop");
    assert_eq!(server.version(), "2");
    // The right text on the disk, another one in systemd: as whoever is killed before the reload leaves it.
    let stale = format!(
        "cp {file} /root/unit && echo '# x' >> {file} && systemctl daemon-reload && sleep 0.1 && cp /root/unit {file}"
    );
    server.machine().run(&stale).ok();
    assert_eq!(server.unit(unit, "NeedDaemonReload"), "yes");
    server.mc(&["stop", "shop"]).ok();
    server.mc(&["start", "shop"]).ok();
    assert_eq!(server.unit(unit, "NeedDaemonReload"), "no");
    assert_eq!(server.version(), "2");
    server.assert_sound();
}

#[test]
fn a_service_that_takes_long_keeps_nothing_waiting_at_a_boot() {
    let Some(server) = boot() else { return };
    let slow = "services:\n  slow: {type: oneshot, start_timeout: 24h, run: 'test ! -e /run/slow || sleep 900'}\n";
    let text = recipe(SHOP, 2, "").replace("services:\n", slow);
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, "");
    work.commit("2", &[("version", "2"), ("mc_project.yaml", &text)]);
    work.push(&["main"]).ok();
    server.settle("shop");
    server.mc(&["stop", "shop"]).ok();
    let line =
        "touch /run/slow && rm -f /srv/projects/shop/state/started && MC_BOOT=1 timeout 200 mc_project recover --all";
    assert_has(&server.machine().run(line).ok().stdout, "shop: nothing was interrupted; started");
    assert_eq!(server.unit("mc-shop.slow@1.service", "ActiveState"), "activating");
    wait_until("the others run", || server.listens(SHOP) && server.listens(SHOP + 1));
}

#[test]
fn a_deployment_whose_service_takes_long_can_be_cancelled() {
    let Some(server) = boot() else { return };
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, "");
    work.push(&["main"]).ok();
    let slow = "services:\n  slow: {type: oneshot, start_timeout: 24h, run: sleep 900}\n";
    let text = recipe(SHOP, 2, "").replace("services:\n", slow);
    work.commit("2", &[("version", "2"), ("mc_project.yaml", &text)]);
    let push = work.start_push(&["main"]);
    wait_until("it starts", || server.unit("mc-shop.slow@1.service", "ActiveState") == "activating");
    server.mc(&["cancel", "shop"]).ok();
    assert_has(&push.wait().fails().stderr, "cancelled by ");
    server.settle("shop");
    assert_eq!(server.version(), "1");
    server.assert_sound();
}

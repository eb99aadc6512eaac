//! Mail on a real machine: what waits is sent by a unit, over a reboot too, and what a mail says to type works.

use crate::support::server::Server;
use crate::support::{assert_has, wait_until};

const NOWHERE: &str =
    "mail: {from: mc@node1.example.org, to: [dev@example.org], smtp: {host: localhost, port: 1, tls: none}}\n";

#[test]
fn machine_mail_waits_for_its_server_over_a_reboot_and_names_commands_that_work() {
    let Some(mut server) = Server::boot(NOWHERE, &["shop"]) else { return };
    server.let_in("anna", "shop", "admin");
    for (version, upgrade) in [("1", "true"), ("2", "echo the last words; exit 3")] {
        let work = server.work("anna", "shop");
        if server.serves("shop").is_some() {
            work.git(&["pull", "--quiet", "node", "main"]).ok();
        }
        work.commit_app(version, 8001, upgrade);
        let _ = work.push(&["main"]);
        server.settle("shop");
    }
    let postman = "mc_project-postman-shop.service";
    let is_active = |server: &Server| server.machine().run(&format!("systemctl is-active {postman}")).stdout;
    wait_until("the postman is there", || is_active(&server) == "active\n");
    assert_has(&server.machine().run("mc_project status shop").ok().stdout, "2 mails wait to be sent");
    server.machine_mut().reboot();
    wait_until("the postman is there again", || is_active(&server) == "active\n");

    // Mended, and nothing else is done.
    server.machine().write("/etc/mc_project/node.yaml", "mail: {to: [dev@example.org]}\n", 0o600);
    wait_until("both mails are there", || server.mails().len() == 2);
    wait_until("the postman is gone", || is_active(&server) == "inactive\n");

    let mails = server.mails();
    let mail = mails.iter().find(|mail| mail.subject.contains("rolled back")).unwrap();
    assert_has(&mail.text, "the last words");
    assert_has(&mail.html, "the last words");
    let commands: Vec<&str> = mail.text.lines().filter_map(|line| line.strip_prefix("      ssh mc@node1 ")).collect();
    assert!(commands.len() >= 2, "{}", mail.text);
    for command in commands {
        // A shell has taken the quotes away before ssh sees them.
        server.ssh("anna", &command.replace('\'', "")).ok();
    }
    server.assert_sound();
}

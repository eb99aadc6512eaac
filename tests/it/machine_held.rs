//! Sockets that are held on a machine that systemd runs.

use crate::held::TAKES;
use crate::support::server::Server;
use crate::support::{Running, wait_until};

const LOAD: &str = include_str!("support/load.py");

const RECIPE: &str = "\
services:
  web:
    run: exec python3 web.py
    listen: '0.0.0.0:8071'
    check: {http: /, within: 20s, before: true}
  own:
    run: exec python3 -m http.server --bind 127.0.0.1 $PORT
    port: 8073
    listen: '0.0.0.0:8072'
    check: {http: /version, within: 20s, before: true}
";

#[test]
fn no_request_is_lost_where_systemd_keeps_the_services() {
    let Some(mut server) = Server::boot("", &["shop"]) else { return };
    server.let_in("alice", "shop", "deploy");
    {
        let work = server.work("alice", "shop");
        let commit = |version: &str| {
            work.commit(version, &[("mc_project.yaml", RECIPE), ("web.py", TAKES), ("version", version)]);
        };
        commit("one");
        work.push(&["main"]).ok();
        server.settle("shop");
        assert!(server.page(8071).starts_with("one 1 web "), "{}", server.page(8071));
        let mut command = server.machine().command("python3");
        command.args(["-c", LOAD, "/root/stop", "8071", "8072"]);
        let load = Running::start_reading(command);
        for version in ["two", "three"] {
            commit(version);
            work.push(&["main"]).ok();
        }
        server.mc(&["rollback", "shop"]).ok();
        server.settle("shop");
        server.machine().run("touch /root/stop").ok();
        let told = load.wait().ok().json();
        for port in ["8071", "8072"] {
            assert!(told[port]["bad"].as_array().unwrap().is_empty(), "{told}");
            assert!(told[port]["good"].as_u64().unwrap() > 50, "{told}");
        }
    }
    let user = "ps -o user= -p $(systemctl show --value --property MainPID 'mc-shop.held-sockets@1.service')";
    assert_eq!(server.machine().run(user).ok().stdout.trim(), "mc-shop");
    // Another project's account gets none of them.
    server.as_user("nobody", "ls /srv/projects/shop/build/sockets").fails();
    server.assert_sound();

    server.machine_mut().reboot();
    wait_until("a boot brings them back", || server.listens(8071) && server.page(8071).starts_with("two 1 web "));
    server.page(8072);
}

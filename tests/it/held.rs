//! Sockets that are held while services come and go (`listen:`): no request is lost by a deployment, a rollback, or the death
//! of whoever holds them.

use std::os::unix::net::UnixStream;

use crate::support::load::{Load, converse};
use crate::support::{World, assert_has, free_port, is_full, kill_9, wait_until};

/// A server that takes the socket it is given, answers with its version, and ends when what it has accepted is answered.
pub const TAKES: &str = r#"import http.server, os, signal, socket, threading
version = open("version").read().strip()
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{version} {os.environ['LISTEN_FDS']} {os.environ['LISTEN_FDNAMES']} {os.environ['LISTEN_PID'] == str(os.getpid())}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "somebody"
    def log_message(self, *what):
        pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
server = Server(None, Page, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
server.server_name, server.server_port = "localhost", 0
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(0.05)
server.server_close()
"#;

const WSGI: &str = "def app(environ, start):\n    body = open('version', 'rb').read()\n    start('200 OK', [('Content-Length', str(len(body)))])\n    return [body]\n";
const NODE: &str = "const http = require('http'), fs = require('fs');
const version = fs.readFileSync('version', 'utf8');
const server = http.createServer((_, answer) => answer.end(version));
server.listen({ fd: 3 });
process.on('SIGTERM', () => server.close(() => process.exit(0)));
";
// It knows nothing of all that: it listens by itself, and a signal ends it at once.
const PHP: &str = "<?php usleep(3000); echo file_get_contents('version');\n";

fn holder(world: &World) -> i32 {
    let status = world.mc(&["status", "shop", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let services = status["services"].as_array().or_else(|| status[0]["services"].as_array()).unwrap();
    let found = services.iter().find(|one| one.to_string().contains("held-sockets")).unwrap();
    found["pid"].as_i64().or_else(|| found["look"]["pid"].as_i64()).unwrap().try_into().unwrap()
}

fn takes(port: u16) -> String {
    format!(
        "services:\n  web:\n    run: exec python3 web.py\n    listen: {port}\n    check: {{http: /, within: 10s}}\n"
    )
}

fn page(port: u16) -> Result<String, String> {
    let stream = std::net::TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    let answer = converse(stream).map_err(|error| error.to_string())?;
    Ok(answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_string())
}

#[test]
fn no_request_to_real_servers_is_lost_by_deployments_and_rollbacks() {
    let world = World::with_config(&World::network_config());
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    let ports = [free_port(), free_port(), free_port()];
    let recipe = format!(
        "stages:
  build: python3 -m venv venv && venv/bin/pip install --quiet --disable-pip-version-check gunicorn
cache: [venv]
sync: {{ignore_drift: [__pycache__/, '*.pyc']}}
services:
  python:
    run: exec venv/bin/gunicorn --workers 2 wsgi:app
    listen: {}
    check: {{http: /, within: 20s}}
  node:
    run: [node, server.js]
    listen: {}
    check: {{http: /, within: 20s}}
  php:
    run: exec php -S 127.0.0.1:$PORT index.php
    port: {}
    listen: {}
    check: {{http: /, within: 20s}}
",
        ports[0],
        ports[1],
        free_port(),
        ports[2]
    );
    let files = [("mc_project.yaml", recipe.as_str()), ("wsgi.py", WSGI), ("server.js", NODE), ("index.php", PHP)];
    work.commit("the servers", &[&files[..], &[("version", "v0\n")]].concat());
    work.push(&["main"]).ok();
    let loads: Vec<Load> = ports.iter().map(|port| Load::at(*port, 3)).collect();
    let rounds = if is_full() { 20 } else { 5 };
    for round in 1..=rounds {
        if round % 4 == 0 {
            world.mc(&["rollback", "shop"]).ok();
        } else {
            work.commit("next", &[("version", &format!("v{round}\n"))]);
            work.push(&["main"]).ok();
        }
    }
    for (load, name) in loads.into_iter().zip(["python", "node", "php"]) {
        let answers = load.end();
        assert!(
            answers.bad.is_empty(),
            "{name}: {} of {}: {:?}",
            answers.bad.len(),
            answers.good,
            &answers.bad[..answers.bad.len().min(5)]
        );
        assert!(answers.good > 100 && answers.bodies.len() >= 4, "{name}: {answers:?}");
    }
}

#[test]
fn a_failed_version_loses_no_request_either() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let port = free_port();
    work.commit("one", &[("mc_project.yaml", &takes(port)), ("web.py", TAKES), ("version", "one")]);
    work.push(&["main"]).ok();
    assert_eq!(page(port).unwrap(), "one 1 web True");
    let load = Load::at(port, 3);
    work.commit("does not start", &[("web.py", "raise SystemExit(3)\n"), ("version", "two")]);
    work.push(&["main"]).fails().tells("rolled back at start");
    work.commit(
        "is not well",
        &[
            ("web.py", &TAKES.replace("send_response(200)", "send_response(200 if self.client_address else 500)")),
            ("version", "three"),
            ("mc_project.yaml", &takes(port).replace("http: /", "http: /, body: nowhere").replace("10s", "3s")),
        ],
    );
    work.push(&["main"]).fails().tells("rolled back at health");
    let answers = load.end();
    assert!(answers.bad.is_empty(), "{answers:?}");
    assert_eq!(page(port).unwrap(), "one 1 web True");
}

#[test]
fn who_holds_the_sockets_may_die_and_stop_and_start_close_and_open_them() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let (port, own) = (free_port(), free_port());
    let recipe = format!(
        "{}  php:\n    run: exec php -S 127.0.0.1:$PORT index.php\n    port: {own}\n    listen: data/php.sock\n",
        takes(port)
    );
    let files = [("mc_project.yaml", recipe.as_str()), ("web.py", TAKES), ("index.php", PHP), ("version", "one\n")];
    work.commit("one", &files);
    work.push(&["main"]).ok();
    let socket = world.project("shop").join("data/php.sock");
    let by_socket = || converse(UnixStream::connect(&socket)?);
    assert_has(&by_socket().unwrap(), "one");

    // A program that has its socket goes on; the other one's comes back with the holder.
    kill_9(holder(&world));
    assert_eq!(page(port).unwrap(), "one 1 web True");
    wait_until("it is held again", || by_socket().is_ok_and(|answer| answer.contains("one")));
    work.commit("two", &[("version", "two\n")]);
    work.push(&["main"]).ok();
    wait_until("the new version answers", || page(port).is_ok_and(|page| page == "two 1 web True"));
    let load = Load::at(port, 3);
    work.commit("three", &[("version", "three\n")]);
    work.push(&["main"]).ok();
    let answers = load.end();
    assert!(answers.bad.is_empty(), "it is held again: {answers:?}");

    world.mc(&["stop", "shop"]).ok();
    assert!(page(port).is_err() && by_socket().is_err() && !socket.exists());
    world.mc(&["start", "shop"]).ok();
    assert_eq!(page(port).unwrap(), "three 1 web True");

    // Other addresses, and none at all.
    let other = free_port();
    work.commit("elsewhere", &[("mc_project.yaml", &takes(other))]);
    work.push(&["main"]).ok();
    wait_until("the old address is closed", || page(port).is_err() && !socket.exists());
    assert_eq!(page(other).unwrap(), "three 1 web True");
    work.commit("nowhere", &[("mc_project.yaml", "services: {other: {run: exec sleep 1000}}\n")]);
    work.push(&["main"]).ok().does_not_tell("held-sockets");
    assert!(page(other).is_err());
    world.mc(&["doctor"]).ok();
    world.mc(&["destroy", "shop", "--yes", "--with", "data"]).ok();
}

#[test]
fn an_address_that_cannot_be_had_fails_the_deployment_with_its_reason() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    work.commit("one", &[("mc_project.yaml", &takes(port)), ("web.py", TAKES), ("version", "one")]);
    let push = work.push(&["main"]).fails().tells("rolled back at start");
    let reason = push.rejected("main");
    assert_has(&reason, &format!("cannot listen at 127.0.0.1:{port}"));
    assert_has(&reason, "Address already in use");
    for (service, told) in [
        ("{run: x, listen: 80, type: oneshot}", "takes no `listen`"),
        ("{run: x, listen: 80, port: 81, network: off}", "cannot be passed on"),
        ("{run: x, listen: host:80}", "`host:80` is nothing to listen at"),
        ("{run: x, listen: []}", "between 1 and 8 addresses"),
        ("{run: x, listen: 80}\n  b: {run: x, listen: '0.0.0.0:80'}", "it listens where the service a does"),
        ("{run: x}\n  held-sockets: {run: x}", "choose another name"),
    ] {
        work.commit("bad", &[("mc_project.yaml", &format!("services:\n  a: {service}\n"))]);
        assert_has(&work.push(&["main"]).fails().stderr, told);
    }
}

//! `check: {before: true}`: the services of a new version are asked before it takes the place of the one that serves.

use crate::held::TAKES;
use crate::support::load::Load;
use crate::support::{World, assert_has, assert_lacks, free_port};

/// A server that says of its trial, and whether it can write into what it runs from.
const SERVER: &str = r#"import http.server, os, sys
version = open("version").read().strip()
try:
    open("written", "w").write("x")
    written = "wrote"
except OSError as error:
    written = error.strerror
print("version", version, "trial", os.environ.get("MC_TRIAL"), written, os.getcwd(), flush=True)
if version == "ends":
    sys.exit(4)
open(os.environ["MC_DATA"] + "/seen", "a").write(f"{version} {os.environ.get('MC_TRIAL')}\n")
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if version == "sick" else 200)
        self.end_headers()
        self.wfile.write(version.encode())
    def log_message(self, *what):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page).serve_forever()
"#;

fn recipe(port: u16) -> String {
    format!(
        "sync: {{ignore_drift: [written]}}\nservices:\n  web:\n    run: exec python3 server.py\n    port: {port}\n    check: {{http: /healthz, within: 8s, before: true}}\n"
    )
}

fn pid(world: &World) -> String {
    let status = world.mc(&["status", "shop"]).stdout;
    let line = status.lines().find(|line| line.trim_start().starts_with("web ")).unwrap().to_string();
    line.split("process ").nth(1).unwrap().split(',').next().unwrap().to_string()
}

#[test]
fn a_version_that_is_not_well_never_takes_the_place_of_the_one_that_serves() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let port = free_port();
    work.commit("one", &[("mc_project.yaml", &recipe(port)), ("server.py", SERVER), ("version", "one")]);
    work.push(&["main"]).ok().tells("1 service tried").tells("web of the new version is well: GET /healthz");
    world.settle("shop");
    let seen = || std::fs::read_to_string(world.project("shop").join("data/seen")).unwrap();
    assert_eq!(seen(), "one 1\none None\n");
    let (first, runs) = (world.serves("shop").unwrap(), pid(&world));
    let run = world.project("shop").join("run");
    let load = Load::at(port, 2);
    for (version, told) in [("sick", "status 500 instead of 200"), ("ends", "it ended (exit 4)")] {
        work.commit(version, &[("version", version)]);
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, "failed at check: web of the new version is not well: GET /healthz");
        assert_has(&push.stderr, told);
        let line = format!("version {version} trial 1 Read-only file system {}", run.display());
        assert_has(&push.stderr, &line);
        assert_lacks(&push.stderr, "stop  ");
        world.settle("shop");
        assert_eq!((world.serves("shop").unwrap(), pid(&world)), (first.clone(), runs.clone()), "nothing was stopped");
    }
    let answers = load.end();
    assert!(answers.bad.is_empty() && answers.bodies.len() == 1, "{answers:?}");
    work.commit("two", &[("version", "two")]);
    work.push(&["-o", "skip=check", "main"]).ok().does_not_tell("service tried");
    work.commit("three", &[("version", "three")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_has(&seen(), "three 1\nthree None\n");
    world.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");
    world.mc(&["doctor"]).ok();
}

#[test]
fn one_that_takes_its_socket_is_given_another_one_for_its_trial() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let port = free_port();
    let recipe = format!(
        "services:\n  web: {{run: exec python3 web.py, listen: {port}, check: {{http: /, before: true, within: 8s}}}}\n"
    );
    work.commit("one", &[("mc_project.yaml", &recipe), ("web.py", TAKES), ("version", "one")]);
    work.push(&["main"]).ok().tells("1 service tried");
    let load = Load::at(port, 2);
    work.commit("sick", &[("web.py", "import sys; sys.exit('it is broken')\n")]);
    let push = work.push(&["main"]).fails();
    assert_has(&push.stderr, "failed at check: web of the new version is not well");
    assert_has(&push.stderr, "| it is broken");
    work.git(&["revert", "--no-edit", "HEAD"]).ok();
    work.commit("two", &[("version", "two")]);
    work.push(&["main"]).ok();
    let answers = load.end();
    assert!(answers.bad.is_empty() && answers.bodies.len() == 2, "{answers:?}");
    for (check, told) in [
        ("{run: x, before: true}", "a step of the stage `check` runs a program beforehand"),
        ("{tcp: 80, before: true}", "is told where to listen"),
    ] {
        work.commit("bad", &[("mc_project.yaml", &format!("services:\n  web: {{run: x, check: {check}}}\n"))]);
        assert_has(&work.push(&["main"]).fails().stderr, told);
    }
}

//! Every directory of `examples/` deploys as its README says (needs the package registries of Python and Node.js).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Finished, World, assert_has, free_port, wait_until};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// A node with the example's project (of the same name); the pillar exports `PORT`.
pub fn node_for(name: &str) -> (World, u16) {
    let world = World::with_config(&World::network_config());
    world.mc(&["init", name]).ok();
    let port = free_port();
    let pillar = world.pillar_of(name);
    pillar.commit("the port", &[("init.sls", &format!("env: {{PORT: \"{port}\"}}\n"))]);
    pillar.push(&["main"]).ok();
    (world, port)
}

#[track_caller]
pub fn push_example(world: &World, name: &str) -> Finished {
    let work = world.clone_of(name);
    work.copy_from(&example(name));
    work.commit_all("the example as it is");
    work.push(&["main"]).ok()
}

/// Asks for a page; `None` while nobody answers.
pub fn ask(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

pub fn get(port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    wait_until("the application answers", || ask(port, &request).is_some());
    ask(port, &request).unwrap()
}

/// Sends a form and returns the answer.
pub fn post(port: u16, path: &str, form: &str) -> String {
    let length = form.len();
    let kind = "application/x-www-form-urlencoded";
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{form}"
    );
    ask(port, &request).expect("an answer")
}

fn sign(port: u16, text: &str) {
    assert_has(&post(port, "/", &format!("name=Alice&text={text}")), "303");
}

#[test]
fn every_example_has_a_readme_and_a_recipe_that_can_be_planned() {
    let mut names: Vec<String> = std::fs::read_dir(example(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["django-postgres", "makefile-c", "node-app", "php-site", "python-venv", "static-site"]);
    for name in names {
        let readme = std::fs::read_to_string(example(&name).join("README.md")).unwrap();
        assert!((5..=14).contains(&readme.lines().count()), "{name}: a README of five to ten lines or little more");
        let world = World::with_shop();
        let work = world.clone_of("shop");
        work.copy_from(&example(&name));
        work.commit_all("the example as it is");
        work.push(&["-o", "no-deploy", "main"]).ok();
        world.mc(&["plan", "shop"]).ok().says("build");
    }
}

#[test]
fn the_static_site_shows_an_index_of_its_pages() {
    let (world, _) = node_for("static-site");
    push_example(&world, "static-site");
    let index = world.run_text("static-site", "public/index.html");
    assert_has(&index, "<a href=\"about.html\">About us</a>");
    assert_has(&index, "<a href=\"opening-hours.html\">Opening hours</a>");
    std::fs::write(world.run_path("static-site", "public/uploads/photo.jpg"), "jpg").unwrap();

    let work = world.checkout_of("static-site");
    work.commit("a page more", &[("pages/prices.html", "<h1>Prices</h1>\n")]);
    work.push(&["main"]).ok();
    assert_has(&world.run_text("static-site", "public/index.html"), "prices.html");
    assert_eq!(world.run_text("static-site", "public/uploads/photo.jpg"), "jpg");
}

#[test]
fn the_python_application_serves_migrates_and_goes_back_with_its_database() {
    let name = "python-venv";
    let (world, port) = node_for(name);
    push_example(&world, name);
    let first = world.serves(name).unwrap();
    let health = get(port, "/healthz");
    assert_has(&health, &first);
    assert_has(&health, "\"schema\": 2");
    sign(port, "hello");
    assert_has(&get(port, "/"), "<b>Alice</b>: hello");
    let shebang = world.run_text(name, "venv/bin/pip");
    let run = world.project(name).join("run/venv/bin/python");
    assert!(
        shebang.starts_with(&format!("#!{}", run.display())),
        "built for its final path: {}",
        shebang.lines().next().unwrap()
    );

    let work = world.checkout_of(name);
    let migrate = std::fs::read_to_string(work.dir().join("migrate.py")).unwrap();
    let more = migrate.replace("\n]\n", "\n    \"ALTER TABLE entry ADD COLUMN town TEXT\",\n]\n");
    let second = work.commit("a column more", &[("migrate.py", &more)]);
    work.push(&["main"]).ok();
    let health = get(port, "/healthz");
    for part in [second.as_str(), "\"schema\": 3", "\"entries\": 1"] {
        assert_has(&health, part);
    }

    // A migration that destroys everything, and then a version that does not answer: all of it comes back.
    let evil = more.replace("\n]\n", "\n    \"DELETE FROM entry\",\n]\n");
    let app = std::fs::read_to_string(work.dir().join("guestbook.py")).unwrap();
    let ill = app.replace("def health():\n", "def health():\n    bottle.abort(500, 'ill')\n");
    work.commit("a fatal one", &[("migrate.py", &evil), ("guestbook.py", &ill)]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.rejected("main -> main"), "rolled back at health");
    let health = get(port, "/healthz");
    for part in [second.as_str(), "\"schema\": 3", "\"entries\": 1"] {
        assert_has(&health, part);
    }
}

#[test]
fn the_node_application_serves_and_a_failing_test_never_stops_it() {
    let name = "node-app";
    let (world, port) = node_for(name);
    push_example(&world, name);
    let first = world.serves(name).unwrap();
    assert_has(&get(port, "/healthz"), &first);
    let pid = || world.mc(&["status", name, "--json"]).json()["services"][0]["pid"].as_u64().unwrap();
    let before = pid();

    let work = world.checkout_of(name);
    work.commit("break the test", &[("server.test.js", "throw new Error('broken');\n")]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.rejected("main -> main"), "failed at post_build");
    assert_eq!(pid(), before, "the server was not restarted");
    assert_has(&get(port, "/healthz"), &first);

    work.git(&["checkout", "--quiet", "HEAD~1", "--", "server.test.js"]).ok();
    let third = work.commit("mended", &[]);
    work.push(&["main"]).ok();
    assert_ne!(pid(), before);
    assert_has(&get(port, "/healthz"), &third);
}

#[test]
fn the_c_program_is_built_tested_and_installed() {
    let (world, _) = node_for("makefile-c");
    push_example(&world, "makefile-c");
    let run = world.project("makefile-c").join("run");
    assert!(!run.join("obj").exists(), "objects do not reach run");
    let mut program = world.home().command("sh");
    program.arg("-c").arg("echo b a b | \"$0\"").arg(run.join("bin/wordfreq"));
    assert_eq!(Finished::of(program).ok().stdout, "2 b\n1 a\n");

    let work = world.checkout_of("makefile-c");
    let main = std::fs::read_to_string(work.dir().join("src/main.c")).unwrap();
    work.commit("count wrongly", &[("src/main.c", &main.replace("\"%lu %s\\n\"", "\"%s %lu\\n\""))]);
    let push = work.push(&["main"]).code(1);
    assert!(push.stderr.contains("failed at build") || push.stderr.contains("failed at post_build"), "{push}");

    // Only the changed file is compiled again: objects are in the cache.
    let built = work.commit("a comment", &[("src/main.c", &format!("{main}/* end */\n"))]);
    work.push(&["main"]).ok();
    assert_eq!(world.serves("makefile-c"), Some(built));
    let id = world.newest("makefile-c")["id"].as_str().unwrap().to_string();
    let log = std::fs::read_to_string(world.root().join(format!("var/log/mc_project/makefile-c/{id}.log"))).unwrap();
    assert_has(&log, "src/main.c");
    assert!(!log.contains("src/table.c"), "table.c was compiled again\n{log}");
}

//! Services on a directory node: whole deployments with the embedded supervisor, and the commands about services.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::service_app::QUEUE;
use crate::support::{Running, World, assert_has, assert_lacks, free_port, is_alive, kill_9, wait_until};

/// A port that is free, and the next one too.
fn two_ports() -> u16 {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    std::iter::repeat_with(free_port).find(|port| *port < u16::MAX && is_free(port + 1)).unwrap()
}

/// What the web server answers, or why it does not.
fn page(port: u16, path: &str) -> Result<String, String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).ok_or(text)
}

/// The version that the web server answers with.
#[track_caller]
fn version(port: u16) -> String {
    page(port, "/").unwrap().split(' ').next().unwrap().to_string()
}

impl World {
    /// `status --json` of the shop.
    #[track_caller]
    fn status(&self) -> Value {
        serde_json::from_str(&self.mc(&["status", "shop", "--json"]).stdout).unwrap()
    }

    /// What `status` says of an instance.
    #[track_caller]
    fn service(&self, name: &str) -> Value {
        let status = self.status();
        let all = status["services"].as_array().unwrap();
        all.iter().find(|one| one["instance"]["service"] == name).unwrap_or_else(|| panic!("{status}")).clone()
    }

    #[track_caller]
    fn process_of(&self, name: &str) -> i32 {
        i32::try_from(self.service(name)["pid"].as_i64().unwrap()).unwrap()
    }

    /// Our processes that keep the shop's services running.
    fn keepers(&self) -> Vec<i32> {
        let complaints = self.project("shop").join("state/supervisor/complaints");
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|to| to == complaints)).collect()
    }

    /// Every process of the shop's services, our own among them.
    fn everything(&self) -> Vec<i32> {
        let mark = format!("MC_PROJECT_DIR={}", self.project("shop").display());
        let of_service = |pid: &i32| {
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let has = |wanted: &[u8]| env.split(|b| *b == 0).any(|line| line.starts_with(wanted));
            has(mark.as_bytes()) && has(b"MC_SERVICE=")
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(of_service).filter(|pid| is_alive(*pid)).chain(self.keepers()).collect()
    }
}

#[test]
fn services_follow_every_deployment_and_a_sick_one_is_rolled_back() {
    let (world, port) = (World::with_shop(), two_ports());
    let work = world.clone_of("shop");
    let first = work.commit_services("1", (port, 2), QUEUE);
    work.push(&["main"]).ok();
    assert_eq!(version(port), "1");
    let (web, queue) = (world.process_of("web"), world.process_of("queue"));
    assert_eq!(
        (world.service("web")["state"].as_str(), world.service("web")["version"].as_str()),
        (Some("running"), Some("serving"))
    );
    assert_eq!(world.service("web")["running"]["commit"], first.as_str());
    work.commit_services("2", (port, 2), QUEUE);
    work.push(&["main"]).ok();
    assert_eq!(version(port), "2");
    assert!(!is_alive(web));
    assert_eq!(world.process_of("queue"), queue, "it is left running");
    assert_eq!(world.service("queue")["version"], "unchanged");
    assert_has(&world.mc(&["status", "shop"]).ok().stdout, "unchanged since");
    work.write("sick", "");
    work.commit_services("3", (port, 2), QUEUE);
    let told = work.push(&["main"]).fails();
    assert_has(&told.stderr, "is not well");
    // The last lines of the sick one, none of what ran before it.
    assert_has(&told.stderr, "version 3 knows");
    assert_lacks(&told.stderr, "version 2 knows");
    // Data may have gone back: then nothing is left running.
    assert_eq!(version(port), "2");
    let queue = world.process_of("queue");
    // A recipe without the queue: it ends.
    std::fs::remove_file(work.dir().join("sick")).unwrap();
    work.commit_services("4", (port, 2), "");
    work.push(&["main"]).ok();
    assert_eq!(version(port), "4");
    assert!(!is_alive(queue));
    world.mc(&["destroy", "shop", "--yes", "--with", "data"]).ok();
    wait_until("nothing of it runs", || world.everything().is_empty());
    assert!(page(port, "/").is_err());
}

#[test]
fn services_start_and_stop_by_name_and_status_tells_how_they_are() {
    let (world, port) = (World::with_shop(), two_ports());
    let work = world.clone_of("shop");
    work.commit_services("1", (port, 2), QUEUE);
    work.push(&["main"]).ok();
    let told = world.mc(&["status", "shop", "--check"]).ok().stdout;
    assert_has(&told, "web@1: well at ");
    assert_has(&told, "GET /healthz at port");
    assert_has(&told, "  web@2  running, since ");
    assert_has(&world.mc(&["status", "shop"]).ok().stdout, "web@1: well at ");
    world.mc(&["stop", "shop", "web"]).ok();
    assert_lacks(&world.mc(&["status", "shop"]).ok().stdout, "web@1: ");
    assert!(page(port, "/").is_err());
    assert_eq!(
        (world.service("web")["state"].as_str(), world.service("queue")["state"].as_str()),
        (Some("stopped"), Some("running"))
    );
    let told = world.mc(&["status", "shop", "--check"]).code(1);
    assert_has(&told.stdout, "web@1: NOT WELL");
    let told = world.mc(&["start", "shop", "web"]).ok().stdout;
    assert_has(&told, "web@1  running");
    assert_lacks(&told, "queue");
    wait_until("it answers", || page(port, "/").is_ok());
    assert_lacks(&world.mc(&["status", "shop"]).ok().stdout, "web@1: ");
    let before = (world.process_of("web"), world.process_of("queue"));
    world.mc(&["restart", "shop", "queue"]).ok();
    assert_eq!(world.process_of("web"), before.0);
    assert_ne!(world.process_of("queue"), before.1);
    let told = world.mc(&["restart", "shop", "wbe"]).fails();
    assert_has(&told.stderr, "there is no service `wbe` in shop");
    assert_has(&told.stderr, "services: web, queue");
    world.mc(&["stop", "shop"]).ok();
    wait_until("nothing is left, the supervisor neither", || world.everything().is_empty());
    world.mc(&["start", "shop"]).ok();
    wait_until("it answers", || page(port, "/").is_ok());
    kill_9(world.process_of("queue"));
    wait_until("it runs again", || {
        world.service("queue")["restarts"] == 1 && world.service("queue")["state"] == "running"
    });
    let told = world.mc(&["status", "shop"]).code(1);
    assert_has(&told.stdout, "STARTED AGAIN ONCE, the run before ended (");
}

#[test]
fn one_view_shows_what_deployments_and_services_wrote() {
    let (world, port) = (World::with_shop(), two_ports());
    let work = world.clone_of("shop");
    let pillar = world.pillar_of("shop");
    pillar.commit("a secret", &[("init.sls", "makina-projects.shop: {env: {TOKEN: hunter2hunter2}}\n")]);
    pillar.push(&["main"]).ok();
    work.commit_services("1", (port, 2), QUEUE);
    work.push(&["main"]).ok();
    let first = world.newest("shop")["id"].as_str().unwrap().to_string();
    let seen = world.mc(&["logs", "shop"]).ok().stdout;
    assert_has(&seen, " web        version 1 knows [secret]\n");
    assert_lacks(&seen, "hunter2");
    let at = |text: &str| seen.find(text).unwrap_or_else(|| panic!("no {text} in {seen}"));
    // In time order, but that a deployment's times are whole seconds.
    assert!(at(" deploy     mc_project: shop #1") < at(" web        version 1"), "{seen}");
    assert_has(&world.mc(&["logs", "shop", "-n", "1", "--service", "web"]).ok().stdout, "version 1");
    assert_eq!(world.mc(&["logs", "shop", "--service", "web", "--since", "2999-01-01T00:00Z"]).ok().stdout, "");
    let told = world.mc(&["logs", "shop", "--service", "wbe"]).fails();
    assert_has(&told.stderr, "there is no service `wbe` in shop");
    assert_has(&told.stderr, "services: queue, web");
    let line = world.mc(&["logs", "shop", "--json", "--service", "web"]).ok().stdout;
    let line: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    // Which of the two instances was faster is not known.
    assert!(["web", "web@2"].contains(&line["from"].as_str().unwrap()), "{line}");
    assert_eq!(line["text"], "version 1 knows [secret]");
    assert_has(&world.mc(&["logs", "shop", &first]).ok().stdout, "mc_project: shop #1");
    let out = world.home().path("followed");
    let mut command = world.mc_command(&["logs", "shop", "-f", "-n", "0"]);
    command.stdout(std::fs::File::create(&out).unwrap()).stdin(std::process::Stdio::null());
    let mut following = Running::start_with_output(command);
    work.commit_services("2", (port, 2), QUEUE);
    work.push(&["main"]).ok();
    let seen = || std::fs::read_to_string(&out).unwrap();
    wait_until("all of it is seen", || {
        seen().contains("version 2 knows [secret]") && seen().contains(" deploy     mc_project: deployed; run serves")
    });
    assert!(following.is_running());
    assert_lacks(&seen(), "version 1");
    following.signal(nix::sys::signal::Signal::SIGTERM);
    following.wait();
    // The command's own environment is that of the services.
    let told = world.mc(&["run", "shop", "--", "sh", "-c", "echo $MC_COMMIT $TOKEN; pwd"]).ok().stdout;
    assert_has(&told, &format!("{} hunter2hunter2\n", work.head()));
}

#[test]
fn a_newer_program_takes_the_services_over_without_a_stop() {
    let (world, port) = (World::with_shop(), two_ports());
    let work = world.clone_of("shop");
    work.commit_services("1", (port, 1), "");
    work.push(&["main"]).ok();
    let (web, keepers) = (world.process_of("web"), world.keepers());
    assert_eq!(keepers.len(), 2);
    world.home().set("MC_PRETENDED_VERSION", "99.0.0");
    world.mc(&["status", "shop"]).ok();
    wait_until("the old ones have ended", || !keepers.iter().any(|pid| is_alive(*pid)));
    assert_eq!((world.process_of("web"), version(port).as_str()), (web, "1"));
    kill_9(web);
    wait_until("it runs again", || world.service("web")["restarts"] == 1 && world.service("web")["state"] == "running");
}

#[test]
fn whatever_is_killed_while_versions_are_deployed_services_run_the_version_that_status_names() {
    let (world, port) = (World::with_shop(), two_ports());
    let work = world.clone_of("shop");
    work.commit_services("1", (port, 2), QUEUE);
    work.push(&["main"]).ok();
    let seed = u64::from(std::process::id());
    let mut luck = seed;
    let mut draw = |below: u64| {
        luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (luck >> 33) % below
    };
    for round in 2..=7 {
        work.commit_services(&round.to_string(), (port, 2), QUEUE);
        let mut push = work.start_push(&["main"]);
        let begun = Instant::now();
        while push.is_running() && begun.elapsed() < Duration::from_mins(1) {
            std::thread::sleep(Duration::from_millis(draw(700)));
            let all = world.everything();
            match draw(4) {
                0 => world.keepers().into_iter().for_each(kill_9),
                1 => all.iter().skip(usize::try_from(draw(5)).unwrap()).take(1).for_each(|pid| kill_9(*pid)),
                2 if begun.elapsed() < Duration::from_secs(4) => all.into_iter().for_each(kill_9),
                _ => {}
            }
        }
        push.wait();
        world.settle("shop");
        // What was killed while the old version came back may have to be decided by a person.
        if !world.status()["needs_person"].is_null() {
            world.mc(&["recover", "shop", "--back"]);
            world.settle("shop");
        }
        let is_well = |status: &Value| {
            let all = status["services"].as_array().unwrap();
            all.len() == 3 && all.iter().all(|one| one["state"] == "running" && one["version"] != "other")
        };
        let begun = Instant::now();
        while !is_well(&world.status()) {
            assert!(begun.elapsed() < Duration::from_mins(2), "seed {seed}, round {round}: {:#}", world.status());
            std::thread::sleep(Duration::from_millis(100));
        }
        wait_until("it answers", || page(port, "/").is_ok());
        let serves = world.status()["serves"]["commit"].as_str().unwrap().to_string();
        let wanted = world.home().git_text(work.dir(), &["show", &format!("{serves}:version")]);
        assert_eq!(version(port), wanted.trim(), "seed {seed}, round {round}");
    }
}

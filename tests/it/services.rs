//! Services on a directory node, where the embedded supervisor keeps them running.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::service_app::QUEUE;
use crate::support::{Running, WorkTree, World, assert_has, assert_lacks, free_port, wait_until};

/// A node with a project whose web server listens at a port of its own.
struct Shop {
    world: World,
    port: u16,
}

/// What a server at this port says to a GET of `/`; `None` if nobody answers.
pub fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string())
}

impl Shop {
    fn new() -> Self {
        Self { world: World::with_shop(), port: free_port() }
    }

    fn commit(&self, work: &WorkTree<'_>, version: &str, more: &str) -> String {
        work.commit_services(version, (self.port, 1), more)
    }

    /// The version that answers, whose deployment must be the one that is said to serve.
    #[track_caller]
    fn version(&self) -> String {
        let page = page(self.port).expect("nobody answers");
        let parts: Vec<&str> = page.split(' ').collect();
        let serves = self.world.last("shop").unwrap().serves.unwrap();
        assert_eq!(parts[3], serves.id.to_string(), "{page}");
        parts[0].to_string()
    }

    /// How many processes of the project's services there are.
    fn running(&self) -> usize {
        let dir = format!("MC_PROJECT_DIR={}", self.world.project("shop").display());
        let pids = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("environ"));
        let environments = pids.filter_map(|path| std::fs::read(path).ok());
        let has = |environment: &[u8], line: &[u8]| environment.split(|b| *b == 0).any(|found| found.starts_with(line));
        environments.filter(|found| has(found, dir.as_bytes()) && has(found, b"MC_SERVICE=")).count()
    }

    /// The processes that the queue has had.
    fn queues(&self) -> Vec<i32> {
        let starts = std::fs::read_to_string(self.world.project("shop").join("data/queue.starts")).unwrap_or_default();
        starts.lines().map(|line| line.parse().unwrap()).collect()
    }
}

fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn services_follow_every_deployment_and_come_back_with_their_version() {
    let shop = Shop::new();
    let work = shop.world.clone_of("shop");
    shop.commit(&work, "1", QUEUE);
    work.push(&["main"]).ok().tells("web is well: GET /healthz at port");
    assert_eq!((shop.version().as_str(), shop.queues().len()), ("1", 1));
    shop.commit(&work, "2", QUEUE);
    work.push(&["main"]).ok();
    assert_eq!((shop.version().as_str(), shop.queues().len()), ("2", 1));

    // One that is not well, after its upgrade: everything goes back, the data too.
    work.write("sick", "x");
    shop.commit(&work, "3", &format!("{QUEUE}stages: {{post_deploy: ['echo 3 > $MC_DATA/db']}}\n"));
    let rejected = work.push(&["main"]);
    assert_has(&rejected.rejected("main"), "web@1 is not well: GET /healthz at port");
    rejected.tells("version 3 knows");
    assert_eq!(shop.version(), "2");
    assert!(!shop.world.project("shop").join("data/db").exists());
    assert!(lives(*shop.queues().last().unwrap()));

    // One that does not come up at all.
    work.git(&["rm", "--quiet", "sick"]).ok();
    shop.commit(&work, "4", "  bad: {run: 'echo no such table; exit 3'}\n");
    let rejected = work.push(&["main"]).rejected("main");
    assert_has(&rejected, "bad@1");
    assert_eq!(shop.version(), "2");

    shop.commit(&work, "5", "");
    work.push(&["main"]).ok();
    let queue = *shop.queues().last().unwrap();
    assert_eq!((shop.version().as_str(), lives(queue)), ("5", false));
    shop.world.mc(&["rollback", "shop"]).ok();
    shop.world.settle("shop");
    assert_eq!(shop.version(), "2");
    assert!(lives(*shop.queues().last().unwrap()));
    shop.world.mc(&["destroy", "shop", "--yes"]).ok();
    assert_eq!((page(shop.port), shop.running()), (None, 0));
}

#[test]
fn a_service_that_dies_and_comes_back_while_it_is_asked_is_not_well() {
    let shop = Shop::new();
    let work = shop.world.clone_of("shop");
    shop.commit(&work, "1", QUEUE);
    work.push(&["main"]).ok();
    let check = "check: {run: 'true', times: 8, every: 1s, within: 1m}";
    shop.commit(&work, "2", &format!("  fickle: {{run: 'sleep 3; exit 1', {check}}}\n"));
    let told = work.push(&["main"]).rejected("main");
    assert_has(&told, "fickle@1 is not well: true: ok");
    assert_has(&told, "but it died and was started again while it was asked");
    assert_eq!(shop.version(), "1");
}

#[test]
fn what_fails_before_the_switch_starts_the_old_services_again() {
    let shop = Shop::new();
    let work = shop.world.clone_of("shop");
    shop.commit(&work, "1", QUEUE);
    work.push(&["main"]).ok();
    shop.commit(&work, "2", &format!("{QUEUE}stages: {{backup: ['exit 4'], restore: ['true']}}\n"));
    work.push(&["main"]).rejected("main");
    assert_eq!((shop.version().as_str(), shop.queues().len()), ("1", 1));
}

#[test]
fn a_first_deployment_that_fails_leaves_nothing_running() {
    let shop = Shop::new();
    let work = shop.world.clone_of("shop");
    work.write("sick", "x");
    shop.commit(&work, "1", QUEUE);
    work.push(&["main"]).rejected("main");
    assert_eq!((page(shop.port), shop.running()), (None, 0));
}

#[test]
fn a_service_that_stays_down_is_told_by_doctor() {
    let shop = Shop::new();
    let work = shop.world.clone_of("shop");
    shop.commit(&work, "1", &QUEUE.replace("    dir: data\n", "    dir: data\n    restart: never\n"));
    work.push(&["main"]).ok();
    assert_lacks(&shop.world.mc(&["doctor"]).stdout, "service queue");
    let queue = nix::unistd::Pid::from_raw(shop.queues()[0]);
    nix::sys::signal::kill(queue, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("that is seen", || shop.world.mc(&["doctor"]).stdout.contains("✗ shop: service queue  FAILED"));
    let told = format!("mc_project --root {} logs shop --service queue", shop.world.root().display());
    assert_has(&shop.world.mc(&["doctor"]).fails().stdout, &told);
}

#[test]
fn a_service_that_holds_the_tree_is_restarted_although_it_may_be_left() {
    let shop = Shop::new();
    let work = shop.world.clone_of("shop");
    let holding = QUEUE.replace("exec sleep", "exec 7< $MC_RUN/version; exec sleep");
    shop.commit(&work, "1", &holding);
    work.push(&["main"]).ok();
    shop.commit(&work, "2", &holding);
    work.push(&["main"]).ok().tells("queue@1 is restarted although it may be left");
    assert_eq!(shop.queues().len(), 2);
    assert!(!lives(shop.queues()[0]) && lives(shop.queues()[1]));
}

#[test]
fn a_port_that_nothing_names_is_found_out_before_anything_changes() {
    let shop = Shop::new();
    let work = shop.world.clone_of("shop");
    let recipe = "services: {web: {run: x, port: $SHOP_PORT}}\n";
    work.commit("no port", &[("mc_project.yaml", recipe)]);
    let rejected = work.push(&["main"]);
    assert_has(&rejected.rejected("main"), "refused at accept: the service web: `SHOP_PORT` is to name its port");
}

#[test]
fn in_editable_mode_services_run_in_the_clone_and_restart_with_what_is_saved() {
    let world = World::new();
    world.home().set("MC_NO_MOUNTS", "1");
    world.mc(&["init", "shop", "--environment", "dev"]).ok();
    let shop = Shop { world, port: free_port() };
    let work = shop.world.clone_of("shop");
    let watched = |text: &str| text.replace("    dir: data\n", "    watch: [version]\n    dir: data\n");
    shop.commit(&work, "1", &watched(QUEUE));
    work.push(&["main"]).ok();
    assert_eq!(shop.version(), "1");
    shop.commit(&work, "2", &watched(QUEUE));
    work.push(&["main"]).ok();
    assert_eq!(shop.version(), "2");
    // A failed one is left as it is: its services run.
    shop.commit(&work, "3", &format!("{}stages: {{health: ['exit 1']}}\n", watched(QUEUE)));
    work.push(&["main"]);
    shop.world.settle("shop");
    assert_has(&page(shop.port).unwrap(), "3 web@1");

    let mut command = shop.world.mc_command(&["watch", "shop"]);
    let out = shop.world.home().path("watch.out");
    command.stdin(std::process::Stdio::null()).stdout(std::fs::File::create(&out).unwrap());
    let watching = Running::start_with_output(command);
    wait_until("files are watched", || std::fs::read_to_string(&out).unwrap().contains("1 service says"));
    // Watches are set after that line.
    std::thread::sleep(Duration::from_millis(500));
    std::fs::write(shop.world.run_path("shop", "version"), "saved").unwrap();
    wait_until("it is restarted", || page(shop.port).is_some_and(|page| page.starts_with("saved ")));
    drop(watching);
    shop.world.settle("shop");

    shop.world.mc(&["init", "shop", "--environment", "staging"]).ok();
    assert_eq!((page(shop.port), shop.running()), (None, 0), "nothing had been deployed before");
}

//! `watch`: a saved file runs again what it concerns, once, and nothing else does.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Running, World, assert_has, assert_lacks, wait_until};

const RECIPE: &str = "\
cache: [cache]
sync: {ignore_drift: ['*.tmp']}
stages:
  build:
    - {run: 'cat src/* > built; echo build >> $MC_DATA/log', watch: ['src/', '*.c']}
    - {run: 'echo other >> $MC_DATA/log', watch: [other]}
  stop: ['echo stop >> $MC_DATA/log']
  start:
    - {run: 'echo start >> $MC_DATA/log', watch: [settings]}
";

/// A project in editable mode, and the program that watches it.
struct Watched {
    world: World,
    running: Option<Running>,
    log: PathBuf,
}

impl Watched {
    fn new(recipe: &str, environment: &[(&str, &str)]) -> Self {
        let world = World::new();
        world.home().set("MC_NO_MOUNTS", "1");
        world.mc(&["init", "shop", "--environment", "dev"]).ok();
        let work = world.clone_of("shop");
        let files = [("mc_project.yaml", recipe), ("src/a", "1"), ("other", "1"), ("settings", "1"), ("free", "1")];
        work.commit("one", &[&files[..], &[(".gitignore", "built\n")]].concat());
        work.push(&["main"]).ok();
        world.settle("shop");
        drop(work);
        let log = world.project("shop").join("data/log");
        let _ = std::fs::remove_file(&log);
        let mut command = world.mc_command(&["watch", "shop"]);
        command.envs(environment.iter().copied());
        let out = world.home().path("watch.out");
        command.stdin(std::process::Stdio::null()).stdout(std::fs::File::create(&out).unwrap());
        let running = Running::start_with_output(command);
        let watched = Self { world, running: Some(running), log };
        watched.wait_for("watching ");
        // Watches are set after the first line.
        std::thread::sleep(Duration::from_millis(500));
        watched
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.world.home().path("watch.out")).unwrap()
    }

    #[track_caller]
    fn wait_for(&self, part: &str) {
        wait_until(&format!("it says `{part}`: {}", self.said()), || self.said().contains(part));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default().replace('\n', " ")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.world.run_path("shop", path)
    }

    fn save(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), text).unwrap();
    }

    /// Waits until the log of the steps is this, and that it stays so.
    #[track_caller]
    fn assert_log(&self, expected: &str) {
        wait_until("the steps have run", || self.log().len() >= expected.len());
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(self.log(), expected, "{}", self.said());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take()
            && running.is_running()
        {
            running.signal(nix::sys::signal::Signal::SIGINT);
            running.wait();
        }
    }
}

#[test]
fn a_saved_file_runs_what_it_concerns_once_and_restarts() {
    let watched = Watched::new(RECIPE, &[]);
    watched.save("src/a", "2");
    watched.assert_log("build stop start ");
    assert_eq!(std::fs::read_to_string(watched.path("built")).unwrap(), "2");
    assert_has(&watched.said(), "src/a: 1 step ");
    assert_has(&watched.said(), "restarted ");
    watched.save("settings", "2");
    watched.assert_log("build stop start stop start ");
    // An editor that writes beside and renames, in a directory that is new.
    std::fs::create_dir_all(watched.path("deep/er")).unwrap();
    watched.save("deep/er/.x.c.swp", "int main;");
    std::fs::rename(watched.path("deep/er/.x.c.swp"), watched.path("deep/er/x.c")).unwrap();
    watched.assert_log("build stop start stop start build stop start ");
    // Removing is a change too.
    std::fs::remove_file(watched.path("deep/er/x.c")).unwrap();
    watched.assert_log("build stop start stop start build stop start build stop start ");
}

#[test]
fn what_concerns_nothing_runs_nothing() {
    let watched = Watched::new(RECIPE, &[]);
    watched.save("free", "2");
    std::fs::read(watched.path("src/a")).unwrap();
    watched.save("src/x.tmp", "ignored");
    std::fs::create_dir(watched.path("cache")).unwrap();
    watched.save("cache/x.c", "cached");
    watched.world.home().git(&watched.world.project("shop").join("run"), &["status"]).ok();
    watched
        .world
        .home()
        .git(&watched.world.project("shop").join("run"), &["commit", "--allow-empty", "-q", "-m", "x"])
        .ok();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(watched.log(), "", "{}", watched.said());
    watched.save("other", "2");
    watched.assert_log("other stop start ");
}

#[test]
fn steps_that_write_what_they_watch_do_not_keep_themselves_running() {
    // One writes a file that nobody made, one formats a source, one writes another time into a source each time it runs.
    let recipe = "\
stages:
  build:
    - {run: 'date +%N > made; echo made >> $MC_DATA/log', watch: ['*']}
    - {run: 'tr a-z A-Z < src/a > .new; mv .new src/a; date +%N >> settings; echo format >> $MC_DATA/log', watch: ['*']}
";
    let watched = Watched::new(recipe, &[]);
    watched.save("src/a", "word");
    wait_until("it has run", || watched.log().contains("format"));
    std::thread::sleep(Duration::from_secs(4));
    let runs = watched.log().matches("made").count();
    assert!((1..=3).contains(&runs), "{runs} runs: {}", watched.said());
    assert_eq!(std::fs::read_to_string(watched.path("src/a")).unwrap(), "WORD");
    watched.save("other", "2");
    wait_until("it runs again", || watched.log().matches("made").count() > runs);
    std::thread::sleep(Duration::from_secs(3));
    assert!(watched.log().matches("made").count() <= runs + 2, "{}", watched.said());
}

#[test]
fn what_somebody_saves_while_a_step_runs_is_not_lost() {
    let recipe = RECIPE.replace("cat src/* > built;", "cat src/* > built; sleep 2;");
    let watched = Watched::new(&recipe, &[]);
    watched.save("src/a", "2");
    wait_until("the step works", || {
        watched.path("built").exists() && std::fs::read(watched.path("built")).unwrap() == b"2"
    });
    watched.save("src/a", "3");
    watched.assert_log("build stop start build stop start ");
    assert_eq!(std::fs::read_to_string(watched.path("built")).unwrap(), "3");
}

#[test]
fn a_failed_step_is_told_with_its_last_lines_and_nothing_is_restarted() {
    let recipe = RECIPE.replace("cat src/* > built;", r#"printf "line\033[31m 1\n"; grep -v wrong src/a > built;"#);
    let watched = Watched::new(&recipe, &[]);
    watched.save("src/a", "wrong");
    watched.wait_for("FAILED");
    let said = watched.said();
    assert_has(&said, "src/a: build FAILED after ");
    assert_has(&said, "exit 1");
    assert_has(&said, "    | line 1");
    assert_lacks(&said, "\u{1b}");
    assert_eq!(watched.log(), "");
    watched.save("src/a", "right");
    watched.assert_log("build stop start ");
}

#[test]
fn a_changed_recipe_is_read_again_and_an_invalid_one_is_told() {
    let watched = Watched::new(RECIPE, &[]);
    watched.save("mc_project.yaml", "stages: {bild: x}\n");
    watched.wait_for("the old recipe stays: mc_project.yaml:1:10: stages: unknown stage `bild`");
    watched.save("other", "2");
    watched.assert_log("other stop start ");
    watched.save("mc_project.yaml", &RECIPE.replace("watch: [other]", "watch: [free]"));
    watched.wait_for("3 steps say");
    watched.save("free", "2");
    watched.assert_log("other stop start other stop start ");
}

#[test]
fn a_deployment_is_waited_for_and_what_it_built_is_not_built_again() {
    let watched = Watched::new(RECIPE, &[]);
    let work = watched.world.checkout_of("shop");
    work.commit(
        "two",
        &[("src/a", "2"), ("mc_project.yaml", &RECIPE.replace("  stop:", "  upgrade: ['sleep 3']\n  stop:"))],
    );
    let push = work.start_push(&["main"]);
    wait_until("it is deployed", || watched.log().contains("start"));
    watched.save("other", "saved while it deploys");
    push.wait().ok();
    watched.wait_for("was deployed meanwhile");
    watched.assert_log("stop build other start other stop start ");
}

#[test]
fn without_inotify_it_looks_by_the_clock_and_says_so() {
    if !cfg!(feature = "failpoints") {
        return;
    }
    let watched = Watched::new(RECIPE, &[("MC_FAIL", "watch.inotify=error:ENOSPC")]);
    watched.wait_for("no inotify, so it looks once per second: injected");
    watched.save("src/a", "2");
    watched.assert_log("build stop start ");
}

#[test]
fn it_ends_with_editable_mode_and_does_not_begin_without() {
    let mut watched = Watched::new(RECIPE, &[]);
    watched.world.mc(&["init", "shop", "--environment", "staging"]).ok();
    let ended = watched.running.take().unwrap().wait();
    assert_eq!(ended.exit_code(), Some(0), "{ended}");
    assert_has(&watched.said(), "shop has left editable mode");
    assert_lacks(&watched.said(), "FAILED");
    let refused = watched.world.mc(&["watch", "shop"]).code(1);
    assert_has(&refused.stderr, "is not in editable mode");
    assert_has(&refused.stderr, "init shop --environment dev");
}

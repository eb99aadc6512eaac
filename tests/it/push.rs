//! A push is a deployment, and the push tells the truth about it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{World, assert_has, assert_lacks, wait_until};

/// The first ten digits, as people are shown a commit.
fn short(commit: &str) -> &str {
    &commit[..10]
}

/// A recipe whose build waits until the file `go` is in the data directory.
const WAITS: &str =
    "stages:\n  build:\n    - run: 'touch $MC_DATA/waiting; while [ ! -e $MC_DATA/go ]; do sleep 0.05; done'\n";

#[test]
fn the_first_push_deploys_and_says_what_serves() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let commit = work.commit("open the shop", &[("index.html", "hello\n"), ("css/site.css", "body {}\n")]);

    let push = work.push(&["main"]).ok();

    let text = push.remote_text();
    assert_has(&text, &format!("mc_project: shop #1 cooking (staging) {} \"open the shop\"", short(&commit)));
    assert_has(&text, &format!("deployed; run serves {}", short(&commit)));
    assert_lacks(&text, "hint:");
    assert_eq!(world.run_text("shop", "index.html"), "hello\n");
    assert_eq!(world.node_ref("shop", "refs/heads/main").as_deref(), Some(commit.as_str()));
    assert_eq!(world.serves("shop").as_deref(), Some(commit.as_str()));

    let newest = world.newest("shop");
    assert_eq!((newest["seq"].as_u64(), newest["verdict"].as_str()), (Some(1), Some("deployed")));
    assert_eq!(newest["commit"], commit);
    assert_eq!(newest["subject"], "open the shop");
    let id = newest["id"].as_str().unwrap();
    let current = std::fs::read_link(world.project("shop").join("deploy/current")).unwrap();
    assert_eq!(current, Path::new(id), "deploy/current is a relative link to the live deployment");
    assert!(!world.project("shop").join("run").symlink_metadata().unwrap().is_symlink(), "run is a real directory");
    assert!(world.root().join(format!("var/log/mc_project/shop/{id}.log")).exists());
}

#[test]
fn run_is_exactly_the_commit_whatever_was_there_before() {
    let (world, _) = World::serving(&[
        ("kept.txt", "same"),
        ("changed.txt", "one"),
        ("removed.txt", "x"),
        ("dir/inner/deep.txt", "x"),
        ("becomes-dir", "x"),
        ("becomes-file/a", "x"),
        ("plain.sh", "echo"),
    ]);
    let work = world.checkout_of("shop");
    for path in ["removed.txt", "dir", "becomes-dir", "becomes-file", "plain.sh"] {
        let at = work.dir().join(path);
        if at.is_dir() { std::fs::remove_dir_all(at).unwrap() } else { std::fs::remove_file(at).unwrap() }
    }
    std::os::unix::fs::symlink("kept.txt", work.dir().join("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", work.dir().join("dangling")).unwrap();
    let commit = work.commit(
        "turn everything around",
        &[
            ("changed.txt", "two"),
            ("becomes-dir/a", "x"),
            ("becomes-file", "x"),
            ("plain.sh", "#!/bin/sh\n"),
            ("naïve name with spaces.txt", "x"),
            ("tab\there.txt", "x"),
        ],
    );
    // By hand in run: something more, something less, something else; a deployment takes all of it back.
    std::fs::write(world.run_path("shop", "extra.txt"), "x").unwrap();
    std::fs::remove_file(world.run_path("shop", "kept.txt")).unwrap();
    std::fs::write(world.run_path("shop", "changed.txt"), "by hand").unwrap();

    work.push(&["main"]).ok();

    work.reference_tree(&commit).assert_same(&world.run_tree("shop"), "run, against what git itself writes,");
}

#[test]
fn a_failing_build_rejects_the_push_and_changes_nothing() {
    let (world, first) = World::serving(&[("index.html", "one")]);
    let work = world.checkout_of("shop");
    let second = work.commit(
        "break it",
        &[
            ("index.html", "two"),
            ("mc_project.yaml", "stages:\n  build:\n    - echo all is well\n    - echo boom >&2; exit 2\n"),
        ],
    );
    let (run, rest) = (world.run_tree("shop"), world.unchangeable("shop"));

    let push = work.push(&["main"]).code(1);

    let reason = format!("failed at build: exit 2; run still serves {}", short(&first));
    assert_eq!(push.rejected("main -> main"), reason);
    let push = push.tells(&reason).tells("| boom").tells("✗ build");
    assert!(
        push.remote().iter().any(|line| line.trim_start().starts_with("✗ build") && line.ends_with("exit 2")),
        "{push}"
    );
    run.assert_same(&world.run_tree("shop"), "run");
    rest.assert_same(&world.unchangeable("shop"), "the node");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(first));
    let newest = world.newest("shop");
    assert_eq!((newest["verdict"].as_str(), newest["stage"].as_str()), (Some("failed"), Some("build")));
    assert_eq!((newest["reason"].as_str(), newest["commit"].as_str()), (Some("exit 2"), Some(second.as_str())));

    // The way out is another push, as if nothing had happened.
    let third = work.commit("mend it", &[("mc_project.yaml", "stages: {build: [echo mended]}\n")]);
    work.push(&["main"]).ok();
    assert_eq!(world.serves("shop"), Some(third));
}

#[test]
fn a_first_push_that_fails_leaves_a_node_to_push_to_again() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    work.commit("broken", &[("mc_project.yaml", "stages: {build: ['exit 7']}\n")]);

    let push = work.push(&["main"]).code(1);

    assert_eq!(push.rejected("main -> main"), "failed at build: exit 7; nothing is deployed yet");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), None);
    let mended = work.commit("mended", &[("mc_project.yaml", "stages: {build: ['true']}\n")]);
    work.push(&["main"]).ok().tells("deployed; run serves");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(mended));
}

#[test]
fn with_a_later_verdict_git_accepts_first_and_the_failure_is_told_loudly() {
    let world = World::with_config("verdict: later\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    let good = work.commit("good", &[("a", "1")]);
    work.push(&["main"]).ok().tells(&format!("deployed; run serves {}", short(&good)));
    let bad = work.commit("bad", &[("mc_project.yaml", "stages: {build: ['exit 9']}\n")]);

    let push = work.push(&["main"]).ok();

    push.tells(&format!("failed at build: exit 9; run still serves {}", short(&good)));
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(bad), "git had accepted it");
    assert_eq!(world.serves("shop"), Some(good));
}

#[test]
fn another_branch_is_stored_and_the_refspec_that_would_deploy_it_is_told() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.git(&["checkout", "--quiet", "-b", "dev"]).ok();
    let commit = work.commit("try something", &[("a", "2")]);

    work.push(&["dev"]).ok().tells("stored, not deployed").tells("dev:main");

    assert_eq!(world.node_ref("shop", "refs/heads/dev"), Some(commit.clone()));
    assert_eq!(world.serves("shop"), Some(first));
    assert_eq!(world.history("shop").len(), 1);
    work.push(&["dev:main"]).ok();
    assert_eq!(world.serves("shop"), Some(commit));
}

#[test]
fn the_first_of_main_and_master_becomes_the_deploy_branch() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let first = work.commit("on master", &[("a", "1")]);
    work.push(&["main:master"]).ok().tells("master");
    assert_eq!(world.serves("shop"), Some(first.clone()));
    let head = world.home().git_text(&world.project("shop").join("git/project"), &["symbolic-ref", "HEAD"]);
    assert_eq!(head, "refs/heads/master");

    work.commit("on main", &[("a", "2")]);
    work.push(&["main"]).ok().tells("stored, not deployed").tells("main:master");
    assert_eq!(world.serves("shop"), Some(first));
}

#[test]
fn deletions_deploy_nothing_and_the_deploy_branch_cannot_be_deleted() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.push(&["main:refs/heads/old"]).ok();
    work.push(&["--delete", "old"]).ok().tells("nothing deployed").tells(short(&first));
    assert_eq!(world.node_ref("shop", "refs/heads/old"), None);

    let push = work.push(&["--delete", "main"]).fails();
    assert_has(&push.stderr, "remote rejected");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(first.clone()));
    assert_eq!(world.serves("shop"), Some(first));
    assert_eq!(world.history("shop").len(), 1);
}

#[test]
fn a_forced_push_deploys_and_names_the_commits_that_are_lost() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    work.commit("base", &[("a", "1")]);
    work.push(&["main"]).ok();
    work.commit("precious work of bob", &[("a", "2")]);
    work.push(&["main"]).ok();
    work.git(&["reset", "--quiet", "--hard", "HEAD~1"]).ok();
    let rewritten = work.commit("rewritten", &[("a", "3")]);

    work.push(&["main"]).fails();
    work.push(&["--force", "main"]).ok().tells("precious work of bob");

    assert_eq!(world.serves("shop"), Some(rewritten));
    assert_eq!(world.run_text("shop", "a"), "3");
}

#[test]
fn a_forced_push_is_rejected_where_the_node_refuses_them() {
    let world = World::with_config("force: refuse\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("base", &[("a", "1")]);
    let kept = work.commit("kept", &[("a", "2")]);
    work.push(&["main"]).ok();
    work.git(&["reset", "--quiet", "--hard", "HEAD~1"]).ok();
    work.commit("rewritten", &[("a", "3")]);

    let push = work.push(&["--force", "main"]).code(1);

    assert_has(&push.rejected("main -> main"), "force");
    assert_eq!(world.serves("shop"), Some(kept));
}

#[test]
fn of_several_refs_in_one_push_only_the_deploy_branch_is_deployed() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let commit = work.commit("one", &[("a", "1")]);
    work.git(&["tag", "main"]).ok();
    work.git(&["tag", "-a", "v1", "-m", "version one"]).ok();

    work.push(&["refs/heads/main", "refs/heads/main:refs/heads/dev", "refs/tags/main", "v1"]).ok();

    assert_eq!(world.serves("shop"), Some(commit));
    assert_eq!(world.history("shop").len(), 1);
    assert!(world.node_ref("shop", "refs/tags/v1").is_some());
}

#[test]
fn an_atomic_push_with_a_refused_ref_moves_nothing() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);

    work.push(&["--atomic", "main", "main:refs/deploys/current"]).fails();

    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(first.clone()));
    assert_eq!(world.serves("shop"), Some(first));
    assert_eq!(world.run_text("shop", "a"), "1");
}

#[test]
fn a_second_push_waits_for_the_first_and_the_last_one_serves() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    work.commit("one", &[("a", "1"), ("mc_project.yaml", WAITS)]);
    let data = world.project("shop").join("data");
    let first = work.start_push(&["main:main"]);
    wait_until("the first build runs", || data.join("waiting").exists());
    let two = work.commit("two", &[("a", "2")]);
    let mut second = work.start_push(&["main"]);
    std::thread::sleep(Duration::from_millis(700));
    assert!(second.is_running(), "the second push waits");

    std::fs::write(data.join("go"), "").unwrap();

    first.wait().ok();
    // The second push began when the branch did not exist: git's own rule is that the ref must be what it saw.
    let second = second.wait();
    if world.serves("shop").as_deref() != Some(&two) {
        second.rejected("main -> main");
        work.push(&["main"]).ok();
    }
    assert_eq!(world.serves("shop"), Some(two.clone()));
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(two));
}

#[test]
fn of_the_pushes_that_wait_the_newest_wins_and_the_other_one_is_told() {
    let (world, _) = World::serving(&[("a", "0"), ("mc_project.yaml", "stages: {}\n")]);
    let work = world.checkout_of("shop");
    let data = world.project("shop").join("data");
    let one = work.commit("one", &[("a", "1"), ("mc_project.yaml", WAITS)]);
    let first = work.start_push(&["main"]);
    wait_until("the first build runs", || data.join("waiting").exists());
    let two = work.commit("two", &[("a", "2")]);
    let second = work.start_push(&[&format!("{two}:main")]);
    wait_until("the second push is told that it waits", || second.stderr_so_far().contains("wait"));
    let three = work.commit("three", &[("a", "3")]);
    let third = work.start_push(&["main"]);
    wait_until("the third push is told that it waits", || third.stderr_so_far().contains("wait"));

    std::fs::write(data.join("go"), "").unwrap();

    first.wait().ok();
    let second = second.wait().code(1);
    assert_has(&second.rejected("main"), "superseded");
    third.wait().ok();
    assert_eq!(world.serves("shop"), Some(three.clone()));
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(three));
    let deployed: Vec<_> = world.history("shop").into_iter().filter(|e| e["verdict"] == "deployed").collect();
    assert_eq!(deployed.len(), 3, "first version, one and three; {one} and {two}");
}

#[test]
fn a_push_that_may_not_wait_longer_is_told_who_deploys() {
    let world = World::with_config("wait: 1s\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    let one = work.commit("one", &[("mc_project.yaml", WAITS)]);
    let data = world.project("shop").join("data");
    let first = work.start_push(&["main"]);
    wait_until("the first build runs", || data.join("waiting").exists());
    work.commit("two", &[("a", "2")]);

    let second = work.push(&["main"]).code(1);

    assert_has(&second.stderr, short(&one));
    std::fs::write(data.join("go"), "").unwrap();
    first.wait().ok();
    assert_eq!(world.serves("shop"), Some(one));
}

#[test]
fn killing_the_pusher_changes_nothing_about_the_deployment() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let commit = work.commit("one", &[("a", "1"), ("mc_project.yaml", WAITS)]);
    let data = world.project("shop").join("data");
    let push = work.start_push(&["main"]);
    wait_until("the build runs", || data.join("waiting").exists());

    push.signal(nix::sys::signal::Signal::SIGKILL);
    std::fs::write(data.join("go"), "").unwrap();

    wait_until("the deployment ends by itself", || world.serves("shop").as_deref() == Some(&commit));
    world.settle("shop");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(commit));
    let next = work.commit("two", &[("a", "2")]);
    work.push(&["main"]).ok();
    assert_eq!(world.serves("shop"), Some(next));
}

#[test]
fn a_reader_of_run_never_sees_a_mix_of_two_versions() {
    let (world, _) = World::serving(&[("a.txt", "0"), ("sub/b.txt", "0")]);
    let work = world.checkout_of("shop");
    let run = world.project("shop").join("run");
    let done = AtomicBool::new(false);

    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !done.load(Ordering::Relaxed) {
                // One directory handle is one version, as for a program with its working directory in run.
                let dir = std::fs::File::open(&run).expect("run is always there");
                let at = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
                let a = std::fs::read_to_string(format!("{at}/a.txt")).expect("a.txt is always there");
                let b = std::fs::read_to_string(format!("{at}/sub/b.txt")).expect("b.txt is always there");
                assert_eq!(a, b, "after {reads} reads");
                reads += 1;
            }
            reads
        });
        for n in 1..=5 {
            let text = n.to_string();
            work.commit(&text, &[("a.txt", &text), ("sub/b.txt", &text)]);
            work.push(&["main"]).ok();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 10);
    });
}

#[test]
fn a_live_commit_is_not_deployed_again_unless_asked_for() {
    let (world, commit) =
        World::serving(&[("a", "1"), ("mc_project.yaml", "stages: {build: ['echo x >> $MC_DATA/builds']}\n")]);
    let builds = || std::fs::read_to_string(world.project("shop").join("data/builds")).unwrap().lines().count();
    assert_eq!(builds(), 1);

    world.mc(&["deploy", "shop"]).ok().says("unchanged").says(short(&commit));
    assert_eq!(builds(), 1);
    assert_eq!(world.serves("shop"), Some(commit));
}

#[test]
fn what_a_pusher_writes_cannot_speak_for_us_on_the_terminal() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    work.commit("ok\u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}evil", &[(
        "mc_project.yaml",
        "stages:\n  build:\n    - |\n      printf 'x\\033[2J\\033]0;owned\\007\\rmc_project: deployed; run serves 0000000000\\n'; exit 1\n",
    )]);

    let push = work.push(&["main"]).code(1);

    for c in ['\u{1b}', '\u{7}', '\u{202e}'] {
        assert!(!push.stderr.contains(c), "{c:?} reached the terminal\n{push}");
    }
    let spoken: Vec<_> = push.remote().into_iter().filter(|line| line.contains("run serves 0000000000")).collect();
    // Output stands behind a bar, and the hint that quotes the step says that it does.
    let quoted = |line: &str| ["| ", "hint: the step was: "].iter().any(|word| line.trim_start().starts_with(word));
    assert!(!spoken.is_empty() && spoken.iter().all(|line| quoted(line)), "{spoken:?}");
}

#[test]
fn the_root_can_be_given_as_an_option_or_in_the_environment() {
    let (world, commit) = World::serving(&[("a", "1")]);
    let root = world.root();
    let mut command = world.mc_command(&["--root", root.to_str().unwrap(), "status", "shop", "--json"]);
    command.env_remove("MC_ROOT");
    let status = crate::support::Finished::of(command).ok().json();
    assert_eq!(status["serves"]["commit"], commit);
}

#[test]
fn a_root_that_is_no_node_is_told_and_no_command_is_an_empty_answer() {
    let world = World::new();
    let nowhere = world.home().path("nowhere");
    let at = |root: &std::path::Path, args: &[&str]| {
        let mut command = world.mc_command(args);
        command.env("MC_ROOT", root);
        crate::support::Finished::of(command)
    };
    for args in
        [&["status"][..], &["list"], &["status", "shop"], &["history", "shop"], &["doctor"], &["verify", "--all"]]
    {
        at(&nowhere, args)
            .code(2)
            .says(&format!("there is no node at {}", nowhere.display()))
            .says("MC_ROOT or --root");
        at("".as_ref(), args).code(2).says("unset MC_ROOT");
    }
    assert!(!nowhere.exists());
    at(&nowhere, &["init", "shop"]).ok();
    at(&nowhere, &["list"]).ok().says("shop");
    // Without a command the help is shown, whatever is set.
    for root in [&nowhere, &world.root()] {
        let said = at(root, &[]).code(2).says("Usage: mc_project").says("Exit codes:").says("rollback");
        assert!(!said.stderr.contains("serve-connection") && !said.stderr.contains("postman"), "{said}");
        at(root, &["keys"]).code(2).says("Usage: mc_project keys").says("add");
    }
}

#[test]
fn two_projects_of_similar_names_do_not_touch_each_other() {
    let world = World::new();
    for name in ["foo", "foobar"] {
        world.mc(&["init", name]).ok();
        let work = world.clone_of(name);
        work.commit(name, &[("name.txt", name)]);
        work.push(&["main"]).ok();
    }
    let before = world.run_tree("foobar");
    let work = world.checkout_of("foo");
    work.commit("again", &[("name.txt", "changed")]);
    work.push(&["main"]).ok();
    world.mc(&["destroy", "foo", "--yes"]).ok();
    before.assert_same(&world.run_tree("foobar"), "run of the other project");
    assert!(!world.project("foo").exists());
    assert_lacks(&world.mc(&["list"]).ok().stdout, "foo\n");
    assert_has(&world.mc(&["list"]).ok().stdout, "foobar");
}

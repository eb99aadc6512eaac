//! The recipe: what its keys promise, and how its mistakes are told.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{World, assert_has, assert_lacks};

/// Pushes a change of the recipe alone and returns what became of it.
#[track_caller]
fn push_recipe(world: &World, recipe: &str) -> crate::support::Finished {
    let work = world.checkout_of("shop");
    work.commit("another recipe", &[("mc_project.yaml", recipe)]);
    work.push(&["main"])
}

#[test]
fn a_mistake_in_the_recipe_is_told_with_its_place_and_changes_nothing() {
    let (world, first) = World::serving(&[("a", "1")]);
    let before = world.unchangeable("shop");
    let alias_bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                      d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    let deep = "[".repeat(5000);
    let huge = format!("# {}\n", "x".repeat(2 << 20));
    for (recipe, told) in [
        ("stagse:\n  build: [make]\n", "mc_project.yaml:1:1: unknown key `stagse`"),
        ("stagse:\n  build: [make]\n", "did you mean `stages`?"),
        ("stages:\n  biuld: [make]\n", "did you mean `build`?"),
        ("stages: {commit: [make]}\n", "commit"),
        ("stages:\n  build:\n    - run: make\n      timeuot: 3m\n", "mc_project.yaml:4:7: unknown key `timeuot`"),
        ("stages: {build: [{run: make, timeout: 0s}]}\n", "timeout"),
        ("stages: {build: [{run: make, timeout: 48h}]}\n", "24h"),
        ("stages: {build: [{run: make, timeout: -1}]}\n", "timeout"),
        ("stages: {build: [{run: []}]}\n", "run"),
        ("stages: {build: [42]}\n", "mc_project.yaml:1:"),
        ("stages: {}\nstages: {}\n", "stages"),
        ("keep: {archives: 0}\n", "archives"),
        ("keep: {archives: -1}\n", "archives"),
        ("keep: {archives: 1000000000}\n", "archives"),
        ("cache: [../outside]\n", "../outside"),
        ("cache: [/etc]\n", "/etc"),
        ("shared: [.git]\n", ".git"),
        ("cache: [up]\nshared: [up/]\n", "up"),
        ("shared: [up/, up/deeper/]\n", "up/deeper"),
        ("env: {MC_RUN: /tmp}\n", "MC_RUN"),
        ("env: {LD_PRELOAD: x.so}\n", "LD_PRELOAD"),
        ("env: {A: \"x\\0y\"}\n", "A"),
        ("stages: !!python/object:os.system {}\n", "tag"),
        ("base: &b {archives: 2}\nkeep:\n  <<: *b\n", "mc_project.yaml:"),
        ("---\nstages: {}\n---\nstages: {}\n", "document"),
        ("stages:\n\tbuild: [make]\n", "mc_project.yaml:2:"),
        ("- a\n- b\n", "mc_project.yaml:1:1"),
        (alias_bomb, "mc_project.yaml"),
        (deep.as_str(), "mc_project.yaml"),
        (huge.as_str(), "1 MiB"),
        ("notify: {to: ['not an address']}\n", "not an address"),
        ("notify: {to: ['a@example.org\\nBcc: x@y']}\n", "address"),
        ("services:\n  web: {run: ./web, listen: host:80}\n", "`host:80` is nothing to listen at"),
    ] {
        let push = push_recipe(&world, recipe).code(1);
        let shown: String = recipe.chars().take(60).collect();
        assert!(push.remote_text().contains(told), "expected `{told}` for {shown:?}\n{push}");
        assert_has(&push.stderr, "[remote rejected]");
        before.assert_same(&world.unchangeable("shop"), &format!("the node after {shown:?}"));
        assert_eq!(world.serves("shop"), Some(first.clone()));
    }
}

#[test]
fn the_command_line_tells_an_invalid_recipe_with_its_own_exit_code() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("bad", &[("mc_project.yaml", "stagse: {}\n")]);
    work.push(&["-o", "no-deploy", "main"]).ok();
    world.mc(&["plan", "shop"]).code(3).says("mc_project.yaml:1:1: unknown key `stagse`").says("stagse: {}").says("^");
    world.mc(&["deploy", "shop"]).code(3).says("unknown key `stagse`");
}

#[test]
fn steps_get_the_documented_environment_and_nothing_of_the_pusher() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    let recipe = "env: {COLOUR: blue}\nstages:\n  build:\n    - run: env -0 > env.txt; readlink /proc/self/fd/0 > stdin.txt; umask > umask.txt; pwd > cwd.txt\n      env: {SHAPE: round}\n";
    let commit = work.commit("look", &[("mc_project.yaml", recipe)]);
    let mut push = work.push_command(&["-o", "reason=x", "main"]);
    for (name, value) in
        [("SECRET_OF_THE_PUSHER", "1"), ("BASH_ENV", "/tmp/x"), ("PYTHONPATH", "/tmp"), ("SUDO_UID", "0")]
    {
        push.env(name, value);
    }
    crate::support::Finished::of(push).ok();

    let text = world.run_text("shop", "env.txt");
    let env: BTreeMap<&str, &str> = text.split_terminator('\0').filter_map(|line| line.split_once('=')).collect();
    let dir = world.project("shop");
    for (name, value) in [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LANG", "C.UTF-8"),
        ("MC_PROJECT", "shop"),
        ("MC_MODE", "cooking"),
        ("MC_ENV", "staging"),
        ("MC_COMMIT", commit.as_str()),
        ("MC_PROJECT_DIR", dir.to_str().unwrap()),
        ("MC_DATA", dir.join("data").to_str().unwrap()),
        ("MC_PILLAR", dir.join("pillar").to_str().unwrap()),
        ("COLOUR", "blue"),
        ("SHAPE", "round"),
    ] {
        assert_eq!(env.get(name), Some(&value), "{name}");
    }
    for name in
        ["HOME", "USER", "LOGNAME", "SHELL", "MC_DEPLOYMENT", "MC_RUN", "MC_BUILD", "MC_CONFIG", "SOURCE_DATE_EPOCH"]
    {
        assert!(env.contains_key(name), "{name} is missing in {env:?}");
    }
    for name in env.keys() {
        let foreign = ["GIT_", "SSH_", "SUDO_", "LD_", "PYTHON", "BASH_", "SECRET_", "RUST_", "XDG_"];
        assert!(!foreign.iter().any(|prefix| name.starts_with(prefix)), "{name} reached a step");
    }
    assert_eq!(world.run_text("shop", "stdin.txt"), "/dev/null\n");
    assert_eq!(world.run_text("shop", "umask.txt"), "0022\n");
    assert_eq!(world.run_text("shop", "cwd.txt").trim_end(), env["MC_RUN"], "a build works in what MC_RUN says");
}

#[test]
fn a_build_starts_clean_except_for_the_cache() {
    let recipe =
        "cache: [kept]\nstages:\n  build:\n    - test ! -e litter; touch litter; mkdir -p kept; echo x >> kept/count\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe), ("a", "1")]);
    let work = world.checkout_of("shop");
    for n in 2..=3 {
        work.commit("again", &[("a", &n.to_string())]);
        work.push(&["main"]).ok();
        assert_eq!(world.run_text("shop", "kept/count"), "x\n".repeat(n));
    }
}

#[test]
fn a_failed_build_does_not_spoil_the_next_one() {
    let (world, _) = World::serving(&[("a", "1")]);
    push_recipe(&world, "stages: {build: ['touch litter; mkdir -m 0 locked; exit 1']}\n").code(1);
    push_recipe(&world, "stages: {build: ['test ! -e litter', 'test ! -e locked']}\n").ok();
    assert!(!world.run_path("shop", "litter").exists());
}

#[test]
fn shared_paths_live_in_data_and_survive_every_deployment() {
    let recipe = "shared: [uploads/, settings.ini]\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe), ("a", "1")]);
    let shared = world.project("shop").join("data/shared");
    assert!(shared.join("uploads").is_dir());
    std::fs::write(world.run_path("shop", "uploads/photo.jpg"), "jpg").unwrap();
    std::fs::write(world.run_path("shop", "settings.ini"), "k=v").unwrap();
    assert_eq!(std::fs::read_to_string(shared.join("uploads/photo.jpg")).unwrap(), "jpg");
    assert_eq!(std::fs::read_to_string(shared.join("settings.ini")).unwrap(), "k=v");

    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);
    work.push(&["main"]).ok();

    assert!(world.run_path("shop", "uploads").symlink_metadata().unwrap().is_symlink());
    assert_eq!(world.run_text("shop", "uploads/photo.jpg"), "jpg");
    assert_eq!(world.run_text("shop", "settings.ini"), "k=v");

    work.commit("commit what is shared", &[("uploads/logo.png", "png")]);
    let push = work.push(&["main"]).fails();
    assert_has(&push.remote_text(), "uploads");
    assert_eq!(world.run_text("shop", "uploads/photo.jpg"), "jpg");
}

#[test]
fn excluded_paths_never_reach_run() {
    let recipe = "sync: {exclude: [docs/, '*.orig']}\nstages: {build: ['touch made.orig']}\n";
    let (world, _) = World::serving(&[
        ("mc_project.yaml", recipe),
        ("docs/manual.txt", "x"),
        ("src/a.c.orig", "x"),
        ("src/a.c", "x"),
    ]);
    assert_eq!(world.run_tree("shop").paths(), ["mc_project.yaml", "src", "src/a.c"]);
}

#[test]
fn a_step_that_hangs_is_ended_with_all_that_it_started() {
    let (world, first) = World::serving(&[("a", "1")]);
    // A number that no other process has on its command line.
    let marker = format!("{}", 1_000_000 + std::process::id());
    let recipe = format!(
        "stages:\n  build:\n    - run: \"trap '' TERM; (setsid sleep {marker} &) ; sleep {marker}\"\n      timeout: 1s\n"
    );
    let push = push_recipe(&world, &recipe).code(1);
    let reason = push.rejected("main -> main");
    assert!(reason.starts_with("failed at build: timeout after 1s"), "{reason}");
    assert!(push.took < Duration::from_secs(40), "{push}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(
            !command.starts_with(format!("sleep\0{marker}").as_bytes()),
            "process {:?} was left",
            entry.file_name()
        );
    }
    assert_eq!(world.serves("shop"), Some(first));
}

#[test]
fn a_step_may_print_without_end_and_in_any_form() {
    let (world, _) = World::serving(&[("a", "1")]);
    // What comes before the flood is logged, what comes after it is beyond the log's limit.
    let recipe = "stages:\n  build:\n    - printf '\\377\\376 not UTF-8\\n'\n    - head -c 3000000 /dev/zero | tr '\\0' x\n    \
                  - yes | head -c 30000000\n    - exec >&- 2>&-\n";
    push_recipe(&world, recipe).ok();
    let id = world.newest("shop")["id"].as_str().unwrap().to_string();
    let log = world.root().join(format!("var/log/mc_project/shop/{id}.log"));
    assert!(log.metadata().unwrap().len() < 100 << 20);
    let log = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    for told in ["\\xff\\xfe not UTF-8", "output beyond 64 MiB is not logged"] {
        assert!(log.contains(told), "{told}");
    }
}

#[test]
fn a_process_in_the_background_does_not_hold_the_deployment() {
    let (world, _) = World::serving(&[("a", "1")]);
    let push = push_recipe(&world, "stages:\n  build:\n    - (sleep 30; echo late) &\n").ok();
    assert!(push.took < Duration::from_secs(25), "{push}");
}

#[test]
fn a_step_is_a_text_for_the_shell_or_a_list_of_words() {
    let recipe = "stages:\n  build:\n    - printf '%s' \"$MC_PROJECT\" > shell.txt\n    - [sh, -c, 'printf \"%s\" \"$1\" > list.txt', x, 'a b; c']\n    \
                  - run: [touch, from-map.txt]\n      timeout: 1m\n  post_build: touch single.txt\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe)]);
    assert_eq!(world.run_text("shop", "shell.txt"), "shop");
    assert_eq!(world.run_text("shop", "list.txt"), "a b; c");
    assert!(world.run_path("shop", "from-map.txt").exists() && world.run_path("shop", "single.txt").exists());
    for (recipe, why) in [
        ("stages: {build: ['false; true']}\n", "the shell runs with -e"),
        ("stages: {build: ['echo $UNSET_VARIABLE']}\n", "the shell runs with -u"),
        ("stages: {build: [[no-such-program-here]]}\n", "a program that is not there fails the step"),
    ] {
        let push = push_recipe(&world, recipe);
        assert_has(&push.rejected("main -> main"), "failed at build");
        assert_eq!(world.run_text("shop", "shell.txt"), "shop", "{why}");
    }
}

#[test]
fn steps_run_in_the_order_of_the_stages() {
    let stages = [
        "pre_install",
        "build",
        "post_build",
        "configure",
        "check",
        "stop",
        "backup",
        "deploy",
        "post_deploy",
        "start",
        "post_install",
        "upgrade",
        "health",
        "notify",
    ];
    let lines: Vec<String> = stages.iter().rev().map(|s| format!("  {s}: ['echo {s} >> $MC_DATA/order']\n")).collect();
    let (world, _) = World::serving(&[("a", "1")]);
    push_recipe(&world, &format!("stages:\n{}", lines.concat())).ok();
    world.settle("shop");
    let order = std::fs::read_to_string(world.project("shop").join("data/order")).unwrap();
    let order: Vec<&str> = order.lines().collect();
    // `stop` belongs to the version that served, which had no such step.
    let expected: Vec<&str> = stages.into_iter().filter(|s| *s != "stop" || order.contains(s)).collect();
    assert_eq!(order, expected);
}

#[test]
fn a_step_may_be_for_some_modes_only() {
    let recipe = "stages:\n  build:\n    - {run: touch in-final, modes: [final]}\n    - {run: touch in-cooking, modes: [cooking, editable]}\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe)]);
    assert_eq!(world.run_tree("shop").paths(), ["in-cooking", "mc_project.yaml"]);
}

#[test]
fn tasks_run_only_when_called_for() {
    let recipe = "tasks:\n  greet: ['echo hello from $MC_PROJECT', 'pwd']\n  fail: ['exit 3']\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe)]);
    world
        .mc(&["task", "shop", "greet"])
        .ok()
        .says("hello from shop")
        .says(world.project("shop").join("run").to_str().unwrap());
    world.mc(&["task", "shop", "fail"]).code(1).says("exit 3");
    world.mc(&["task", "shop", "gret"]).code(2).says("greet");
    world.mc(&["run", "shop", "--", "sh", "-c", "echo $MC_ENV; pwd"]).ok().says("staging");
}

#[test]
fn the_pillar_is_validated_when_pushed_and_used_by_the_next_deployment() {
    let (world, commit) = World::serving(&[("a", "1")]);
    let pillar = world.pillar_of("shop");
    for (bad, told) in [
        ("env: [unclosed\n", "init.sls:"),
        ("env: {'bad name': x}\n", "bad name"),
        ("env: {PATH: /evil}\n", "PATH"),
        ("a: {{ nowhere }}\n", "init.sls:1:1: the template uses something that is not defined"),
        ("1: x\n", "init.sls:1"),
    ] {
        pillar.commit("bad", &[("init.sls", bad)]);
        let push = pillar.push(&["--force", "main"]).fails();
        // In the answer to the ref, or above it.
        assert!(push.stderr.contains(told), "{bad:?}: {told}\n{push}");
    }
    pillar.commit(
        "configuration",
        &[("init.sls", "env: {GREETING: hello}\ndatabase: {host: db1, password: correct-horse-battery}\n")],
    );
    pillar.push(&["--force", "main"]).ok().tells("next deployment").does_not_tell("correct-horse");
    assert_eq!(world.serves("shop"), Some(commit));
    assert_eq!(world.history("shop").len(), 1, "a pillar push deploys nothing");

    push_recipe(
        &world,
        "stages: {build: ['echo \"$GREETING\" > greeting.txt; cat \"$MC_CONFIG\"; cat \"$MC_CONFIG\" >&2; exit 1']}\n",
    )
    .code(1)
    .does_not_tell("correct-horse")
    .tells("[secret]");
    push_recipe(&world, "stages: {build: ['echo \"$GREETING\" > greeting.txt']}\n").ok();
    assert_eq!(world.run_text("shop", "greeting.txt"), "hello\n");

    pillar.commit("another greeting", &[("init.sls", "env: {GREETING: good day}\n")]);
    pillar.push(&["-o", "deploy", "main"]).ok().tells("deployed; run serves");
    assert_eq!(world.run_text("shop", "greeting.txt"), "good day\n");
    let mode = world.project("shop").join("pillar").metadata().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o777, 0o700);
    world.settle("shop");
    for entry in std::fs::read_dir(world.root().join("var/log/mc_project/shop")).unwrap() {
        let path = entry.unwrap().path();
        assert_lacks(&String::from_utf8_lossy(&std::fs::read(path).unwrap()), "correct-horse");
    }
}

#[test]
fn as_many_restore_points_are_kept_as_the_recipe_says() {
    let (world, _) = World::serving(&[("mc_project.yaml", "keep: {archives: 2}\n"), ("a", "0")]);
    let work = world.checkout_of("shop");
    for n in 1..=5 {
        work.commit("again", &[("a", &n.to_string())]);
        work.push(&["main"]).ok();
        world.settle("shop");
    }
    let ids: Vec<String> = world.history("shop").iter().map(|e| e["id"].as_str().unwrap().to_string()).collect();
    let kept: Vec<bool> = ids.iter().map(|id| world.project("shop").join("archives").join(id).exists()).collect();
    assert_eq!(kept, [false, false, false, false, true, true], "{ids:?}");
    world.mc(&["verify", "shop"]).ok();
}

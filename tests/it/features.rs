//! Smaller promises: notify steps, patches of drift, submodules, building in `run` where nothing can be mounted.

use crate::support::{World, assert_has};

#[test]
fn notify_steps_see_the_verdict_and_cannot_change_it() {
    let recipe = "stages:\n  build: ['test ! -e broken']\n  notify: ['echo \"$MC_VERDICT|$MC_OUTCOME\" >> $MC_DATA/told', 'exit 9']\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe), ("x", "1")]);
    world.checkout_of("shop").commit("broken", &[("broken", "1")]);
    let work = world.checkout_of("shop");
    work.commit("broken", &[("broken", "1")]);
    work.push(&["main"]).fails();
    world.settle("shop");
    let told = std::fs::read_to_string(world.project("shop").join("data/told")).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert_has(lines[0], "deployed|deployed; run serves ");
    assert_has(lines[1], "failed|failed at build: exit 1; run still serves ");
    world.mc(&["verify", "shop"]).ok();
}

#[test]
fn what_was_changed_by_hand_is_kept_with_a_patch() {
    let (world, _) = World::serving(&[("conf/app.ini", "a=1\nb=2\n"), ("x", "1")]);
    std::fs::write(world.run_path("shop", "conf/app.ini"), "a=1\nb=3\n").unwrap();
    std::fs::write(world.run_path("shop", "new.txt"), "by hand").unwrap();
    std::fs::remove_file(world.run_path("shop", "x")).unwrap();
    let work = world.checkout_of("shop");
    work.commit("two", &[("y", "2")]);
    work.push(&["main"])
        .ok()
        .tells("run was changed by hand")
        .tells("conf/: 1 changed")
        .tells("./: 1 added, 1 removed");
    world.settle("shop");
    let id = world.last("shop").unwrap().id.to_string();
    let drift = world.project("shop").join("archives").join(id).join("drift");
    assert_eq!(std::fs::read_to_string(drift.join("files/conf/app.ini")).unwrap(), "a=1\nb=3\n");
    assert_eq!(std::fs::read_to_string(drift.join("files/new.txt")).unwrap(), "by hand");
    assert_has(&std::fs::read_to_string(drift.join("changes.patch")).unwrap(), "-b=2\n+b=3\n");
    // The new version is exactly the commit: nothing that was done by hand is left.
    assert_eq!(world.run_text("shop", "conf/app.ini"), "a=1\nb=2\n");
    assert!(!world.run_path("shop", "new.txt").exists() && world.run_path("shop", "x").exists());
    world.mc(&["verify", "shop"]).ok();
}

#[test]
fn a_submodule_is_refused_with_the_line_to_add_and_fetched_only_by_https_or_ssh() {
    let (world, first) = World::serving(&[("x", "1")]);
    let work = world.checkout_of("shop");
    let module = "[submodule \"lib\"]\n\tpath = lib\n\turl = file:///etc\n";
    work.write(".gitmodules", module);
    work.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{first},lib")]).ok();
    work.git(&["add", ".gitmodules"]).ok();
    work.git(&["commit", "--quiet", "-m", "submodule"]).ok();
    work.push(&["main"]).fails().tells("`lib` is a submodule; submodules are off").tells("submodules: allow");
    work.write("mc_project.yaml", "submodules: allow\n");
    work.git(&["add", "mc_project.yaml"]).ok();
    work.git(&["commit", "--quiet", "-m", "allowed"]).ok();
    work.push(&["main"]).fails().tells("https");
    assert_eq!(world.serves("shop"), Some(first));
    world.mc(&["verify", "shop"]).ok();
}

/// Deploys by hand on a node where nothing can be mounted.
#[cfg(feature = "failpoints")]
fn deploy_without_namespaces(world: &World) -> crate::support::Finished {
    let mut command = world.mc_command(&["deploy", "shop"]);
    command.env("MC_NO_NAMESPACES", "1");
    crate::support::Finished::of(command)
}

#[cfg(feature = "failpoints")]
#[test]
fn where_nothing_can_be_mounted_the_build_sees_its_own_path_or_is_refused_or_happens_in_run() {
    let recipe = |build: &str| {
        format!(
            "{build}cache: [kept]\nstages:\n  build: ['pwd > where; echo $MC_RUN > said; mkdir -p kept; echo x >> kept/n']\n"
        )
    };
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let push = |build: &str, text: &str| {
        work.commit("next", &[("mc_project.yaml", &recipe(build)), ("version", text)]);
        work.push(&["-o", "no-deploy", "main"]).ok();
    };
    push("", "1");
    deploy_without_namespaces(&world).ok().says("steps see build/tree at its own path");
    let tree = world.project("shop").join("build/tree").display().to_string();
    assert_eq!(world.run_text("shop", "where").trim(), tree);
    assert_eq!(world.run_text("shop", "said").trim(), tree);

    push("build: {at: run}\n", "2");
    deploy_without_namespaces(&world).code(1).says("refused").says("in_place: allow");
    assert_eq!(world.run_text("shop", "version"), "1");

    push("build: {at: run, in_place: allow}\n", "3");
    deploy_without_namespaces(&world).ok().says("the build happens in run");
    let run = world.project("shop").join("run").display().to_string();
    assert_eq!(world.run_text("shop", "where").trim(), run);
    assert_eq!(world.run_text("shop", "version"), "3");
    assert_eq!(world.run_text("shop", "kept/n"), "x\nx\n", "the cache is kept from build to build");
    world.mc(&["verify", "shop"]).ok();

    push("build: {at: run, in_place: allow}\n", "4");
    work.commit(
        "broken",
        &[("mc_project.yaml", &recipe("build: {at: run, in_place: allow}\n").replace("pwd > where", "exit 7"))],
    );
    work.push(&["-o", "no-deploy", "main"]).ok();
    deploy_without_namespaces(&world).code(1).says("rolled back at build: exit 7");
    assert_eq!(world.run_text("shop", "version"), "3");
    world.mc(&["verify", "shop"]).ok();
}

#[test]
fn a_build_that_needs_the_path_of_run_sees_it_while_the_old_version_serves() {
    let recipe = "build: {at: run}\nstages:\n  build: ['pwd > where; cat $MC_PROJECT_DIR/run/version > old || true; ls -di . > inode']\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe), ("version", "1")]);
    let run = world.project("shop").join("run").display().to_string();
    assert_eq!(world.run_text("shop", "where").trim(), run);
    // The step sees its own tree at the path of run, not what runs.
    let work = world.checkout_of("shop");
    work.commit("two", &[("version", "2")]);
    work.push(&["main"]).ok();
    assert_eq!(world.run_text("shop", "old"), "2");
}

/// The demo checks what it claims, so it is the shortest proof that no act of it needs root.
#[test]
fn a_node_in_a_directory_needs_no_root() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: every other test has shown this already");
        return;
    }
    let temp = tempfile::Builder::new().prefix("mc-it-").tempdir_in("/var/tmp").unwrap();
    let program = temp.path().join("mc_project");
    std::fs::copy(env!("CARGO_BIN_EXE_mc_project"), &program).unwrap();
    std::os::unix::fs::chown(temp.path(), Some(65534), Some(65534)).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .arg("demo")
        .arg(temp.path().join("demo"))
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", temp.path())
        .env("TMPDIR", temp.path())
        .current_dir(temp.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_has(&said, "rolled back at upgrade");
}

#[test]
fn the_binary_linked_only_as_post_receive_deploys_too() {
    let world = World::with_shop();
    let repository = world.project("shop").join("git/project");
    for hook in ["pre-receive", "proc-receive"] {
        std::fs::remove_file(repository.join("hooks").join(hook)).unwrap();
    }
    let config = repository.join("config");
    let text = std::fs::read_to_string(&config).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.to_lowercase().contains("procreceiverefs")).collect();
    assert_eq!(without.len() + 1, text.lines().count());
    std::fs::write(&config, without.join("\n") + "\n").unwrap();
    let work = world.clone_of("shop");
    let commit = work.commit("one", &[("a", "1")]);
    work.push(&["main"]).ok().tells("deployed; run serves");
    assert_eq!((world.serves("shop"), world.run_text("shop", "a")), (Some(commit), "1".to_string()));
}

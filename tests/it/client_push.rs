//! `mc_project push`: what the developer sees, the exit code, and connections that are lost on the way.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Away, Finished, Running, WorkTree, World, assert_has, assert_lacks, wait_until};

/// A recipe whose build waits for the file `go` in the data.
const WAITS: &str =
    "stages:\n  build:\n    - 'touch $MC_DATA/waiting; while [ ! -e $MC_DATA/go ]; do sleep 0.05; done'\n";

#[track_caller]
fn push(away: &Away, work: &WorkTree, args: &[&str]) -> Finished {
    away.mc(work.dir(), &[&["push"], args].concat())
}

/// The events that a push with `--json` printed.
#[track_caller]
fn events(said: &Finished) -> Vec<Value> {
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn a_push_shows_the_stages_in_plain_lines_and_ends_as_the_deployment_did() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let work = away.work("shop");
    let commit = work.commit("one", &[("a", "1"), ("mc_project.yaml", "stages: {build: ['true']}\n")]);
    let said = push(&away, &work, &[]).ok();
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert!(
        lines[1].contains("mc_project: shop #1 cooking (staging)") || lines[2].contains("mc_project: shop #1"),
        "{said}"
    );
    let url = work.git(&["remote", "get-url", "node"]).ok().stdout;
    assert_eq!(lines[0], format!("to node: {}", url.trim()), "{said}");
    assert_has(&said.stdout, "  ✓ build");
    assert_eq!(lines.last().unwrap(), &format!("mc_project: deployed; run serves {}", &commit[..10]), "{said}");
    assert!(!said.stdout.contains(['\r', '\u{1b}']), "{said}");
    assert_eq!(world.serves("shop").as_deref(), Some(commit.as_str()));
    assert_eq!(work.git(&["rev-parse", "node/main"]).ok().stdout.trim(), commit, "git knows what it pushed");

    // Nothing new: said, and no failure.
    push(&away, &work, &["node"]).ok().says("has this commit already").says("--node node deploy shop --force");

    work.commit("bad", &[("mc_project.yaml", "stages: {build: ['echo oh dear; exit 2']}\n")]);
    let failed = push(&away, &work, &[]).code(1);
    assert_has(&failed.stdout, "oh dear");
    assert_has(&failed.stdout, &format!("failed at build: exit 2; run still serves {}", &commit[..10]));
}

#[test]
fn the_exit_code_is_the_deployments() {
    let world = World::with_config("wait: 1s\n");
    world.mc(&["init", "shop"]).ok();
    let away = Away::start(&world);
    let work = away.work("shop");
    work.commit("one", &[("a", "1")]);
    push(&away, &work, &[]).ok();
    // 2: a push option that there is not; 3: a recipe that is invalid.
    work.commit("invalid", &[("mc_project.yaml", "stags: {}\n")]);
    push(&away, &work, &["-o", "pln"]).code(2).says("did you mean `plan`?");
    push(&away, &work, &[]).code(3).says("did you mean `stages`?");
    // 4: somebody else deploys, for longer than a push waits.
    let data = world.project("shop").join("data");
    work.commit("slow", &[("mc_project.yaml", WAITS)]);
    let slow = Running::start(away.command(work.dir(), &["push"]));
    wait_until("the build runs", || data.join("waiting").exists());
    let other = away.work("shop");
    other.git(&["pull", "--quiet", "node", "main"]).ok();
    other.commit("other", &[("b", "1")]);
    push(&away, &other, &[]).code(4);
    std::fs::write(data.join("go"), "").unwrap();
    slow.wait().ok();
    world.settle("shop");
    // 5: a rollback that fails itself needs a person, and so does what is pushed after it.
    let recipe = "stages:\n  backup: ['true']\n  upgrade: ['test ! -e broken || exit 3']\n  restore: ['exit 4']\n";
    work.commit("good", &[("mc_project.yaml", recipe)]);
    push(&away, &work, &[]).ok();
    work.commit("worse", &[("broken", "x")]);
    push(&away, &work, &[]).code(5).says("needs a person").says("recover shop --back --with data");
    world.settle("shop");
    work.commit("more", &[("b", "2")]);
    push(&away, &work, &[]).code(5).says("a person is needed");
}

#[test]
fn a_program_reads_events_line_by_line() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let work = away.work("shop");
    let subject = "é \u{1f600} \"quoted\" \u{202e}";
    work.commit(subject, &[("a", "1"), ("mc_project.yaml", "stages: {build: ['echo not an event']}\n")]);
    let said = push(&away, &work, &["--json"]).ok();
    let heard = events(&said);
    let names = names(&heard);
    let first = names.iter().position(|name| *name == "ordered").expect("an order");
    assert!(first < 3 && names.contains(&"begin") && names.contains(&"commit"), "{names:?}");
    assert!(!names.contains(&"output"), "{names:?}");
    let begin = heard.iter().find(|event| event["event"] == "begin").unwrap();
    assert_eq!(begin["subject"], subject.trim());
    assert_eq!(begin["id"], heard[first]["id"]);
    let end = heard.iter().rfind(|event| event["event"] == "end").unwrap();
    assert_eq!(end["outcome"]["verdict"], "deployed");

    // A refusal before there is a deployment is an end too.
    work.commit("two", &[("a", "2")]);
    let refused = push(&away, &work, &["--json", "-o", "mode=editable"]).code(2);
    let heard = events(&refused);
    let end = heard.iter().rfind(|event| event["event"] == "end").unwrap();
    assert_eq!((end["outcome"]["verdict"].as_str(), end["outcome"]["exit"].as_u64()), (Some("refused"), Some(2)));
}

#[test]
fn git_itself_shows_lines_for_people_still() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    work.commit("one", &[("a", "1")]);
    let told = work.push(&["main"]).ok().tells("deployed; run serves");
    assert!(told.remote().iter().all(|line| !line.starts_with('{')), "{told}");
}

#[test]
fn a_terminal_sees_one_line_that_runs_and_none_of_it_is_left() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let work = away.work("shop");
    work.commit("one", &[("mc_project.yaml", "stages: {build: ['sleep 1.2']}\n")]);
    let live = in_terminal(&away, &work, &[("TERM", "xterm")]);
    assert_has(&live, "\r\u{1b}[K");
    assert_has(&live, "… build ");
    assert_has(&live, "$ sleep 1.2");
    // What a terminal shows in the end: the last state of each line.
    let shown: Vec<String> =
        live.lines().map(|line| line.rsplit("\u{1b}[K").next().unwrap().trim_end().to_string()).collect();
    let shown = shown.join("\n");
    assert_lacks(&shown, "… build");
    assert_has(&shown, "build");
    assert_has(&shown, "deployed");

    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        work.commit("again", &[("a", plain.0)]);
        let text = in_terminal(&away, &work, &[("TERM", "xterm"), plain]);
        assert_lacks(&text, "\u{1b}[K");
        assert_has(&text, "✓");
    }
}

/// A push whose standard output is a terminal; what it wrote there.
#[track_caller]
fn in_terminal(away: &Away, work: &WorkTree, env: &[(&str, &str)]) -> String {
    let line = format!("{} push", env!("CARGO_BIN_EXE_mc_project"));
    let inner = away.command(work.dir(), &[]);
    let mut command = std::process::Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]).current_dir(work.dir()).env_clear();
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).envs(env.iter().copied());
    Finished::of(command).ok().stdout
}

#[test]
fn a_connection_that_is_lost_in_the_build_is_taken_up_again_with_the_deployments_own_exit_code() {
    for (last, code) in [("true", 0), ("exit 3", 1)] {
        let world = World::with_shop();
        let away = Away::start(&world);
        let work = away.work("shop");
        let commit = work.commit("one", &[("mc_project.yaml", &format!("{WAITS}    - '{last}'\n"))]);
        let data = world.project("shop").join("data");
        let running = Running::start(away.command(work.dir(), &["push", "--json"]));
        wait_until("the build runs", || data.join("waiting").exists());
        assert!(away.cut() > 0, "a connection to lose");
        // Lost once more while it is attached.
        wait_until("it is attached again", || hooks_and_followers(&world) > 0);
        std::thread::sleep(Duration::from_millis(300));
        away.cut();
        std::thread::sleep(Duration::from_millis(300));
        std::fs::write(data.join("go"), "").unwrap();
        let said = running.wait().code(code);
        let heard = events(&said);
        let texts: Vec<&str> = heard.iter().filter_map(|event| event["text"].as_str()).collect();
        assert!(
            texts.iter().any(|text| text.contains("the connection was lost; the deployment goes on there")),
            "{said}"
        );
        for once in ["begin", "end"] {
            assert_eq!(names(&heard).iter().filter(|name| **name == once).count(), 1, "{once}: {said}");
        }
        assert_eq!(world.serves("shop") == Some(commit), code == 0);
    }
}

/// How many programs are asked for a deployment's events by somebody who attached.
fn hooks_and_followers(world: &World) -> usize {
    let root = world.root().display().to_string();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            words.contains(&&b"follow"[..]) && words.contains(&root.as_bytes())
        })
        .count()
}

#[test]
fn a_node_that_stays_away_is_waited_for_with_growing_pauses() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let work = away.work("shop");
    work.commit("one", &[("mc_project.yaml", WAITS)]);
    let data = world.project("shop").join("data");
    let door = world.home().path("door-is-open");
    std::fs::write(&door, "").unwrap();
    // The developer's ssh goes through only while the door is open.
    let ssh = format!("test -e {} || exit 255; {}", door.display(), away.sshd().ssh_command_of("alice"));
    let running = Running::start(away.command_with(work.dir(), &["push"], &ssh));
    wait_until("the build runs", || data.join("waiting").exists());
    std::fs::remove_file(&door).unwrap();
    away.cut();
    std::thread::sleep(Duration::from_secs(2));
    std::fs::write(&door, "").unwrap();
    std::fs::write(data.join("go"), "").unwrap();
    let said = running.wait().ok();
    assert_has(&said.stdout, "attaching again in 1 s (1 of 9)");
    assert_has(&said.stdout, "attaching again in 2 s (2 of 9)");
    assert_has(&said.stdout, "deployed; run serves");
}

#[test]
fn a_connection_that_is_lost_before_the_node_has_begun_says_that_it_is_safe_to_push_again() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let work = away.work("shop");
    let commit = work.commit("one", &[("a", "1")]);
    // ssh ends while the node still looks at what came.
    let cut = format!(
        "sh -c '(sleep 0.4; kill $$) & exec {} \"$@\"' ssh",
        away.sshd().ssh_command_of("alice").trim_start_matches("exec ")
    );
    let slow = world.project("shop").join("git/project/hooks/pre-receive.local");
    std::fs::write(&slow, "#!/bin/sh\nsleep 3\n").unwrap();
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let lost = Finished::of(away.command_with(work.dir(), &["push"], &cut)).code(1);
    assert_has(&lost.stderr, "no deployment was seen to begin");
    assert_has(&lost.stderr, "it is safe to push again");
    std::fs::remove_file(&slow).unwrap();
    push(&away, &work, &[]).ok();
    assert_eq!(world.serves("shop"), Some(commit));
}

#[test]
fn a_node_on_this_machine_is_pushed_to_by_its_path() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let commit = work.commit("one", &[("a", "1")]);
    let mc = |args: &[&str]| {
        let mut command = world.home().command(env!("CARGO_BIN_EXE_mc_project"));
        command.current_dir(work.dir()).args(args);
        Finished::of(command)
    };
    mc(&["push"]).ok().says("deployed; run serves");
    assert_eq!(world.serves("shop"), Some(commit));
    mc(&["--node", "node", "status"]).ok().says("shop: cooking (staging)");
    let root = world.root().display().to_string();
    mc(&["--node", &root, "list"]).ok().says("shop");
    // Another branch is stored, and says what would deploy it.
    work.git(&["checkout", "--quiet", "-b", "feature"]).ok();
    work.commit("feature", &[("b", "1")]);
    mc(&["push"]).ok().says("feature");
    mc(&["push", "node", "HEAD:main", "-o", "plan"]).ok().says("nothing was deployed");
}

#[test]
fn a_node_that_answers_before_it_deploys_is_watched_all_the_same() {
    let world = World::with_config("verdict: later\n");
    world.mc(&["init", "shop"]).ok();
    let away = Away::start(&world);
    let work = away.work("shop");
    work.commit("one", &[("a", "1")]);
    push(&away, &work, &[]).ok().says("deployed; run serves");
    work.commit("bad", &[("mc_project.yaml", "stages: {build: ['exit 2']}\n")]);
    push(&away, &work, &[]).code(1).says("failed at build: exit 2").says("NOT DEPLOYED");
    // Who does not want to wait is told how to look.
    work.commit("good", &[("mc_project.yaml", "stages: {build: ['sleep 1']}\n")]);
    let begun = push(&away, &work, &["-o", "async"]).ok();
    assert_lacks(&begun.stdout, "deployed; run serves");
    let followed = away.mc(work.dir(), &["--node", "node", "follow", "shop"]).ok();
    assert_has(&followed.stdout, "deployed; run serves");
}

#[test]
fn what_git_sets_for_its_hooks_does_not_lead_the_pillar_astray() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let (work, pillar) = (away.work("shop"), world.pillar_of("shop"));
    let commit = pillar.commit("pillar", &[("init.sls", "a: 1\n")]);
    work.git(&["config", "mcproject.pillar", pillar.dir().to_str().unwrap()]).ok();
    work.commit("one", &[("a", "1")]);
    let mut command = away.command(work.dir(), &["push"]);
    command.env("GIT_DIR", work.dir().join(".git")).env("GIT_INDEX_FILE", work.dir().join(".git/index"));
    Finished::of(command).ok().says("deployed; run serves");
    let bare = world.project("shop").join("git/pillar");
    assert_eq!(world.home().git_text(&bare, &["rev-parse", "refs/heads/main"]), commit);
}

#[test]
fn the_pillar_goes_first_and_only_where_it_changed() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let (work, pillar) = (away.work("shop"), world.pillar_of("shop"));
    let recipe = "stages: {build: ['echo colour $COLOUR > colour']}\n";
    let sls = |colour: &str| format!("makina-projects.shop:\n  data:\n    env: {{COLOUR: {colour}}}\n");
    pillar.commit("red", &[("init.sls", &sls("red"))]);
    work.commit("one", &[("mc_project.yaml", recipe)]);
    work.git(&["config", "mcproject.pillar", pillar.dir().to_str().unwrap()]).ok();

    push(&away, &work, &[]).ok().says("pillar stored").says("deployed; run serves");
    assert_eq!(world.run_text("shop", "colour"), "colour red\n");
    work.commit("two", &[("a", "2")]);
    let second = push(&away, &work, &[]).ok();
    assert_lacks(&second.stdout, "pillar stored");
    // Only the pillar changed: it is deployed with what serves.
    pillar.commit("blue", &[("init.sls", &sls("blue"))]);
    pillar.write("init.sls", sls("green"));
    let third = push(&away, &work, &[]).ok();
    assert_has(&third.stdout, "the pillar changed and the code did not");
    assert_has(&third.stdout, "not committed");
    assert_eq!(world.run_text("shop", "colour"), "colour blue\n");
    // Left out when asked for; an invalid one is refused before the code goes.
    pillar.commit("invalid", &[("init.sls", "a: [\n")]);
    let commit = work.commit("three", &[("a", "3")]);
    push(&away, &work, &[]).fails().says("init.sls");
    assert_ne!(world.serves("shop").as_deref(), Some(commit.as_str()));
    push(&away, &work, &["--no-pillar"]).ok();
    assert_eq!(world.serves("shop"), Some(commit));
    work.git(&["config", "mcproject.pillar", "../nowhere"]).ok();
    push(&away, &work, &[]).code(2).says("the pillar cannot be pushed from").says("--no-pillar");
}

#[test]
fn the_remote_is_found_and_what_cannot_be_meant_is_said() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let work = away.work("shop");
    push(&away, &work, &[]).code(2).says("there is no commit to push yet");
    work.commit("one", &[("a", "1")]);
    // A remote by another name is found by its address; two of them are not chosen between.
    work.git(&["remote", "rename", "node", "prod"]).ok();
    work.git(&["remote", "add", "origin", "git@github.com:owner/shop.git"]).ok();
    push(&away, &work, &[]).ok();
    world.mc(&["init", "blog"]).ok();
    let second = world.project("blog").join("git/project");
    work.git(&["remote", "add", "second", second.to_str().unwrap()]).ok();
    push(&away, &work, &[]).code(2).says("several remotes are nodes: prod, second").says("mc_project push prod");
    push(&away, &work, &["second"]).ok();
    assert_eq!(world.serves("blog"), world.serves("shop"));
    push(&away, &work, &["origin"]).code(2).says("the remote origin is no node");
    push(&away, &work, &["nowhere"]).code(2).says("there is no node `nowhere`").says("prod, second");
    for hostile in ["-oProxyCommand=id", "a b", "$(id)", "ext::sh -c id", "", "x;y", "\u{1b}[31m"] {
        let said = push(&away, &work, &["--", hostile]);
        assert!(matches!(said.exit_code(), Some(2)), "{hostile:?}: {said}");
        assert!(!said.stderr.contains('\u{1b}'), "{said}");
    }
    work.git(&["checkout", "--quiet", "--detach"]).ok();
    push(&away, &work, &["prod"]).code(2).says("no branch is checked out here");
    let outside = world.home().path("home");
    away.mc(&outside, &["push"]).code(2).says("no remote of this repository is a node");
    assert!(Path::new(&outside).exists());
}

#[test]
fn commits_that_are_lacking_here_and_forced_pushes_are_told() {
    let (world, _) = World::serving(&[("a", "1")]);
    let away = Away::start(&world);
    let work = away.work("shop");
    work.commit("another history", &[("a", "2")]);
    let said = push(&away, &work, &[]).code(1).says("main on the node has another history").says("push --force");
    assert_lacks(&said.stderr, "git pull");
    // Somebody else pushed in between.
    let other = away.work("shop");
    other.git(&["pull", "--quiet", "node", "main"]).ok();
    other.commit("two", &[("b", "1")]);
    push(&away, &other, &[]).ok();
    let behind = away.work("shop");
    behind.git(&["pull", "--quiet", "node", "main"]).ok();
    behind.git(&["reset", "--quiet", "--hard", "HEAD^"]).ok();
    behind.commit("mine", &[("c", "1")]);
    push(&away, &behind, &[]).code(1).says("git pull --rebase node main");
    push(&away, &work, &["--force"]).ok().says("forced push").says("deployed; run serves");
}

#[test]
fn the_list_is_not_asked_which_node_a_repository_without_one_means() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let user = Away::user();
    let port = away.sshd().port();
    let root = world.root().display().to_string();
    away.list(&format!("nodes: {{prod: {{ssh: {user}@127.0.0.1, port: {port}, root: {root}, project: shop}}}}\n"));
    let work = away.work("shop");
    work.commit("one", &[("a", "1")]);
    work.git(&["remote", "remove", "node"]).ok();
    push(&away, &work, &[]).code(2).says("no remote of this repository is a node").says("mc_project push prod");
    assert_eq!(world.serves("shop"), None);
    let said = push(&away, &work, &["prod"]).ok();
    assert!(said.stdout.starts_with(&format!("to prod: ssh://{user}@127.0.0.1:{port}/")), "{said}");
    assert!(world.serves("shop").is_some());
}

/// Puts a program before the real one that knows nothing of events, hello and follow, as the first version did not.
fn make_older(world: &World) {
    let real = env!("CARGO_BIN_EXE_mc_project");
    let script = format!(
        "#!/bin/bash\nname=${{0##*/}}\nfor i in 0 1 2 3; do v=GIT_PUSH_OPTION_$i; case ${{!v}} in events*)\n\
         echo \"mc_project: unknown push option \\`${{!v}}\\`\" >&2; exit 2;; esac; done\n\
         case \" $* \" in *\" hello \"*|*\" follow \"*) echo \"error: unrecognized subcommand '${{*: -1}}'\" >&2; exit 2;; esac\n\
         exec -a \"$name\" {real} \"$@\"\n"
    );
    let at = world.home().path("older/mc_project");
    std::fs::create_dir_all(at.parent().unwrap()).unwrap();
    std::fs::write(&at, script).unwrap();
    std::fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for hook in ["pre-receive", "post-receive"] {
        let link = world.project("shop").join("git/project/hooks").join(hook);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&at, &link).unwrap();
    }
}

#[test]
fn a_node_that_knows_no_events_is_pushed_to_plainly_and_said_to_be_older() {
    let world = World::with_shop();
    make_older(&world);
    let away = Away::start(&world);
    let work = away.work("shop");
    let commit = work.commit("one", &[("a", "1")]);
    let said = push(&away, &work, &[]).ok();
    assert_has(&said.stdout, "is older than here");
    assert_has(&said.stdout, "to bring this version there: mc_project --node node setup");
    assert_has(&said.stdout, "deployed; run serves");
    assert_lacks(&said.stdout, "unknown push option");
    assert_eq!(world.serves("shop"), Some(commit));
    work.commit("bad", &[("mc_project.yaml", "stages: {build: ['exit 2']}\n")]);
    push(&away, &work, &[]).code(1).says("failed at build: exit 2");
    // Its commands are run all the same; what it lacks it says itself.
    away.mc(work.dir(), &["--node", "node", "status", "shop"]).ok().says("shop: cooking (staging)");
    let lacks = away.mc(work.dir(), &["--node", "node", "follow", "shop"]).code(2);
    assert_has(&lacks.stderr, "unrecognized subcommand");
    assert_has(&lacks.stderr, "is older than here");
}

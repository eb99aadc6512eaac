//! `--node`: the node's own commands from another machine, over a real ssh server, with words of every kind.

use crate::support::{Away, Finished, Running, World, assert_has, wait_until};

/// A recipe with something for each command.
const RECIPE: &str = "stages:\n  start: ['echo started >> $MC_DATA/told']\n  stop: ['echo stopped >> $MC_DATA/told']\n\
                      tasks:\n  hello: ['echo task > $MC_DATA/task']\n";

/// A world that serves two versions, and its developer with the node `prod` in the list.
fn two_versions(world: &World) -> Away<'_> {
    let away = Away::start(world);
    let work = away.work("shop");
    for text in ["1", "2"] {
        work.commit(text, &[("a", text), ("mc_project.yaml", RECIPE)]);
        work.push(&["main"]).ok();
        world.settle("shop");
    }
    wait_until("the mails are sent", || !world.mc(&["status", "shop"]).stdout.contains("wait to be sent"));
    away.list(&format!(
        "nodes:\n  prod: {{ssh: {}@127.0.0.1, root: {}, program: {}, project: shop}}\n",
        Away::user(),
        world.root().display(),
        env!("CARGO_BIN_EXE_mc_project")
    ));
    away
}

#[test]
fn every_command_says_from_afar_what_it_says_there() {
    let world = World::with_shop();
    let away = two_versions(&world);
    let outside = world.home().path("home");
    for words in [
        &["status", "shop"][..],
        &["status"],
        &["status", "shop", "--json"],
        &["history", "shop"],
        &["history", "shop", "-n", "1"],
        &["show", "shop", "-1"],
        &["show", "shop", "#2"],
        &["logs", "shop"],
        &["diff", "shop", "#1", "#2"],
        &["drift", "shop"],
        &["verify", "shop"],
        &["plan", "shop"],
        &["config", "shop"],
        &["release", "list", "shop"],
        &["layout", "shop"],
        &["list"],
        &["keys", "show"],
        &["task", "shop"],
        &["follow", "shop"],
        &["follow", "shop", "#1", "--json"],
    ] {
        let ask = || {
            let there = world.mc(words).ok();
            (away.mc(&outside, &[&["--node", "prod"], words].concat()).ok().stdout, there.stdout)
        };
        let (mut far, mut there) = ask();
        if far != there {
            // A mail that is on its way is told by one of them only.
            std::thread::sleep(std::time::Duration::from_secs(3));
            (far, there) = ask();
        }
        assert_eq!(far, there, "{words:?}");
    }
    // What fails there fails here, with the same words and code.
    for words in [&["show", "shop", "nothing"][..], &["status", "nothing"], &["task", "shop", "nothing"]] {
        let (there, far) = (world.mc(words).fails(), away.mc(&outside, &[&["--node", "prod"], words].concat()));
        assert_eq!((far.exit_code(), &far.stderr), (there.exit_code(), &there.stderr), "{words:?}");
    }
}

#[test]
fn commands_that_change_something_do_so_there() {
    let world = World::with_shop();
    let away = two_versions(&world);
    let outside = world.home().path("home");
    let mc = |words: &[&str]| away.mc(&outside, &[&["--node", "prod"], words].concat());
    // The project of the list is meant where none is named.
    mc(&["rollback", "--reason", "it's a $(test) \"!\" \\ é"]).ok().says("deployed; run serves");
    assert_eq!(world.run_text("shop", "a"), "1");
    assert_eq!(world.newest("shop")["why"], "it's a $(test) \"!\" \\ é");
    mc(&["deploy", "shop"]).ok();
    assert_eq!(world.run_text("shop", "a"), "2");
    mc(&["stop"]).ok();
    mc(&["start"]).ok();
    mc(&["restart", "shop"]).ok();
    let told = std::fs::read_to_string(world.project("shop").join("data/told")).unwrap();
    assert!(told.ends_with("stopped\nstarted\nstopped\nstarted\n"), "{told}");
    mc(&["task", "shop", "hello"]).ok();
    assert!(world.project("shop").join("data/task").exists());
    mc(&["init", "blog"]).ok().says("blog is ready");
    assert!(world.project("blog").exists());
    mc(&["recover", "shop"]).ok();
    mc(&["doctor"]).ok().says("answers");
    mc(&["destroy", "blog"]).code(2).says("nobody is at the keyboard");
    mc(&["destroy", "blog", "--yes"]).ok();
    for words in [&["demo"][..], &["serve"], &["completions", "bash"], &["work"]] {
        mc(words).code(2).says("not for another machine");
    }
    mc(&["--root", "/x", "status"]).code(2).says("contradict each other");
}

#[test]
fn what_is_run_there_has_our_streams_our_words_and_gives_its_exit_code_back() {
    let world = World::with_shop();
    let away = two_versions(&world);
    let outside = world.home().path("home");
    let run = |words: &[&str], input: &str| {
        let file = world.home().path("input");
        std::fs::write(&file, input).unwrap();
        let mut command = away.command(&outside, &[&["--node", "prod", "run", "shop", "--"], words].concat());
        command.stdin(std::fs::File::open(&file).unwrap());
        Running::start_reading(command).wait()
    };
    assert_eq!(run(&["cat"], "through\nand through").ok().stdout, "through\nand through");
    let words = ["a b", "", "it's", "$(id)", "`id`", "*", "#42", "!!", "\\", "\"", "--node", "é\u{202e}"];
    let said = run(&[&["printf", "[%s]\\n"], &words[..]].concat(), "").ok();
    assert_eq!(said.stdout, words.map(|word| format!("[{word}]\n")).concat());
    assert_eq!(run(&["sh", "-c", "echo out; echo err >&2; exit 7"], "").code(7).stderr, "err\n");
    run(&["sh", "-c", "kill -9 $$"], "").code(137);
    run(&["sh", "-c", "exit 255"], "").code(255);
    let binary: Vec<u8> = (0..=255).collect();
    std::fs::write(world.home().path("bytes"), &binary).unwrap();
    let there = world.home().path("bytes").display().to_string();
    let mut command = away.command(&outside, &["--node", "prod", "run", "shop", "--", "cat", &there]);
    assert_eq!(command.output().unwrap().stdout, binary);
}

#[test]
fn one_connection_serves_what_follows_and_stays_private() {
    let world = World::with_shop();
    let away = two_versions(&world);
    let outside = world.home().path("home");
    let ask = || away.mc(&outside, &["--node", "prod", "list"]).ok();
    let accepted = || away.sshd().log().matches("Accepted publickey").count();
    let before = accepted();
    ask();
    assert_eq!(accepted(), before + 1);
    let second = ask();
    assert_eq!(accepted(), before + 1, "the connection is shared: {second}");
    let sockets = outside.join(".cache/mc_project/ssh");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&sockets).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    // A connection that died is no obstacle; nor is a directory that others may write to: it is not used.
    away.cut();
    ask();
    assert_eq!(accepted(), before + 2);
    away.cut();
    // The last resort is a directory in /tmp; one of somebody else who tests here is left alone.
    let last = std::path::PathBuf::from(format!("/tmp/mc_project-{}", nix::unistd::getuid()));
    if last.exists() {
        return;
    }
    std::fs::remove_dir_all(&sockets).unwrap();
    std::fs::create_dir(&sockets).unwrap();
    std::fs::set_permissions(&sockets, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    ask();
    away.cut();
    let in_last = std::fs::read_dir(&last).unwrap().count();
    std::fs::remove_dir_all(&last).unwrap();
    assert!(in_last > 0 && std::fs::read_dir(&sockets).unwrap().count() == 0);
}

#[test]
fn a_terminal_is_passed_on_and_a_person_is_asked() {
    let world = World::with_shop();
    let away = two_versions(&world);
    std::fs::write(world.project("shop").join("data/since"), "x").unwrap();
    let outside = world.home().path("home");
    let inner = away.command(&outside, &[]);
    let answer = |typed: &str| {
        let line = format!("{} --node prod rollback shop --with data", env!("CARGO_BIN_EXE_mc_project"));
        let file = world.home().path("typed");
        std::fs::write(&file, typed).unwrap();
        let mut command = std::process::Command::new("script");
        command.args(["-qefc", &line, "/dev/null"]).current_dir(&outside).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
        let (reader, mut writer) = std::io::pipe().unwrap();
        command.stdin(reader);
        let running = Running::start_reading(command);
        // Typed when the question stands there, and the terminal stays until the end.
        std::thread::sleep(std::time::Duration::from_secs(2));
        std::io::Write::write_all(&mut writer, typed.as_bytes()).unwrap();
        let said = running.wait();
        drop(writer);
        said
    };
    let no = answer("no\n");
    assert_has(&no.stdout, "go back with the data? (yes/no)");
    assert_eq!(no.exit_code(), Some(1), "{no}");
    assert_eq!(world.run_text("shop", "a"), "2");
    let yes = answer("yes\n").ok();
    assert_has(&yes.stdout, "deployed; run serves");
    assert_eq!(world.run_text("shop", "a"), "1");
}

#[test]
fn an_address_is_a_node_too_and_names_come_from_list_and_remotes() {
    let world = World::with_shop();
    let away = two_versions(&world);
    let (outside, work) = (world.home().path("home"), away.work("shop"));
    let typed = format!("{}@127.0.0.1:{}", Away::user(), world.root().display());
    // The program is found by the hooks of the node, where nobody says where it is.
    away.mc(&outside, &["--node", &typed, "list"]).ok().says("shop");
    away.mc(work.dir(), &["--node", "node", "status"]).ok().says("shop: cooking");
    away.mc(&outside, &["--node", "node", "status"]).code(2).says("there is no node `node`").says("known are: prod");
    for hostile in ["-oProxyCommand=touch x", "prod;id", "a b@host", "u@-x", "$(id)@host"] {
        let said = away.mc(&outside, &[&format!("--node={hostile}"), "list"]);
        assert_eq!(said.exit_code(), Some(2), "{hostile}: {said}");
    }
    away.list("nodes: {prod: {shh: mc@host}}\n");
    away.mc(&outside, &["--node", "prod", "list"]).code(3).says("did you mean `ssh`?").says("nodes.yaml:1:");
}

#[test]
fn a_deployment_is_followed_while_it_runs_and_after_its_end() {
    let world = World::with_shop();
    let away = two_versions(&world);
    let outside = world.home().path("home");
    let waits =
        "stages: {build: ['touch $MC_DATA/waiting; while [ ! -e $MC_DATA/go ]; do sleep 0.05; done; exit 3']}\n";
    let work = away.work("shop");
    work.git(&["pull", "--quiet", "node", "main"]).ok();
    work.commit("waits", &[("mc_project.yaml", waits)]);
    let pushed = work.start_push(&["main"]);
    let data = world.project("shop").join("data");
    wait_until("the build runs", || data.join("waiting").exists());
    let followed = Running::start(away.command(&outside, &["--node", "prod", "follow", "shop"]));
    std::thread::sleep(std::time::Duration::from_millis(500));
    std::fs::write(data.join("go"), "").unwrap();
    let said = followed.wait().code(1);
    assert_has(&said.stdout, "failed at build: exit 3");
    pushed.wait().code(1);
    world.settle("shop");
    let again = Finished::of(away.command(&outside, &["--node", "prod", "follow", "shop"])).code(1);
    assert_eq!(again.stdout, said.stdout);
    // Where only the journal is kept, it is told from there.
    let id = world.newest("shop")["id"].as_str().unwrap().to_string();
    let events = world.root().join("var/log/mc_project/shop");
    for entry in std::fs::read_dir(events).unwrap().flatten() {
        if entry.file_name().to_string_lossy().contains(&id) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let kept = away.mc(&outside, &["--node", "prod", "follow", "shop", &id]).code(1);
    assert_has(&kept.stdout, "failed at build: exit 3");
    let unknown = "20200101T000000Z-0199e5a0-0000-7000-8000-00000000000c";
    away.mc(&outside, &["--node", "prod", "follow", "shop", unknown]).fails();
}

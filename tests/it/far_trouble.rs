//! What can be wrong between two machines: each a sentence, with something to do.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Away, Finished, WorkTree, World, assert_has, free_port};

/// What `--node NODE list` and `push` say with this ssh; both must fail with 1 and hold these words.
#[track_caller]
fn both_say(away: &Away, work: &WorkTree, ssh: &str, parts: &[&str]) {
    work.commit("something to push", &[]);
    for words in [&["--node", "node", "list"][..], &["push"]] {
        let said = Finished::of(away.command_with(work.dir(), words, ssh)).code(1);
        for part in parts {
            assert_has(&said.stderr, part);
        }
        let error = said.stderr.lines().find(|line| line.starts_with("error: "));
        assert!(error.is_some() && said.stderr.contains("hint: "), "{words:?}: {said}");
    }
}

#[test]
fn a_door_that_does_not_open_says_why() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let work = away.work("shop");
    let good = away.sshd().ssh_command_of("alice");
    // A key that nobody knows.
    both_say(&away, &work, &away.sshd().ssh_command_of("bob"), &["lets no key of yours in", "ssh -v"]);
    // A host that is not known, and one that is another one than before.
    let strict = good.replace("StrictHostKeyChecking=accept-new", "StrictHostKeyChecking=yes");
    let unknown = strict.replace("/known_hosts", "/no_known_hosts");
    both_say(&away, &work, &unknown, &["the host key of 127.0.0.1 is not known here", "compare the fingerprint"]);
    let changed = world.home().path("changed_hosts");
    let other = away.sshd().public_key("bob");
    std::fs::write(&changed, format!("[127.0.0.1]:{} {other}", away.sshd().port())).unwrap();
    let known = format!("{}", world.home().path("sshd/known_hosts").display());
    let changed = strict.replace(&known, changed.to_str().unwrap());
    both_say(&away, &work, &changed, &["is not the machine that it was", "ssh-keygen -R"]);
    // Nobody listens; no such host; silence.
    let port = away.sshd().port().to_string();
    let refused = good.replace(&format!("-p {port}"), &format!("-p {}", free_port()));
    both_say(&away, &work, &refused, &["refuses the connection", "systemctl start ssh"]);
    let lost = format!("{good} -o ProxyCommand='sleep 0.2'");
    both_say(&away, &work, &lost, &["the connection to 127.0.0.1 was lost"]);
    work.git(&["remote", "set-url", "node", "ssh://mc@no-such-host.invalid/shop"]).ok();
    both_say(&away, &work, &good, &["there is no host no-such-host.invalid"]);
    let url = away.sshd().url(&world.root().join("srv/projects/nothing/git/project"));
    work.git(&["remote", "set-url", "node", &url]).ok();
    let none = Finished::of(away.command_with(work.dir(), &["push"], &good)).code(1);
    assert_has(&none.stderr, "there is no such project at");
    let plain = world.home().path("plain/srv/projects/shop/git/project");
    world.home().git(&world.home().path("home"), &["init", "--quiet", "--bare", plain.to_str().unwrap()]).ok();
    work.git(&["remote", "set-url", "node", &away.sshd().url(&plain)]).ok();
    let plain = Finished::of(away.command_with(work.dir(), &["push"], &good)).code(1);
    assert_has(&plain.stderr, "is no repository of mc_project");
}

/// A node whose program is this script.
fn node_with_program(world: &World, away: &Away, script: &[u8]) {
    let program = world.home().path("bin/mc_project");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (user, root, program) = (Away::user(), world.root().display().to_string(), program.display().to_string());
    away.list(&format!("nodes:\n  prod: {{ssh: {user}@127.0.0.1, root: {root}, program: {program}, project: shop}}\n"));
    // What was said over a connection is remembered for as long as that is open.
    away.cut();
}

#[test]
fn a_program_that_does_not_fit_says_so() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let outside = world.home().path("home");
    let ask = |words: &[&str]| away.mc(&outside, &[&["--node", "prod"], words].concat());

    node_with_program(&world, &away, b"");
    std::fs::remove_file(world.home().path("bin/mc_project")).unwrap();
    ask(&["list"]).code(1).says("mc_project is not installed on").says("--node prod setup");
    ask(&["doctor"]).code(1).says("mc_project is not installed there").says("the machine: ").says("--node prod setup");

    let speaks = |protocol: u32, version: &str| {
        format!(
            "#!/bin/sh\ncase \" $* \" in *\" hello \"*) echo 'Welcome to this machine!'; echo '{{\"mc_project\":\"{version}\",\
             \"protocol\":{protocol},\"behind\":\"shell\",\"uid\":0,\"later\":[1]}}'; exit;; esac\nexec {} \"$@\"\n",
            env!("CARGO_BIN_EXE_mc_project")
        )
    };
    node_with_program(&world, &away, speaks(2, "9.0.0").as_bytes());
    ask(&["list"])
        .code(1)
        .says("mc_project 9.0.0 on")
        .says("do not understand each other (protocol 2 and 1)")
        .says("install the newer version on this machine");
    node_with_program(&world, &away, speaks(0, "0.0.1").as_bytes());
    ask(&["list"]).code(1).says("bring this version to the node: mc_project --node prod setup");
    // The same protocol is enough; a greeting before it and fields that we do not know are passed over.
    node_with_program(&world, &away, speaks(1, "0.9.0").as_bytes());
    ask(&["list"]).ok().says("shop");

    // Another kind of machine; a newer libc; a full disk.
    let mut other = std::fs::read("/bin/true").unwrap();
    other[18] = 0xf3; // e_machine (elf(5)): another processor
    node_with_program(&world, &away, &other);
    ask(&["list"]).code(1).says("the processor or the system of").says("setup --binary FILE");
    let libc =
        "#!/bin/sh\necho \"$0: /lib/libc.so.6: version \\`GLIBC_2.99' not found (required by $0)\" >&2; exit 1\n";
    node_with_program(&world, &away, libc.as_bytes());
    ask(&["list"]).code(1).says("is older than the one this program was built on");
    node_with_program(&world, &away, b"#!/bin/sh\necho 'error: cannot write: No space left on device' >&2; exit 1\n");
    ask(&["list"]).code(1).says("is full");
    node_with_program(&world, &away, b"#!/bin/sh\necho 'mail server here' >&2; exit 1\n");
    ask(&["list"]).code(1).says("does not answer as a node does").says("mail server here");
}

#[test]
fn a_program_is_brought_to_a_directory_node_and_the_old_one_stays_until_it_answers() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let outside = world.home().path("home");
    let program = world.home().path("bin/mc_project");
    let setup = |words: &[&str]| away.mc(&outside, &[&["--node", "prod", "setup"], words].concat());
    let old = "#!/bin/sh\necho mc_project 0.0.1\n";
    node_with_program(&world, &away, old.as_bytes());

    let planned = setup(&["--plan"]).ok();
    assert_has(&planned.stdout, "mc_project 0.0.1 is there, another one than this");
    assert_has(&planned.stdout, "would install this program as");
    assert_eq!(std::fs::read_to_string(&program).unwrap(), old);
    // One that does not run there is not installed; nor one that did not arrive whole.
    let broken = world.home().path("broken");
    std::fs::write(&broken, "#!/bin/sh\nexit 9\n").unwrap();
    setup(&["--binary", broken.to_str().unwrap()]).code(1);
    let port = away.sshd().port();
    let wire = world.home().path("wire");
    std::fs::write(&wire, format!("exec 3<>/dev/tcp/127.0.0.1/{port}\ncat <&3 &\nhead -c 300000 >&3\nkill $!\n"))
        .unwrap();
    let cut = format!(
        "{} -o ServerAliveInterval=1 -o ProxyCommand='bash {}'",
        away.sshd().ssh_command_of("alice"),
        wire.display()
    );
    away.cut();
    let lost = Finished::of(away.command_with(&outside, &["--node", "prod", "setup"], &cut)).code(1);
    assert_has(&lost.stderr, "error: ");
    assert_eq!(std::fs::read_to_string(&program).unwrap(), old);

    let done = setup(&[]).ok();
    assert_has(&done.stdout, "it answers there: mc_project");
    assert_has(&done.stdout, "done: install this program as");
    assert_eq!(std::fs::read(&program).unwrap(), std::fs::read(env!("CARGO_BIN_EXE_mc_project")).unwrap());
    setup(&[]).ok().says("is there already").says("nothing to do");
    away.mc(&outside, &["--node", "prod", "list"]).ok().says("shop");
}

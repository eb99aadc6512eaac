//! The harness itself: a test that cannot fail proves nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{
    Finished, Home, Mail, Record, Smtpd, Sshd, WorkTree, World, digest, digest_without, is_full, record_at, sample,
    times,
};

#[test]
fn a_digest_sees_content_mode_type_and_link_target() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::write(at("sub/file"), "1").unwrap();
    std::os::unix::fs::symlink("file", at("link")).unwrap();
    let before = digest(dir.path());
    assert_eq!(before, digest(dir.path()));
    assert_eq!(before.paths(), ["link", "sub", "sub/file"]);
    let changes: [&dyn Fn(); 5] = [
        &|| std::fs::write(at("sub/file"), "2").unwrap(),
        &|| std::fs::set_permissions(at("sub/file"), PermissionsExt::from_mode(0o755)).unwrap(),
        &|| std::fs::set_permissions(at("sub"), PermissionsExt::from_mode(0o700)).unwrap(),
        &|| {
            std::fs::remove_file(at("link")).unwrap();
            std::os::unix::fs::symlink("sub", at("link")).unwrap();
        },
        &|| std::fs::write(at("more"), "").unwrap(),
    ];
    let mut last = before;
    for (n, change) in changes.iter().enumerate() {
        change();
        let now = digest(dir.path());
        assert_ne!(last, now, "change {n} was not seen");
        last = now;
    }
    assert_eq!(digest_without(dir.path(), &["sub", "more"]).paths(), ["link"]);
    assert_eq!(digest(Path::new("/no/such/directory")).paths(), [""; 0]);
}

#[test]
#[should_panic(expected = "sub/file")]
fn a_difference_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let before = digest(dir.path());
    std::fs::write(dir.path().join("sub/file"), "2").unwrap();
    before.assert_same(&digest(dir.path()), "the directory");
}

/// A bare repository with a hook of sh, as any git server has one.
fn bare_with_hook(home: &Home, hook: &str, text: &str) -> std::path::PathBuf {
    let bare = home.path("bare.git");
    home.git(home.dir(), &["init", "--quiet", "--bare", "bare.git"]).ok();
    let path = bare.join("hooks").join(hook);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    bare
}

#[test]
fn a_push_shows_what_the_other_side_said_and_why_it_refused() {
    let home = Home::new();
    let bare = bare_with_hook(&home, "update", "#!/bin/sh\necho 'one line'\necho 'another (line)' >&2\nexit 1\n");
    let work = WorkTree::new(&home, home.path("work"), bare.to_str().unwrap());
    work.commit("x", &[("a", "1")]);
    let push = work.push(&["main"]).code(1).tells("another (line)").does_not_tell("hint");
    assert_eq!(push.rejected("main -> main"), "hook declined");
    assert_eq!(push.remote()[..2], ["one line", "another (line)"]);
}

#[test]
fn commits_are_the_same_in_every_run_and_the_accounts_git_knows_nothing_of_this_machine() {
    let commit = || {
        let home = Home::new();
        let work = WorkTree::new(&home, home.path("work"), "/nowhere");
        assert_eq!(work.git(&["config", "--get", "user.name"]).code(1).stdout, "");
        work.commit("x", &[("a", "1"), ("run.sh", "#!/bin/sh\n")])
    };
    assert_eq!(commit(), commit());
}

#[test]
fn the_reference_tree_is_the_checkout_of_git() {
    let home = Home::new();
    let work = WorkTree::new(&home, home.path("work"), "/nowhere");
    std::os::unix::fs::symlink("a", work.dir().join("link")).unwrap();
    let commit = work.commit("x", &[("a", "1"), ("bin/run.sh", "#!/bin/sh\n")]);
    work.reference_tree(&commit).assert_same(&digest_without(work.dir(), &[".git"]), "the work tree");
}

#[test]
fn the_ssh_server_takes_pushes_and_nothing_else() {
    let world = World::new();
    let home = world.home();
    let sshd = Sshd::start(&world);
    let bare = bare_with_hook(home, "post-receive", "#!/bin/sh\necho over $SSH_ORIGINAL_COMMAND\n");
    let work = WorkTree::new(home, home.path("work"), &sshd.url(&bare));
    work.commit("x", &[("a", "1")]);
    let mut push = work.push_command(&["main"]);
    push.env("GIT_SSH_COMMAND", sshd.git_ssh_command());
    Finished::of(push).ok().tells("over git-receive-pack");
}

const LETTER: &str = r#"
import smtplib, ssl, sys
port, authority, password, to = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
s = smtplib.SMTP("localhost", port, timeout=10)
if password:
    s.starttls(context=ssl.create_default_context(cafile=authority)); s.login("mc", password)
s.sendmail("a@example.org", [to], "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\nFrom: a@example.org\nTo: b@example.org\n\nbody\n")
"#;

#[test]
fn the_mail_server_takes_a_mail_after_starttls_and_login_only() {
    let world = World::new();
    let smtpd = Smtpd::start(&world);
    let send = |password: &str, to: &str| {
        let mut command = world.home().command("/usr/bin/python3");
        command.args(["-I", "-c", LETTER, &smtpd.port().to_string()]).arg(smtpd.authority()).args([password, to]);
        Finished::of(command)
    };
    send(Smtpd::PASSWORD, "b@example.org").ok();
    for (password, to, told) in [
        ("", "b@example.org", "530"),
        ("wrong", "b@example.org", "535"),
        (Smtpd::PASSWORD, "nobody@example.org", "550"),
    ] {
        send(password, to).fails().says(told);
    }
    let received = smtpd.received();
    assert_eq!(received.len(), 1);
    assert!(received[0].tls);
    assert_eq!(
        (received[0].from.as_str(), received[0].to.as_slice()),
        ("a@example.org", ["b@example.org".to_string()].as_slice())
    );
    assert_eq!((received[0].mail.subject.as_str(), received[0].mail.text.trim_end()), ("grüße", "body"));
}

#[test]
fn a_mail_is_read_as_its_reader_would() {
    let mail = Mail::read("Subject: x\r\nTo: a@b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nZ3LDvMOfZQo=\r\n".into());
    assert_eq!((mail.subject.as_str(), mail.to.as_str(), mail.text.as_str()), ("x", "a@b", "grüße\n"));
}

#[test]
fn what_a_test_leaves_running_ends_with_it() {
    let home = Home::new();
    let dir = home.dir().to_path_buf();
    let mut command = home.command("sh");
    command.args(["-c", "setsid sleep 1000 & echo $!"]);
    let pid = Finished::of(command).ok().stdout.trim().to_string();
    assert!(Path::new("/proc").join(&pid).join("cwd").exists());
    drop(home);
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z"), "{state}");
    assert!(!dir.exists());
}

#[test]
fn a_class_replaces_its_own_record_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reliability.json");
    record_at(&path, "kill", &Record { points: 7, of: 9, half_states: 1, panics: 2, ..Record::default() });
    record_at(&path, "cut", &Record { control: Some((3, 4)), ..Record::default() });
    let second = Record { points: 9, of: 9, litter: 1, ..Record::default() };
    record_at(&path, "kill", &second);
    assert_eq!(second.found(), 1);
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(told["classes"]["kill"]["half_states"], 0);
    assert_eq!((&told["classes"]["kill"]["points"], &told["classes"]["kill"]["litter"]), (&9.into(), &1.into()));
    assert_eq!(told["classes"]["cut"]["negative_control"]["caught"], 3);
    assert_eq!((&told["totals"]["points"], &told["totals"]["half_states"]), (&9.into(), &0.into()));
}

#[test]
fn a_sample_is_spread_over_all_and_a_full_run_leaves_nothing_out() {
    let all: Vec<usize> = (0..100).collect();
    let some = sample(&all, 10);
    assert_eq!(some.len(), if is_full() { 100 } else { 10 * times().min(10) });
    assert!(some.last().unwrap() - some[0] >= 90);
    assert_eq!(sample(&all, 100), all);
}

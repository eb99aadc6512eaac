//! Mails: who gets which, what stands in them, and that a mail server's faults never touch a deployment.

use std::time::{Duration, Instant};

use crate::support::{Mail, Smtpd, World, assert_has, assert_lacks, free_port, wait_until};

const NOTIFY: &str = "notify: {to: [dev@example.org], on: [failure, recovered, success]}\n";

/// A recipe that notifies and has these stages.
fn recipe(stages: &str) -> String {
    format!("{NOTIFY}stages: {stages}\n")
}

/// A node with this `mail:` block, whose project serves a first version.
fn mailing(mail: &str) -> World {
    let world = World::with_config(mail);
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("first version", &[("a", "1"), ("mc_project.yaml", &recipe("{}"))]);
    work.push(&["main"]).ok();
    world.settle("shop");
    world
}

/// Pushes a recipe with these stages.
#[track_caller]
fn push(world: &World, message: &str, stages: &str) -> crate::support::Finished {
    let work = world.checkout_of("shop");
    work.commit(message, &[("mc_project.yaml", &recipe(stages))]);
    let ended = work.push(&["main"]);
    world.settle("shop");
    ended
}

#[track_caller]
fn newest_mail(world: &World, count: usize) -> Mail {
    wait_until("the mail is there", || world.mails().len() >= count);
    let mut mails = world.mails();
    assert_eq!(mails.len(), count, "{:?}", mails.iter().map(|m| &m.subject).collect::<Vec<_>>());
    mails.pop().unwrap()
}

#[test]
fn without_configuration_mails_go_to_the_nodes_maildir() {
    let world = mailing("");
    let mail = newest_mail(&world, 1);
    let commit = world.serves("shop").unwrap();
    assert_eq!(mail.subject, format!("✓ shop staging: deployed {}: first version", &commit[..10]));
    assert_eq!(mail.to, "dev@example.org");
    assert!(mail.headers.iter().any(|h| h == "Auto-Submitted: auto-generated"), "{:?}", mail.headers);
    for name in ["Message-ID:", "Date:"] {
        assert!(mail.headers.iter().any(|h| h.starts_with(name)), "{:?}", mail.headers);
    }
    assert_has(&mail.text, "Alice Ånström");
    assert_has(&mail.text, "ok     checkout");
}

#[test]
fn the_mail_of_a_failure_says_what_failed_what_serves_and_how_to_go_on() {
    let world = mailing("");
    let first = world.serves("shop").unwrap();
    let work = world.checkout_of("shop");
    work.commit("migrate (ünïcode)", &[("mc_project.yaml", &recipe("{upgrade: ['echo the last words; exit 3']}"))]);
    work.push(&["main"]).code(1);
    world.settle("shop");

    let mail = newest_mail(&world, 2);

    let failed = world.newest("shop")["commit"].as_str().unwrap().to_string();
    assert_eq!(mail.subject, format!("✗ shop staging: rolled back {} at upgrade: migrate (ünïcode)", &failed[..10]));
    for part in ["rolled back at upgrade: exit 3", "the last words", &first[..10], &failed[..7], "show shop '#2'"] {
        assert_has(&mail.text, part);
    }
    for part in ["Rolled back at upgrade", "exit 3", "the last words", &first[..10], &failed[..10], "#2"] {
        assert_has(&mail.html, part);
    }
    for part in
        ["\nTaken back\n  code and configuration: those of ", "data: as they were before this deployment", "run.failed"]
    {
        assert_has(&mail.text, part);
    }
    let thread = mail.header("In-Reply-To").unwrap().to_string();
    assert_eq!(mail.header("References"), Some(thread.as_str()));
    assert!(world.mails().iter().all(|mail| mail.header("In-Reply-To") == Some(thread.as_str())), "one thread");

    work.commit("mended", &[("mc_project.yaml", &recipe("{}"))]);
    work.push(&["main"]).ok();
    world.settle("shop");
    let mail = newest_mail(&world, 3);
    assert_has(&mail.subject, "✓ shop staging: recovered with");
    assert_has(&mail.text, "migrate (ünïcode)");
}

#[test]
fn only_the_wished_kinds_of_news_are_sent() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let only_failure = "notify: {to: [dev@example.org], on: [failure]}\n";
    work.commit("good", &[("mc_project.yaml", only_failure)]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_eq!(world.mails().len(), 0);
    work.commit("bad", &[("mc_project.yaml", &format!("{only_failure}stages: {{build: ['exit 1']}}\n"))]);
    work.push(&["main"]).code(1);
    newest_mail(&world, 1);
    work.commit("good again", &[("mc_project.yaml", only_failure)]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_eq!(world.mails().len(), 1, "neither recovered nor success was asked for");
}

#[test]
fn nothing_of_a_stranger_becomes_a_header_or_a_terminal_command() {
    let world = mailing("");
    push(
        &world,
        "evil\rBcc: victim@example.org\u{1b}[2J\u{202e}",
        "{build: [\"printf '.\\\\r\\\\n.\\\\r\\\\nMAIL FROM:<x>\\\\n\\\\033[2J\\\\377\\\\n'; exit 1\"]}",
    )
    .code(1);
    let mail = newest_mail(&world, 2);
    assert!(!mail.headers.iter().any(|h| h.to_lowercase().starts_with("bcc")), "{:?}", mail.headers);
    assert!(!mail.subject.contains(['\r', '\n', '\u{1b}', '\u{202e}']), "{:?}", mail.subject);
    assert!(!mail.text.contains(['\u{1b}', '\u{202e}']), "{:?}", mail.text);
    assert_has(&mail.text, "MAIL FROM");
    assert!(!mail.html.contains(['\u{1b}', '\u{202e}']), "{:?}", mail.html);
    assert_has(&mail.html, "MAIL FROM:&lt;x&gt;");
}

#[test]
fn a_huge_output_makes_a_small_mail() {
    let world = mailing("");
    push(&world, "loud", "{build: ['yes a line of output | head -c 20000000; exit 1']}").code(1);
    let mail = newest_mail(&world, 2);
    assert!(mail.raw.len() < 200 << 10, "{} bytes", mail.raw.len());
    assert_has(&mail.text, "a line of output");
}

#[test]
fn secrets_of_the_pillar_are_in_no_mail() {
    let world = mailing("");
    let pillar = world.pillar_of("shop");
    pillar.commit("secret", &[("init.sls", "env: {DB_PASSWORD: correct-horse-battery}\n")]);
    pillar.push(&["main"]).ok();
    push(&world, "leak", "{build: ['echo my password is $DB_PASSWORD; exit 1']}")
        .code(1)
        .does_not_tell("correct-horse");
    let mail = newest_mail(&world, 2);
    assert_lacks(&mail.raw, "correct-horse");
    assert_lacks(&mail.html, "correct-horse");
    assert_has(&mail.text, "my password is [secret]");
}

#[test]
fn receivers_have_their_own_occasions_and_environments_and_authors_are_told_if_asked_for() {
    let world = World::with_config("mail: {to: [{address: root@example.org, on: [failure]}, boss@example.org]}\n");
    world.mc(&["init", "shop"]).ok();
    let notify = "notify: {on: [success], to: [authors, {address: ops@example.org, on: [failure], environments: [staging]}, \
                  {address: pager@example.org, on: [failure], environments: [prod]}]}\n";
    let to = |world: &World, from: usize, count: usize| {
        wait_until("the mails are there", || world.mails().len() >= from + count);
        let mut to: Vec<String> = world.mails()[from..].iter().map(|mail| mail.to.clone()).collect();
        to.sort();
        to
    };
    let work = world.clone_of("shop");
    work.commit("good", &[("mc_project.yaml", notify)]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_eq!(to(&world, 0, 2), ["alice@example.org", "boss@example.org"]);

    work.commit("bad", &[("mc_project.yaml", &format!("{notify}stages: {{build: ['exit 1']}}\n"))]);
    work.push(&["main"]).code(1);
    world.settle("shop");
    assert_eq!(to(&world, 2, 2), ["ops@example.org", "root@example.org"]);
}

#[test]
fn a_test_mail_says_what_the_server_said() {
    let world = World::new();
    let smtpd = Smtpd::start(&world);
    let config = smtp(&world, smtpd.port(), smtpd.authority().to_str().unwrap(), Smtpd::PASSWORD);
    world.configure(&config);
    let said = world.mc(&["mail", "test", "--to", "dev@example.org"]).ok();
    assert_has(&said.stdout, "mail to dev@example.org: sent; localhost:");
    assert_has(&said.stdout, " said: 250 ok");
    assert_has(&smtpd.received()[0].mail.subject, "test: mc_project on ");

    let refused = world.mc(&["mail", "test", "--to", "nobody@example.org"]).code(1);
    assert_has(&refused.stderr, "permanent error (550): 5.1.1 no such user");
    std::fs::write(world.home().path("password"), "wrong\n").unwrap();
    let refused = world.mc(&["mail", "test", "--to", "dev@example.org"]).code(1);
    assert_has(&refused.stderr, "535");
    assert_lacks(&refused.stderr, Smtpd::PASSWORD);

    world.configure("{}\n");
    world.mc(&["init", "shop"]).ok();
    world.mc(&["mail", "test", "shop"]).fails().says("no deployment to tell of");
    let work = world.clone_of("shop");
    work.commit("first version", &[("a", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    world.mc(&["mail", "test", "shop", "--to", "me@example.org"]).ok();
    let mails = world.mails();
    let mail = mails.iter().find(|mail| mail.to == "me@example.org").unwrap();
    assert_has(&mail.subject, "test: ✓ shop staging: deployed");
    assert_has(&mail.html, "first version");
}

#[test]
fn mails_go_out_by_tls_from_the_first_byte() {
    let world = World::new();
    let smtpd = Smtpd::start_tls(&world);
    let config = smtp(&world, smtpd.port(), smtpd.authority().to_str().unwrap(), Smtpd::PASSWORD);
    world.configure(&config.replace("tls: starttls", "tls: tls"));
    world.mc(&["mail", "test", "--to", "dev@example.org"]).ok();
    assert!(smtpd.received()[0].tls);
    world.configure(&config);
    world.mc(&["mail", "test", "--to", "dev@example.org"]).code(1);
    assert_eq!(smtpd.received().len(), 1, "STARTTLS is none that this server knows");
}

/// The `mail:` block for a server.
fn smtp(world: &World, port: u16, authority: &str, password: &str) -> String {
    let file = world.home().path("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    format!(
        "mail:\n  from: mc_project@node.example.org\n  transport: smtp\n  smtp: {{host: localhost, port: {port}, tls: starttls, \
         user: mc, password_file: {}, ca_file: {authority}, timeout: 5s}}\n",
        file.display()
    )
}

#[test]
fn mails_go_out_by_smtp_with_starttls_and_login() {
    let world = World::new();
    let smtpd = Smtpd::start(&world);
    world.configure(&smtp(&world, smtpd.port(), smtpd.authority().to_str().unwrap(), Smtpd::PASSWORD));
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("first version", &[("mc_project.yaml", &recipe("{}"))]);

    work.push(&["main"]).ok();

    wait_until("the mail arrives", || !smtpd.received().is_empty());
    let received = smtpd.received();
    assert_eq!(received.len(), 1);
    assert!(received[0].tls, "it came encrypted");
    assert_eq!(received[0].from, "mc_project@node.example.org");
    assert_eq!(received[0].to, ["dev@example.org"]);
    assert_eq!(received[0].mail.from, "mc_project@node.example.org");
    assert_has(&received[0].mail.subject, "shop staging: deployed");
    assert_eq!(world.mails().len(), 0, "no copy in the maildir");
}

#[test]
fn a_mail_that_cannot_be_sent_waits_in_the_spool_and_changes_no_outcome() {
    for (what, config) in
        [("a wrong password", 0), ("an authority that is not trusted", 1), ("a server that is not there", 2)]
    {
        let world = World::new();
        let smtpd = Smtpd::start(&world);
        let authority = smtpd.authority();
        let authority = authority.to_str().unwrap();
        world.configure(&match config {
            0 => smtp(&world, smtpd.port(), authority, "wrong"),
            1 => smtp(&world, smtpd.port(), authority, Smtpd::PASSWORD).replace(&format!(", ca_file: {authority}"), ""),
            _ => smtp(&world, free_port(), authority, Smtpd::PASSWORD),
        });
        world.mc(&["init", "shop"]).ok();
        let work = world.clone_of("shop");
        let commit = work.commit("first version", &[("mc_project.yaml", &recipe("{}"))]);

        let push = work.push(&["main"]).ok();

        assert_eq!(world.serves("shop"), Some(commit), "{what}");
        assert!(push.took < Duration::from_secs(15), "{what}: {push}");
        world.settle("shop");
        assert_eq!(smtpd.received().len(), 0, "{what}: never in clear text, never without login");
        let spool: Vec<_> = std::fs::read_dir(world.project("shop").join("state/spool")).unwrap().flatten().collect();
        let spool: Vec<_> =
            spool.iter().filter(|entry| entry.file_name().to_string_lossy().ends_with(".json")).collect();
        assert_eq!(spool.len(), 1, "{what}");
        let mode = std::os::unix::fs::MetadataExt::mode(&spool[0].metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600, "{what}");
        // The first attempt is made after the project was free again.
        wait_until("doctor tells of it", || world.mc(&["doctor"]).stdout.contains("mail to dev@example.org waits"));
    }
}

#[test]
fn a_server_that_never_answers_holds_nobody_up() {
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let world = World::new();
    world.configure(&smtp(&world, silent.local_addr().unwrap().port(), "/etc/ssl/certs/ca-certificates.crt", "x"));
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("first version", &[("mc_project.yaml", &recipe("{}"))]);
    let begin = Instant::now();
    work.push(&["main"]).ok().tells("deployed; run serves");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let again = Instant::now();
    work.commit("second version", &[("a", "2")]);
    work.push(&["main"]).ok();
    assert!(
        again.elapsed() < Duration::from_secs(30),
        "the next push found the project free after {:?}",
        again.elapsed()
    );
}

//! Eight ways in which a mail server can be broken: none of them changes an outcome, holds a pusher up or loses a mail, and
//! what could not be sent goes out later without another deployment.

use std::time::Duration;

use crate::support::{Broken, BrokenSmtpd, Smtpd, World, assert_has, wait_until};

const RECIPE: &str = "notify: {to: [dev@example.org]}\n";

/// Beyond what a push without mail takes; a machine that runs many tests at once is given as much again.
const NO_LONGER_THAN: Duration = Duration::from_secs(2);

/// A node without mail, with a project.
fn world() -> World {
    let world = World::with_config("mail: {transport: none}\n");
    world.mc(&["init", "shop"]).ok();
    world
}

fn broken(port: u16) -> String {
    format!(
        "mail: {{from: mc@example.org, transport: smtp, smtp: {{host: localhost, port: {port}, tls: none, timeout: 1s}}}}\n"
    )
}

fn good(world: &World, smtpd: &Smtpd, tls: &str) -> String {
    let file = world.home().path("password");
    std::fs::write(&file, Smtpd::PASSWORD).unwrap();
    format!(
        "mail:\n  from: mc@example.org\n  smtp: {{host: localhost, port: {}, tls: {tls}, user: mc, password_file: {}, \
         ca_file: {}}}\n",
        smtpd.port(),
        file.display(),
        smtpd.authority().display()
    )
}

/// Pushes a commit, and tells how long after the verdict the pusher was let go.
#[track_caller]
fn push(world: &World, message: &str) -> Duration {
    let work = world.clone_of("shop");
    if world.serves("shop").is_some() {
        work.git(&["pull", "--quiet", "node", "main"]).ok();
    }
    let commit = work.commit(message, &[("a", message), ("mc_project.yaml", RECIPE)]);
    work.push(&["main"]).ok().tells("deployed; run serves");
    let now = jiff::Timestamp::now();
    assert_eq!(world.serves("shop"), Some(commit));
    world.settle("shop");
    let entry = world.newest("shop");
    assert_eq!(entry["verdict"], "deployed");
    let started: jiff::Timestamp = entry["started"].as_str().unwrap().parse().unwrap();
    let ended = started + Duration::from_millis(entry["duration_ms"].as_u64().unwrap());
    Duration::try_from(now.duration_since(ended)).unwrap_or_default()
}

fn waiting(world: &World) -> usize {
    let listed = world.mc(&["mail", "list", "shop", "--json"]).ok().json();
    listed.as_array().unwrap().len()
}

/// With mail switched off, with this configuration, and at last with a good server, which gets the mail.
#[track_caller]
fn outcome_stands_and_the_mail_comes_later(world: &World, config: &str) {
    let without = push(world, "without mail");
    world.configure(config);

    let with = push(world, "with a broken server");

    assert!(with < without * 2 + NO_LONGER_THAN, "the pusher waited {with:?} after the verdict, {without:?} without");
    let smtpd = Smtpd::start(world);
    assert_eq!(waiting(world), 1, "the mail is kept");
    world.configure(&good(world, &smtpd, "starttls"));
    // The postman may be quicker than we are.
    let _ = world.mc(&["mail", "flush", "shop"]);
    wait_until("the mail is delivered", || !smtpd.received().is_empty());
    wait_until("nothing waits", || waiting(world) == 0);
    let received = smtpd.received();
    assert_eq!(received.len(), 1, "once");
    assert_has(&received[0].mail.subject, "deployed");
    assert_has(&received[0].mail.text, "with a broken server");
}

#[track_caller]
fn survives(how: Broken) {
    let world = world();
    let server = BrokenSmtpd::start(how);
    outcome_stands_and_the_mail_comes_later(&world, &broken(server.port()));
    assert_eq!(server.calls() > 0, how != Broken::Refuses, "it was asked");
}

#[test]
fn a_mail_server_that_refuses_connections() {
    survives(Broken::Refuses);
}

#[test]
fn a_mail_server_that_takes_the_connection_and_hangs() {
    survives(Broken::Hangs);
}

#[test]
fn a_mail_server_that_says_try_later() {
    survives(Broken::Later);
}

#[test]
fn a_mail_server_that_says_never() {
    survives(Broken::Never);
}

#[test]
fn a_mail_server_that_drops_the_connection_after_the_mail() {
    survives(Broken::DropsAfterData);
}

#[test]
fn a_mail_server_that_sends_one_byte_a_second() {
    survives(Broken::Drips);
}

#[test]
fn a_mail_server_whose_greeting_never_ends() {
    survives(Broken::GreetsForEver);
}

#[test]
fn a_mail_server_that_never_ends_a_line() {
    survives(Broken::NeverEndsALine);
}

#[test]
fn a_mail_server_with_a_bad_certificate() {
    let (world, other) = (world(), World::new());
    let impostor = Smtpd::start(&other);
    let config =
        good(&world, &impostor, "starttls").replace(&format!(", ca_file: {}", impostor.authority().display()), "");
    outcome_stands_and_the_mail_comes_later(&world, &config);
    assert!(impostor.received().is_empty());
}

/// Processes of the program that send mail for this node.
fn postmen(world: &World) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let root = world.root();
    lines
        .filter(|line| {
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            words.contains(&b"postman".as_slice()) && words.contains(&root.as_os_str().as_encoded_bytes())
        })
        .count()
}

#[test]
fn the_postman_sends_what_waits_by_himself_and_ends_then() {
    let world = world();
    let server = BrokenSmtpd::start(Broken::Refuses);
    world.configure(&broken(server.port()));
    push(&world, "first");
    wait_until("the postman is there", || postmen(&world) == 1);
    push(&world, "second");
    let smtpd = Smtpd::start_tls(&world);
    world.configure(&good(&world, &smtpd, "tls"));

    // Nothing else is done: no deployment, no command.
    wait_until("both mails arrive", || smtpd.received().len() == 2);
    wait_until("the postman is gone", || postmen(&world) == 0);
    assert!(smtpd.received().iter().all(|mail| mail.tls), "they came encrypted");
    let log = std::fs::read_to_string(world.root().join("var/log/mc_project/shop/mail.log")).unwrap();
    assert_has(&log, "could not send the mail to dev@example.org about ");
    assert_has(&log, "sent the mail to dev@example.org about ");
}

#[test]
fn what_is_given_up_is_told_by_status_doctor_log_and_the_next_mail() {
    let world = world();
    let server = BrokenSmtpd::start(Broken::Never);
    world.configure(&broken(server.port()));
    push(&world, "first");
    wait_until("it was tried", || server.calls() > 0);
    // Four days later, as far as the file knows.
    let spool = world.project("shop").join("state/spool");
    let old = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(96)).to_string();
    wait_until("the old mail is given up", || {
        let files = std::fs::read_dir(&spool).unwrap().flatten().map(|entry| entry.path());
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "json")) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let Ok(mut file) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
            (file["first"], file["last"]) = (old.clone().into(), old.clone().into());
            std::fs::write(&path, file.to_string()).unwrap();
        }
        let _ = world.mc(&["mail", "flush", "shop", "--due"]);
        !world.mc(&["mail", "list", "shop"]).stdout.contains("  waits,")
    });

    let said = world.mc(&["status", "shop"]).ok();
    assert_has(&said.stdout, "1 MAILS COULD NOT BE SENT and were given up");
    assert_has(&world.mc(&["doctor"]).stdout, "1 notices were given up, last the mail to dev@example.org");
    assert_has(&world.mc(&["mail", "list"]).ok().stdout, "given up, tried");
    let log = std::fs::read_to_string(world.root().join("var/log/mc_project/shop/mail.log")).unwrap();
    assert_has(&log, "gave up the mail to dev@example.org about ");
    assert_has(&log, "550");

    world.configure("{}\n");
    push(&world, "second");
    wait_until("the next mail is there", || !world.mails().is_empty());
    assert_has(&world.mails()[0].text, "1 could not be told in three days, last the mail to dev@example.org");

    world.mc(&["mail", "flush", "shop"]).ok();
    assert_eq!(world.mails().len(), 2, "a person may have it sent all the same");
    assert!(!world.mc(&["status", "shop"]).ok().stdout.contains("GIVEN"));
}

//! Webhooks: the outcome as JSON, signed, and never to anywhere else than where it was to go.

use crate::support::{Webhookd, World, assert_has, assert_lacks, wait_until};

const NODE_SECRET: &str = "the-node's-own-secret";
const PILLAR_SECRET: &str = "the-project's-own-secret";

fn recipe(port: u16, stages: &str) -> String {
    format!("notify: {{webhook: 'http://127.0.0.1:{port}/T0/a-token'}}\nstages: {stages}\n")
}

/// A node that posts to this server with its secret.
fn configure(world: &World, server: &Webhookd, more: &str) {
    let file = world.home().path("hook-secret");
    std::fs::write(&file, format!("{NODE_SECRET}\n")).unwrap();
    world.configure(&format!(
        "mail: {{transport: none}}\nwebhook: {{url: 'https://localhost:{}/ops', secret_file: {}, ca_file: {}{more}}}\n",
        server.port(),
        file.display(),
        server.authority().display()
    ));
}

#[test]
fn outcomes_are_posted_as_json_that_the_receiver_can_verify() {
    let world = World::new();
    let (ops, team) =
        (Webhookd::start(&world, "ops", NODE_SECRET, "https"), Webhookd::start(&world, "team", PILLAR_SECRET, "http"));
    configure(&world, &ops, ", on: [failure]");
    world.mc(&["init", "shop"]).ok();
    let pillar = world.pillar_of("shop");
    pillar.commit("secret", &[("init.sls", &format!("webhook_secret: \"{PILLAR_SECRET}\"\n"))]);
    pillar.push(&["main"]).ok();
    let work = world.clone_of("shop");
    let first = work.commit("first \"version\" ü", &[("mc_project.yaml", &recipe(team.port(), "{}"))]);

    work.push(&["main"]).ok();

    wait_until("the team's server has it", || !team.hooks().is_empty());
    let hook = team.hooks().remove(0);
    assert!(hook.verified, "{hook:?}");
    assert_eq!(
        (hook.path.as_str(), hook.kind.as_str(), hook.event.as_str()),
        ("/T0/a-token", "application/json", "outcome")
    );
    for (key, want) in [
        ("project", "shop"),
        ("environment", "staging"),
        ("verdict", "deployed"),
        ("occasion", "success"),
        ("subject", "first \"version\" ü"),
        ("commit", &first),
        ("branch", "main"),
    ] {
        assert_eq!(hook.body[key], want, "{key}");
    }
    assert_eq!(hook.body["serves"]["commit"], first.as_str());
    assert!(hook.delivery.starts_with(hook.body["deployment"].as_str().unwrap()));
    assert!(ops.hooks().is_empty(), "only failures were asked for");

    world.settle("shop");
    work.commit("bad", &[("mc_project.yaml", &recipe(team.port(), "{build: ['exit 7']}"))]);
    work.push(&["main"]).code(1);

    wait_until("both have it", || !ops.hooks().is_empty() && team.hooks().len() == 2);
    let hook = ops.hooks().remove(0);
    assert!(hook.verified, "over TLS, with the node's secret: {hook:?}");
    assert_eq!(
        (&hook.body["verdict"], &hook.body["stage"], &hook.body["reason"]),
        (&"failed".into(), &"build".into(), &"exit 7".into())
    );
    assert_eq!(hook.body["serves"]["commit"], first.as_str());
    assert!(team.hooks()[1].verified);
}

#[test]
fn without_a_secret_there_is_no_signature_and_the_nodes_secret_signs_nothing_of_a_project() {
    let world = World::new();
    let (ops, team) =
        (Webhookd::start(&world, "ops", NODE_SECRET, "https"), Webhookd::start(&world, "team", NODE_SECRET, "http"));
    configure(&world, &ops, "");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("first", &[("mc_project.yaml", &recipe(team.port(), "{}"))]);
    work.push(&["main"]).ok();
    wait_until("both have it", || !team.hooks().is_empty() && !ops.hooks().is_empty());
    assert!(!team.hooks()[0].signed && ops.hooks()[0].verified);
}

#[test]
fn what_is_not_taken_or_sent_elsewhere_waits_and_comes_later_with_the_same_id() {
    let world = World::new();
    let ops = Webhookd::start(&world, "ops", NODE_SECRET, "https");
    let elsewhere = Webhookd::start(&world, "elsewhere", NODE_SECRET, "http");
    configure(&world, &ops, "");
    ops.answer(&format!("307 http://127.0.0.1:{}/stolen", elsewhere.port()));
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("first", &[("a", "1")]);

    work.push(&["main"]).ok().tells("deployed");

    wait_until("it was tried", || {
        world.mc(&["mail", "list", "shop"]).ok().stdout.contains("redirection is not followed")
    });
    ops.answer("500");
    let again = world.mc(&["mail", "flush", "shop"]);
    assert_has(&again.code(1).stdout, "0 sent, 1 not sent");
    let spool = world.project("shop").join("state/spool");
    for file in std::fs::read_dir(spool).unwrap().flatten() {
        assert_lacks(&std::fs::read_to_string(file.path()).unwrap(), NODE_SECRET);
    }
    assert_lacks(&world.mc(&["doctor"]).stdout, "/ops");
    ops.answer("204");
    let _ = world.mc(&["mail", "flush", "shop"]);
    wait_until("nothing waits", || world.mc(&["mail", "list"]).ok().stdout.contains("nothing waits"));

    let hooks = ops.hooks();
    assert!(
        hooks.len() >= 3 && hooks.iter().all(|hook| hook.delivery == hooks[0].delivery && hook.verified),
        "{hooks:?}"
    );
    assert!(elsewhere.hooks().is_empty());
}

#[test]
fn a_secret_that_cannot_be_read_is_told_and_nothing_goes_out_unsigned() {
    let world = World::new();
    let ops = Webhookd::start(&world, "ops", NODE_SECRET, "https");
    configure(&world, &ops, "");
    std::fs::remove_file(world.home().path("hook-secret")).unwrap();
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("first", &[("a", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_has(&world.mc(&["show", "shop"]).ok().stdout, "the webhook could not be written: there is no password file");
    assert!(ops.hooks().is_empty());
}

#[test]
fn the_test_command_posts_too_and_says_what_the_server_said() {
    let world = World::new();
    let ops = Webhookd::start(&world, "ops", NODE_SECRET, "https");
    configure(&world, &ops, "");
    let said = world.mc(&["mail", "test"]).ok();
    assert_has(&said.stdout, "webhook https://localhost:");
    assert_has(&said.stdout, "answered 200");
    let hook = ops.hooks().remove(0);
    assert!(hook.verified && hook.event == "test" && hook.body["event"] == "test");
    ops.answer("403");
    world.mc(&["mail", "test"]).code(1).says("answered 403");
}

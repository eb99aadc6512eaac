//! Real applications with declared services: a site and a worker on PostgreSQL, and a site in PHP.

use std::time::Duration;

use crate::examples::{ask, get, node_for, post, push_example};
use crate::support::postgres::{PASSWORD, Postgres};
use crate::support::{World, assert_has, assert_lacks, wait_until};

/// The django example on a node of its own, deployed once.
fn orders() -> (World, u16, Postgres) {
    let postgres = Postgres::start();
    let (world, port) = node_for("django-postgres");
    let pillar = world.checkout_of_pillar("django-postgres");
    let env = format!("env: {{PORT: \"{port}\", DJANGO_SECRET_KEY: not-for-production, {}}}\n", postgres.pillar());
    pillar.commit("the database", &[("init.sls", &env)]);
    pillar.push(&["main"]).ok();
    push_example(&world, "django-postgres");
    (world, port, postgres)
}

fn order(port: u16, article: &str) {
    assert_has(&post(port, "/", &format!("article={article}")), article);
}

const CONFIRMED: &str = "SELECT count(*) FROM orders_order WHERE confirmed_at IS NOT NULL";

#[test]
fn a_django_site_and_its_worker_go_back_with_their_database() {
    let name = "django-postgres";
    let (world, port, postgres) = orders();
    let first = world.serves(name).unwrap();
    assert_has(&get(port, "/healthz"), &first);
    order(port, "tea");
    wait_until("the worker confirms", || postgres.ask(CONFIRMED) == "1");

    // A version with another table, a migration that destroys what there is, and a site that does not come up.
    let work = world.checkout_of(name);
    let migration = "\"\"\"A fatal one.\"\"\"\n\nfrom django.db import migrations\n\n\nclass Migration(migrations.Migration):\n    \
                     \"\"\"Everything goes.\"\"\"\n\n    dependencies = [(\"orders\", \"0001_initial\")]\n    operations = [\n        \
                     migrations.RunSQL(\"CREATE TABLE towns (name text)\"),\n        migrations.RunSQL(\"DELETE FROM orders_order\"),\n    ]\n";
    let views = std::fs::read_to_string(work.dir().join("orders/views.py")).unwrap();
    let ill = views.replace("{\"ok\": True,", "{\"ok\": False,");
    assert_ne!(views, ill);
    work.commit("a fatal one", &[("orders/migrations/0002_fatal.py", migration), ("orders/views.py", &ill)]);
    let recipe = std::fs::read_to_string(work.dir().join("mc_project.yaml")).unwrap();
    work.commit("no patience", &[("mc_project.yaml", &recipe.replace("within: 30s", "within: 8s"))]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.rejected("main -> main"), "rolled back at health");
    assert_has(&push.stderr, "\"ok\": true");
    assert_lacks(&push.stderr, PASSWORD);
    assert_has(&get(port, "/healthz"), &first);
    assert_eq!(postgres.ask(CONFIRMED), "1", "the orders are back");
    assert_eq!(postgres.ask("SELECT to_regclass('towns') IS NULL"), "t", "the new table is gone");
    order(port, "coffee");
    wait_until("the old worker works again", || postgres.ask(CONFIRMED) == "2");

    // A good migration goes through, and a rollback by hand with the data takes it back.
    work.git(&["reset", "--quiet", "--hard", &first]).ok();
    let good = migration.replace("        migrations.RunSQL(\"DELETE FROM orders_order\"),\n", "");
    let second = work.commit("towns", &[("orders/migrations/0002_towns.py", &good)]);
    work.push(&["main"]).ok();
    assert_has(&get(port, "/healthz"), &second);
    assert_eq!(postgres.ask("SELECT to_regclass('towns') IS NULL"), "f");
    world.mc(&["rollback", name, "--with", "data", "--yes"]).ok();
    assert_has(&get(port, "/healthz"), &first);
    assert_eq!(postgres.ask("SELECT to_regclass('towns') IS NULL"), "t");
    assert_eq!(postgres.ask(CONFIRMED), "2");
    world.mc(&["stop", name]).ok();
    assert_eq!(ask(port, "GET / HTTP/1.0\r\n\r\n"), None, "nobody answers after a stop");
}

#[test]
fn the_worker_of_a_site_shows_in_status_and_logs() {
    let name = "django-postgres";
    let (world, port, postgres) = orders();
    order(port, "cocoa");
    wait_until("the worker confirms", || postgres.ask(CONFIRMED) == "1");
    let status = world.mc(&["status", name]).ok();
    for part in ["web", "worker", "running"] {
        assert_has(&status.stdout, part);
    }
    assert_has(&world.mc(&["logs", name, "--service", "worker"]).ok().stdout, "confirmed 1: cocoa");
    let all = world.mc(&["logs", name]).ok().stdout;
    for part in ["confirmed 1: cocoa", "GET /healthz"] {
        assert_has(&all, part);
    }
    assert_lacks(&all, PASSWORD);
}

#[test]
fn a_php_site_answers_and_a_version_that_does_not_is_taken_back() {
    let name = "php-site";
    let (world, port) = node_for(name);
    push_example(&world, name);
    let first = world.serves(name).unwrap();
    assert_has(&get(port, "/healthz"), &first);
    assert_has(&post(port, "/", "answer=tea"), "303");
    assert_has(&get(port, "/"), "tea: 1");

    let work = world.checkout_of(name);
    let index = std::fs::read_to_string(work.dir().join("public/index.php")).unwrap();
    let ill = index
        .replace("if ($path === '/healthz') {", "if ($path === '/healthz') {\n    throw new Exception('ill today');");
    work.commit("ill", &[("public/index.php", &ill)]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.rejected("main -> main"), "rolled back at health");
    assert_has(&push.stderr, "ill today");
    assert_has(&get(port, "/healthz"), &first);
    assert_has(&get(port, "/"), "tea: 1");

    // A syntax error never comes as far: the candidate is looked at.
    work.git(&["reset", "--quiet", "--hard", &first]).ok();
    work.commit("a slip", &[("public/index.php", "<?php if (\n")]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.rejected("main -> main"), "failed at check");
    assert_has(&get(port, "/"), "tea: 1");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(world.serves(name).as_deref(), Some(first.as_str()));
}

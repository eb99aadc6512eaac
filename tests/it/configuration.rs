//! The configuration: merged from the commit, the pillar and the node, checked when it is pushed, told by `config`, and made
//! into files of the candidate.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::{World, assert_has, assert_lacks};

const SAMPLE: &str = "\
makina-projects.projectname:
  data:
    host: '{fqdn}'
    root: '{project_root}'
    debug: no
    workers: 2
    db: {name: '{name}', port: 5432}
    db_password: {{ salt['mc_utils.generate_stored_password']('db', 24) }}
    url: 'postgres://{db_password}@localhost'
  env_defaults:
    staging: {workers: 4}
    prod: {workers: 9}
";

fn config(world: &World, args: &[&str]) -> Value {
    let mut all = vec!["config", "shop", "--json"];
    all.extend(args);
    world.mc(&all).ok().json()
}

/// A project that keeps what its steps are given.
fn keeping(sample: &str) -> World {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let recipe = "stages: {configure: ['cp $MC_CONFIG seen.json']}\n";
    work.commit("one", &[("mc_project.yaml", recipe), (".salt/PILLAR.sample", sample)]);
    work.push(&["main"]).ok();
    world.settle("shop");
    world
}

fn seen(world: &World) -> Value {
    serde_json::from_str(&world.run_text("shop", "seen.json")).unwrap()
}

#[test]
fn a_project_of_makina_states_is_given_its_layers_and_says_where_each_value_comes_from() {
    let world = keeping(SAMPLE);
    let first = seen(&world);
    assert_eq!((&first["debug"], &first["workers"]), (&json!(false), &json!(4)));
    assert_eq!(first["db"], json!({"name": "shop", "port": 5432}));
    assert_eq!(first["root"], world.project("shop").join("run").to_str().unwrap());
    let password = first["db_password"].as_str().unwrap();
    assert_eq!((password.len(), &first["url"]), (24, &json!(format!("postgres://{password}@localhost"))));

    let pillar = world.pillar_of("shop");
    let names = "{{ cfg.name }} {{ cfg.user }} {{ cfg.project_root }} {{ cfg.data_root }} {{ opts.default_env }} {{ grains.os }}";
    pillar.commit("every name", &[("init.sls", &format!("makina-projects.shop: {{data: {{all: '{names}'}}}}\n"))]);
    pillar.push(&["main"]).ok();
    assert_has(config(&world, &["all"]).as_str().unwrap(), world.project("shop").join("run").to_str().unwrap());
    let text =
        "include: [more]\nmakina-projects.shop:\n  data: {db: {host: db1}}\n  env_defaults: {staging: {workers: 6}}\n";
    pillar.commit("pillar", &[("init.sls", text), ("more.sls", "makina-projects.shop: {data: {db: {port: 1}}}\n")]);
    pillar.push(&["-o", "deploy", "main"]).ok();
    world.settle("shop");
    assert_eq!(world.history("shop").len(), 2, "one push is one deployment");
    let second = seen(&world);
    assert_eq!(second["workers"], 6);
    assert_eq!(second["db"], json!({"name": "shop", "port": 1, "host": "db1"}));
    assert_eq!(second["db_password"], password, "made up once");
    let kept = world.project("shop").join("state/secrets");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(kept.join("db@1").metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let told = world.mc(&["config", "shop", "--explain", "workers"]).ok().stdout;
    let lines: Vec<&str> = told.lines().map(str::trim).collect();
    assert_eq!(lines[0], "workers = 6");
    assert!(lines[1].starts_with("from pillar/init.sls:4") && lines[1].ends_with("env_defaults"), "{told}");
    assert_has(lines[2], "over .salt/PILLAR.sample (rendered):11");
    assert_has(lines[3], "data  2");
    assert_has(&world.mc(&["config", "shop", "--explain", "db.port"]).ok().stdout, "from pillar/more.sls:1");
    let told = world.mc(&["config", "shop", "--explain", "db.port", "--json"]).ok().json();
    assert_eq!(
        (&told[0]["key"], &told[0]["value"], &told[0]["resolved"]),
        (&json!("db.port"), &json!(1), &json!(false))
    );
    let first = json!({"place": "pillar/more.sls:1", "layer": "data", "value": 1});
    assert_eq!((&told[0]["said"][0], told[0]["said"].as_array().unwrap().len()), (&first, 2));
    world.mc(&["config", "shop", "--explain", "no.key"]).code(2).says("no key `no.key`");
    assert_eq!(config(&world, &["db.host"]), "db1");
    let all = world.mc(&["config", "shop"]).ok();
    assert_has(&all.stdout, "db.port = 1\n");
    assert_has(&all.stderr, "merged by the rule makina");
    assert_has(&all.stderr, "warning: .salt/PILLAR.sample (rendered):5:12: this word is read as false");
    for told in [&all.stdout, &all.stderr, &world.mc(&["config", "shop", "--explain"]).ok().stdout] {
        assert_lacks(told, password);
    }
    assert_eq!(config(&world, &["db_password", "--secrets"]), password);
    world.mc(&["config", "shop", "db.nowhere"]).code(2).says("no key `db.nowhere`");

    // The way back has its own configuration.
    world.mc(&["rollback", "shop"]).ok();
    assert_eq!(seen(&world)["workers"], 4);
    let told = world.mc(&["config", "shop"]).ok().stderr;
    assert_has(&told, "what serves has the pillar none");
    assert_has(&world.mc(&["status", "shop"]).ok().stdout, " was pushed and is used by the next deployment; now: ");
    world.mc(&["deploy", "shop", "--force"]).ok();
    assert_lacks(&world.mc(&["status", "shop"]).ok().stdout, "was pushed and is used");
}

#[test]
fn a_pillar_that_the_code_cannot_work_with_is_refused_with_file_line_and_reason() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let recipe = "config:\n  required: [db.host, db.password]\n  defaults: {workers: 2}\n";
    let schema = "type: object\nproperties:\n  workers: {type: integer, minimum: 1}\n  db:\n    type: object\n    \
                  properties:\n      password: {type: string, minLength: 8}\n      port: {enum: [5432, 5433]}\n    \
                  additionalProperties: true\n";
    work.commit("one", &[("mc_project.yaml", recipe), ("pillar.schema", schema)]);
    // Without a pillar the code cannot be deployed.
    work.push(&["main"]).fails().tells("`db.host`, `db.password` are required and are not set");

    let pillar = world.pillar_of("shop");
    let good = "workers: 4\ndb:\n  host: db1\n  password: canary-canary\n  port: 5432\n";
    pillar.commit("good", &[("init.sls", good)]);
    pillar.push(&["main"]).ok();
    work.push(&["main"]).ok();
    world.settle("shop");
    for (from, to, place, reason) in [
        ("  host: db1\n", "", "pillar/init.sls:2:1", "`db.host` is required and is not set"),
        ("port: 5432", "port: 1", "pillar/init.sls:5:3", "`db.port`: must be one of 5432, 5433"),
        ("workers: 4", "workers: canary", "pillar/init.sls:1:1", "`workers`: must be integer, and is string"),
        ("canary-canary", "canary", "pillar/init.sls:4:3", "`db.password`: must have at least 8 characters"),
    ] {
        pillar.commit("bad", &[("init.sls", &good.replace(from, to))]);
        let push = pillar.push(&["--force", "main"]).fails().does_not_tell("canary");
        assert_has(&push.stderr, &format!("{place}: {reason}"));
    }
    // Code and pillar that have to change together: without a deployment it need not fit what serves.
    pillar.commit("for later", &[("init.sls", &good.replace("  host: db1\n", ""))]);
    let hint = "if the code changes too: git push -o no-deploy, then the code";
    assert_has(&pillar.push(&["--force", "main"]).fails().stderr, hint);
    pillar.push(&["--force", "-o", "no-deploy", "main"]).ok();
    // With a newer recipe it is held against that one, before anything is built.
    pillar.commit("good", &[("init.sls", good)]);
    pillar.push(&["--force", "main"]).ok();
    let more = recipe.replace("db.host", "db.host, mail.from");
    let commit = work.commit("two", &[("mc_project.yaml", &more)]);
    let reason = work.push(&["main"]).rejected("main -> main");
    assert_has(&reason, "`mail.from` is required and is not set");
    assert_ne!(world.serves("shop"), Some(commit));
    work.commit("three", &[("mc_project.yaml", recipe), ("pillar.schema", "type: 5\n")]);
    assert_has(&work.push(&["main"]).rejected("main -> main"), "pillar.schema: this is no JSON Schema");
    let twice = |n: i32| format!("{{allOf: [{{$ref: '#/$defs/a{n}'}}, {{$ref: '#/$defs/a{n}'}}]}}");
    let doubling: Vec<String> = (1..44).map(|n| format!("  a{n}: {}\n", twice(n - 1))).collect();
    let doubling = doubling.concat();
    let bomb = format!("$ref: '#/$defs/a43'\n$defs:\n  a0: {{type: object}}\n{doubling}");
    work.commit("bomb", &[("pillar.schema", &bomb)]);
    assert_has(&work.push(&["main"]).rejected("main -> main"), "the schema asks for too much");
    let far = "$ref: file:///etc/passwd\n";
    work.commit("four", &[("pillar.schema", far)]);
    let refused = work.push(&["main"]).fails().does_not_tell("root:x");
    assert_has(&refused.stderr, "pillar.schema");
}

#[test]
fn words_that_two_readers_of_yaml_read_differently_are_told_at_the_push() {
    let world = World::with_shop();
    let pillar = world.pillar_of("shop");
    pillar.commit("plain", &[("init.sls", "debug: yes\nmode: 0755\n")]);
    let pushed = pillar.push(&["main"]).ok();
    let told = pushed.remote_text();
    assert_has(
        &told,
        "warning: pillar/init.sls:1:8: this word is read as a text, Salt and other readers of YAML 1.1 read true",
    );
    assert_has(&told, "warning: pillar/init.sls:2:7: this word is read as a text");
    pillar.commit("clear", &[("init.sls", "debug: true\nmode: '0755'\n")]);
    assert_lacks(&pillar.push(&["main"]).ok().remote_text(), "warning");
}

const TEMPLATED: &str = "\
templates:
  - etc/app.ini.j2
  - {from: etc/nginx.j2, to: made/site.conf, mode: '0600'}
stages: {configure: ['cat etc/app.ini > seen.txt']}
";

const INI: &str =
    "[db]\nhost = {{ db.host }}\n{% for name in names %}user = {{ name }}\n{% endfor %}on = {{ mc.environment }}\n";

#[test]
fn templates_are_rendered_into_the_candidate_and_come_back_with_a_rollback() {
    let world = World::with_shop();
    let pillar = world.pillar_of("shop");
    pillar.commit("pillar", &[("init.sls", "db: {host: db1}\nnames: [ann, bob]\napi_token: canary-canary\n")]);
    pillar.push(&["main"]).ok();
    let work = world.clone_of("shop");
    let site = "token {{ config.api_token }} of {{ mc.project }} {{ grains.kernel }}\n";
    work.commit("one", &[("mc_project.yaml", TEMPLATED), ("etc/app.ini.j2", INI), ("etc/nginx.j2", site)]);
    work.push(&["-o", "plan", "main"]).ok().tells("configure: made/site.conf from etc/nginx.j2");
    work.push(&["main"]).ok().does_not_tell("canary");
    world.settle("shop");
    let ini = "[db]\nhost = db1\nuser = ann\nuser = bob\non = staging\n";
    assert_eq!(world.run_text("shop", "etc/app.ini"), ini);
    assert_eq!(world.run_text("shop", "seen.txt"), ini, "before the steps of configure");
    assert_eq!(world.run_text("shop", "made/site.conf"), "token canary-canary of shop Linux\n");
    let mode = |path: &str| world.run_path("shop", path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("etc/app.ini"), mode("made/site.conf"), mode("made")), (0o640, 0o600, 0o755));
    world.mc(&["verify", "shop"]).ok();
    world.mc(&["drift", "shop"]).ok();

    // They are configuration: not in the deliverable, although a secret is in them, and made anew with another pillar.
    let unpacked = world.home().path("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let files = std::fs::read_dir(world.project("shop").join("releases")).unwrap().map(|entry| entry.unwrap().path());
    let packed = files.into_iter().find(|path| path.to_string_lossy().ends_with(".tar.zst")).expect("a deliverable");
    let mut tar = world.home().command("tar");
    tar.args(["--zstd", "-xf"]).arg(packed).arg("-C").arg(&unpacked);
    crate::support::Finished::of(tar).ok();
    let paths = crate::support::digest(&unpacked).paths();
    assert!(paths.iter().any(|path| path.ends_with("app.ini.j2")), "{paths:?}");
    assert!(!paths.iter().any(|path| path.ends_with("app.ini") || path.ends_with("site.conf")), "{paths:?}");
    pillar.commit("pillar", &[("init.sls", "db: {host: db2}\nnames: []\napi_token: canary-canary\n")]);
    pillar.push(&["-o", "deploy", "main"]).ok();
    world.settle("shop");
    assert_eq!(world.run_text("shop", "etc/app.ini"), "[db]\nhost = db2\non = staging\n");
    world.mc(&["rollback", "shop"]).ok();
    assert_eq!(world.run_text("shop", "etc/app.ini"), ini);

    let serves = world.serves("shop");
    for (path, text, told) in [
        ("etc/app.ini.j2", "a\n{{ db.port }}\n", "etc/app.ini.j2:2:1: the template uses something that is not defined"),
        ("etc/app.ini", "committed", "`etc/app.ini` is made from `etc/app.ini.j2`, but it is in the tree already"),
        (
            "mc_project.yaml",
            "templates: [etc/none.j2]\n",
            "the recipe names the template `etc/none.j2`, which is no file",
        ),
        ("mc_project.yaml", "templates: [etc/app.ini]\n", "`etc/app.ini` is no template: its name must end in .j2"),
        ("mc_project.yaml", "templates: [a.j2, {from: b.j2, to: a}]\n", "`a` is made from `a.j2` already"),
        ("mc_project.yaml", "templates: [{from: a.j2, mode: '888'}]\n", "this is no mode"),
    ] {
        work.git(&["checkout", "--quiet", "-B", "try", "main"]).ok();
        work.commit("bad", &[(path, text)]);
        let push = work.push(&["--force", "try:main"]).fails();
        assert!(push.stderr.contains(told), "{told}\n{push}");
        assert_eq!(world.serves("shop"), serves);
    }
}

#[test]
fn in_editable_mode_templates_are_made_in_the_clone() {
    let world = World::with_shop();
    let pillar = world.pillar_of("shop");
    pillar.commit("pillar", &[("init.sls", "db: {host: db1}\nnames: []\n")]);
    pillar.push(&["main"]).ok();
    let work = world.clone_of("shop");
    let files = [("mc_project.yaml", TEMPLATED), ("etc/app.ini.j2", INI), ("etc/nginx.j2", "x\n")];
    work.commit("one", &files);
    world.configure("modes: [editable, cooking]\n");
    work.push(&["-o", "mode=editable", "main"]).ok();
    assert_eq!(world.run_text("shop", "etc/app.ini"), "[db]\nhost = db1\non = staging\n");
    assert_eq!(world.run_text("shop", "made/site.conf"), "x\n");
    // What is made is in nobody's way: the next push goes through.
    pillar.commit("pillar", &[("init.sls", "db: {host: db2}\nnames: []\n")]);
    pillar.push(&["main"]).ok();
    work.commit("two", &[("a", "2")]);
    work.push(&["-o", "mode=editable", "main"]).ok();
    assert_has(&world.run_text("shop", "etc/app.ini"), "host = db2");
}

#[test]
fn a_first_pillar_is_made_from_the_template_that_the_recipe_names() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    world.mc(&["config", "new", "shop"]).code(2).says("nothing was pushed yet");
    let template = "# {{ name }} in {{ environment }}\ndb:\n  password: {{ password(20) }}\n";
    let recipe = "config: {template: pillar.j2}\n";
    work.commit("one", &[("mc_project.yaml", recipe), ("pillar.j2", template)]);
    work.push(&["main"]).ok();
    world.settle("shop");
    let first = world.mc(&["config", "new", "shop"]).ok().stdout;
    assert_has(&first, "# shop in staging\ndb:\n  password: ");
    assert_eq!(first.lines().last().unwrap().len(), "  password: ".len() + 20);
    assert_ne!(first, world.mc(&["config", "new", "shop"]).ok().stdout, "made up anew each time");
    let pillar = world.pillar_of("shop");
    pillar.commit("first", &[("init.sls", &first)]);
    pillar.push(&["main"]).ok();
}

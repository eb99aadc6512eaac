//! What projects of makina-states expect of it: the structure of the public ones, the helpers that they call, and an answer
//! where a part of makina-states is missing.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::salt::world;
use crate::support::{Finished, assert_has, assert_lacks};

const MACROS: &str = "\
{% macro config(cfg, name, options, scfg) %}
{{cfg.name}}-config-{{name}}:
  file.managed:
    - names:
      - {{cfg.project_root}}/{{name}}
      - {{cfg.data_root}}/{{name}}
    - source: salt://makina-projects/{{cfg.name}}/files/{{name}}
    - template: jinja
    - mode: {{options.get('mode', '640')}}
    - user: {{cfg.user}}
    - makedirs: true
    - defaults:
        cfg: |
             {{scfg}}
    - watch:
      - mc_proxy: {{cfg.name}}-configs-before
    - watch_in:
      - mc_proxy: {{cfg.name}}-configs-after
{% endmacro %}
";

#[test]
fn the_structure_of_public_projects_goes_through() {
    let world = world();
    let work = world.clone_of("shop");
    // As they are written: hooks that order includes, macros, several names, the configuration as JSON in a template.
    let configs = "\
{% import \"makina-projects/\" + opts.ms_project.name + \"/include/macros.jinja\" as macros with context %}
{% set cfg = opts.ms_project %}
{% set data = cfg.data %}
{% set scfg = salt['mc_utils.json_dump'](cfg) %}
{{cfg.name}}-configs-before:
  mc_proxy.hook:
    - watch_in:
      - mc_proxy: {{cfg.name}}-configs-after
{% for name, options in data.configs.items() %}
{{ macros.config(cfg, name, options, scfg) }}
{% endfor %}
{{cfg.name}}-configs-after:
  mc_proxy.hook: []
";
    let app = "\
{% set cfg = opts['ms_project'] %}
{% macro set_env() %}
    - env:
      - SETTINGS: \"{{cfg.data.settings}}\"
{% endmacro %}
include:
  - makina-projects.{{cfg.name}}.include.configs
{{cfg.name}}-app:
  cmd.run:
    - name: echo $SETTINGS > settings
    {{set_env()}}
    - cwd: {{cfg.data_root}}
    - user: {{cfg.user}}
    - use_vt: true
    - output_loglevel: info
    - watch:
      - mc_proxy: {{cfg.name}}-configs-after
";
    let file = "{% set cfg = salt['mc_utils.json_load'](cfg) %}\nname = {{cfg.name}}\nport = {{cfg.data.port}}\n{% for k, v in cfg.data.items() if k == 'settings' %}{{k}} = {{v}}{% endfor %}\n";
    let sample = "\
makina-projects.projectname:
  data:
    port: 8080
    settings: '{name}.settings'
    configs:
      app.ini: {mode: 644}
  os_defaults: {Debian: {data: {never: true}}}
  env_defaults: {prod: {port: 80}, staging: {port: 8181}}
";
    work.commit(
        "one",
        &[
            (".salt/PILLAR.sample", sample),
            (".salt/include/configs.sls", configs),
            (".salt/include/macros.jinja", MACROS),
            (".salt/300_app.sls", app),
            (".salt/files/app.ini", file),
        ],
    );
    work.push(&["main"]).ok();
    let data = |name: &str| std::fs::read_to_string(world.project("shop").join("data").join(name)).unwrap();
    assert_eq!(data("settings"), "shop.settings\n");
    assert_eq!(data("app.ini"), "\nname = shop\nport = 8181\nsettings = shop.settings\n");
    assert_eq!(world.run_text("shop", "app.ini"), data("app.ini"));
}

#[test]
fn the_helpers_answer_as_those_of_makina_states() {
    let world = world();
    let work = world.clone_of("shop");
    let sample = "\
makina-projects.projectname:
  data:
    text: é \\U0001F600
    password: {{ salt['mc_utils.generate_stored_password']('db', 20) }}
    list: [1, 2.5, true, null, 'yes']
top: {below: {deep: 7}, more: [2], whole-overrides: [9]}
";
    let state = "
{% set cfg = opts.ms_project %}
{% set u = salt['mc_utils.json_dump'] %}
{% set all = {
  'same': salt['mc_project.get_configuration']('shop') == cfg,
  'known': [cfg.name, cfg.default_env, cfg.api_version, cfg.remote_less, cfg.rollback],
  'data': cfg.data,
  'stored': salt['mc_utils.generate_stored_password']('db') == cfg.data.password,
  'lengths': [salt['mc_utils.generate_password']()|length, salt['mc_utils.generate_password'](5)|length],
  'json': salt['mc_utils.json_load'](salt['mc_utils.json_dump']({'a': [1]})),
  'yaml': salt['mc_utils.yaml_load'](salt['mc_utils.yaml_dump']({'a': [1]})),
  'update': salt['mc_utils.dictupdate']({'a': {'b': 1, 'c': [1, 2]}}, {'a': {'c': [3]}}),
  'copied': salt['mc_utils.copy_dictupdate']({'a': 1}, {'b': 2}),
  'get': [salt['mc_utils.get']('top:below:deep'), salt['mc_utils.get']('top.below.deep'), salt['mc_utils.get']('no', 'none'), salt['mc_utils.get']('os_family')],
  'defaults': salt['mc_utils.defaults']('top', {'below': {'deep': 1, 'more': 2}, 'x': 3}),
  'resolved': salt['mc_utils.format_resolve']({'a': 'x{b}', 'b': 'y{c}', 'c': 'z'}),
  'lists': salt['mc_utils.defaults']('top', {'more': [1], 'whole': [1], 'url': '/{x}', 'x': 3}),
  'inserted': salt['mc_utils.format_resolve']({'a': '{b}-x', 'b': [1]}),
  'iter': [salt['mc_utils.is_iter']({}), salt['mc_utils.is_iter']('x')],
  'first': salt['mc_utils.get']('ms_project_name'),
  'groups': [salt['mc_usergroup.settings']().group == cfg.group, cfg.groups == [cfg.group], cfg.no_reset_perms, cfg.skip_notify, cfg.keep_archives],
  'unique': salt['mc_utils.uniquify']([1, 2, 1]),
  'env': salt['mc_env.settings']().env,
  'locations': [salt['mc_locations.settings']().conf_dir, salt['mc_locations.settings']().projects_dir == cfg.projects_dir],
} %}
told:
  file.managed:
    - name: {{cfg.data_root}}/told.json
    - contents: |
        {{ u(all) }}
";
    work.commit("one", &[(".salt/PILLAR.sample", sample), (".salt/100_all.sls", state)]);
    work.push(&["main"]).ok();
    let text = std::fs::read_to_string(world.project("shop").join("data/told.json")).unwrap();
    let mut told: Value = serde_json::from_str(&text).unwrap();
    let password = told["data"]["password"].take();
    assert_eq!(password.as_str().unwrap().len(), 20);
    assert_eq!(
        told,
        json!({
            "same": true,
            "known": ["shop", "staging", "2", false, false],
            "data": {"text": "é \\U0001F600", "password": null, "list": [1, 2.5, true, null, "yes"]},
            "stored": true,
            "lengths": [16, 5],
            "json": {"a": [1]},
            "yaml": {"a": [1]},
            "update": {"a": {"b": 1, "c": [3]}},
            "copied": {"a": 1, "b": 2},
            "get": [7, 7, "none", "Debian"],
            "defaults": {"below": {"deep": 7, "more": 2}, "x": 3},
            "resolved": {"a": "xyz", "b": "yz", "c": "z"},
            "lists": {"more": [1, 2], "whole": [9], "url": "/3", "x": 3},
            "inserted": {"a": "[1]-x", "b": [1]},
            "iter": [true, false],
            "first": "shop",
            "groups": [true, true, false, false, 3],
            "unique": [1, 2],
            "env": "staging",
            "locations": ["/etc", true],
        })
    );
}

#[test]
fn a_part_of_makina_states_that_is_missing_is_named_with_what_stands_in_for_it() {
    let world = world();
    let work = world.clone_of("shop");
    for (state, told, instead) in [
        (
            "x: {{ salt['mc_nginx.settings']() }}\n",
            "the function mc_nginx.settings of makina-states is not here",
            "service.running with watch",
        ),
        (
            "include:\n  - makina-states.services.http.apache\n",
            "the file of states makina-states.services.http.apache of makina-states",
            "apache_site.enabled",
        ),
        (
            "{% import \"makina-states/services/monitoring/circus/macros.jinja\" as circus with context %}\n",
            "the file makina-states/services/monitoring/circus/macros.jinja of makina-states",
            "`services:` of mc_project.yaml",
        ),
        (
            "x:\n  mc_postgres_user.present: []\n",
            "the state mc_postgres_user.present of makina-states",
            "postgres_database.present",
        ),
    ] {
        work.commit("missing", &[(".salt/100_x.sls", state)]);
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, told);
        assert_has(&push.stderr, instead);
    }
    // What cannot be read says where.
    for (state, told) in [
        ("a:\n  cmd.run:\n    - name: x\n    - y: z: w\n", "line 4 of the rendered file"),
        ("a: {{ nothing.at.all }}\n", "cannot be rendered: Jinja variable 'nothing' is undefined; line 1"),
        (
            "a:\n  cmd.run:\n    - name: echo '{{ salt['mc_utils.generate_stored_password']('other', 9) }}'\n",
            "no password `other` is kept: ask for it in PILLAR.sample",
        ),
    ] {
        work.commit("broken", &[(".salt/100_x.sls", state)]);
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, told);
        assert_lacks(&push.stderr, "Traceback");
    }
}

#[test]
fn secrets_reach_states_and_nobody_else() {
    const CANARY: &str = "canary-of-the-states-7c1d";
    let world = world();
    let set = format!("printf %s {CANARY} | \"$0\" secret set db --project shop");
    let program = world.mc_command(&[]).get_program().to_owned();
    let mut shell = world.home().command("sh");
    shell.env("MC_ROOT", world.root()).args(["-c", &set]).arg(program);
    Finished::of(shell).ok();
    let pillar = world.pillar_of("shop");
    let text =
        format!("makina-projects.shop: {{data: {{api_password: {CANARY}-two, secrets: {{db: {{secret: db}}}}}}}}\n");
    pillar.commit("pillar", &[("init.sls", &text)]);
    pillar.push(&["main"]).ok();
    let work = world.clone_of("shop");
    let state = "\
told:
  cmd.run:
    - name: 'echo {{salt[\"mc_project.secret\"](\"db\")}} {{opts.ms_project.data.api_password}} | sha256sum > {{opts.ms_project.data_root}}/sum; echo {{salt[\"mc_project.secret\"](\"db\")}}'
bad:
  cmd.run:
    - name: 'echo {{opts.ms_project.data.api_password}} {{pillar[\"makina-projects.shop\"].data.api_password}}; VERDICT'
";
    work.commit("one", &[(".salt/100_a.sls", &state.replace("VERDICT", "true"))]);
    let good = work.push(&["main"]).ok();
    work.commit("two", &[(".salt/100_a.sls", &state.replace("VERDICT", "exit 3"))]);
    let bad = work.push(&["main"]).fails();
    world.settle("shop");
    for told in [&good.stderr, &bad.stderr] {
        assert_lacks(told, CANARY);
    }
    assert_has(&bad.stderr, "[secret]");
    let sum = std::fs::read_to_string(world.project("shop").join("data/sum")).unwrap();
    let mut want = Command::new("sh");
    want.args(["-c", &format!("echo {CANARY} {CANARY}-two | sha256sum")]);
    assert_eq!(sum, Finished::of(want).ok().stdout);
    // Its own places aside, it is nowhere.
    let mut grep = Command::new("grep");
    grep.args([
        "-rlF",
        CANARY,
        "--exclude-dir=git",
        "--exclude-dir=pillar",
        "--exclude-dir=secrets",
        "--exclude-dir=config",
        ".",
    ]);
    grep.current_dir(world.root());
    let found = Finished::of(grep);
    assert_eq!(found.stdout, "", "{}", found.stdout);
}

#[test]
fn reset_perms_follows_no_link_of_others_and_leaves_what_it_is_not_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    let mode = |path: &str| at(path).symlink_metadata().unwrap().permissions().mode() & 0o777;
    std::fs::create_dir_all(at("data/sub")).unwrap();
    std::fs::create_dir_all(at("etc/x")).unwrap();
    for file in ["data/sub/file", "data/sub/left.log", "etc/x/shadow"] {
        std::fs::write(at(file), "x").unwrap();
        std::fs::set_permissions(at(file), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    std::fs::hard_link(at("etc/x/shadow"), at("data/sub/second")).unwrap();
    std::os::unix::fs::symlink("../etc", at("data/away")).unwrap();
    std::fs::set_permissions(at("data"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let reset = |args: &[&str]| {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/salt/bin/reset-perms")).args(args).current_dir(temp.path());
        Finished::of(command).ok()
    };
    reset(&["-o", "--dmode", "0555", "--fmode", "0555", "--paths", "data/sub", "--users", "www-data:r-x"])
        .says("left as they are");
    assert_eq!(mode("data/sub/file"), 0o600);
    reset(&["-q", "-n", "--fmode", "0640", "--dmode", "0750", "-e", "\\.log$", "-p", "data/sub", "-p", "nowhere"])
        .says("nowhere: ");
    assert_eq!((mode("data/sub"), mode("data/sub/file"), mode("data/sub/left.log")), (0o750, 0o640, 0o600));
    assert_eq!(mode("etc/x/shadow"), 0o600, "not by a second name");
    reset(&["--fmode", "0666", "--paths", "data/away/x"]).says("is not followed");
    assert_eq!(mode("etc/x/shadow"), 0o600, "not by a link");
    reset(&["-R", "--dmode", "0700", "--fmode", "0444", "--paths", "data/sub"]);
    assert_eq!((mode("data/sub"), mode("data/sub/file")), (0o700, 0o640));
}

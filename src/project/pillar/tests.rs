//! Every rule of a pillar, one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::template::Facts;
use super::{FILE, Inputs, Merge, Pillar};
use crate::sys::error::{Kind, Result};

fn parse(text: &str) -> Result<Pillar> {
    Pillar::parse(FILE, text.as_bytes(), &"shop".parse().unwrap())
}

const WHOLE: &str = "\
makina-projects.shop:
  default_env: staging
  env: {A: outer}
  data:
    env: {DATABASE_URL: 'postgres://u:canary-1@db', DEBUG: false, WORKERS: 4}
    db_password: canary-2-x
    short_password: abc
    private: {one: canary-3-x, two: [canary-4-x]}
    plain: not-a-thing-to-hide
makina-projects.other:
  data: {API_KEY: canary-5-x}
";

#[test]
fn data_of_the_projects_own_key_is_the_configuration() {
    let pillar = parse(WHOLE).unwrap();
    assert_eq!(pillar.config()["plain"], "not-a-thing-to-hide");
    assert_eq!(pillar.config()["default_env"], "staging");
    assert!(pillar.config().get("makina-projects.other").is_none());
    let exports = pillar.exports();
    assert_eq!(exports["DATABASE_URL"], "postgres://u:canary-1@db");
    assert_eq!((exports["DEBUG"].as_str(), exports["WORKERS"].as_str(), exports.len()), ("false", "4", 3));
    assert_eq!(parse("a: 1\n").unwrap().config()["a"], 1);
    assert_eq!(parse("").unwrap(), Pillar::empty());
    assert!(parse("# nothing yet\n\n").unwrap().config().is_object());
}

#[test]
fn secrets_are_found_in_the_whole_file_and_never_printed() {
    let pillar = parse(WHOLE).unwrap();
    let secrets = pillar.secrets();
    let values: Vec<&str> = secrets.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(values, ["canary-2-x", "canary-3-x", "canary-4-x", "canary-5-x"]);
    assert_eq!(secrets[2].0, "makina-projects.shop.data.private.two.0");
    assert!(!format!("{pillar:?}").contains("canary"));
}

#[test]
fn errors_name_the_place_and_never_quote_the_file() {
    let cases = [
        ("a: canary\nb: {{ nowhere }}\n", "2:1: ", "not defined"),
        ("a: {{ salt['cmd.run']('canary') }}\n", "1:1: ", "a function of Salt that is not available"),
        ("a: {{ 'canary' | nothing }}\n", "1:1: ", "unknown filter"),
        ("{% if canary\n", "1:1: ", "syntax error"),
        ("a: {{ 'canary' + 1 }}\n", "1:1: ", "cannot be rendered"),
        ("{% for i in range(9999) %}{% for k in range(9999) %}{{ k }}{% endfor %}{% endfor %}\n", "1:1: ", "too long"),
        ("#!py\ncanary: 1\n", "1:1: ", "templates of this kind"),
        ("a: canary\na: canary\n", "2:1: ", "stands here twice"),
        ("5: canary\n", "1:1: ", "a key that is a text"),
        ("[canary]\n", "1:1: ", "expected a mapping"),
        ("a: !canary canary\n", "1:4: ", "tag"),
        ("a: 'canary\n", "2:1: ", "while scanning a quoted scalar"),
        ("makina-projects.shop: canary\n", "1:1: ", "expected a mapping"),
        ("makina-projects.shop:\n  data: canary\n", "2:3: ", "expected a mapping"),
        ("makina-projects.shop:\n  data:\n    env: {PATH: canary}\n", "3:11: ", "`PATH` may not be set"),
        ("env: {lower: canary}\n", "1:7: ", "no name of a variable"),
        ("env: {A: 1.10}\n", "1:7: ", "put it in quotes"),
        ("env: canary\n", "1:1: ", "must be a mapping"),
    ];
    for (text, place, words) in cases {
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().starts_with(&format!("{FILE}:{place}")), "{text:?}: {error}");
        assert!(error.message().contains(words), "{text:?}: {error}");
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}

/// What a configuration is made of, in the tests.
#[derive(Default)]
struct Made {
    merge: Merge,
    defaults: Map<String, Value>,
    sample: Option<&'static str>,
    files: BTreeMap<&'static str, &'static str>,
    facts: Facts,
}

fn map(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("{value} is no mapping") };
    map
}

impl Made {
    /// A node of the environment `prod` that runs Debian.
    fn of(sample: Option<&'static str>, files: &[(&'static str, &'static str)]) -> Self {
        let facts = Facts {
            environment: "prod".into(),
            grains: map(json!({"os_family": "Debian", "os": "Debian", "fqdn": "node.example.org", "id": "node"})),
            project: map(json!({"name": "shop", "fqdn": "node.example.org", "project_root": "/srv/projects/shop/run"})),
            passwords: None,
        };
        Self { sample, files: files.iter().copied().collect(), facts, ..Self::default() }
    }

    fn read(&self) -> Result<Pillar> {
        let files = |path: &str| Ok(self.files.get(path).map(|text| text.as_bytes().to_vec()));
        Pillar::read(&Inputs {
            project: &"shop".parse().unwrap(),
            merge: self.merge,
            defaults: &self.defaults,
            sample: self.sample.map(|text| (".salt/PILLAR.sample", text.as_bytes())),
            files: &files,
            facts: &self.facts,
        })
    }

    #[track_caller]
    fn config(&self) -> Value {
        self.read().unwrap().config().clone()
    }
}

const SAMPLE: &str = "\
makina-projects.projectname:
  data:
    only_sample: s
    pillar_over_sample: s
    sample_env_over_pillar: s
    pillar_env_over_sample_env: s
    os_over_all: s
    deep: {kept: s, replaced: s, list: [1, 2, 3]}
  env_defaults:
    prod: {sample_env_over_pillar: se, pillar_env_over_sample_env: se, os_over_all: se}
    dev: {only_sample: wrong}
  os_defaults:
    Debian: {data: {only_sample: wrong}}
";

const LAYERED: &str = "\
makina-projects.shop:
  data:
    pillar_over_sample: p
    sample_env_over_pillar: p
    pillar_env_over_sample_env: p
    os_over_all: p
    deep: {replaced: p, list: [9]}
  env_defaults:
    prod: {pillar_env_over_sample_env: pe, os_over_all: pe}
    staging: {pillar_over_sample: wrong}
  os_defaults:
    Debian: {data: {os_over_all: po}, opt: root}
    RedHat: {data: {os_over_all: wrong}}
";

#[test]
fn the_layers_of_makina_are_merged_lowest_first() {
    let made = Made::of(Some(SAMPLE), &[(FILE, LAYERED)]);
    let config = made.config();
    for (key, wanted) in [
        ("only_sample", "s"),
        ("pillar_over_sample", "p"),
        ("sample_env_over_pillar", "se"),
        ("pillar_env_over_sample_env", "pe"),
        ("os_over_all", "po"),
        // Without a `data:` of its own, what os_defaults say stands beside the data.
        ("opt", "root"),
    ] {
        assert_eq!(config[key], wanted, "{key}");
    }
    assert_eq!(config["deep"], json!({"kept": "s", "replaced": "p", "list": [9]}), "dicts deep, lists replaced");
    let cfg = made.read().unwrap();
    assert_eq!((&cfg.project()["opt"], &cfg.project()["data"]["os_over_all"]), (&json!("root"), &json!("po")));
    assert_eq!((&cfg.project()["name"], &cfg.project()["default_env"]), (&json!("shop"), &json!("prod")));
    assert!(cfg.project()["data"].get("opt").is_none() && config.get("env_defaults").is_none());
}

#[test]
fn a_sample_may_name_any_project_and_a_pillar_only_this_one() {
    let sample = "makina-projects.example: {data: {a: 1}}\nmakina-states.old: {data: {b: 2}}\n\
                  makina-states.services.http.nginx: {data: {c: 3}}\nother: {data: {d: 4}}\n";
    assert_eq!(Made::of(Some(sample), &[]).config(), json!({"a": 1, "b": 2}));
    let pillar = "makina-projects.other: {data: {a: 1}}\nmakina-states.shop: {data: {b: 2, c: old}}\n\
                  makina-projects.shop: {data: {c: new}}\n";
    assert_eq!(Made::of(None, &[(FILE, pillar)]).config(), json!({"b": 2, "c": "new"}));
}

#[test]
fn the_environment_is_the_pillars_own_then_the_pillars_then_the_nodes() {
    let with = |head: &'static str| {
        let made = Made::of(
            Some("makina-projects.x: {env_defaults: {prod: {e: prod}, dev: {e: dev}, qa: {e: qa}}}\n"),
            &[(FILE, head)],
        );
        (made.config()["e"].clone(), made.read().unwrap().project()["default_env"].clone())
    };
    assert_eq!(with(""), (json!("prod"), json!("prod")));
    assert_eq!(with("default_env: dev\n"), (json!("dev"), json!("dev")));
    assert_eq!(with("default_env: dev\nmakina-projects.shop: {default_env: qa}\n"), (json!("qa"), json!("qa")));
}

#[test]
fn names_in_braces_are_resolved_against_the_data_and_then_the_whole() {
    let pillar = "makina-projects.shop:\n  data: {db: '{name}_{kind}', kind: web, root: '{project_root}/src', all: '{list}', list: [a],\
                  \n         over: '{fqdn}', me: '{default_env}'}\n  title: 'the {kind} of {name}'\n";
    let made = Made::of(None, &[(FILE, pillar)]);
    let wanted = json!({
        "title": "the web of shop", "db": "shop_web", "kind": "web", "root": "/srv/projects/shop/run/src", "all": ["a"],
        "list": ["a"], "over": "node.example.org", "me": "prod"
    });
    assert_eq!(made.config(), wanted);
    let plain = Made { merge: Merge::Plain, ..Made::of(None, &[(FILE, pillar)]) };
    assert_eq!(plain.config()["db"], "{name}_{kind}", "a plain pillar is taken as it stands");
}

#[test]
fn words_are_read_by_the_rule_that_holds_and_differences_are_told() {
    let text = "makina-projects.shop: {data: {on: yes, mode: 0755, at: 12:30, plain: 'no'}}\n";
    let salt = Made::of(None, &[(FILE, text)]);
    assert_eq!(salt.config(), json!({"on": true, "mode": 755, "at": 750, "plain": "no"}));
    let plain = Made { merge: Merge::Plain, ..Made::of(None, &[(FILE, text)]) };
    assert_eq!(plain.config(), json!({"on": "yes", "mode": "0755", "at": "12:30", "plain": "no"}));
    let salt = salt.read().unwrap();
    assert_eq!(salt.warnings().len(), 3);
    assert!(
        salt.warnings()[0].starts_with("pillar/init.sls:1:35: this word is read as true, "),
        "{}",
        salt.warnings()[0]
    );
    let plain = plain.read().unwrap();
    assert!(
        plain.warnings()[1].contains("read as a text, Salt and other readers of YAML 1.1 read a number"),
        "{:?}",
        plain.warnings()
    );
    assert!(parse("a: true\nb: 12\nc: text\n").unwrap().warnings().is_empty());
}

#[test]
fn included_files_come_before_the_one_that_includes_them() {
    let first = "include: [base, makina-projects.shop.more.db, .folder]\nmakina-projects.shop: {data: {a: init}}\n";
    let made = Made::of(
        None,
        &[
            (FILE, first),
            ("base.sls", "makina-projects.shop: {data: {a: base, b: base, c: base}}\n"),
            ("more/db.sls", "include: [base]\nmakina-projects.shop: {data: {b: more}}\n"),
            ("folder/init.sls", "makina-projects.shop: {data: {d: folder}}\n"),
        ],
    );
    assert_eq!(made.config(), json!({"a": "init", "b": "more", "c": "base", "d": "folder"}));
    for (text, words) in [
        ("include: [nowhere]\n", "pillar/init.sls:1:1: the pillar has no file for `nowhere`"),
        ("include: ['../x']\n", "is no name of a file"),
        ("a: 1\ninclude: [loop]\n", "pillar/loop.sls:1:1: loop.sls includes itself"),
        ("include: {a: b}\n", "must be a list of names"),
    ] {
        let error = Made::of(None, &[(FILE, text), ("loop.sls", "include: [loop]\n")]).read().unwrap_err();
        assert!(error.message().contains(words), "{text:?}: {error}");
    }
}

#[test]
fn templates_know_the_machine_and_the_defaults_of_the_project() {
    let sample = "makina-projects.x:\n  data:\n    {% for name in ['a', 'b'] %}\n    {{ name }}: {{ grains.os_family }}\n    {% endfor %}\n    {# not 1: yaml #}\n";
    let pillar = "makina-projects.shop:\n  data:\n    {% if grains['os_family'] == 'Debian' %}\n    pkg: apt\n    {% endif %}\n    \
                  host: {{ fqdn }}\n    env: {X: \"{{ environment }}\"}\n    same: {{ opts.default_env }}\n    \
                  a: {{ pillar['makina-projects.x'].data.a | upper }}\n    \
                  got: {{ salt['grains.get']('id') }}-{{ salt['grains.get']('none', 'fallback') }}\n    \
                  keys: {{ grains.keys() | list | length }}\n";
    let made = Made::of(Some(sample), &[(FILE, pillar)]);
    let wanted = json!({
        "a": "DEBIAN", "b": "Debian", "pkg": "apt", "host": "node.example.org", "env": {"X": "prod"}, "same": "prod",
        "got": "node-fallback", "keys": 4
    });
    assert_eq!(made.config(), wanted);
    assert_eq!(made.read().unwrap().exports()["X"], "prod");
    let raw = Made::of(None, &[(FILE, "#!yaml\na: '{{ kept }}'\n")]);
    assert_eq!(raw.config()["a"], "{{ kept }}");
}

#[test]
fn a_password_that_is_made_up_is_a_secret_wherever_it_stands() {
    let text = "makina-projects.shop:\n  data:\n    login: {{ salt['mc_utils.generate_stored_password']('web', 20) }}\n    url: 'x://u:{login}@h'\n";
    let mut made = Made::of(None, &[(FILE, text)]);
    let error = made.read().unwrap_err();
    assert!(error.message().starts_with("pillar/init.sls:3:1: "), "{error}");
    made.facts.passwords = Some(Arc::new(|name, length| Ok(format!("{name}-canary-{length}"))));
    let pillar = made.read().unwrap();
    assert_eq!(pillar.config()["url"], "x://u:web-canary-20@h");
    assert!(pillar.secrets().iter().any(|(_, value)| value == "web-canary-20"));
    assert_eq!(pillar.masked()["url"], "x://u:********@h");
    let shown = format!("{:?} {pillar:?}", pillar.explain("").unwrap());
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn every_value_says_which_layer_and_line_it_comes_from() {
    let made = Made {
        defaults: map(json!({"only_recipe": "r", "only_sample": "r"})),
        ..Made::of(Some(SAMPLE), &[(FILE, LAYERED)])
    };
    let pillar = made.read().unwrap();
    let told = |key: &str| {
        let explained = pillar.explain(key).unwrap();
        assert_eq!((explained.len(), explained[0].key.as_str()), (1, key));
        let said = explained[0].said.iter().map(|said| format!("{} {} {}", said.value, said.place, said.origin.word()));
        said.collect::<Vec<_>>()
    };
    assert_eq!(
        told("os_over_all"),
        [
            r#""po" pillar/init.sls:12 os_defaults"#,
            r#""pe" pillar/init.sls:9 env_defaults"#,
            r#""se" .salt/PILLAR.sample:10 env_defaults"#,
            r#""p" pillar/init.sls:6 data"#,
            r#""s" .salt/PILLAR.sample:7 data"#,
        ]
    );
    assert_eq!(told("only_recipe"), [r#""r" mc_project.yaml defaults of the recipe"#]);
    assert_eq!(told("only_sample")[0], r#""s" .salt/PILLAR.sample:3 data"#);
    assert_eq!(told("opt"), [r#""root" pillar/init.sls:12 os_defaults"#]);
    let deep: Vec<String> = pillar.explain("deep").unwrap().into_iter().map(|one| one.key).collect();
    assert_eq!(deep, ["deep.kept", "deep.replaced", "deep.list"]);
    assert!(pillar.explain("deep.nowhere").is_none());
    let all = pillar.explain("").unwrap();
    assert!(all.iter().all(|one| !one.said.is_empty() && !one.is_resolved), "{all:?}");
}

#[test]
fn a_plain_pillar_stands_over_the_defaults_of_the_recipe() {
    let made = Made {
        defaults: map(json!({"workers": 2, "db": {"host": "localhost", "port": 5432}})),
        ..Made::of(None, &[(FILE, "db: {host: db1}\nword: yes\n")])
    };
    assert_eq!(made.config(), json!({"workers": 2, "db": {"host": "db1", "port": 5432}, "word": "yes"}));
    assert!(!made.read().unwrap().is_makina());
}

#[test]
fn a_sample_as_projects_of_makina_states_write_them_is_read() {
    let sample = "\
# defaults; real passwords belong into the pillar
{#
   also for the machine: {% set mail = 'makina-states.services.mail' %}
   {{ mail }}.domain: x
#}
makina-projects.projectname:
  data:
    app_root: \"{project_root}/src\"
    files:
      {% for name in ['local.py', 'urls.py',] %}
      \"{{name}}\":
        target: \"{app_root}/settings/{{name}}\"
        mode: 640
      {%endfor%}
      unit: {target: \"/etc/{service}.unit\", user: root}
    service: \"{name}-web\"
    #port: {{ 8000 + 1 }}
    cron: \"0 */2 * * *\"
    extent: 924861,6375196,985649,6448688
    settings:
      DEBUG: False
      '()': plain.Key
      '': root
      HOSTS: [localhost, 127.0.0.1, \"{domain}\"]
      SECRET_KEY: \"{{salt['mc_utils.generate_stored_password'](
                             'web_secret_key', 64)}}\"
    domain: \"{fqdn}\"
    admins:
      {% for who in ['sysadmin'] %}
      - {{who}}:
          mail: \"{{who}}+{name}@{fqdn}\"
          password: {{salt['mc_utils.generate_stored_password'](
                             'web_admin_'+who)}}
      {%endfor %}
    empty:
  env_defaults:
    dev:
       testval: fooval
# vim:set ft=sls:
";
    let mut made = Made::of(Some(sample), &[]);
    made.facts.passwords = Some(Arc::new(|name, length| Ok(format!("{name}-{length}"))));
    let config = made.config();
    assert_eq!(config["files"]["urls.py"]["target"], "/srv/projects/shop/run/src/settings/urls.py");
    assert_eq!(
        (&config["files"]["local.py"]["mode"], &config["files"]["unit"]["target"]),
        (&json!(640), &json!("/etc/shop-web.unit"))
    );
    assert_eq!(config["settings"]["HOSTS"], json!(["localhost", "127.0.0.1", "node.example.org"]));
    assert_eq!(config["settings"]["SECRET_KEY"], "web_secret_key-64");
    let admin = json!({"sysadmin": {"mail": "sysadmin+shop@node.example.org", "password": "web_admin_sysadmin-16"}});
    assert_eq!(config["admins"], json!([admin]));
    assert_eq!((&config["extent"], &config["empty"]), (&json!("924861,6375196,985649,6448688"), &Value::Null));
    assert_eq!((&config["settings"][""], &config["settings"]["()"]), (&json!("root"), &json!("plain.Key")));
}

#[test]
fn no_template_exhausts_the_stack_or_the_memory() {
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let most = 60_000;
    for (text, words) in [
        (format!("{deep}\na: 1\n"), "too long"),
        (format!("{}\na: {{{{ ns.x | json }}}}\n", deep.replace("90000", "15000")), ""),
        (format!("{}\na: {{{{ ns.x == ns.x }}}}\n", deep.replace("90000", "15000")), ""),
        (format!("a: {{{{ {}1 }}}}\n", "-".repeat(most)), ""),
        (format!("a: {{{{ {}1 }}}}\n", "1+".repeat(most / 2)), ""),
        (format!("a: {{{{ {}1 }}}}\n", "not ".repeat(most / 4)), ""),
        (format!("a: {{{{ 1{} }}}}\n", "|abs".repeat(most / 4)), ""),
        (format!("a: {{{{ x{} }}}}\n", ".y".repeat(most / 2)), ""),
        (format!("a: {{{{ 'a'{} }}}}\n", " ~ 'a'".repeat(most / 6)), ""),
        (format!("a: {{{{ 1{} }}}}\n", " if 1 else 1".repeat(most / 12)), ""),
        (format!("{}{}a: 1\n", "{% if 1 %}".repeat(most / 21), "{% endif %}".repeat(most / 21)), ""),
        ("a: {{ 'x' * 100000000000 }}\n".to_string(), ""),
        ("a: {{ range(100000000) | list | length }}\n".to_string(), ""),
        (format!("{{% set x = 1 %}}{}", "a".repeat(70_000)), "may have 64 KiB"),
    ] {
        // To come back at all is what counts.
        match parse(&text) {
            Ok(_) => assert!(words.is_empty(), "{}", &text[..60]),
            Err(error) => assert!(error.message().contains(words), "{}: {error}", &text[..60]),
        }
    }
}

#[test]
fn what_is_shown_hides_values_by_their_keys_and_not_where_a_secret_is_found() {
    let text = "db_password: 12345\ntoken: {pin: 1}\nplain: 5\nsecrets: {api: {file: /etc/key}, db_password: {secret: db}, old: short}\n";
    let pillar = parse(text).unwrap();
    let hidden = "********";
    let wanted = json!({
        "db_password": hidden, "token": {"pin": hidden}, "plain": 5,
        "secrets": {"api": {"file": "/etc/key"}, "db_password": {"secret": "db"}, "old": hidden}
    });
    assert_eq!(pillar.masked(), wanted);
    let shown: Vec<(String, Value)> = pillar.explain("").unwrap().into_iter().map(|one| (one.key, one.value)).collect();
    let wanted = [
        ("db_password", json!(hidden)),
        ("token.pin", json!(hidden)),
        ("plain", json!(5)),
        ("secrets.api.file", json!("/etc/key")),
        ("secrets.db_password.secret", json!("db")),
        ("secrets.old", json!(hidden)),
    ];
    assert_eq!(shown, wanted.map(|(key, value)| (key.to_string(), value)));
}

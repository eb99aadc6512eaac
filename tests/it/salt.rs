//! Projects of makina-states, deployed by real Salt: states in the order of their names, the special ones at their places,
//! what they make is part of the release, and what fails is rolled back and told as by any other project.

use std::os::unix::fs::PermissionsExt;

use crate::support::salt::world;
use crate::support::{Mail, World, assert_has, assert_lacks, wait_until};

const SAMPLE: &str = "\
makina-projects.projectname:
  data:
    greeting: 'hello from {name}'
    page: '{project_root}/page.html'
    password: {{ salt['mc_utils.generate_stored_password']('db', 24) }}
  env_defaults:
    staging: {greeting: 'staging of {name}'}
site: {title: of the sample}
";
const PREPARE: &str = "\
{% set cfg = opts.ms_project %}
{% set data = cfg.data %}
{{cfg.name}}-dirs:
  file.directory:
    - makedirs: true
    - names:
      - {{cfg.data_root}}/cache
      - {{cfg.project_root}}/venv/bin
{{cfg.name}}-venv:
  cmd.run:
    - name: echo 'made by {{cfg.name}}' > {{cfg.project_root}}/venv/bin/app
    - creates: {{cfg.project_root}}/venv/bin/app
    - require:
      - file: {{cfg.name}}-dirs
";
const APP: &str = "\
{% set cfg = opts['ms_project'] %}
{{cfg.name}}-page:
  file.managed:
    - name: {{cfg.data.page}}
    - source: salt://makina-projects/{{cfg.name}}/files/page.html
    - template: jinja
    - mode: 640
    - defaults:
        title: {{pillar.site.title}}
  mc_proxy.hook:
    - watch:
      - file: {{cfg.name}}-page
{{cfg.name}}-hi:
  cmd.run:
    - name: echo {{salt['shop_hi.hi']()}} and {{salt['hi.hi']()}}
";
const PAGE: &str = "{{opts.ms_project.data.greeting}} / {{title}} / {{opts.ms_project.default_env}}\n";
const HI: &str = "def hi():\n    return 'hi ' + __opts__['ms_project']['name']\n";

const FILES: [(&str, &str); 6] = [
    (".salt/PILLAR.sample", SAMPLE),
    (".salt/000_prepare.sls", PREPARE),
    (".salt/100_app.sls", APP),
    (".salt/files/page.html", PAGE),
    (".salt/_modules/hi.py", HI),
    ("index.html", "one\n"),
];

/// A shop that is deployed by those files.
fn shop() -> World {
    let world = world();
    let work = world.clone_of("shop");
    work.commit("one", &FILES);
    work.push(&["main"]).ok().tells("post_install").tells("1 step: 6 states, ");
    world.settle("shop");
    world
}

fn log(world: &World) -> String {
    world.mc(&["logs", "shop"]).ok().stdout
}

#[test]
fn a_project_with_states_a_sample_a_task_and_a_module_deploys_fails_rolls_back_and_mails() {
    let world = shop();
    let page = "staging of shop / of the sample / staging\n";
    assert_eq!(world.run_text("shop", "page.html"), page);
    assert_eq!(world.run_path("shop", "page.html").metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert!(world.project("shop").join("data/cache").is_dir());
    let told = log(&world);
    for part in
        ["$ salt:000_prepare", "$ salt:100_app", "| cmd.run: echo hi shop and hi shop", "|   hi shop and hi shop"]
    {
        assert_has(&told, part);
    }
    world.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");
    let left = std::fs::read_dir(world.project("shop").join("build/salt")).unwrap().count();
    assert_eq!(left, 0, "what Salt was given is gone");

    // The next one goes on from what was made; a failure takes everything back, and says which state and why.
    let work = world.checkout_of("shop");
    let venv = world.run_path("shop", "venv/bin/app");
    let bad = "\
before:
  file.managed:
    - name: {{opts.ms_project.project_root}}/index.html
    - contents: broken
broken:
  cmd.run:
    - name: cat {{opts.ms_project.project_root}}/venv/bin/app; echo why it broke >&2; exit 9
after:
  cmd.run:
    - name: 'true'
    - require:
      - cmd: broken
";
    let first = world.serves("shop");
    work.commit("two", &[(".salt/200_bad.sls", bad), ("index.html", "two\n"), (".salt/300_never.sls", bad)]);
    let push = work.push(&["main"]).fails();
    push.rejected("main");
    for part in [
        "salt:200_bad: cmd.run `broken`: exit 9",
        "|   made by shop",
        "|   why it broke",
        "| not run: cmd.run `after`: One or more requisite failed",
    ] {
        assert_has(&push.stderr, part);
    }
    assert_lacks(&push.stderr, "300_never");
    world.settle("shop");
    assert_eq!((world.serves("shop"), world.run_text("shop", "index.html")), (first, "one\n".to_string()));
    assert_eq!(
        (world.run_text("shop", "page.html").as_str(), std::fs::read_to_string(&venv).unwrap().as_str()),
        (page, "made by shop\n")
    );
    let find = || world.mails().into_iter().find(|mail| mail.subject.contains(" at post_install: two"));
    wait_until("the mail has come", || find().is_some());
    let mail = find().unwrap();
    assert_has(&mail.text, "salt:200_bad: cmd.run `broken`: exit 9");
    assert_has(&mail.text, "|   why it broke");

    work.git(&["rm", "-q", ".salt/200_bad.sls", ".salt/300_never.sls"]).ok();
    let edited = PAGE.replace(" / {{title}}", "");
    work.commit("three", &[(".salt/files/page.html", &edited), ("index.html", "three\n")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_eq!(world.run_text("shop", "page.html"), "staging of shop / staging\n");
    assert_eq!(std::fs::read_to_string(&venv).unwrap(), "made by shop\n", "carried into the next version");
    let is_told = |mail: &Mail| mail.text.contains(", #3\n") && mail.text.contains("1 step: 6 states, ");
    wait_until("the mail tells it", || world.mails().iter().any(is_told));

    // By hand: the files that states had made come back too.
    world.mc(&["rollback", "shop"]).ok();
    world.settle("shop");
    assert_eq!(world.run_text("shop", "page.html"), page);
    world.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");
}

#[test]
fn archive_rollback_fixperms_and_notify_have_their_places() {
    let world = world();
    let work = world.clone_of("shop");
    let archive = "\
{% set cfg = opts.ms_project %}
save:
  cmd.run:
    - name: mkdir -p {{cfg.current_archive_dir}}/project && cp -a {{cfg.data_root}}/. {{cfg.current_archive_dir}}/project/
";
    let rollback = "\
{% set cfg = opts.ms_project %}
bring-back:
  cmd.run:
    - name: cp -a {{cfg.current_archive_dir}}/project/. {{cfg.data_root}}/; echo {{cfg.rollback}} > {{cfg.data_root}}/brought-back
";
    let install = "\
{% set cfg = opts.ms_project %}
db:
  file.managed:
    - name: {{cfg.data_root}}/db
    - contents: 'VERSION {{cfg.rollback}}'
";
    let fixperms = "\
{% set locs = salt['mc_locations.settings']() %}
perms:
  cmd.run:
    - name: '{{locs.resetperms}} --fmode 0600 --dmode 0700 --paths {{opts.ms_project.data_root}}'
never:
  cmd.run:
    - name: exit 4
";
    let notify = "\
told:
  file.append:
    - name: {{opts.ms_project.data_root}}/told
    - text: '{{opts.ms_project.deploy_ret.result}} {{opts.ms_project.rollback}}: {{opts.ms_project.deploy_summary}}'
";
    let files = |install: &str| {
        work.commit(
            "version",
            &[
                (".salt/100_db.sls", install),
                (".salt/archive.sls", archive),
                (".salt/rollback.sls", rollback),
                (".salt/fixperms.sls", fixperms),
                (".salt/notify.sls", notify),
            ],
        );
    };
    files(&install.replace("VERSION", "one"));
    let data = |name: &str| std::fs::read_to_string(world.project("shop").join("data").join(name)).unwrap_or_default();
    // What fixperms does wrong is told and changes nothing.
    let push = work.push(&["main"]).ok();
    world.settle("shop");
    assert_has(&push.stderr, "salt:fixperms failed, and changes nothing: cmd.run `never`: exit 4");
    assert_eq!(data("db").trim(), "one False");
    let mode = world.project("shop").join("data/db").metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    wait_until("it is told", || data("told").contains("True False: deployed; run serves"));

    files(&format!("{}fails:\n  cmd.run:\n    - name: 'false'\n", install.replace("VERSION", "two")));
    work.push(&["main"]).fails();
    world.settle("shop");
    assert_eq!((data("db").trim(), data("brought-back").trim()), ("one False", "True"));
    wait_until("it is told", || data("told").contains("False True: rolled back at post_install"));
}

#[test]
fn only_some_states_tasks_and_a_top_file() {
    let world = shop();
    let work = world.checkout_of("shop");
    let mark = |name: &str| {
        format!("{name}:\n  cmd.run:\n    - name: 'echo {name} >> {{{{opts.ms_project.data_root}}}}/ran'\n")
    };
    let task = mark("the-task");
    work.commit(
        "marks",
        &[(".salt/200_a.sls", &mark("a")), (".salt/300_b.sls", &mark("b")), (".salt/task_admin.sls", &task)],
    );
    let ran = || std::fs::read_to_string(world.project("shop").join("data/ran")).unwrap_or_default();
    let told = work.push(&["-o", "only-steps=200_a,400_c", "main"]).fails().stderr;
    assert_has(&told, "only-steps: `400_c` is none of the states that this project installs");
    assert_has(&told, "000_prepare, 100_app, 200_a, 300_b");
    work.push(&["-o", "only-steps=200_a.sls", "main"]).ok();
    assert_eq!(ran(), "a\n");
    world.mc(&["deploy", "shop", "--only", "post_install", "--only-steps", "300_b"]).ok();
    assert_eq!(ran(), "a\nb\n");

    assert_eq!(world.mc(&["task", "shop"]).ok().stdout, "task_admin\n");
    world.mc(&["task", "shop", "admin"]).ok().says("cmd.run: echo the-task");
    world.mc(&["task", "shop", "task_admin.sls"]).ok();
    assert_eq!(ran(), "a\nb\nthe-task\nthe-task\n");
    world.mc(&["task", "shop", "other"]).code(2).says("task_admin");

    // The RFC's form: top.sls alone decides what runs.
    let top = "include:\n  - makina-projects.{{opts.ms_project.name}}.300_b\n";
    work.commit("top", &[(".salt/top.sls", top)]);
    work.push(&["main"]).ok();
    assert_eq!(ran(), "a\nb\nthe-task\nthe-task\nb\n");
}

#[test]
fn states_are_steps_of_a_recipe_too() {
    let world = world();
    let work = world.clone_of("shop");
    let recipe = "\
config: {defaults: {colour: red}}
stages:
  configure: salt:conf
  post_install:
    - echo shell >> $MC_DATA/order
    - {run: 'salt:live', env: {WHO: states}}
tasks: {again: [salt:live]}
";
    let conf = "c:\n  file.managed:\n    - name: {{opts.ms_project.project_root}}/conf\n    - contents: {{opts.ms_project.data.colour}}\n";
    let live = "l:\n  cmd.run:\n    - name: 'echo $WHO >> $MC_DATA/order; echo made > made'\n    - cwd: {{opts.ms_project.project_root}}\n";
    let sample = "makina-projects.x: {data: {colour: blue}}\n";
    work.commit(
        "one",
        &[
            ("mc_project.yaml", recipe),
            (".salt/conf.sls", conf),
            (".salt/live.sls", live),
            (".salt/PILLAR.sample", sample),
        ],
    );
    work.push(&["main"]).ok().tells("2 steps: 1 state, 1 changed something");
    world.settle("shop");
    assert_eq!((world.run_text("shop", "conf").trim(), world.run_text("shop", "made").trim()), ("blue", "made"));
    let order = || std::fs::read_to_string(world.project("shop").join("data/order")).unwrap();
    assert_eq!(order(), "shell\nstates\n");
    world.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");
    world.mc(&["task", "shop", "again"]).ok();
    assert_eq!(order(), "shell\nstates\n\n");

    // A recipe decides itself what is kept from one to the next.
    work.commit("two", &[("mc_project.yaml", "stages: {configure: salt:conf}\n")]);
    work.push(&["main"]).ok();
    assert!(world.run_path("shop", "conf").exists() && !world.run_path("shop", "made").exists());

    // Without anything of makina-states in the pillar everything that it says is data.
    let plain = "p:\n  file.managed:\n    - name: {{opts.ms_project.data_root}}/plain\n    - contents: '{{opts.ms_project.name}} {{opts.ms_project.data.colour}} {{opts.ms_project.user == \"\"}}'\n";
    work.git(&["rm", "-q", ".salt/PILLAR.sample"]).ok();
    let recipe = "config: {defaults: {colour: green}}\nstages: {post_install: salt:plain}\n";
    work.commit("plain", &[("mc_project.yaml", recipe), (".salt/plain.sls", plain)]);
    work.push(&["main"]).ok();
    let plain = std::fs::read_to_string(world.project("shop").join("data/plain")).unwrap();
    assert_eq!(plain.trim(), "shop green False");

    for (recipe, told) in [
        ("stages: {build: salt:none}", "runs salt:none, but the commit has no .salt/none.sls"),
        ("stages: {build: 'salt:a.b'}", "mc_project.yaml:1:17: stages.build: `a.b` is no name of a file of states"),
        ("tasks: {x: salt:none}", "runs salt:none, but the commit has no .salt/none.sls"),
    ] {
        work.commit("bad", &[("mc_project.yaml", recipe)]);
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, told);
    }
}

#[test]
fn without_salt_nothing_begins_and_the_way_to_it_is_named() {
    let world = World::with_config("salt: /nonexistent/salt-call\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("one", &FILES);
    let push = work.push(&["main"]).fails();
    assert_has(
        &push.stderr,
        "refused at accept: /nonexistent/salt-call is no program, but node.yaml names it as `salt`",
    );
    let root = world.root().display().to_string();
    if !["/usr/bin/salt-call", "/opt/saltstack/salt/salt-call"].iter().any(|path| std::path::Path::new(path).exists()) {
        world.configure("{}\n");
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, "this project is deployed by Salt, and there is no salt-call on this node");
        assert_has(&push.stderr, &format!("mc_project --root {root} setup --salt"));
    }
    world.mc(&["doctor"]).ok();
    world.mc(&["setup", "--salt", "--plan"]).ok().says("would install Salt 3");
    assert!(!world.root().join("var/lib/mc_project").exists());
}

#[test]
fn a_developers_machine_runs_the_states_in_the_clone() {
    let world = world();
    world.mc(&["init", "shop", "--environment", "dev"]).ok();
    let work = world.clone_of("shop");
    work.commit("one", &FILES);
    work.push(&["main"]).ok().tells("6 states");
    assert_eq!(world.run_text("shop", "page.html"), "hello from shop / of the sample / dev\n");
    assert_eq!(world.run_text("shop", "venv/bin/app"), "made by shop\n");
    work.commit("two", &[(".salt/files/page.html", "two\n")]);
    work.push(&["main"]).ok();
    assert_eq!(world.run_text("shop", "page.html"), "two\n");
}

#[test]
fn the_links_of_a_project_can_be_taken_away_and_stay_away() {
    let world = World::with_shop();
    let links =
        ["srv/salt/makina-projects/shop", "srv/pillar/makina-projects/shop"].map(|path| world.root().join(path));
    let there = || links.clone().map(|link| link.symlink_metadata().is_ok());
    assert_eq!(there(), [true, true]);
    let told = world.mc(&["unlink", "shop"]).ok().stdout;
    assert!(links.iter().all(|link| told.contains(&format!("unlinked: {}", link.display()))), "{told}");
    world.mc(&["unlink", "shop"]).ok().says("nothing to do");
    world.mc(&["init", "shop"]).ok();
    world.mc(&["doctor"]).ok().says("shop: everything fits together");
    assert_eq!(there(), [false, false]);
    world.mc(&["link", "shop"]).ok();
    assert_eq!(
        (there(), links[1].read_link().unwrap().to_str().unwrap()),
        ([true, true], "../../projects/shop/pillar")
    );

    // What is not ours is left alone.
    std::fs::remove_file(&links[0]).unwrap();
    std::os::unix::fs::symlink("/elsewhere", &links[0]).unwrap();
    world.mc(&["unlink", "shop"]).code(1).says("is no link of this project");
    assert_eq!(there(), [true, true]);
}

/// Kills the worker whose states run; returns where their directories are.
fn kill_worker_among_states(world: &World) -> std::path::PathBuf {
    let salt = world.project("shop").join("build/salt");
    let name = std::fs::read_dir(&salt).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    crate::support::kill_9(name.split('-').next().unwrap().parse().unwrap());
    salt
}

#[test]
fn a_worker_that_dies_among_states_leaves_the_old_version_and_nothing_of_salt() {
    let world = shop();
    let work = world.checkout_of("shop");
    let slow = "slow:\n  cmd.run:\n    - name: 'touch {{opts.ms_project.data_root}}/slow; sleep 1000'\n";
    let first = world.serves("shop");
    work.commit("slow", &[(".salt/500_slow.sls", slow)]);
    let push = work.start_push(&["main"]);
    let begun = world.project("shop").join("data/slow");
    wait_until("the state runs", || begun.exists());
    let salt = kill_worker_among_states(&world);
    push.wait().fails();
    world.settle("shop");
    assert_eq!(world.serves("shop"), first);
    assert!(!begun.exists(), "data are as before");
    world.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");
    work.git(&["rm", "-q", ".salt/500_slow.sls"]).ok();
    work.commit("quick", &[]);
    work.push(&["main"]).ok();
    assert_eq!(std::fs::read_dir(&salt).unwrap().count(), 0);
}

#[test]
fn what_brings_back_needs_nothing_that_was_saved() {
    let world = world();
    let work = world.clone_of("shop");
    let mark = |name: &str| {
        format!(
            "{name}:\n  cmd.run:\n    - name: 'echo {name} {{{{opts.ms_project.rollback}}}} >> {{{{opts.ms_project.projects_dir}}}}/told'\n"
        )
    };
    work.commit(
        "one",
        &[
            (".salt/100_a.sls", &mark("a")),
            (".salt/rollback.sls", &mark("rollback")),
            (".salt/fixperms.sls", &mark("fixperms")),
        ],
    );
    work.push(&["main"]).ok();
    work.commit("two", &[(".salt/200_bad.sls", "bad:\n  cmd.run:\n    - name: 'false'\n")]);
    work.push(&["main"]).fails();
    let told = std::fs::read_to_string(world.root().join("srv/projects/told")).unwrap();
    assert_eq!(told, "a False\nfixperms False\na False\nrollback True\nfixperms True\n");
}

#[test]
fn a_version_that_a_person_keeps_has_what_its_states_made() {
    let world = shop();
    let work = world.checkout_of("shop");
    let slow = "slow:\n  cmd.run:\n    - name: 'echo two > {{opts.ms_project.project_root}}/made; touch {{opts.ms_project.data_root}}/slow; sleep 1000'\n";
    // Its rollback fails, so that a person has to decide.
    let back = "back:\n  cmd.run:\n    - name: 'exit 7'\n";
    work.commit("slow", &[(".salt/500_slow.sls", slow), (".salt/rollback.sls", back)]);
    // The old version's states bring back; it has to have one that fails.
    let first = work.head();
    work.git(&["rm", "-q", ".salt/500_slow.sls"]).ok();
    let base = work.commit("with a rollback that fails", &[]);
    work.push(&["main"]).ok();
    work.git(&["checkout", "-q", &first, "--", ".salt/500_slow.sls"]).ok();
    work.commit("slow again", &[]);
    let push = work.start_push(&["main"]);
    let begun = world.project("shop").join("data/slow");
    wait_until("the state runs", || begun.exists());
    let salt = kill_worker_among_states(&world);
    push.wait().fails();
    wait_until("it needs a person", || world.last("shop").is_some_and(|last| last.needs_person.is_some()));
    assert_eq!(std::fs::read_dir(&salt).unwrap().count(), 0, "nothing of the pillar is left behind");
    world.mc(&["recover", "shop", "--forward"]).ok();
    assert_ne!(world.serves("shop").unwrap(), base);
    assert_eq!(world.run_text("shop", "made"), "two\n");
    world.mc(&["drift", "shop"]).ok().says("run is exactly what was deployed");
    world.mc(&["verify", "shop"]).ok();
}

#[test]
fn links_in_salt_lead_to_files_and_directories_of_the_commit_or_refuse_it_before_anything_changes() {
    let world = world();
    let work = world.clone_of("shop");
    let state = "c:\n  file.managed:\n    - name: {{opts.ms_project.project_root}}/made\n    - source: salt://makina-projects/shop/files/deep/conf\nm:\n  cmd.run:\n    - name: 'echo {{salt[\"own.who\"]()}} {{salt[\"shop_own.who\"]()}} > {{opts.ms_project.data_root}}/who'\n";
    let module = |who: &str| format!("def who(): return '{who}'\n");
    work.commit(
        "one",
        &[
            ("conf/deep/conf", "by a link\n"),
            (".salt/100_a.sls", state),
            (".salt/_modules/own.py", &module("own")),
            // Its own name wins over the one that is made for every module.
            (".salt/_modules/shop_own.py", &module("shops")),
        ],
    );
    std::os::unix::fs::symlink("../conf", work.dir().join(".salt/files")).unwrap();
    work.commit_all("a link");
    work.push(&["main"]).ok();
    assert_eq!(world.run_text("shop", "made"), "by a link\n");
    assert_eq!(std::fs::read_to_string(world.project("shop").join("data/who")).unwrap(), "own shops\n");
    for (target, told) in [
        ("../../outside", "leads out of the commit"),
        ("../nowhere", "not in the commit"),
        ("here", "links without end"),
    ] {
        let _ = std::fs::remove_file(work.dir().join(".salt/here"));
        std::os::unix::fs::symlink(target, work.dir().join(".salt/here")).unwrap();
        work.commit_all("a bad link");
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, told);
        assert_has(&push.stderr, "refused at ");
    }
}

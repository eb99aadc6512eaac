//! Secrets: found when a version is deployed, given to its programs in memory, and nowhere else to be seen.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::{Finished, World, assert_has, assert_lacks, wait_until};

/// Where programs of this node are given their secrets.
fn memory(world: &World) -> PathBuf {
    let node = blake3::hash(std::fs::canonicalize(world.root()).unwrap().as_os_str().as_encoded_bytes()).to_hex();
    let own = format!("mc_project-{}", nix::unistd::geteuid());
    Path::new("/dev/shm").join(own).join(&node.as_str()[..16])
}

/// A node whose secrets in memory are gone with it.
struct Shop(World);

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(memory(&self.0));
    }
}

impl std::ops::Deref for Shop {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl Shop {
    fn new() -> Self {
        Self(World::with_shop())
    }

    /// `secret set` with this value.
    fn set(&self, args: &[&str], value: &str) -> Finished {
        let mut all = vec!["secret", "set"];
        all.extend(args);
        let mut command = self.mc_command(&all);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Finished::of(self.mc_command(&["secret", "list"]))
    }

    fn push_pillar(&self, text: &str) -> Finished {
        let pillar = self.pillar_of("shop");
        pillar.commit("pillar", &[("init.sls", text), ("key.b64", "Y2FuYXJ5LWV4ZWMtNQo=\n")]);
        pillar.push(&["--force", "main"])
    }
}

/// Every secret of the tests, as it is once it was found.
const CANARIES: [&str; 7] = [
    "canary-here-1",
    "canary-kept-2",
    "canary-node-3",
    "canary-file-4",
    "canary-exec-5",
    "canary-unit-6",
    "canary-line-7",
];

/// What only programs may see: digests of what they are given, and that they are given it.
const RECIPE: &str = "\
secrets: {KEPT_TOKEN: kept, FILE_TOKEN: file}
stages:
  configure:
    - sha256sum $MC_SECRETS_DIR/* | sed 's, .*/, ,' > given.txt; stat -c '%a %n' $MC_SECRETS_DIR/* | sed 's,/.*/,,' > modes.txt
    - stat -f -c %T $MC_SECRETS_DIR > where.txt; printf %s \"$KEPT_TOKEN\" | sha256sum > variable.txt
    - \"cat $MC_SECRETS_DIR/*; echo a $KEPT_TOKEN b; cat $MC_SECRETS_DIR/unit >&2\"
    - \"tr '\\\\0' ' ' < /proc/$PPID/cmdline > command.txt; tr '\\\\0' ' ' < /proc/self/cmdline >> command.txt\"
  health: ['test ! -e broken || { echo $FILE_TOKEN; exit 3; }']
";

/// A project with a secret from everywhere.
fn with_all() -> (Shop, String) {
    let shop = Shop::new();
    let file = shop.home().path("token");
    std::fs::write(&file, "canary-file-4\ncanary-line-7\n").unwrap();
    let credentials = shop.root().join("run/credstore");
    std::fs::create_dir_all(&credentials).unwrap();
    std::fs::write(credentials.join("mc_project.shop.unit"), "canary-unit-6").unwrap();
    shop.set(&["kept", "--project", "shop"], "canary-kept-2").ok();
    shop.set(&["node"], "canary-node-3").ok();
    let pillar = format!(
        "secrets:\n  here: canary-here-1\n  kept: {{secret: kept}}\n  node: {{secret: node}}\n  file: {{file: {}}}\n  \
         exec: {{exec: [base64, -d], input: key.b64}}\n  unit: {{credential: unit}}\n  made: {{generate: 40}}\n",
        file.display()
    );
    shop.push_pillar(&pillar).ok();
    (shop, pillar)
}

fn sha256(text: &str) -> String {
    let digest = Finished::of({
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "printf %s \"$0\" | sha256sum | cut -d' ' -f1", text]);
        command
    });
    digest.ok().stdout.trim().to_string()
}

#[test]
fn secrets_come_from_everywhere_and_are_given_as_files_and_variables() {
    let (shop, _) = with_all();
    let work = shop.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", RECIPE)]);
    work.push(&["main"]).ok();
    let given = shop.run_text("shop", "given.txt");
    for (name, value) in [
        ("here", "canary-here-1"),
        ("kept", "canary-kept-2"),
        ("node", "canary-node-3"),
        ("file", "canary-file-4\ncanary-line-7\n"),
        ("exec", "canary-exec-5\n"),
        ("unit", "canary-unit-6"),
    ] {
        assert_has(&given, &format!("{} {name}\n", sha256(value)));
    }
    assert_eq!(given.lines().count(), 7, "{given}");
    assert_eq!(shop.run_text("shop", "variable.txt").split(' ').next().unwrap(), sha256("canary-kept-2"));
    assert!(shop.run_text("shop", "modes.txt").lines().all(|line| line.starts_with("400 ")), "{given}");
    assert_eq!(shop.run_text("shop", "where.txt"), "tmpfs\n");
    let made = shop.mc(&["secret", "get", "made", "--project", "shop"]).ok().stdout;
    assert_eq!(made.len(), 40);
    let listed = shop.mc(&["secret", "list"]).ok().stdout;
    assert_has(&listed, "kept  kept for shop, version 1\n");
    assert_has(&listed, "node  given to shop: version 1 of node, kept for the node\n");
    assert_has(&listed, "file  given to shop: found elsewhere when it was deployed, ");
    shop.settle("shop");
    shop.mc(&["verify", "shop"]).ok();
    shop.mc(&["destroy", "shop", "--yes"]).ok();
    assert!(!memory(&shop).join("shop").exists());
}

/// Every file below a directory that holds one of these texts.
fn holding(dir: &Path, texts: &[&str]) -> Vec<String> {
    let mut command = std::process::Command::new("grep");
    command.args(["-r", "-a", "-l", "-F"]).args(texts.iter().flat_map(|text| ["-e", text])).arg(dir);
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(ToString::to_string).collect()
}

#[test]
fn a_secret_is_found_nowhere_but_where_it_is_kept_and_given() {
    let (shop, _) = with_all();
    let work = shop.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", RECIPE)]);
    let mut told = vec![work.push(&["main"]).ok().to_string()];
    shop.settle("shop");
    // A failed one has a tail, a mail with it, and a restore point that keeps what failed.
    work.commit("broken", &[("broken", "x")]);
    told.push(work.push(&["main"]).fails().to_string());
    shop.settle("shop");
    for args in [
        &["config", "shop"][..],
        &["config", "shop", "--explain"],
        &["status", "shop"],
        &["history", "shop"],
        &["show", "shop", "--log"],
        &["show", "shop", "--json"],
        &["logs", "shop"],
        &["plan", "shop"],
        &["secret", "list", "--json"],
        &["doctor"],
    ] {
        told.push(shop.mc(args).to_string());
    }
    told.extend(shop.mails().iter().map(|mail| format!("{mail:?}")));
    told.push(shop.run_text("shop", "command.txt"));
    for text in &told {
        for canary in CANARIES {
            assert_lacks(text, canary);
        }
    }
    assert!(told[0].contains("[secret]") || shop.mc(&["logs", "shop"]).stdout.contains("[secret]"), "{}", told[0]);
    // What the pillar says itself is in the pillar and in the file of the configuration; nothing else is anywhere.
    let found: Vec<String> = holding(&shop.root(), &CANARIES)
        .into_iter()
        .filter(|path| {
            !["/state/secrets/", "/etc/mc_project/secrets/", "/run/credstore/"].iter().any(|at| path.contains(at))
        })
        .filter(|path| !["/pillar/init.sls", "/build/config/"].iter().any(|at| path.contains(at)))
        .collect();
    assert!(found.is_empty(), "{found:?}");
    let here = holding(&shop.project("shop").join("build/config"), &CANARIES[1..]);
    assert!(here.is_empty(), "{here:?}");
}

#[test]
fn a_rollback_has_the_secrets_of_its_version_or_says_that_it_cannot() {
    let (shop, _) = with_all();
    let work = shop.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", RECIPE)]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    let kept = |shop: &Shop| {
        shop.mc(&["run", "shop", "--", "sh", "-c", "printf %s \"$KEPT_TOKEN\" | sha256sum | cut -d' ' -f1"]).ok().stdout
    };
    let file = |shop: &Shop| {
        shop.mc(&["run", "shop", "--", "sh", "-c", "cat $MC_SECRETS_DIR/file | sha256sum | cut -d' ' -f1"]).ok().stdout
    };
    assert_eq!(kept(&shop).trim(), sha256("canary-kept-2"));
    shop.set(&["kept", "--project", "shop"], "canary-kept-new").says("kept for shop, version 1, 2");
    assert_eq!(kept(&shop).trim(), sha256("canary-kept-2"), "what runs has what it was deployed with");
    std::fs::write(shop.home().path("token"), "canary-file-new").unwrap();
    work.commit("two", &[("a", "2")]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    assert_eq!((kept(&shop).trim(), file(&shop).trim()), (&*sha256("canary-kept-new"), &*sha256("canary-file-new")));

    let back = shop.mc(&["rollback", "shop"]).ok();
    assert_has(&back.to_string(), "the secret file cannot be brought back: it is another now");
    assert_lacks(&back.to_string(), "canary");
    assert_eq!((kept(&shop).trim(), file(&shop).trim()), (&*sha256("canary-kept-2"), &*sha256("canary-file-new")));
    shop.settle("shop");

    // After a reboot memory is empty: what serves is given its secrets again, of the same versions.
    std::fs::remove_dir_all(memory(&shop)).unwrap();
    assert_eq!(kept(&shop).trim(), sha256("canary-kept-2"));
    // What is in memory is not believed when somebody has changed it.
    let dir = std::fs::read_dir(memory(&shop).join("shop")).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(dir.join("kept")).unwrap();
    std::fs::write(dir.join("kept"), "forged").unwrap();
    assert_eq!(kept(&shop).trim(), sha256("canary-kept-2"));
}

#[test]
fn a_secret_that_cannot_be_had_refuses_the_push_before_anything_changes() {
    let shop = Shop::new();
    let work = shop.clone_of("shop");
    work.commit("one", &[("a", "1")]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    let serves = shop.serves("shop");
    work.commit("two", &[("mc_project.yaml", "secrets: {TOKEN: db}\nstages: {build: ['touch built']}\n")]);
    work.push(&["main"]).fails().tells("`secrets.TOKEN` is the secret `db`, which the pillar does not have");
    for (source, told) in [
        ("{secret: nobody}", "secret `db` (secret): nobody has set `nobody` on this node"),
        ("{file: /nowhere/at/all}", "secret `db` (file): there is no file /nowhere/at/all"),
        ("{env: NO_SUCH_VARIABLE}", "secret `db` (env): the node has no variable NO_SUCH_VARIABLE"),
        ("{credential: tls}", "secret `db` (credential): there is no credential `mc_project.shop.tls`"),
        (
            "{exec: [sh, -c, 'echo canary; echo canary >&2; exit 4']}",
            "secret `db` (exec): sh ended with exit 4; run still serves",
        ),
        ("{exec: [no-such-program-here]}", "secret `db` (exec): no-such-program-here ended with"),
        ("{exec: ['true']}", "secret `db` (exec): it is empty"),
        ("{exec: [cat], input: none.age}", "secret `db` (exec): the pillar has no file `none.age`"),
    ] {
        shop.push_pillar(&format!("secrets: {{db: {source}}}\n")).ok();
        let push = work.push(&["main"]).fails().does_not_tell("canary");
        assert!(push.stderr.contains(told), "{told}\n{push}");
        assert_eq!(shop.serves("shop"), serves);
        assert!(!shop.project("shop").join("build/tree/built").exists());
    }
    let bad = shop.push_pillar("secrets: {db: {flie: /x}}\n").fails();
    assert_has(&bad.stderr, "pillar/init.sls:1:11: a secret is a text, or one of");
    shop.mc(&["secret", "get", "nobody"]).code(2).says("nobody has set the secret `nobody`");
    shop.set(&["db", "--project", "shop"], "a\nb\n").ok();
    shop.push_pillar("secrets: {db: {secret: db}}\n").ok();
    work.push(&["main"]).ok();
    shop.mc(&["secret", "remove", "db", "--project", "shop"]).ok().says("what runs has it until");
    assert_lacks(&shop.mc(&["secret", "list"]).ok().stdout, "kept for shop");
}

#[test]
fn a_service_is_given_its_secrets_and_started_again_when_one_changes() {
    let shop = Shop::new();
    shop.set(&["db", "--project", "shop"], "canary-kept-2").ok();
    shop.push_pillar("secrets: {db: {secret: db}}\n").ok();
    let work = shop.clone_of("shop");
    let recipe = "secrets: {TOKEN: db}\nservices:\n  web:\n    dir: data\n    unchanged: leave\n    \
                  run: echo is $TOKEN; printf %s $TOKEN | sha256sum > $MC_DATA/seen; sha256sum < $MC_SECRETS_DIR/db > $MC_DATA/file; exec sleep 1000\n";
    work.commit("one", &[("mc_project.yaml", recipe)]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    let seen = |name: &str| std::fs::read_to_string(shop.project("shop").join("data").join(name)).unwrap_or_default();
    let has = |value: &str| seen("seen").starts_with(&sha256(value)) && seen("file").starts_with(&sha256(value));
    wait_until("the service has it", || has("canary-kept-2"));
    let pid = |shop: &Shop| shop.mc(&["status", "shop", "--json"]).json()["services"][0]["pid"].as_i64().unwrap();
    let first = pid(&shop);
    work.commit("two", &[("a", "2")]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    assert_eq!(pid(&shop), first, "nothing of it changed");
    let told = shop.mc(&["status", "shop"]).ok().stdout;
    assert!(!told.contains("differ") && !told.contains("pillar"), "{told}");
    assert!(memory(&shop).join("shop").read_dir().unwrap().next().is_some(), "what it was given is still there");
    shop.set(&["db", "--project", "shop"], "canary-kept-new").ok();
    shop.mc(&["deploy", "shop", "--force"]).ok();
    shop.settle("shop");
    wait_until("the service has the new one", || has("canary-kept-new"));
    assert_ne!(pid(&shop), first);
    assert_eq!(memory(&shop).join("shop").read_dir().unwrap().count(), 1, "the old one is gone from memory");
    let logs = shop.mc(&["logs", "shop", "--service", "web"]).ok().stdout;
    assert_has(&logs, "is [secret]");
    assert_lacks(&logs, "canary");
    shop.mc(&["stop", "shop"]).ok();
}

#[test]
fn a_version_whose_secret_is_gone_can_still_be_replaced() {
    let shop = Shop::new();
    let file = shop.home().path("token");
    std::fs::write(&file, "canary-file-4").unwrap();
    shop.push_pillar(&format!("secrets: {{db: {{file: {}}}}}\n", file.display())).ok();
    let work = shop.clone_of("shop");
    let recipe = "secrets: {TOKEN: db}\nstages: {stop: ['echo stopped >> $MC_DATA/stops']}\n";
    work.commit("one", &[("mc_project.yaml", recipe)]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    std::fs::remove_file(&file).unwrap();
    std::fs::remove_dir_all(memory(&shop)).unwrap();
    work.commit("same", &[("a", "1")]);
    work.push(&["main"]).fails().tells("secret `db` (file): there is no file");
    shop.push_pillar("secrets: {db: canary-here-1}\n").ok();
    work.push(&["main"]).ok().tells("the stop steps run without secrets");
    shop.settle("shop");
    let stops = std::fs::read_to_string(shop.project("shop").join("data/stops")).unwrap();
    assert_eq!(stops, "stopped\n");
    // Nor is it gone back to: that is refused before anything changes.
    shop.mc(&["rollback", "shop"]).fails().says("secret `db` (file): there is no file");
    shop.mc(&["verify", "shop"]).ok();
}

#[test]
fn what_serves_keeps_its_secrets_whatever_fails_beside_it() {
    let shop = Shop::new();
    let file = shop.home().path("token");
    std::fs::write(&file, "canary-file-4").unwrap();
    shop.push_pillar(&format!("secrets: {{db: {{file: {}}}}}\n", file.display())).ok();
    let work = shop.clone_of("shop");
    let recipe = "services: {web: {dir: data, run: 'while :; do cat $MC_SECRETS_DIR/db > seen || touch lost; sleep 0.1; done'}}\n";
    work.commit("one", &[("mc_project.yaml", recipe)]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    // A reboot empties the memory, and meanwhile the secret has changed.
    std::fs::remove_dir_all(memory(&shop)).unwrap();
    std::fs::write(&file, "canary-file-new").unwrap();
    shop.mc(&["restart", "shop"]).ok();
    let data = shop.project("shop").join("data");
    wait_until("it is given the new one", || {
        std::fs::read(data.join("seen")).is_ok_and(|seen| seen == b"canary-file-new")
    });
    let _ = std::fs::remove_file(data.join("lost"));
    work.commit("broken", &[("mc_project.yaml", &format!("{recipe}stages: {{build: ['false']}}\n"))]);
    work.push(&["main"]).fails();
    shop.settle("shop");
    std::fs::remove_file(data.join("seen")).unwrap();
    wait_until("it reads it again", || data.join("seen").exists());
    assert!(!data.join("lost").exists(), "what it was given was taken away");
    // Nothing of it came to a disk with the definition of the service.
    let kept = holding(&shop.project("shop").join("state"), &["canary"]);
    assert!(kept.is_empty(), "{kept:?}");
    shop.mc(&["stop", "shop"]).ok();
}

#[test]
fn a_secret_of_the_same_name_is_never_taken_for_the_one_that_was_forgotten() {
    let (shop, _) = with_all();
    let work = shop.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", RECIPE)]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    shop.mc(&["secret", "remove", "kept", "--project", "shop"]).ok();
    shop.set(&["kept", "--project", "shop"], "canary-other").says("kept for shop, version 2");
    work.commit("two", &[("a", "2")]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    let back = shop.mc(&["rollback", "shop"]).ok();
    assert_has(&back.to_string(), "the secret kept cannot be brought back: its version 1 is not kept any more");
}

#[test]
fn a_deliverable_with_a_found_secret_is_not_packed() {
    let shop = Shop::new();
    shop.push_pillar("secrets: {made: {generate: 30}}\n").ok();
    let work = shop.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", "stages: {build: ['cat $MC_SECRETS_DIR/made > built.txt']}\n")]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    assert_has(&shop.mc(&["logs", "shop"]).ok().stdout, "built.txt");
    let packed = std::fs::read_dir(shop.project("shop").join("releases")).unwrap().count();
    assert_eq!(packed, 0, "a deliverable holds a secret");
}

#[test]
fn a_password_that_a_template_made_comes_back_with_a_rollback() {
    let shop = Shop::new();
    let text =
        "makina-projects.shop: {data: {login: \"{{ salt['mc_utils.generate_stored_password']('web', 20) }}\"}}\n";
    shop.push_pillar(text).ok();
    let work = shop.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", "stages: {configure: ['cp $MC_CONFIG seen.json']}\n")]);
    work.push(&["main"]).ok();
    shop.settle("shop");
    let given = |shop: &Shop| shop.mc(&["run", "shop", "--", "sh", "-c", "sha256sum < $MC_CONFIG"]).ok().stdout;
    let first = (shop.run_text("shop", "seen.json"), given(&shop));
    shop.set(&["web", "--project", "shop"], "canary-new-password").ok();
    assert_eq!(given(&shop), first.1, "what serves has what it was deployed with");
    shop.mc(&["deploy", "shop", "--force"]).ok();
    shop.settle("shop");
    assert_has(&shop.run_text("shop", "seen.json"), "canary-new-password");
    shop.mc(&["rollback", "shop"]).ok();
    assert_eq!((shop.run_text("shop", "seen.json"), given(&shop)), first);
}

#[test]
fn memory_that_is_somebody_elses_is_neither_used_nor_emptied() {
    let shop = Shop::new();
    let precious = shop.home().path("precious");
    std::fs::create_dir_all(precious.join("shop")).unwrap();
    std::fs::create_dir_all(memory(&shop).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&precious, memory(&shop)).unwrap();
    shop.push_pillar("secrets: {made: {generate: 30}}\n").ok();
    let work = shop.clone_of("shop");
    work.commit("one", &[("a", "1")]);
    work.push(&["main"]).fails();
    shop.mc(&["destroy", "shop", "--yes"]);
    assert!(precious.join("shop").exists(), "a link was followed");
    std::fs::remove_file(memory(&shop)).unwrap();
}

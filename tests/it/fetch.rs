//! Production that fetches over ssh what staging has cooked: two nodes in directories, a real sshd, a wire that can be cut,
//! and servers that lie.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Finished, Relay, Sshd, World, assert_has, assert_lacks};

/// A build whose result is no two times the same and does not pack: the deliverable is as large as this.
const SIZE: u64 = 3_000_000;

fn recipe() -> String {
    format!(
        "stages:\n  build: ['head -c {SIZE} /dev/urandom > blob']\n  stop: ['echo stop >> $MC_DATA/told']\n  start: ['echo start >> $MC_DATA/told']\n"
    )
}

/// Staging that serves a commit, production that may fetch from it through a wire, and the commit.
struct Nodes {
    staging: World,
    production: World,
    sshd: Sshd,
    relay: Relay,
    commit: String,
}

impl Nodes {
    #[track_caller]
    fn new() -> Self {
        Self::with("")
    }

    /// As [`Nodes::new`], with more lines for production's `node.yaml`.
    #[track_caller]
    fn with(more: &str) -> Self {
        let (staging, commit) = World::serving(&[("mc_project.yaml", &recipe()), ("a", "1")]);
        staging.settle("shop");
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
        let keys = staging.home().path("authorized_keys");
        let sshd = Sshd::start_for(staging.home(), &user, &keys, &["UsePAM no", "StrictModes no"]);
        let relay = Relay::to(sshd.port());
        let production = World::with_config(&format!(
            "environment: prod\nrelease_sources: ['ssh://{user}@127.0.0.1:{}/shop']\n{more}",
            relay.port()
        ));
        production.mc(&["init", "shop"]).ok();
        let nodes = Self { staging, production, sshd, relay, commit };
        nodes.let_in(&nodes.served());
        nodes.production.mc(&["keys", "trust", &signing_key(&nodes.staging), "--name", "staging"]).ok();
        nodes.know_host();
        nodes
    }

    /// The forced command of the documents.
    fn served(&self) -> String {
        format!("{} --root {} release serve shop", env!("CARGO_BIN_EXE_mc_project"), self.staging.root().display())
    }

    /// Production's key runs this command on staging, whatever it asks.
    fn let_in(&self, command: &str) {
        let shown = self.production.mc(&["keys", "show", "--json"]).ok().json();
        let line = format!("restrict,command=\"{command}\" {}\n", shown["fetch"].as_str().unwrap());
        std::fs::write(self.staging.home().path("authorized_keys"), line).unwrap();
    }

    /// Production's key runs this script, in which `$REAL` is the true answer to what was asked.
    fn let_in_to(&self, script: &str) {
        let path = self.staging.home().path("hostile.sh");
        let text = format!("#!/bin/sh\nREAL='{}'\nASKED=$SSH_ORIGINAL_COMMAND\n{script}\n", self.served());
        std::fs::write(&path, text).unwrap();
        self.let_in(&format!("sh {}", path.display()));
    }

    fn know_host(&self) {
        let print = host_fingerprint(&self.staging.home().path("sshd/host_key.pub"));
        let node = format!("127.0.0.1:{}", self.relay.port());
        self.production.mc(&["keys", "host", &node, "--fingerprint", &print]).ok().says("is known by");
    }

    /// Pushes to production what staging has.
    #[track_caller]
    fn push(&self) -> Finished {
        let work = self.staging.checkout_of("shop");
        let url = self.production.project("shop").join("git/project");
        work.git(&["remote", "set-url", "node", url.to_str().unwrap()]).ok();
        work.push(&["main"])
    }

    fn releases(&self) -> PathBuf {
        self.production.project("shop").join("releases")
    }

    fn part(&self) -> PathBuf {
        self.releases().join(format!("shop-{}.tar.zst.part", self.commit))
    }

    fn archive(&self) -> PathBuf {
        let name = format!("releases/shop-{}.tar.zst", self.commit);
        self.staging.project("shop").join(name)
    }
}

#[track_caller]
fn signing_key(world: &World) -> String {
    world.mc(&["keys", "show", "--json"]).ok().json()["own"].as_str().unwrap().to_string()
}

#[track_caller]
fn host_fingerprint(public: &Path) -> String {
    let told = std::process::Command::new("ssh-keygen").arg("-lf").arg(public).output().unwrap();
    String::from_utf8(told.stdout).unwrap().split(' ').nth(1).unwrap().to_string()
}

#[test]
fn production_fetches_over_ssh_what_staging_cooked_and_keeps_it_for_the_next_time() {
    let nodes = Nodes::new();
    let Nodes { staging, production, relay, commit, .. } = &nodes;

    let plan = nodes.push_plan();
    assert_has(&plan, "deliverable: ssh://");
    nodes.push().ok().tells("final (prod)").tells("fetching shop-").tells(&format!("run serves {}", &commit[..10]));

    assert_eq!(production.serves("shop").as_deref(), Some(commit.as_str()));
    staging.run_tree("shop").assert_same(&production.run_tree("shop"), "run of the two nodes");
    let came = relay.came_back();
    assert!(came > SIZE && came < SIZE + SIZE / 4, "{came} bytes for an archive of {SIZE}");
    assert!(!nodes.part().exists());

    // The provenance came with it: who cooked what, where, with what.
    let verified = production.mc(&["release", "verify", "shop"]).ok().stdout;
    for part in
        ["made     built in cooking mode", "commit   ", "recipe   blake3 ", "log      blake3 ", ", mc_project 0."]
    {
        assert_has(&verified, part);
    }
    assert_has(&production.mc(&["show", "shop"]).ok().stdout, "built in cooking mode");

    // What is here is not fetched again.
    let before = relay.connections();
    production.mc(&["release", "fetch", "shop", commit]).ok().says("signature and digests good");
    assert_eq!(relay.connections(), before);
}

impl Nodes {
    /// What production would do with the commit.
    #[track_caller]
    fn push_plan(&self) -> String {
        let work = self.staging.checkout_of("shop");
        let url = self.production.project("shop").join("git/project");
        work.git(&["remote", "set-url", "node", url.to_str().unwrap()]).ok();
        work.push(&["-o", "plan", "main"]).ok().remote_text()
    }
}

#[test]
fn a_deliverable_is_fetched_by_hand_before_the_push_needs_it() {
    let nodes = Nodes::new();
    let fetched = nodes.production.mc(&["release", "fetch", "shop"]).ok();
    assert_has(&fetched.stdout, &format!("shop-{}.tar.zst", nodes.commit));
    assert_eq!(nodes.production.serves("shop"), None, "nothing is deployed by it");
    let before = nodes.relay.connections();
    nodes.push().ok().does_not_tell("fetching");
    assert_eq!(nodes.relay.connections(), before);
}

#[test]
fn a_connection_that_is_cut_in_the_middle_goes_on_where_it_ended() {
    let nodes = Nodes::new();
    // Statement, signature and manifest come whole; the archive is cut twice.
    let whole = u64::MAX;
    nodes.relay.cut_after(&[whole, whole, whole, 1_200_000, 900_000, whole]);
    let (before, base) = (nodes.relay.connections(), nodes.relay.came_back());
    nodes.push().ok().tells("trying again in").tells("run serves");
    assert_eq!(nodes.relay.connections() - before, 6);
    let came = nodes.relay.came_back() - base;
    assert!(came < SIZE + SIZE / 4, "{came} bytes came for an archive of {SIZE}: it began anew");
    nodes.staging.run_tree("shop").assert_same(&nodes.production.run_tree("shop"), "run of the two nodes");
}

#[test]
fn what_came_before_every_try_failed_is_kept_and_used_by_the_next_push() {
    let nodes = Nodes::new();
    let before = nodes.production.unchangeable("shop");
    let whole = u64::MAX;
    nodes.relay.cut_after(&[whole, whole, whole, 2_000_000, 0, 0, 0, 0, 0]);
    let (begin, connections) = (Instant::now(), nodes.relay.connections());
    let push = nodes.push().code(1);
    assert_has(&push.rejected("main -> main"), "failed at fetch: cannot fetch from ssh://");
    assert_has(&push.remote_text(), "have come and are kept");
    assert!(begin.elapsed() < Duration::from_mins(1), "{:?}", begin.elapsed());
    // Three small parts, the one that was cut, and four more in vain.
    assert_eq!(nodes.relay.connections() - connections, 8);
    let held = nodes.part().metadata().unwrap().len();
    assert!(held > 1_500_000, "{held}");
    assert_eq!(nodes.production.serves("shop"), None);
    std::fs::rename(nodes.part(), nodes.production.home().path("part")).unwrap();
    before.assert_same(&nodes.production.unchangeable("shop"), "production");
    std::fs::rename(nodes.production.home().path("part"), nodes.part()).unwrap();

    nodes.relay.cut_after(&[]);
    let came = nodes.relay.came_back();
    nodes.push().ok().tells("of it are here already");
    let rest = nodes.relay.came_back() - came;
    assert!(rest < SIZE - held + SIZE / 10, "{rest} bytes came although {held} were here");
}

#[test]
fn a_part_of_another_archive_is_found_out_and_fetched_from_its_beginning() {
    let nodes = Nodes::new();
    std::fs::write(nodes.part(), vec![7; 500_000]).unwrap();
    std::fs::write(nodes.releases().join("shop-0000.tar.zst.part"), "of another time").unwrap();
    nodes.push().ok().tells("once more from its beginning");
    nodes.staging.run_tree("shop").assert_same(&nodes.production.run_tree("shop"), "run of the two nodes");
    assert!(!nodes.releases().join("shop-0000.tar.zst.part").exists());
}

#[test]
fn servers_that_lie_are_refused_and_nothing_is_changed() {
    let nodes = Nodes::with("fetch_within: 8s\n");
    nodes.push().ok();
    let told = nodes.production.project("shop").join("data/told");
    let services = std::fs::read_to_string(&told).unwrap();
    let second = {
        let work = nodes.staging.checkout_of("shop");
        let commit = work.commit("second", &[("a", "2")]);
        work.push(&["main"]).ok();
        nodes.staging.settle("shop");
        commit
    };
    let first = nodes.commit.clone();
    let only = |ending: &str, script: &str| format!("case $ASKED in *' {ending} '*) {script} ;; *) exec $REAL ;; esac");
    let of_first = format!(
        "SSH_ORIGINAL_COMMAND=$(echo \"$ASKED\" | sed s/{second}/{first}/); export SSH_ORIGINAL_COMMAND; exec $REAL"
    );
    let size = "SIZE=$($REAL | head -n1 | cut -d' ' -f4)";
    for (what, script, why) in [
        ("garbage", "echo Welcome to Debian; exec $REAL".to_string(), "what answers is no mc_project"),
        ("a shell", "exec /bin/sh -c true".into(), "refuses"),
        ("another commit", of_first, "is signed as that of"),
        ("no signature", only("sig", "echo mc_project release 1 none"), "signature"),
        ("another signature", only("sig", "$REAL | sed '2s/^..../0000/'"), "no key that this node trusts"),
        (
            "another statement",
            only("json", "$REAL | sed 's/\"entries\": ./\"entries\": 9/'"),
            "no key that this node trusts",
        ),
        ("a path outside", only("manifest", "$REAL | sed 's/blob/..\\/a/'"), "is not the one that was signed"),
        ("a flipped bit", only("tar.zst", "$REAL | tr '\\377' '\\376'"), "is not the one that was signed"),
        (
            "a large statement",
            only("json", "echo mc_project release 1 99999999999; exec cat /dev/zero"),
            "at most 1 MiB",
        ),
        (
            "a larger archive",
            only("tar.zst", &format!("{size}; echo mc_project release 1 $((SIZE+1)); exec cat /dev/zero")),
            "signed are",
        ),
        (
            "an endless archive",
            only("tar.zst", &format!("{size}; echo mc_project release 1 $SIZE; exec cat /dev/zero")),
            "more than it announced",
        ),
        ("silence", only("json", "sleep 60"), "took too long"),
        (
            "one byte after the other",
            only("tar.zst", "$REAL | head -n1; while :; do printf x; sleep 0.1; done"),
            "took too long",
        ),
        ("an end in the middle", only("tar.zst", "$REAL | head -c 70000"), "the connection was lost"),
    ] {
        nodes.let_in_to(&script);
        let before = nodes.production.unchangeable("shop");
        let push = nodes.push().code(1);
        assert_has(&push.rejected("main -> main"), "at fetch");
        assert!(push.remote_text().contains(why), "{what}: no `{why}` in\n{push}");
        assert_eq!(nodes.production.serves("shop").as_deref(), Some(first.as_str()), "{what}");
        let _ = std::fs::remove_file(nodes.releases().join(format!("shop-{second}.tar.zst.part")));
        before.assert_same(&nodes.production.unchangeable("shop"), &format!("production after {what}"));
        assert_eq!(std::fs::read_to_string(&told).unwrap(), services, "{what}: services were not touched");
    }
    // Nothing of all that stays in the way.
    nodes.let_in(&nodes.served());
    nodes.push().ok().tells(&format!("run serves {}", &second[..10]));
}

#[test]
fn what_passes_the_limits_of_the_node_is_refused_before_it_is_downloaded() {
    let nodes = Nodes::with("limits: {bytes: 1MiB}\n");
    let push = nodes.push().code(1);
    assert_has(&push.rejected("main -> main"), "refused at fetch");
    assert_has(&push.remote_text(), "announces");
    assert!(nodes.relay.came_back() < 100_000, "{}", nodes.relay.came_back());
}

#[test]
fn the_preflight_counts_what_will_be_downloaded() {
    let nodes = Nodes::with("projects: {shop: {disk: 5MiB}}\n");
    let push = nodes.push().code(1);
    assert_has(&push.rejected("main -> main"), "refused at accept: no space");
    assert!(nodes.relay.came_back() < 100_000, "{}", nodes.relay.came_back());
}

#[test]
fn a_host_that_is_not_known_a_key_that_is_not_let_in_and_a_commit_that_is_not_there_say_what_to_do() {
    let nodes = Nodes::new();
    let known = nodes.production.root().join("etc/mc_project/keys/known_hosts");
    let good = std::fs::read_to_string(&known).unwrap();

    std::fs::write(&known, "").unwrap();
    let push = nodes.push().code(1);
    assert_has(&push.rejected("main -> main"), "refused at fetch: the ssh key of 127.0.0.1:");
    assert_has(
        &push.remote_text(),
        &format!("mc_project --root {} keys host 127.0.0.1:", nodes.production.root().display()),
    );

    let strangers = signing_line(&nodes.production);
    std::fs::write(&known, format!("[127.0.0.1]:{} {strangers}\n", nodes.relay.port())).unwrap();
    nodes.push().code(1).tells("has another ssh key than the one that is known");
    let asked = nodes.production.mc(&["keys", "host", &format!("127.0.0.1:{}", nodes.relay.port())]).code(2);
    assert_has(&asked.stderr, "shows the key SHA256:");
    assert_has(&asked.stderr, "--fingerprint SHA256:");
    let wrong = ["keys", "host", &format!("127.0.0.1:{}", nodes.relay.port()), "--fingerprint", "SHA256:x"];
    assert_has(&nodes.production.mc(&wrong).code(1).stderr, "has no key with this fingerprint");
    std::fs::write(&known, good).unwrap();

    std::fs::write(nodes.staging.home().path("authorized_keys"), "").unwrap();
    let push = nodes.push().code(1);
    assert_has(&push.remote_text(), "does not let this node in");
    assert_has(&push.remote_text(), "keys add NODE-NAME --project shop --role read --key FILE");

    nodes.let_in(&nodes.served());
    std::fs::remove_file(nodes.archive().with_extension("").with_extension("json")).unwrap();
    let push = nodes.push().code(1);
    assert_has(&push.rejected("main -> main"), "refused at fetch: no deliverable shop-");
    assert_has(&push.remote_text(), "ssh://");
}

/// A public key of ssh that is no host's.
fn signing_line(world: &World) -> String {
    let shown = world.mc(&["keys", "show", "--json"]).ok().json();
    let fetch = shown["fetch"].as_str().unwrap().to_string();
    fetch.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_key_of_a_node_fetches_deliverables_and_does_nothing_else() {
    let nodes = Nodes::new();
    let key = nodes.production.root().join("etc/mc_project/keys/fetch_ed25519");
    let ask = |words: &str| {
        let mut command = nodes.staging.home().command("ssh");
        command.args([
            "-F",
            "/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "IdentityAgent=none",
            "-o",
            "BatchMode=yes",
        ]);
        command.args(["-o", "StrictHostKeyChecking=accept-new", "-o"]);
        command.arg(format!("UserKnownHostsFile={}", nodes.staging.home().path("known").display()));
        command.arg("-i").arg(&key).args(["-p", &nodes.sshd.port().to_string(), "127.0.0.1", words]);
        Finished::of(command)
    };
    assert_has(&ask("release list shop --json").ok().stdout, &nodes.commit);
    assert_has(
        &ask(&format!("release send shop {} json --offset 0", nodes.commit)).ok().stdout,
        "mc_project release 1 ",
    );
    assert_eq!(ask(&format!("release send shop {} json", "0".repeat(40))).ok().stdout, "mc_project release 1 none\n");
    for words in ["", "id", "status shop", "release pack shop", "release list blog --json", "git-upload-pack 'shop'"] {
        let refused = ask(words);
        assert_ne!(refused.exit_code(), Some(0), "{words}");
        assert_lacks(&refused.stdout, "uid=");
        assert_eq!(refused.stdout, "", "{words}");
    }
}

#[test]
fn keys_are_shown_trusted_by_name_and_taken_back() {
    let nodes = Nodes::new();
    let (own, world) = (signing_key(&nodes.staging), &nodes.production);
    let shown = world.mc(&["keys", "show"]).ok().stdout;
    for part in
        [&format!("trusted: {own} ("), ", staging, by keys trust)", "known: [127.0.0.1]:", "fetches with: ssh-ed25519 "]
    {
        assert_has(&shown, part);
    }
    assert_has(&world.mc(&["keys", "trust", "xyz"]).code(3).stderr, "64 hexadecimal digits");
    world.mc(&["keys", "trust", &signing_key(world), "--name", "staging"]).code(2);
    world.mc(&["keys", "distrust", "nobody"]).code(2);
    world.mc(&["keys", "distrust", "staging"]).ok().says("no longer accepted");
    nodes.push().code(1).tells("keys trust");
}

#[test]
#[cfg(feature = "failpoints")]
fn a_fetch_that_is_killed_before_the_end_leaves_what_has_come_and_nothing_that_counts() {
    let nodes = Nodes::new();
    let mut fetch = nodes.production.mc_command(&["release", "fetch", "shop"]);
    fetch.env("MC_FAIL", "fetch.downloaded=kill");
    let killed = Finished::of(fetch);
    assert_eq!(killed.exit_code(), None, "{killed}");
    assert_eq!(nodes.part().metadata().unwrap().len(), nodes.archive().metadata().unwrap().len());
    let came = nodes.relay.came_back();
    nodes.push().ok().tells("of it are here already");
    assert!(nodes.relay.came_back() - came < SIZE / 10, "the archive was fetched again");
    nodes.staging.run_tree("shop").assert_same(&nodes.production.run_tree("shop"), "run of the two nodes");
}

#[test]
fn what_was_fetched_for_a_deployment_that_failed_is_not_fetched_again() {
    let nodes = Nodes::new();
    nodes.push().ok();
    let work = nodes.staging.checkout_of("shop");
    let recipe = format!("{}  upgrade: ['[ $MC_ENV != prod ] || [ -e $MC_DATA/ready ]']\n", recipe());
    let commit = work.commit("needs something in production", &[("mc_project.yaml", &recipe)]);
    work.push(&["main"]).ok();
    nodes.staging.settle("shop");

    assert_has(&nodes.push().code(1).rejected("main -> main"), "rolled back at upgrade");
    nodes.production.settle("shop");
    std::fs::write(nodes.production.project("shop").join("data/ready"), "").unwrap();
    let before = nodes.relay.connections();
    nodes.push().ok().tells(&format!("run serves {}", &commit[..10]));
    assert_eq!(nodes.relay.connections(), before);
}

#[test]
fn what_has_no_room_is_not_fetched_by_hand_either() {
    let nodes = Nodes::with("projects: {shop: {disk: 2MiB}}\n");
    let refused = nodes.production.mc(&["release", "fetch", "shop"]).code(1);
    assert_has(&refused.stderr, "no space: shop may take 2 MiB");
    assert!(!nodes.part().exists());
}

//! From staging to production: two whole machines, each a node, with a wire between them.

use crate::support::server::Server;
use crate::support::{Finished, assert_has, digest};

const RECIPE: &str = "stages:\n  build: ['head -c 3000000 /dev/urandom > blob', 'echo $MC_COMMIT > version']\n";

/// ssh from production to staging with production's own key, as nobody of the program would use it.
fn with_the_nodes_key(production: &Server, words: &str) -> Finished {
    production.machine().run(&format!(
        "ssh -F /dev/null -i /etc/mc_project/keys/fetch_ed25519 -o BatchMode=yes -o IdentitiesOnly=yes \
         -o UserKnownHostsFile=/etc/mc_project/keys/known_hosts mc@10.78.0.1 {words}"
    ))
}

#[test]
fn production_deploys_what_staging_cooked_on_another_machine() {
    let Some(staging) = Server::boot("", &["shop", "blog"]) else { return };
    let Some(production) = Server::boot(
        "environment: prod\nrelease_sources: ['ssh://mc@10.78.0.1/shop']\nprojects: {shop: {disk: 1GiB}}\n",
        &["shop"],
    ) else {
        return;
    };
    staging.machine().join(production.machine());
    staging.let_in("alice", "shop", "deploy");
    production.let_in("alice", "shop", "deploy");

    // Staging cooks.
    let work = staging.work("alice", "shop");
    let commit = work.commit("first version", &[("mc_project.yaml", RECIPE), ("a", "1")]);
    work.push(&["main"]).ok();
    staging.settle("shop");

    // As the README does it: whose signature counts, which machine it is, and who may fetch.
    let of_staging = staging.mc(&["keys", "show", "--json"]).ok().json();
    production.mc(&["keys", "trust", of_staging["own"].as_str().unwrap(), "--name", "staging"]).ok();
    let host = staging.machine().run("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").ok().stdout;
    let print = host.split(' ').nth(1).unwrap();
    let asked = production.mc(&["keys", "host", "10.78.0.1"]).code(2);
    assert_has(&asked.stderr, &format!("10.78.0.1 shows the key {print} (ED25519)"));
    production.mc(&["keys", "host", "10.78.0.1", "--fingerprint", print]).ok();

    // Before production's key is let in, the push says what is missing.
    let to_production = production.work("alice", "shop");
    to_production.git(&["pull", "--quiet", work.dir().to_str().unwrap(), "main"]).ok();
    let push = to_production.push(&["main"]).code(1);
    assert_has(&push.rejected("main -> main"), "refused at fetch: ssh://mc@10.78.0.1/shop does not let this node in");
    assert_eq!(production.serves("shop"), None);

    let key = production.mc(&["keys", "show", "--json"]).ok().json()["fetch"].as_str().unwrap().to_string();
    staging.machine().write("/root/prod.pub", format!("{key}\n"), 0o644);
    staging.mc(&["keys", "add", "prod-node", "--project", "shop", "--role", "read", "--key", "/root/prod.pub"]).ok();

    to_production.push(&["main"]).ok().tells("fetching shop-").tells(&format!("run serves {}", &commit[..10]));
    assert_eq!(production.serves("shop").as_deref(), Some(commit.as_str()));
    let run = |server: &Server| digest(&server.project("shop").join("run"));
    assert_eq!(
        std::fs::read(staging.project("shop").join("run/blob")).unwrap(),
        std::fs::read(production.project("shop").join("run/blob")).unwrap()
    );
    assert_eq!(run(&staging).paths(), run(&production).paths());
    let shown = production.ssh("alice", "show shop").ok().stdout;
    assert_has(&shown, "built in cooking mode on node1");
    assert_has(&shown, "by alice");

    // What the key of production opens on staging: reading, of this project.
    assert_has(&with_the_nodes_key(&production, "release list shop --json").ok().stdout, &commit);
    let sent = with_the_nodes_key(&production, &format!("release send shop {commit} json --offset 0")).ok().stdout;
    assert_has(&sent, "mc_project release 1 ");
    for words in [
        format!("release send blog {commit} json --offset 0"),
        "release list blog".into(),
        format!("release send shop {commit} ../../state/last.json --offset 0"),
        "release pack shop".into(),
        "rollback shop --yes".into(),
        "config shop".into(),
        "git-receive-pack shop".into(),
        "git-upload-pack shop/pillar".into(),
        "sh".into(),
    ] {
        let refused = with_the_nodes_key(&production, &words);
        assert_ne!(refused.exit_code(), Some(0), "{words}");
        assert_eq!(refused.stdout, "", "{words}");
    }

    // A role that was taken away ends it, at the next question.
    staging.mc(&["keys", "remove", "prod-node", "--project", "shop"]).ok();
    let refused = production.mc(&["release", "fetch", "shop", &"0".repeat(40)]).code(1);
    assert_has(&refused.stderr, "refuses: ");
    assert_has(&refused.stderr, "there is no project");
}

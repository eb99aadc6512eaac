//! Production: what was cooked elsewhere is fetched, verified and deployed, and never built.

use std::path::PathBuf;

use crate::support::{World, assert_has, digest};

/// Each build makes another file: were it run twice, the two nodes would differ.
const RECIPE: &str = "stages:\n  build: ['head -c 32 /dev/urandom | od -An -tx1 > built.txt', 'ln -s built.txt link', 'mkdir -p empty/dir']\n";

/// A staging node that has cooked a commit, a production node that may fetch from it, and the commit.
fn staging_and_production() -> (World, World, String) {
    let (staging, commit) = World::serving(&[("mc_project.yaml", RECIPE), ("a", "1"), ("bin/tool", "#!/bin/sh\n")]);
    staging.settle("shop");
    let key = public_key(&staging);
    let production = World::with_config(&format!(
        "environment: prod\nrelease_sources: [{}]\ntrusted_release_keys: [{key}]\n",
        staging.project("shop").join("releases").display()
    ));
    production.mc(&["init", "shop"]).ok();
    (staging, production, commit)
}

#[track_caller]
fn public_key(world: &World) -> String {
    let shown = world.mc(&["keys", "show"]).ok().stdout;
    shown.split_whitespace().last().expect("a key").to_string()
}

/// Pushes to production what staging has.
#[track_caller]
fn push_to(production: &World, staging: &World) -> crate::support::Finished {
    let work = staging.checkout_of("shop");
    let url = production.project("shop").join("git/project");
    work.git(&["remote", "set-url", "node", url.to_str().unwrap()]).ok();
    work.push(&["main"])
}

fn deliverable(world: &World) -> PathBuf {
    let releases = world.project("shop").join("releases");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&releases)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".tar.zst"))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn production_deploys_what_staging_has_cooked_without_building() {
    let (staging, production, commit) = staging_and_production();

    push_to(&production, &staging).ok().tells("final (prod)").tells(&format!("deployed; run serves {}", &commit[..10]));

    assert_eq!(production.serves("shop"), Some(commit));
    staging.run_tree("shop").assert_same(&production.run_tree("shop"), "run of the two nodes");
}

#[test]
fn a_commit_that_nobody_has_cooked_is_refused_with_the_places_that_were_searched() {
    let (staging, production, _) = staging_and_production();
    push_to(&production, &staging).ok();
    let work = production.checkout_of("shop");
    let commit = work.commit("not cooked", &[("a", "2")]);
    let before = production.unchangeable("shop");

    let push = work.push(&["main"]).code(1);

    let reason = push.rejected("main -> main");
    assert!(reason.starts_with("refused at fetch: "), "{reason}");
    assert_has(&push.remote_text(), &commit[..10]);
    assert_has(&push.remote_text(), staging.project("shop").join("releases").to_str().unwrap());
    before.assert_same(&production.unchangeable("shop"), "production");
}

#[test]
fn a_deliverable_that_was_tampered_with_is_refused() {
    for what in ["a flipped bit", "a cut", "no signature", "another signature"] {
        let (staging, production, _) = staging_and_production();
        let file = deliverable(&staging);
        let mut bytes = std::fs::read(&file).unwrap();
        let signature = std::fs::read_dir(file.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_string_lossy().ends_with(".sig"))
            .expect("a signature beside the deliverable");
        match what {
            "a flipped bit" => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&file, bytes).unwrap();
            }
            "a cut" => std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap(),
            "no signature" => std::fs::remove_file(signature).unwrap(),
            _ => {
                let text = std::fs::read(&signature).unwrap();
                std::fs::write(&signature, text.iter().rev().copied().collect::<Vec<u8>>()).unwrap();
            }
        }
        let before = production.unchangeable("shop");

        let push = push_to(&production, &staging).code(1);

        assert_has(&push.rejected("main -> main"), "refused at fetch");
        before.assert_same(&production.unchangeable("shop"), &format!("production after {what}"));
        assert_eq!(production.serves("shop"), None, "{what}");
    }
}

#[test]
fn a_deliverable_of_a_stranger_is_refused() {
    let (staging, _, _) = staging_and_production();
    let stranger = World::with_shop();
    let production = World::with_config(&format!(
        "environment: prod\nrelease_sources: [{}]\ntrusted_release_keys: [{}]\n",
        staging.project("shop").join("releases").display(),
        public_key(&stranger),
    ));
    production.mc(&["init", "shop"]).ok();
    let push = push_to(&production, &staging).code(1);
    assert_has(&push.rejected("main -> main"), "refused at fetch");
    assert_has(&push.remote_text(), "keys trust");
}

#[test]
fn production_without_a_source_of_releases_cooks_and_says_so() {
    let world = World::with_config("environment: prod\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", RECIPE)]);
    let push = work.push(&["main"]).ok().tells("cooking (prod)").tells("release_sources");
    assert!(world.run_path("shop", "built.txt").exists(), "{push}");
}

#[test]
fn the_same_tree_packs_into_the_same_bytes() {
    let (world, _) = World::serving(&[("a", "1"), ("b/c", "#!/bin/sh\n")]);
    world.settle("shop");
    let first = std::fs::read(deliverable(&world)).unwrap();
    world.mc(&["release", "pack", "shop"]).ok();
    assert!(first == std::fs::read(deliverable(&world)).unwrap(), "packed again, the bytes differ");
    world.mc(&["release", "verify", "shop"]).ok();
}

#[test]
fn a_deliverable_holds_neither_configuration_nor_secrets() {
    let world = World::with_shop();
    let pillar = world.pillar_of("shop");
    pillar.commit("secrets", &[("init.sls", "password: correct-horse-battery\n")]);
    pillar.push(&["main"]).ok();
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", "stages: {configure: ['cp $MC_CONFIG config.json']}\n"), ("a", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_has(&world.run_text("shop", "config.json"), "correct-horse");
    let unpacked = world.home().path("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let mut tar = world.home().command("tar");
    tar.args(["--zstd", "-xf"]).arg(deliverable(&world)).arg("-C").arg(&unpacked);
    crate::support::Finished::of(tar).ok();
    let paths = digest(&unpacked).paths();
    assert!(!paths.iter().any(|path| path.ends_with("config.json")), "{paths:?}");

    // A build that writes a secret into the tree makes no deliverable.
    let pushed = work.commit("leak", &[("mc_project.yaml", "stages: {build: ['cp $MC_CONFIG leak.json']}\n")]);
    work.push(&["main"]).ok().does_not_tell("correct-horse");
    world.settle("shop");
    let told = world.mc(&["logs", "shop"]).ok().stdout;
    assert_has(&told, "leak.json");
    assert!(!told.contains("correct-horse"), "{told}");
    assert_eq!(world.serves("shop"), Some(pushed), "packing can only warn");
}

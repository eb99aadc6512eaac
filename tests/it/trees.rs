//! The tree engine against rsync: random trees, the strictest rsync as oracle.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use mc_project::sys::dir::Dir;
use mc_project::tree::scan::{Own, identify};
use mc_project::tree::store::{Held, Store, Supply};
use mc_project::tree::sync::{Keeping, Plan, Target, apply, seal};
use proptest::prelude::*;

/// One thing in a random tree.
#[derive(Debug, Clone)]
enum Thing {
    File { content: Vec<u8>, mode: u32, mtime: u32, xattr: Option<u8> },
    Link(String),
    HardLinkToFirst,
    Dir { mode: u32 },
    Fifo,
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        6 => (prop::collection::vec(any::<u8>(), 0..40), prop::sample::select(vec![0o644, 0o755, 0o600, 0o444, 0o4755]), 1_000_000_000_u32..1_000_000_004, prop::option::of(0_u8..3))
            .prop_map(|(content, mode, mtime, xattr)| Thing::File { content, mode, mtime, xattr }),
        2 => prop::sample::select(vec!["a", "../a", "/etc/passwd", "no where"]).prop_map(|t| Thing::Link(t.to_string())),
        2 => Just(Thing::HardLinkToFirst),
        3 => prop::sample::select(vec![0o755, 0o700, 0o555, 0o2775]).prop_map(|mode| Thing::Dir { mode }),
        1 => Just(Thing::Fifo),
    ]
}

/// Names are few, so that two random trees have much in common.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        b"a".to_vec(),
        b"b".to_vec(),
        b"a-b".to_vec(),
        b"sp ace".to_vec(),
        b"\xff\xfe".to_vec(),
        b"new\nline".to_vec(),
    ])
}

fn tree() -> impl Strategy<Value = BTreeMap<Vec<Vec<u8>>, Thing>> {
    prop::collection::btree_map(prop::collection::vec(name(), 1..4), thing(), 0..14)
}

/// Builds a tree; `specials` says whether fifos are made (a source has none).
fn build(root: &Path, things: &BTreeMap<Vec<Vec<u8>>, Thing>, specials: bool) {
    let mut first: Option<PathBuf> = None;
    let mut modes = Vec::new();
    for (names, thing) in things {
        let mut path = root.to_path_buf();
        for parent in &names[..names.len() - 1] {
            path.push(std::ffi::OsStr::from_bytes(parent));
            if !path.is_dir() || path.is_symlink() {
                break;
            }
        }
        let parent_is_dir = names.len() == 1
            || (path.is_dir()
                && !path.is_symlink()
                && path.components().count() == root.components().count() + names.len() - 1);
        let path = path.join(std::ffi::OsStr::from_bytes(names.last().unwrap()));
        if !parent_is_dir || path.symlink_metadata().is_ok() {
            continue;
        }
        match thing {
            Thing::File { content, mode, mtime, xattr } => {
                std::fs::write(&path, content).unwrap();
                if let Some(value) = xattr {
                    rustix::fs::setxattr(&path, "user.test", &[*value], rustix::fs::XattrFlags::empty()).unwrap();
                }
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(*mtime));
                std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
                first.get_or_insert(path);
            }
            Thing::Link(target) => symlink(target, &path).unwrap(),
            Thing::HardLinkToFirst => {
                if let Some(first) = &first {
                    std::fs::hard_link(first, &path).unwrap();
                }
            }
            Thing::Dir { mode } => {
                std::fs::create_dir(&path).unwrap();
                modes.push((path, *mode));
            }
            Thing::Fifo if specials => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            Thing::Fifo => {}
        }
    }
    for (path, mode) in modes {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Makes `to` what `from` is with the engine: contents go through a store, as in a deployment.
fn sync(from: &Path, to: &Path, store: &Path, take: bool) {
    let own = Own::current();
    let (from, to) = (Dir::open(from).unwrap(), Dir::open(to).unwrap());
    let store = Store::open(store).unwrap();
    let wanted = identify(&from, own, None, &|_| true).unwrap().manifest;
    for entry in wanted.entries().filter(|e| e.hash().is_some()) {
        store.add(&mut from.open_file(entry.path.as_path()).unwrap()).unwrap();
    }
    let actual = identify(&to, own, None, &|_| true).unwrap();
    let plan = Plan::new(&actual, &wanted).unwrap();
    let mut supply = Supply::new(&store, vec![Held::new(&to, &actual.manifest)]);
    if take {
        supply = supply.taking(&wanted);
    }
    let target = Target { tree: &to, own, point: "candidate.applying" };
    apply(&target, &plan, &mut supply, &Keeping { store: Some(&store), aside: None }).unwrap();
    seal(&to, own, &wanted).unwrap();
    let again = Plan::new(&identify(&to, own, None, &|_| true).unwrap(), &wanted).unwrap();
    assert!(again.is_empty(), "a second sync has nothing to do: {again:?}");
}

/// What the strictest rsync would still change.
fn rsync_differences(from: &Path, to: &Path) -> String {
    let slash = |path: &Path| format!("{}/", path.display());
    let out = Command::new("rsync")
        .args(["-ani", "-HAX", "--delete", "--checksum", "--numeric-ids"])
        .args([slash(from), slash(to)])
        .output()
        .expect("rsync is installed by tests/run");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    // The time of the roots themselves is not part of a tree.
    text.lines().filter(|line| !line.ends_with(" ./")).collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if std::env::var("MC_TEST_FULL").is_ok() { 2000 } else { 120 }, ..ProptestConfig::default() })]

    #[test]
    fn a_sync_leaves_nothing_for_rsync_to_do(old in tree(), new in tree(), take in any::<bool>()) {
        let temp = tempfile::tempdir().unwrap();
        let [from, to, store] = ["from", "to", "store"].map(|name| temp.path().join(name));
        for dir in [&from, &to, &store] {
            std::fs::create_dir(dir).unwrap();
        }
        build(&from, &new, false);
        build(&to, &old, true);
        sync(&from, &to, &store, take);
        prop_assert_eq!(rsync_differences(&from, &to), "");
        // No content of the store is reachable from the tree.
        for entry in std::fs::read_dir(&store).unwrap() {
            prop_assert_eq!(entry.unwrap().metadata().unwrap().nlink(), 1);
        }
    }
}

#[test]
fn the_oracle_sees_a_difference() {
    let temp = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| temp.path().join(name));
    for dir in [&from, &to] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("f"), "x").unwrap();
    }
    std::fs::set_permissions(to.join("f"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(rsync_differences(&from, &to).contains(" f"));
}

#[test]
fn a_file_with_a_name_outside_of_the_tree_is_replaced() {
    let temp = tempfile::tempdir().unwrap();
    let [from, to, store] = ["from", "to", "store"].map(|name| temp.path().join(name));
    for dir in [&from, &to, &store] {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::write(from.join("f"), "x").unwrap();
    std::fs::write(temp.path().join("outside"), "x").unwrap();
    std::fs::hard_link(temp.path().join("outside"), to.join("f")).unwrap();
    sync(&from, &to, &store, false);
    assert_eq!(std::fs::metadata(to.join("f")).unwrap().nlink(), 1);
}

//! Manifests and lists of changes: what is read is written the same, and nothing in it leaves the tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::tree::manifest::{Content, Manifest};
use mc_project_fuzz::archive::closed;
use mc_project_fuzz::{Input, assert_error, deployment};

fn assert_tree(manifest: &Manifest) {
    let again = Manifest::from_text(&manifest.to_text()).expect("our own text");
    assert_eq!(&again, manifest);
    assert_eq!(again.to_text(), manifest.to_text());
    assert_eq!(again.tree_digest(), manifest.tree_digest());
    assert!(manifest.entries().is_sorted_by(|one, other| one.path < other.path), "each path once, in order");
    assert_eq!(manifest.entries().count(), manifest.len());
    for entry in manifest.entries() {
        let names: Vec<&[u8]> = entry.path.as_bytes().split(|byte| *byte == b'/').collect();
        assert!(names.iter().all(|name| !matches!(*name, b"" | b"." | b"..") && !name.contains(&0)));
        if let Some(parent) = entry.path.parent() {
            assert!(manifest.get(&parent).is_some_and(|parent| parent.is_dir()), "{entry:?}");
        }
        if let Some(leader) = &entry.hard_link {
            let leader = manifest.get(leader).expect("a hard link is another name of something in the tree");
            assert!(leader.hard_link.is_none() && leader.path < entry.path && leader.content == entry.content);
            assert!(matches!(entry.content, Content::File { .. }), "{entry:?}");
        }
    }
    let _ = (manifest.files(), manifest.bytes(), manifest.hashes().count());
    assert!(manifest.without_privileges().entries().all(|entry| !entry.has_privileges()));
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let (first, second) = (input.until(b"\n\n"), input.0);
    let text = |body: &[u8], head: &str| {
        let body = String::from_utf8_lossy(body);
        if choice & 1 == 0 { body.into_owned() } else { closed(head, &body) }
    };
    let one = match Manifest::from_text(&text(first, "mc_project manifest 1")) {
        Ok(manifest) => manifest,
        Err(error) => return assert_error(&error),
    };
    assert_tree(&one);
    let changes = text(second, &format!("mc_project changes 1 {}", deployment()));
    let _ = Manifest::changes_against(&changes);
    match one.with_changes(&changes) {
        Ok(changed) => {
            assert_tree(&changed);
            let told = changed.to_changes(&one, &deployment());
            assert_eq!(one.with_changes(&told).expect("our own changes"), changed);
            assert_eq!(Manifest::changes_against(&told).expect("our own changes"), Some(deployment()));
        }
        Err(error) => assert_error(&error),
    }
});

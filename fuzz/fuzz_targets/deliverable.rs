//! Deliverables of an author with a good key who means harm: whatever is unpacked is exactly what the manifest says and
//! what another reader finds in the archive, and nothing is written anywhere else.
#![no_main]

use std::collections::BTreeMap;
use std::io::Read;

use libfuzzer_sys::fuzz_target;
use mc_project::tree::deliverable::Limits;
use mc_project::tree::hash::Hash;
use mc_project::tree::manifest::{Content, Manifest};
use mc_project::tree::store::Store;
use mc_project_fuzz::archive::{Bench, closed, with_checksums};
use mc_project_fuzz::{Input, assert_error};

const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20 };

/// What another reader of archives finds: the contents by path.
fn read_otherwise(tar: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    for member in tar::Archive::new(tar).entries().expect("an archive") {
        let mut member = member.expect("a member");
        let mut content = Vec::new();
        member.read_to_end(&mut content).expect("its content");
        let path = member.path_bytes().into_owned();
        assert!(found.insert(path, content).is_none(), "a member stands twice");
    }
    found
}

fn assert_same(manifest: &Manifest, tar: &[u8]) {
    let found = read_otherwise(tar);
    assert_eq!(found.len(), manifest.len());
    for entry in manifest.entries() {
        let content = found.get(entry.path.as_bytes()).expect("every entry is a member");
        match (&entry.content, &entry.hard_link) {
            (Content::File { size, hash }, None) => {
                assert_eq!((content.len() as u64, Hash::of(content)), (*size, *hash));
            }
            _ => assert!(content.is_empty()),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let manifest = closed("mc_project manifest 1", &String::from_utf8_lossy(input.until(b"\n\n")));
    let mut tar = input.0.to_vec();
    if choice & 1 != 0 {
        with_checksums(&mut tar);
    }
    let packed = if choice & 2 == 0 { zstd::encode_all(tar.as_slice(), 1).expect("compressed") } else { tar.clone() };
    let bench = Bench::get();
    let Some(found) = bench.sign(&manifest, &packed) else { return };
    let keys = bench.deliverable().1;
    let (statement, manifest) = match found.verify(&keys) {
        Ok(verified) => verified,
        Err(error) => return assert_error(&error),
    };
    let into = bench.dir.join("store");
    let _ = std::fs::remove_dir_all(&into);
    std::fs::create_dir(&into).expect("a directory");
    let store = Store::open(&into).expect("a store");
    let checked = found.check_archive(&statement, &manifest);
    let unpacked = found.unpack(&statement, &manifest, &store, LIMITS, &|_| Ok(true));
    if let Err(error) = &unpacked {
        assert_error(error);
    }
    let within = manifest.len() <= LIMITS.entries && manifest.bytes() <= LIMITS.bytes;
    assert_eq!(unpacked.is_ok(), checked.is_ok() && within);
    let mut names: Vec<_> =
        std::fs::read_dir(&bench.dir).expect("a directory").map(|e| e.expect("a file").file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 6, "nothing beside the store: {names:?}");
    let mut total = 0;
    for file in std::fs::read_dir(&into).expect("a directory") {
        let file = file.expect("a file");
        let content = std::fs::read(file.path()).expect("a file");
        total += content.len();
        assert_eq!(file.file_name().to_str(), Some(Hash::of(&content).hex().as_str()), "it bears its digest");
    }
    assert!(total as u64 <= LIMITS.bytes + LIMITS.entries as u64);
    if unpacked.is_ok() {
        assert_same(&manifest, &zstd::decode_all(packed.as_slice()).expect("it was accepted"));
        assert!(manifest.hashes().all(|hash| store.contains(&hash).expect("a store")));
    }
});

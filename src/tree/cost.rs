//! What kept releases and restore points cost: alone, shared with others, and what removing one would give back.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::hash::Hash;
use super::manifest::Manifest;
use super::store::Store;
use crate::sys::dir::Dir;
use crate::sys::error::Result;

/// The unit in which file systems give out space.
const BLOCK: u64 = 4096;

/// What one kept thing costs, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// What its tree would take if it stood alone: derived from its manifest, sizes in whole blocks.
    pub alone: u64,
    /// Of this, contents that another one of its kind needs too: derived as well.
    pub shared: u64,
    /// What removing it would give back: measured, as the contents in the pool that nobody else needs.
    pub frees: u64,
}

/// The contents that a kept thing needs.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Contents with their sizes.
    contents: HashMap<Hash, u64>,
    alone: u64,
}

impl Wanted {
    /// The contents of a manifest, and of another one of the same thing (the tree at the end of the build).
    #[must_use]
    pub fn new(manifest: &Manifest, other: Option<&Manifest>) -> Self {
        let mut alone = BLOCK;
        for entry in manifest.entries().filter(|entry| entry.hard_link.is_none()) {
            alone += match entry.hash() {
                Some(_) => entry.size().div_ceil(BLOCK) * BLOCK,
                None if entry.is_dir() => BLOCK,
                None => 0,
            };
        }
        let all = manifest.entries().chain(other.iter().flat_map(|other| other.entries()));
        Self { contents: all.filter_map(|entry| Some((entry.hash()?, entry.size()))).collect(), alone }
    }
}

/// The cost of each of several kept things whose contents lie in a pool; what is `elsewhere` is in a tree too
/// and is not given back.
///
/// # Errors
/// If the pool cannot be examined.
pub fn costs(all: &[Wanted], pool: &Path, elsewhere: &dyn Fn(&Hash) -> bool) -> Result<Vec<Cost>> {
    let store = Store::open(pool)?;
    let mut users: HashMap<Hash, usize> = HashMap::new();
    for hash in all.iter().flat_map(|wanted| wanted.contents.keys()) {
        *users.entry(*hash).or_default() += 1;
    }
    let mut found = Vec::with_capacity(all.len());
    for wanted in all {
        let mut cost = Cost { alone: wanted.alone, ..Cost::default() };
        for (hash, size) in &wanted.contents {
            if users.get(hash).is_some_and(|count| *count > 1) {
                cost.shared += size.div_ceil(BLOCK) * BLOCK;
            } else if !elsewhere(hash) {
                cost.frees += in_pool(store.dir(), hash)?;
            }
        }
        cost.shared = cost.shared.min(cost.alone);
        found.push(cost);
    }
    Ok(found)
}

/// The disk space of a content in the pool; 0 where it is not there.
fn in_pool(pool: &Dir, hash: &Hash) -> Result<u64> {
    Ok(pool.stat(Path::new(&hash.hex()))?.map_or(0, |meta| meta.disk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::scan::{Own, identify};

    fn manifest(files: &[(&str, &str)]) -> Manifest {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        identify(&Dir::open(dir.path()).unwrap(), Own::current(), None, &|_| true).unwrap().manifest
    }

    #[test]
    fn what_is_shared_is_not_given_back_and_what_is_alone_in_the_pool_is() {
        let big = "b".repeat(10_000);
        let one = manifest(&[("same", "s"), ("own", &big)]);
        let two = manifest(&[("same", "s"), ("other", "o"), ("in-tree", "t")]);
        let pool = tempfile::tempdir().unwrap();
        let store = Store::open(pool.path()).unwrap();
        for text in ["s", "o", &big] {
            store.add(&mut text.as_bytes()).unwrap();
        }
        let wanted = [Wanted::new(&one, None), Wanted::new(&two, None)];
        let found = costs(&wanted, pool.path(), &|hash| *hash == Hash::of(b"o")).unwrap();
        assert_eq!(found[0], Cost { alone: 3 * BLOCK + 2 * BLOCK, shared: BLOCK, frees: 3 * BLOCK });
        // `o` is in a tree too and `t` only in a tree: nothing of them is given back.
        assert_eq!(found[1], Cost { alone: 4 * BLOCK, shared: BLOCK, frees: 0 });
    }
}

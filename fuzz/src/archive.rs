//! Manifests with their last line, and deliverables around bytes that came from elsewhere.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mc_project::project::ids::{ObjectId, ProjectName};
use mc_project::sys::keys::{ReleaseKey, TrustedKeys};
use mc_project::tree::deliverable::{Deliverable, Statement};
use mc_project::tree::hash::Hash;
use mc_project::tree::manifest::Manifest;

/// A manifest, or a list of changes, with this first line and these lines, and the last line that makes it whole.
pub fn closed(head: &str, lines: &str) -> String {
    let lines = lines.strip_suffix('\n').unwrap_or(lines);
    let body = if lines.is_empty() { format!("{head}\n") } else { format!("{head}\n{lines}\n") };
    let count = body.lines().count() - 1;
    format!("{body}end {count} {}\n", Hash::of(body.as_bytes()).hex())
}

/// A directory for a target, in memory where that is possible, and a key that the node trusts.
pub struct Bench {
    /// The directory.
    pub dir: PathBuf,
    key: ReleaseKey,
}

impl Bench {
    /// The one of this process.
    pub fn get() -> &'static Self {
        static BENCH: OnceLock<Bench> = OnceLock::new();
        BENCH.get_or_init(|| {
            let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
            let dir = tempfile::Builder::new().prefix("mc_project-fuzz-").tempdir_in(base).expect("a directory").keep();
            let key = ReleaseKey::load_or_make(&dir.join("key")).expect("a key");
            Self { dir, key }
        })
    }

    /// The deliverable's place, and the keys that trust it.
    pub fn deliverable(&self) -> (Deliverable, TrustedKeys) {
        let (project, commit) = named();
        (Deliverable::new(&self.dir, &project, &commit), TrustedKeys::new(vec![self.key.public()]))
    }

    /// Puts a deliverable together around a manifest and an archive, and signs it: an author with a good key who means
    /// harm. `None` if the manifest is none.
    pub fn sign(&self, manifest: &str, archive: &[u8]) -> Option<Deliverable> {
        let read = Manifest::from_text(manifest).ok()?;
        let (project, commit) = named();
        let statement = Statement {
            format: 1,
            project,
            commit,
            commit_time: 0,
            tree: read.tree_digest().hex(),
            manifest: Hash::of(manifest.as_bytes()).hex(),
            archive: Hash::of(archive).hex(),
            size: archive.len() as u64,
            entries: read.len(),
            bytes: read.bytes(),
            provenance: None,
        };
        let json = serde_json::to_vec(&statement).expect("JSON");
        let found = self.deliverable().0;
        let put = |ending: &str, bytes: &[u8]| std::fs::write(found.file(ending), bytes).expect("space");
        put("tar.zst", archive);
        put("manifest", manifest.as_bytes());
        put("json", &json);
        put("sig", self.key.sign(&json).as_bytes());
        Some(found)
    }
}

fn named() -> (ProjectName, ObjectId) {
    ("shop".parse().expect("a name"), "c".repeat(40).parse().expect("an id"))
}

/// Gives every block that looks like a header its right checksum, so that what was changed in it is read.
pub fn with_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

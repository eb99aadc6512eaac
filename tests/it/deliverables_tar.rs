//! Deliverables against GNU tar: nothing is accepted that tar does not extract to exactly the tree that we make of it, and no
//! archive costs more than it says.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mc_project::project::ids::{ObjectId, ProjectName};
use mc_project::sys::dir::Dir;
use mc_project::sys::keys::{ReleaseKey, TrustedKeys};
use mc_project::sys::path::TreePath;
use mc_project::tree::deliverable::{Deliverable, Limits, Packing, Statement};
use mc_project::tree::hash::Hash;
use mc_project::tree::manifest::{Content, Entry, Manifest, Stamp};
use mc_project::tree::scan::{Identified, Own};
use mc_project::tree::store::{Store, Supply};
use mc_project::tree::sync::{Keeping, Plan, Target, apply};
use proptest::prelude::{Just, Strategy, any};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::{self, Record, Tree, digest};

/// A key that the node trusts, in the hands of somebody who means harm.
struct Author {
    dir: tempfile::TempDir,
    key: ReleaseKey,
}

impl Author {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let key = ReleaseKey::load_or_make(&dir.path().join("key")).unwrap();
        Self { dir, key }
    }

    fn deliverable(&self) -> Deliverable {
        Deliverable::new(self.dir.path(), &name(), &commit())
    }

    /// A store of its own for one case.
    fn store(&self, called: &str) -> Store {
        let at = self.dir.path().join(called);
        let _ = std::fs::remove_dir_all(&at);
        std::fs::create_dir(&at).unwrap();
        Store::open(&at).unwrap()
    }

    /// Packs a tree as a node does; the archive before it is compressed.
    fn pack(&self, tree: &[(Entry, Vec<u8>)]) -> (Manifest, Vec<u8>) {
        let store = self.store("pool");
        for (_, content) in tree {
            store.add(&mut content.as_slice()).unwrap();
        }
        let manifest = Manifest::new(tree.iter().map(|(entry, _)| entry.clone()).collect()).unwrap();
        let packing = Packing { key: &self.key, secrets: &[], provenance: None };
        let supply = Supply::new(&store, Vec::new());
        let found = self.deliverable();
        found.pack(&name(), (&commit(), 1_790_000_000), &manifest, &supply, &packing).unwrap();
        let text = std::fs::read_to_string(found.file("manifest")).unwrap();
        let archive = std::fs::read(found.file("tar.zst")).unwrap();
        (Manifest::from_text(&text).unwrap(), zstd::decode_all(archive.as_slice()).unwrap())
    }

    /// Puts this archive beside this manifest, signed, and takes it as production does.
    fn take(&self, manifest: &Manifest, archive: &[u8], limits: Limits) -> mc_project::sys::error::Result<Store> {
        let (found, text) = (self.deliverable(), manifest.to_text());
        let statement = Statement {
            format: 1,
            project: name(),
            commit: commit(),
            commit_time: 1_790_000_000,
            tree: manifest.tree_digest().hex(),
            manifest: Hash::of(text.as_bytes()).hex(),
            archive: Hash::of(archive).hex(),
            size: archive.len() as u64,
            entries: manifest.len(),
            bytes: manifest.bytes(),
            provenance: None,
        };
        let json = serde_json::to_vec(&statement).unwrap();
        std::fs::write(found.file("tar.zst"), archive).unwrap();
        std::fs::write(found.file("manifest"), text).unwrap();
        std::fs::write(found.file("json"), &json).unwrap();
        std::fs::write(found.file("sig"), self.key.sign(&json)).unwrap();
        let (statement, manifest) = found.verify(&TrustedKeys::new(vec![self.key.public()]))?;
        let store = self.store("taken");
        found.unpack(&statement, &manifest, &store, limits, &|_| Ok(true))?;
        Ok(store)
    }

    /// The tree that a node makes of what it took.
    fn tree(&self, manifest: &Manifest, store: &Store) -> Tree {
        let at = self.dir.path().join("ours");
        let _ = std::fs::remove_dir_all(&at);
        std::fs::create_dir(&at).unwrap();
        let dir = Dir::open_real(&at).unwrap();
        let target = Target { tree: &dir, own: Own::current(), point: "candidate.applying" };
        let mut supply = Supply::new(store, Vec::new());
        apply(&target, &Plan::new(&Identified::default(), manifest).unwrap(), &mut supply, &Keeping::default())
            .unwrap();
        digest(&at)
    }

    /// What GNU tar makes of an archive; `None` if it complains.
    fn tar(&self, archive: &[u8]) -> Option<Tree> {
        let at = self.dir.path().join("theirs");
        let _ = Command::new("chmod").arg("-R").arg("u+rwx").arg(&at).output();
        let _ = std::fs::remove_dir_all(&at);
        std::fs::create_dir(&at).unwrap();
        let file = self.dir.path().join("archive.tar.zst");
        std::fs::write(&file, archive).unwrap();
        let output = Command::new("tar").args(["--zstd", "-xpf"]).arg(&file).arg("-C").arg(&at).output().unwrap();
        output.status.success().then(|| digest(&at))
    }
}

fn name() -> ProjectName {
    "shop".parse().unwrap()
}

fn commit() -> ObjectId {
    "c".repeat(40).parse().unwrap()
}

/// Names as they come, and as nobody would give them: bytes that are no text, as long as a header holds and longer.
fn names() -> impl Strategy<Value = Vec<u8>> {
    let odd = proptest::collection::vec(any::<u8>().prop_map(|b| if matches!(b, 0 | b'/') { b'x' } else { b }), 1..20);
    let long = (90..255_usize, any::<u8>()).prop_map(|(length, b)| vec![b'a' + b % 26; length]);
    let named = proptest::string::string_regex("[a-d]{1,2}").unwrap().prop_map(String::into_bytes);
    proptest::prop_oneof![6 => named, 2 => odd, 2 => long]
        .prop_filter("a name", |name| !matches!(name.as_slice(), b"." | b".."))
}

/// What stands in a tree.
#[derive(Debug, Clone)]
enum Thing {
    File(Vec<u8>, u32),
    Dir(u32),
    Link(Vec<u8>),
    /// Another name of a file that stands before it.
    Again(usize),
}

fn things() -> impl Strategy<Value = Thing> {
    let content = proptest::prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 1..40),
        (500..1600_usize).prop_map(|size| vec![7; size])
    ];
    let mode = proptest::prop_oneof![Just(0o644), Just(0o755), Just(0o600), Just(0o444)];
    let target =
        proptest::prop_oneof![Just(b"a".to_vec()), Just(b"/etc/passwd".to_vec()), Just(vec![b'l'; 300]), names()];
    proptest::prop_oneof![
        5 => (content, mode).prop_map(|(content, mode)| Thing::File(content, mode)),
        2 => proptest::prop_oneof![Just(0o755), Just(0o700)].prop_map(Thing::Dir),
        2 => target.prop_map(Thing::Link),
        1 => (0..20_usize).prop_map(Thing::Again),
    ]
}

/// A tree of what was drawn: each thing stands in one of the directories before it.
fn tree_of(drawn: &[(Vec<u8>, Thing, usize)]) -> Vec<(Entry, Vec<u8>)> {
    let mut placed: Vec<(Entry, Vec<u8>)> = Vec::new();
    for (name, thing, place) in drawn {
        let dirs: Vec<TreePath> =
            placed.iter().filter(|(entry, _)| entry.is_dir()).map(|(entry, _)| entry.path.clone()).collect();
        let path = match place % (dirs.len() + 1) {
            0 => TreePath::new(name),
            nth => dirs[nth - 1].join(name),
        };
        let Some(path) = path.ok().filter(|path| placed.iter().all(|(entry, _)| entry.path != *path)) else { continue };
        let mut entry = Entry {
            path,
            mode: 0o777,
            owner: None,
            mtime: 0,
            content: Content::Dir,
            hard_link: None,
            xattrs: Vec::new(),
            blob: None,
            stamp: Stamp::default(),
        };
        let mut bytes = Vec::new();
        match thing {
            Thing::File(content, mode) => {
                (entry.mode, bytes) = (*mode, content.clone());
                entry.content = Content::File { size: content.len() as u64, hash: Hash::of(content) };
            }
            Thing::Dir(mode) => entry.mode = *mode,
            Thing::Link(target) => entry.content = Content::Symlink(target.clone()),
            Thing::Again(nth) => {
                let files: Vec<&(Entry, Vec<u8>)> = placed
                    .iter()
                    .filter(|(other, _)| other.hash().is_some() && other.hard_link.is_none() && other.path < entry.path)
                    .collect();
                let Some((leader, content)) = files.get(nth % files.len().max(1)) else { continue };
                entry.mode = leader.mode;
                (entry.content, entry.hard_link) = (leader.content.clone(), Some(leader.path.clone()));
                bytes.clone_from(content);
            }
        }
        placed.push((entry, bytes));
    }
    placed
}

/// What is done to a good archive.
#[derive(Debug, Clone)]
enum Trick {
    Nothing,
    /// A byte of some header becomes another one, and its checksum is right again.
    Header {
        block: usize,
        at: usize,
        to: u8,
    },
    /// A field of some header becomes this text.
    Field {
        block: usize,
        at: usize,
        text: &'static [u8],
    },
    /// A member stands before some header.
    Before {
        block: usize,
        kind: u8,
        name: &'static str,
        link: &'static str,
        data: &'static [u8],
    },
    /// Some blocks stand twice, or are gone.
    Twice {
        block: usize,
        count: usize,
    },
    Without {
        block: usize,
        count: usize,
    },
    Cut {
        at: usize,
    },
    Behind(&'static [u8]),
    /// Compressed in two pieces, with another level, with a frame that nobody reads.
    Frames {
        at: usize,
        skipped: bool,
    },
    /// The archive a second time, as a frame of its own.
    Again,
}

const FIELDS: [(usize, &[u8]); 14] = [
    (0, b"../x\0"),
    (0, b"/x\0"),
    (0, b"./a\0"),
    (124, b"00000000001\0"),
    (124, b"00000001000\0"),
    (124, b"\x80\0\0\0\0\0\x08\0\0\0\0\0"),
    (156, b"1"),
    (156, b"2"),
    (156, b"S"),
    (156, b"x"),
    (157, b"a\0"),
    (257, b"ustar  \0"),
    (263, b"xx"),
    (345, b"p\0"),
];

const MEMBERS: [(u8, &str, &str, &[u8]); 12] = [
    (b'0', "x", "", b"hello"),
    (b'0', "../x", "", b"hello"),
    (b'1', "x", "a", b""),
    (b'1', "x", "a", b"hello"),
    (b'2', "x", "/tmp", b""),
    (b'3', "x", "", b""),
    (b'5', "x/", "", b"a directory with a content"),
    (b'x', "x", "", b"12 path=a/b\n"),
    (b'x', "x", "", b"11 size=99\n"),
    (b'g', "x", "", b"12 path=a/b\n"),
    (b'L', "././@LongLink", "", b"a\0"),
    (b'K', "././@LongLink", "", b"/etc/passwd\0"),
];

fn tricks() -> impl Strategy<Value = Trick> {
    let block = || 0..24_usize;
    let field = (block(), 0..FIELDS.len());
    let member = (block(), 0..MEMBERS.len());
    proptest::prop_oneof![
        1 => Just(Trick::Nothing),
        4 => (block(), 0..512_usize, any::<u8>()).prop_map(|(block, at, to)| Trick::Header { block, at, to }),
        6 => field.prop_map(|(block, nth)| Trick::Field { block, at: FIELDS[nth].0, text: FIELDS[nth].1 }),
        6 => member.prop_map(|(block, nth)| {
            let (kind, name, link, data) = MEMBERS[nth];
            Trick::Before { block, kind, name, link, data }
        }),
        1 => (block(), 1..4_usize).prop_map(|(block, count)| Trick::Twice { block, count }),
        1 => (block(), 1..4_usize).prop_map(|(block, count)| Trick::Without { block, count }),
        1 => (0..9000_usize).prop_map(|at| Trick::Cut { at }),
        1 => proptest::prop_oneof![Just(b"x".as_slice()), Just([0_u8; 512].as_slice())].prop_map(Trick::Behind),
        2 => (0..9000_usize, any::<bool>()).prop_map(|(at, skipped)| Trick::Frames { at, skipped }),
        1 => Just(Trick::Again),
    ]
}

fn with_checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn member(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Plays the trick; the archive as it would be sent.
fn played(good: &[u8], trick: &Trick) -> Vec<u8> {
    let headers: Vec<usize> =
        (0..good.len() / 512).map(|n| n * 512).filter(|at| &good[at + 257..at + 262] == b"ustar").collect();
    let header = |block: usize| headers[block % headers.len()];
    let mut tar = good.to_vec();
    let pack = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    match *trick {
        Trick::Nothing => {}
        Trick::Header { block, at, to } => {
            let start = header(block);
            tar[start + at] = to;
            if !(148..156).contains(&at) {
                with_checksum(&mut tar[start..start + 512]);
            }
        }
        Trick::Field { block, at, text } => {
            let start = header(block);
            tar[start + at..start + at + text.len()].copy_from_slice(text);
            with_checksum(&mut tar[start..start + 512]);
        }
        Trick::Before { block, kind, name, link, data } => {
            let start = header(block);
            tar.splice(start..start, member(kind, name, link, data));
        }
        Trick::Twice { block, count } => {
            let start = header(block);
            let end = (start + 512 * count).min(tar.len());
            let part = tar[start..end].to_vec();
            tar.splice(start..start, part);
        }
        Trick::Without { block, count } => {
            let start = header(block);
            let end = (start + 512 * count).min(tar.len());
            tar.drain(start..end);
        }
        Trick::Cut { at } => tar.truncate(at % tar.len()),
        Trick::Behind(more) => tar.extend_from_slice(more),
        Trick::Frames { at, skipped } => {
            let at = at % tar.len();
            // A frame that every reader passes over (RFC 8878, 3.1.2).
            let skipped: &[u8] = if skipped { b"\x50\x2a\x4d\x18\x04\0\0\0evil" } else { b"" };
            return [pack(&tar[..at]).as_slice(), skipped, &pack(&tar[at..])].concat();
        }
        Trick::Again => return [pack(&tar), pack(&tar)].concat(),
    }
    pack(&tar)
}

/// The negative control: a reader that understands members one by one, as ours once did, and looks at what it finds.
fn lenient(manifest: &Manifest, archive: &[u8]) -> bool {
    let Ok(bytes) = zstd::decode_all(archive) else { return false };
    let mut archive = tar::Archive::new(bytes.as_slice());
    let Ok(members) = archive.entries() else { return false };
    let mut count = 0;
    for member in members {
        let Ok(mut member) = member else { return false };
        let path = member.path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        let Some(entry) = TreePath::new(&path).ok().and_then(|path| manifest.get(&path).cloned()) else { return false };
        let mut content = Vec::new();
        let is_read = std::io::Read::read_to_end(&mut member, &mut content).is_ok();
        let fits = entry.hash().is_none() || entry.hard_link.is_some() || entry.hash() == Some(Hash::of(&content));
        if !is_read || !fits {
            return false;
        }
        count += 1;
    }
    count == manifest.len()
}

#[test]
fn nothing_is_accepted_that_gnu_tar_extracts_to_another_tree() {
    let author = Author::new();
    let cases = if support::is_full() { 20_000 } else { 150 };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let drawn = proptest::collection::vec((names(), things(), 0..20_usize), 1..14);
    let mut record = Record { points: cases, of: 20_000, ..Record::default() };
    let (mut accepted, mut control) = (0, (0, 0));
    let mut packed = None;
    for case in 0..cases {
        // Some tricks for each tree: packing is what takes the time.
        if case % 5 == 0 {
            let tree = tree_of(&drawn.new_tree(&mut runner).unwrap().current());
            packed = Some(author.pack(&tree));
        }
        let (manifest, good) = packed.as_ref().unwrap();
        let trick = tricks().new_tree(&mut runner).unwrap().current();
        let archive = played(good, &trick);
        record.hit += usize::from(!matches!(trick, Trick::Nothing));
        let taken = author.take(manifest, &archive, Limits::default());
        if let Ok(store) = &taken {
            accepted += 1;
            let theirs = author.tar(&archive).unwrap_or_else(|| panic!("{trick:?} was accepted, and tar complains"));
            author.tree(manifest, store).assert_same(&theirs, &format!("what {trick:?} unpacks to"));
        }
        assert!(taken.is_ok() || !matches!(trick, Trick::Nothing), "{manifest:?}: {:?}", taken.err());
        if lenient(manifest, &archive) && taken.is_err() {
            control.1 += 1;
            let ours = manifest_tree(&author, manifest, good);
            control.0 += usize::from(author.tar(&archive).as_ref() != Some(&ours));
        }
    }
    assert!(accepted > cases / 40, "{accepted} of {cases} were accepted");
    record.control = Some(control);
    support::record("deliverables against GNU tar", &record);
    assert!(control.0 > 0, "the tricks must fool a reader that can be fooled: {control:?}");
}

/// The tree of a manifest whose good archive this is.
fn manifest_tree(author: &Author, manifest: &Manifest, good: &[u8]) -> Tree {
    let store = author.take(manifest, &zstd::encode_all(good, 1).unwrap(), Limits::default()).unwrap();
    author.tree(manifest, &store)
}

/// A small good deliverable.
fn small(author: &Author) -> (Manifest, Vec<u8>) {
    let tree = [(b"a".to_vec(), Thing::File(b"one\n".to_vec(), 0o644), 0), (b"d".to_vec(), Thing::Dir(0o755), 0)];
    author.pack(&tree_of(&tree))
}

/// Asserts that it is refused at once and leaves nothing.
#[track_caller]
fn assert_cheap(author: &Author, what: &str, manifest: &Manifest, archive: &[u8]) {
    let begin = Instant::now();
    let error = author.take(manifest, archive, Limits::default()).err().unwrap_or_else(|| panic!("{what} is accepted"));
    assert!(begin.elapsed() < Duration::from_secs(20), "{what}: refused after {:?}: {error}", begin.elapsed());
    assert!(error.one_line().len() < 1000, "{what}: {error}");
    let left: u64 = std::fs::read_dir(author.dir.path().join("taken"))
        .map_or(0, |entries| entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum());
    assert!(left <= 4, "{what}: {left} bytes are left");
}

/// A frame of a GiB of zeros.
fn zeros() -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let chunk = vec![0; 1 << 20];
    for _ in 0..1024 {
        std::io::Write::write_all(&mut encoder, &chunk).unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn bombs_of_size_and_count_and_depth_cost_nothing() {
    let author = Author::new();
    let (manifest, good) = small(&author);
    let pack = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let cheap = |what: &str, archive: &[u8]| assert_cheap(&author, what, &manifest, archive);
    let gib = zeros();
    assert!(gib.len() < 1 << 18, "a bomb is small: {}", gib.len());
    let behind = |before: &[u8]| [pack(before), gib.repeat(8)].concat();
    cheap("eight GiB of zeros", &gib.repeat(8));
    cheap("eight GiB behind the end", &behind(&good));
    cheap("eight GiB in place of the end", &behind(&good[..good.len() - 1024]));
    let mut long = member(b'L', "././@LongLink", "", b"");
    long[124..136].copy_from_slice(b"77777777777\0");
    with_checksum(&mut long);
    cheap("a name of eight GiB", &behind(&long));
    cheap("a million empty members", &pack(&member(b'0', "x", "", b"").repeat(1000)).repeat(1000));
    let deep = format!("{}\0", vec!["d"; 1900].join("/"));
    let deep = [member(b'L', "././@LongLink", "", deep.as_bytes()), member(b'0', "d", "", b"x"), good.clone()].concat();
    cheap("a path of 1900 levels", &pack(&deep));
    let sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n38 GNU.sparse.realsize=8796093022208\n";
    let sparse = [member(b'x', "x", "", sparse), member(b'0', "GNUSparseFile.0/a", "", b"1\n0\n1\n"), good].concat();
    cheap("a sparse file of 8 TiB", &pack(&sparse));
}

#[test]
fn what_passes_a_limit_is_refused_before_its_archive_is_read() {
    let author = Author::new();
    let (manifest, good) = small(&author);
    let packed = zstd::encode_all(good.as_slice(), 1).unwrap();
    for (limits, passes) in [
        (Limits { entries: 2, bytes: 4 }, true),
        (Limits { entries: 1, bytes: 4 }, false),
        (Limits { entries: 2, bytes: 3 }, false),
    ] {
        let taken = author.take(&manifest, &packed, limits);
        assert_eq!(taken.is_ok(), passes, "{limits:?}");
        assert!(taken.err().is_none_or(|error| error.message().contains("the limits are")));
    }
    // Sizes whose sum has no number.
    let huge = |name: &[u8]| Entry {
        path: TreePath::new(name).unwrap(),
        content: Content::File { size: u64::MAX, hash: Hash::of(name) },
        ..manifest.entries().next().unwrap().clone()
    };
    let huge = Manifest::new(vec![huge(b"a"), huge(b"b")]).unwrap();
    assert_cheap(&author, "sizes that are too large", &huge, &packed);
    // What is too deep or too long is no path at all.
    for path in [vec!["d"; 65].join("/"), vec!["d"; 1900].join("/"), "d".repeat(256)] {
        assert!(TreePath::new(path.as_bytes()).is_err());
        let text = format!("mc_project manifest 1\nd 0755 - 0.000000000 - - {path}\n");
        let text = format!("{text}end 1 {}\n", blake3::hash(text.as_bytes()).to_hex());
        assert!(Manifest::from_text(&text).is_err());
    }
    assert!(Path::new(&author.deliverable().file("json")).exists());
}

//! Hostile deliverables: whatever is done to one, production refuses it, writes nothing but the store, and goes on.

use std::path::{Path, PathBuf};

use mc_project::project::ids::{ObjectId, ProjectName};
use mc_project::sys::keys::{ReleaseKey, TrustedKeys};
use mc_project::sys::path::TreePath;
use mc_project::tree::deliverable::{Deliverable, Limits, Packing, Statement};
use mc_project::tree::hash::Hash;
use mc_project::tree::manifest::{Content, Entry, Manifest, Stamp};
use mc_project::tree::store::{Store, Supply};

use crate::support::{Finished, WorkTree, World, digest};

const ENDINGS: [&str; 4] = ["tar.zst", "manifest", "json", "sig"];
const FILES: [(&str, &str); 4] = [("a", "one\n"), ("b/c", "#!/bin/sh\n"), ("d", "two\n"), ("mc_project.yaml", "{}\n")];

/// A key, a good deliverable of it, and a production node that trusts it.
struct Hostile {
    production: World,
    commit: String,
    sources: PathBuf,
    good: Vec<(&'static str, Vec<u8>)>,
    key: ReleaseKey,
    work: PathBuf,
}

impl Hostile {
    fn new() -> Self {
        let (staging, commit) = World::serving(&FILES);
        staging.settle("shop");
        let production = World::new();
        let sources = production.home().path("sources");
        std::fs::create_dir(&sources).unwrap();
        let key = ReleaseKey::load_or_make(&production.home().path("key")).unwrap();
        let (dir, yaml) = (sources.display(), key.public());
        production
            .configure(&format!("environment: prod\nrelease_sources: [{dir}]\ntrusted_release_keys: ['{yaml}']\n"));
        production.mc(&["init", "shop"]).ok();
        let base = staging.project("shop").join("releases").join(format!("shop-{commit}"));
        let read = |ending: &'static str| (ending, std::fs::read(format!("{}.{ending}", base.display())).unwrap());
        let mut good: Vec<_> = ENDINGS.into_iter().map(read).collect();
        good[3].1 = key.sign(&good[2].1).into_bytes();
        let work = production.home().path("work");
        std::fs::create_dir(&work).unwrap();
        let copied = staging.checkout_of("shop");
        production.home().git(&work, &["clone", "--quiet", copied.dir().to_str().unwrap(), "."]).ok();
        let url = production.project("shop").join("git/project");
        production.home().git(&work, &["remote", "add", "node", url.to_str().unwrap()]).ok();
        Self { production, commit, sources, good, key, work }
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.sources.join(format!("shop-{}.{ending}", self.commit))
    }

    fn put_good(&self) {
        for (ending, bytes) in &self.good {
            let _ = std::fs::remove_file(self.file(ending));
            std::fs::write(self.file(ending), bytes).unwrap();
        }
    }

    fn tar(&self) -> Vec<u8> {
        zstd::decode_all(self.good[0].1.as_slice()).unwrap()
    }

    /// Puts this archive, and this manifest, in place and signs them, as somebody who has a trusted key would.
    fn put_signed(&self, archive: &[u8], manifest: &[u8]) {
        self.put_good();
        let mut statement: Statement = serde_json::from_slice(&self.good[2].1).unwrap();
        statement.archive = blake3::hash(archive).to_hex().to_string();
        statement.size = archive.len() as u64;
        statement.manifest = blake3::hash(manifest).to_hex().to_string();
        if let Ok(parsed) = Manifest::from_text(&String::from_utf8_lossy(manifest)) {
            statement.tree = parsed.tree_digest().hex();
        }
        let json = serde_json::to_vec_pretty(&statement).unwrap();
        std::fs::write(self.file("tar.zst"), archive).unwrap();
        std::fs::write(self.file("manifest"), manifest).unwrap();
        std::fs::write(self.file("sig"), self.key.sign(&json)).unwrap();
        std::fs::write(self.file("json"), json).unwrap();
    }

    fn push(&self) -> Finished {
        self.production.home().git(&self.work, &["push", "node", "HEAD:main"])
    }

    #[track_caller]
    fn assert_refused(&self, what: &str) {
        let (before, run) = (self.production.unchangeable("shop"), self.production.run_tree("shop"));
        let push = self.push().code(1);
        let reason = push.rejected("HEAD -> main");
        assert!(reason.contains(" at fetch: ") && reason.len() < 400, "{what}: {reason}");
        assert!(!push.stderr.contains("panicked") && !reason.contains("bug"), "{what}: {push}");
        self.production.settle("shop");
        before.assert_same(&self.production.unchangeable("shop"), &format!("production after {what}"));
        run.assert_same(&self.production.run_tree("shop"), &format!("run after {what}"));
    }
}

/// A member of a tar archive as an attacker writes it: no library has a say.
fn member(name: &str, kind: u8, link: &str, data: &[u8], declared: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o4755);
    header.set_size(declared);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Hostile archives, each a good one with something done to it.
fn hostile_archives(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let end = good.len() - good.iter().rev().take_while(|byte| **byte == 0).count();
    let members = &good[..end.next_multiple_of(512)];
    let and = |more: &[u8]| [members, more, &[0; 1024]].concat();
    let before = |more: &[u8]| [more, members, &[0; 1024]].concat();
    let of_kind = |kind: u8| [&member("a", kind, "d", b"", 0), &members[1024..], &[0; 1024]].concat();
    let content = String::from_utf8_lossy(members).replacen("one\n", "two\n", 1).into_bytes();
    vec![
        ("a path that leaves", and(&member("../x", b'0', "", b"x", 1))),
        ("an absolute path", and(&member("/tmp/mc-x", b'0', "", b"x", 1))),
        (
            "a link and a file behind it",
            and(&[member("e", b'2', "/tmp", b"", 0), member("e/x", b'0', "", b"x", 1)].concat()),
        ),
        ("a hard link outwards", and(&member("h", b'1', "/etc/passwd", b"", 0))),
        ("a hard link in a file's place", of_kind(b'1')),
        ("a symlink in a file's place", of_kind(b'2')),
        ("a character device", of_kind(b'3')),
        ("a block device", of_kind(b'4')),
        ("a directory in a file's place", of_kind(b'5')),
        ("a fifo", of_kind(b'6')),
        ("an unknown type", of_kind(b'Z')),
        ("a sparse file of 8 TiB", [&member("a", b'S', "", b"", 8 << 40), &members[1024..], &[0; 1024]].concat()),
        ("a size of 8 GiB", [&member("a", b'0', "", b"", 8 << 30), &members[1024..], &[0; 1024]].concat()),
        ("an extended size", before(&member("x", b'x', "", b"12 size=512\n", 12))),
        ("a member twice", and(members)),
        ("a hook", and(&member(".git/hooks/post-checkout", b'0', "", b"x", 1))),
        ("other content of the same size", [content.as_slice(), &[0; 1024]].concat()),
        ("no end", members.to_vec()),
        ("a cut", members[..members.len() / 2].to_vec()),
        ("garbage behind the end", [good, b"garbage"].concat()),
        ("a second archive behind the end", [good, good].concat()),
        ("zeros without an end", [good, &vec![0; 2 << 20]].concat()),
        ("nothing", Vec::new()),
        ("no archive", b"hello".repeat(300)),
    ]
}

#[test]
fn a_hostile_archive_is_refused_even_with_a_good_signature() {
    let hostile = Hostile::new();
    for (what, tar) in hostile_archives(&hostile.tar()) {
        hostile.put_signed(&zstd::encode_all(tar.as_slice(), 3).unwrap(), &hostile.good[1].1);
        hostile.assert_refused(what);
    }
    hostile.put_signed(&hostile.tar(), &hostile.good[1].1);
    hostile.assert_refused("an archive that is not compressed");
    hostile.put_good();
    hostile.push().ok();
    assert_eq!(hostile.production.run_text("shop", "a"), "one\n");
    hostile.production.mc(&["verify", "--all"]).ok();
}

#[test]
fn a_hostile_manifest_is_refused_even_with_a_good_signature() {
    let hostile = Hostile::new();
    let text = String::from_utf8(hostile.good[1].1.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let file = lines.iter().find(|line| line.ends_with(" a") || line.contains(" a git=")).unwrap();
    let renamed = |to: &str| file.replacen(" a", &format!(" {to}"), 1);
    let with = |more: String| {
        let body = format!("{}\n{more}\n", lines[..lines.len() - 1].join("\n"));
        let sum = blake3::hash(body.as_bytes()).to_hex();
        format!("{body}end {} {sum}\n", body.lines().count() - 1)
    };
    for path in ["../x", "/etc/x", "z/../../x", ".", "zz//x", "a", "Z", "zz/missing/parent", "zz", "%00", "zz%2f..%2fx"]
    {
        hostile.put_signed(&hostile.good[0].1, with(renamed(path)).as_bytes());
        hostile.assert_refused(path);
    }
    for manifest in ["", "hello\n", lines[..lines.len() - 1].join("\n").as_str(), &text.replace("f 0644", "f 9999")] {
        hostile.put_signed(&hostile.good[0].1, manifest.as_bytes());
        hostile.assert_refused(manifest);
    }
}

#[test]
fn what_is_not_a_plain_file_or_not_signed_is_refused() {
    let hostile = Hostile::new();
    for ending in ENDINGS {
        hostile.put_good();
        std::fs::remove_file(hostile.file(ending)).unwrap();
        hostile.assert_refused(&format!("no {ending}"));
        nix::unistd::mkfifo(&hostile.file(ending), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        hostile.assert_refused(&format!("a fifo as {ending}"));
        std::fs::remove_file(hostile.file(ending)).unwrap();
        std::fs::create_dir(hostile.file(ending)).unwrap();
        hostile.assert_refused(&format!("a directory as {ending}"));
        std::fs::remove_dir(hostile.file(ending)).unwrap();
    }
    hostile.put_good();
    hostile.push().ok();
}

#[test]
fn no_flipped_bit_and_no_cut_passes() {
    let hostile = Hostile::new();
    let (name, commit): (ProjectName, ObjectId) = ("shop".parse().unwrap(), hostile.commit.parse().unwrap());
    let (keys, found) =
        (TrustedKeys::new(vec![hostile.key.public()]), Deliverable::new(&hostile.sources, &name, &commit));
    let unpacks = |into: &Path| -> bool {
        let _ = std::fs::remove_dir_all(into);
        std::fs::create_dir(into).unwrap();
        let store = Store::open(into).unwrap();
        let Ok((statement, manifest)) = found.verify(&keys) else { return false };
        found.check_archive(&statement, &manifest).is_ok()
            && found.unpack(&statement, &manifest, &store, Limits::default(), &|_| Ok(true)).is_ok()
    };
    let into = hostile.production.home().path("store");
    hostile.put_good();
    let outside = digest(&hostile.production.root());
    assert!(unpacks(&into));
    for (ending, good) in &hostile.good {
        hostile.put_good();
        for nth in 0..60 {
            let at = nth * good.len() / 60;
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (nth % 8);
            std::fs::write(hostile.file(ending), &bytes).unwrap();
            let same_text = *ending == "sig" && bytes.eq_ignore_ascii_case(good);
            assert!(same_text || !unpacks(&into), "{ending}: a flipped bit at {at}");
            std::fs::write(hostile.file(ending), &good[..at]).unwrap();
            assert!(!unpacks(&into), "{ending}: cut at {at}");
        }
    }
    outside.assert_same(&digest(&hostile.production.root()), "the node");
}

#[test]
fn two_nodes_cook_the_same_bytes() {
    let (one, commit) = World::serving(&FILES);
    one.settle("shop");
    let two = World::with_shop();
    let work: WorkTree<'_> = one.checkout_of("shop");
    let url = two.project("shop").join("git/project");
    work.git(&["remote", "set-url", "node", url.to_str().unwrap()]).ok();
    work.push(&["main"]).ok();
    two.settle("shop");
    for ending in ["tar.zst", "manifest"] {
        let read = |world: &World| {
            std::fs::read(world.project("shop").join(format!("releases/shop-{commit}.{ending}"))).unwrap()
        };
        assert!(read(&one) == read(&two), "{ending} differs");
    }
    // The statement differs in where it came from, and in nothing else.
    let statement = |world: &World| -> serde_json::Value {
        let text = std::fs::read(world.project("shop").join(format!("releases/shop-{commit}.json"))).unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert!(value.as_object_mut().unwrap().remove("provenance").is_some());
        value
    };
    assert_eq!(statement(&one), statement(&two));
}

/// A deliverable of large files that do not compress, with the keys that trust it.
fn large_deliverable(dir: &Path) -> (Deliverable, TrustedKeys) {
    let key = ReleaseKey::load_or_make(&dir.join("key")).unwrap();
    let pool = dir.join("pool");
    std::fs::create_dir(&pool).unwrap();
    let store = Store::open(&pool).unwrap();
    let mut noise = blake3::Hasher::new().finalize_xof();
    let entries = (0..4).map(|n| {
        let mut bytes = vec![0; 2 << 20];
        noise.fill(&mut bytes);
        let (hash, size) = store.add(&mut bytes.as_slice()).unwrap();
        Entry {
            path: TreePath::new(format!("f{n}").as_bytes()).unwrap(),
            mode: 0o4644,
            owner: Some((0, 0)),
            mtime: 0,
            content: Content::File { size, hash },
            hard_link: None,
            xattrs: Vec::new(),
            blob: None,
            stamp: Stamp::default(),
        }
    });
    let manifest = Manifest::new(entries.collect()).unwrap();
    let commit: ObjectId = "c".repeat(40).parse().unwrap();
    let project: ProjectName = "shop".parse().unwrap();
    let found = Deliverable::new(dir, &project, &commit);
    let supply = Supply::new(&store, Vec::new());
    found
        .pack(&project, (&commit, 0), &manifest, &supply, &Packing { key: &key, secrets: &[], provenance: None })
        .unwrap();
    (found, TrustedKeys::new(vec![key.public()]))
}

#[test]
fn an_archive_that_changes_while_it_is_read_is_refused_and_one_that_is_replaced_is_read_to_its_end() {
    let temp = tempfile::tempdir_in("/var/tmp").unwrap();
    let (found, keys) = large_deliverable(temp.path());
    let (statement, manifest) = found.verify(&keys).unwrap();
    assert!(manifest.entries().all(|entry| !entry.has_privileges()), "no privilege is packed");
    let into = temp.path().join("into");
    std::fs::create_dir(&into).unwrap();
    let store = Store::open(&into).unwrap();
    let archive = found.file("tar.zst");
    let good = std::fs::read(&archive).unwrap();
    // Replaced by another file under the same name: what was opened is what counts.
    let replaced = std::sync::atomic::AtomicBool::new(false);
    let wants = |_: &Hash| {
        if !replaced.swap(true, std::sync::atomic::Ordering::SeqCst) {
            std::fs::write(temp.path().join("other"), "other").unwrap();
            std::fs::rename(temp.path().join("other"), &archive).unwrap();
        }
        Ok(true)
    };
    assert_eq!(found.unpack(&statement, &manifest, &store, Limits::default(), &wants).unwrap(), 4);
    // In the middle, at the end, and behind it.
    for path in [good.len() / 2, good.len() - 3, good.len()] {
        let into = temp.path().join(format!("into-{path}"));
        std::fs::create_dir(&into).unwrap();
        let store = Store::open(&into).unwrap();
        std::fs::write(&archive, &good).unwrap();
        let changed = std::sync::atomic::AtomicBool::new(false);
        let wants = |_: &Hash| {
            if !changed.swap(true, std::sync::atomic::Ordering::SeqCst) {
                let file = std::fs::OpenOptions::new().write(true).open(&archive).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, b"evil", path as u64).unwrap();
            }
            Ok(true)
        };
        let result = found.unpack(&statement, &manifest, &store, Limits::default(), &wants);
        assert!(changed.into_inner() && result.is_err(), "changed at {path}");
        for hash in store.list().unwrap() {
            let bytes = std::fs::read(into.join(hash.hex())).unwrap();
            assert_eq!(Hash::of(&bytes), hash, "the store holds nothing under a wrong name");
        }
    }
}

#[test]
fn a_statement_or_a_signature_that_names_something_else_is_refused() {
    let hostile = Hostile::new();
    let (name, commit): (ProjectName, ObjectId) = ("shop".parse().unwrap(), hostile.commit.parse().unwrap());
    let keys = TrustedKeys::new(vec![hostile.key.public()]);
    let found = Deliverable::new(&hostile.sources, &name, &commit);
    let json = String::from_utf8(hostile.good[2].1.clone()).unwrap();
    let other = "d".repeat(40);
    for (from, to) in [
        ("\"shop\"", "\"../shop\""),
        ("\"shop\"", "\"/etc\""),
        ("\"shop\"", "\"shop2\""),
        (hostile.commit.as_str(), "../../etc/passwd"),
        (hostile.commit.as_str(), other.as_str()),
        ("\"format\": 1", "\"format\": 2"),
    ] {
        assert!(json.contains(from), "{from}");
        hostile.put_good();
        let json = json.replace(from, to);
        std::fs::write(hostile.file("json"), &json).unwrap();
        std::fs::write(hostile.file("sig"), hostile.key.sign(json.as_bytes())).unwrap();
        assert!(found.verify(&keys).is_err(), "{to}");
    }
    let good = String::from_utf8(hostile.good[3].1.clone()).unwrap();
    for sig in
        ["", "-", "../shop.sig", &format!("{good}  ../x"), &format!("- {good}"), &good[1..], &format!("{good}00")]
    {
        hostile.put_good();
        std::fs::write(hostile.file("sig"), sig).unwrap();
        assert!(found.verify(&keys).is_err(), "{sig}");
    }
    // A directory of deliverables may hold names that are none.
    for odd in ["shop-..json", "shop-.json", "shop-../x.json", "-rf.json", "shop-zz.json"] {
        let _ = std::fs::write(hostile.sources.join(odd.replace('/', "%2f")), "{}");
    }
    hostile.put_good();
    assert_eq!(Deliverable::list(&hostile.sources, &name).unwrap(), [found]);
}

#[test]
fn a_bomb_of_depth_is_refused_at_once_and_so_is_every_privilege() {
    let hostile = Hostile::new();
    let (name, commit): (ProjectName, ObjectId) = ("shop".parse().unwrap(), hostile.commit.parse().unwrap());
    let keys = TrustedKeys::new(vec![hostile.key.public()]);
    let found = Deliverable::new(&hostile.sources, &name, &commit);
    let store_dir = hostile.production.home().path("store");
    std::fs::create_dir(&store_dir).unwrap();
    let store = Store::open(&store_dir).unwrap();
    let begin = std::time::Instant::now();
    for deep in [vec!["d"; 65].join("/"), vec!["d"; 1900].join("/"), vec!["d"; 100_000].join("/")] {
        let long = member("././@LongLink", b'L', "", format!("{deep}\0").as_bytes(), deep.len() as u64 + 1);
        let tar = [long, member("d", b'0', "", b"x", 1), hostile.tar()].concat();
        hostile.put_signed(&zstd::encode_all(tar.as_slice(), 3).unwrap(), &hostile.good[1].1);
        let (statement, manifest) = found.verify(&keys).unwrap();
        let error = found.unpack(&statement, &manifest, &store, Limits::default(), &|_| Ok(true)).unwrap_err();
        assert!(error.one_line().contains("does not stand where and as the manifest says"), "{error}");
        assert!(error.one_line().len() < 1000, "{error}");
    }
    assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
    assert!(store.list().unwrap().is_empty());

    let text = String::from_utf8(hostile.good[1].1.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let body = format!("{}\n", lines[..lines.len() - 1].join("\n"));
    for (from, to) in [
        ("f 0644 - ", "f 4644 - "),
        ("f 0644 - ", "f 2644 - "),
        ("d 0755 - ", "d 2755 - "),
        ("f 0644 - ", "f 0644 0:0 "),
        (" d git=", " d x:security.capability=%01 git="),
        (" d git=", " d x:trusted.overlay.opaque=y git="),
    ] {
        assert!(body.contains(from), "{from} in\n{body}");
        let body = body.replacen(from, to, 1);
        let sum = blake3::hash(body.as_bytes()).to_hex();
        let manifest = format!("{body}end {} {sum}\n", body.lines().count() - 1);
        hostile.put_signed(&hostile.good[0].1, manifest.as_bytes());
        let error = found.verify(&keys).unwrap_err();
        assert!(error.one_line().contains("privilege"), "{to}: {error}");
    }
}

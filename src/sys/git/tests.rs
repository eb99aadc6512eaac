//! Opening, configuration and reading of single objects, on every backend.

use super::fixture::{Fixture, Reader, on_each, path};
use super::{Backend, ObjectFormat, Repo};
use crate::sys::error::Kind;
use crate::sys::names::ObjectId;

#[test]
fn a_new_repository_holds_no_hooks_and_making_it_again_changes_nothing() {
    on_each(|f| {
        let names = crate::sys::fs::names(&f.path).unwrap();
        assert_eq!(names, ["HEAD", "config", "objects", "refs"]);
        let commit = f.commit_of(&[]);
        f.repo.set_ref(&"refs/heads/main".parse().unwrap(), &commit, "x").unwrap();
        let config = std::fs::read(f.path.join("config")).unwrap();
        let again = Repo::init_bare(&f.path, f.repo.format()).unwrap();
        assert_eq!(again.resolve_commit("main").unwrap(), Some(commit));
        assert_eq!(std::fs::read(f.path.join("config")).unwrap(), config);
        let other = match f.repo.format() {
            ObjectFormat::Sha1 => ObjectFormat::Sha256,
            ObjectFormat::Sha256 => ObjectFormat::Sha1,
        };
        assert_eq!(Repo::init_bare(&f.path, other).unwrap_err().kind(), Kind::Refused);
        assert!(f.try_git(&["fsck", "--strict"], b"").stderr.is_empty());
    });
}

#[test]
fn a_half_made_repository_is_completed() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("r");
    std::fs::create_dir_all(path.join("objects")).unwrap();
    std::fs::write(path.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    assert!(Repo::open(&path).is_err());
    Repo::init_bare(&path, ObjectFormat::Sha1).unwrap();
    assert!(Repo::open(&path).unwrap().resolve_commit("HEAD").unwrap().is_none());
}

#[test]
fn what_is_no_repository_or_no_absolute_path_is_not_opened() {
    let temp = tempfile::tempdir().unwrap();
    assert!(Repo::open(temp.path()).unwrap_err().message().contains("is no git repository"));
    assert!(Repo::open(&temp.path().join("none")).is_err());
    assert_eq!(Repo::open(std::path::Path::new("r.git")).unwrap_err().kind(), Kind::Bug);
}

#[test]
fn a_repository_of_somebody_else_is_refused_before_its_configuration_is_read() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    on_each(|f| {
        std::os::unix::fs::chown(&f.path, Some(12345), None).unwrap();
        std::fs::write(f.path.join("config"), "not a configuration").unwrap();
        for error in [Repo::open(&f.path).unwrap_err(), Repo::init_bare(&f.path, f.repo.format()).unwrap_err()] {
            assert_eq!(error.kind(), Kind::Refused);
            assert!(error.message().contains("belongs to user 12345"), "{error}");
        }
    });
}

#[test]
fn a_link_to_a_repository_and_the_directory_of_a_clone_can_be_opened() {
    on_each(|f| {
        let commit = f.commit_files(&[("a", b"1")], &[], "one");
        f.git(&["update-ref", "refs/heads/main", commit.as_str()]);
        let link = f.temp.path().join("link.git");
        std::os::unix::fs::symlink("r.git", &link).unwrap();
        assert_eq!(Repo::open(&link).unwrap().resolve_commit("main").unwrap(), Some(commit.clone()));
        f.git(&["clone", "--quiet", ".", "../clone"]);
        let clone = Repo::open(&f.temp.path().join("clone/.git")).unwrap();
        assert_eq!(clone.resolve_commit("HEAD").unwrap(), Some(commit));
    });
}

#[test]
fn refs_in_a_reftable_are_read_by_the_program() {
    let temp = tempfile::tempdir().unwrap();
    if super::program_version().unwrap() < (2, 45) {
        return;
    }
    let path = temp.path().join("r");
    let made = super::program::Git::outside()
        .args(["init", "--quiet", "--bare", "--ref-format=reftable", "-bmain"])
        .arg(&path);
    made.run("make a repository").unwrap();
    let repo = Repo::open(&path).unwrap();
    assert!(matches!(repo.backend, Backend::Program));
    assert_eq!(repo.format(), ObjectFormat::Sha1);
    let made = super::program::Git::of(&path).args(["hash-object", "-t", "tree", "-w", "/dev/null"]).run("x").unwrap();
    let tree: ObjectId = String::from_utf8(made).unwrap().trim().parse().unwrap();
    let commit = format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n");
    let call = super::program::Git::of(&path).args(["hash-object", "-t", "commit", "-w", "--stdin"]);
    let made = call.input(commit.as_bytes()).run("x").unwrap();
    let commit: ObjectId = String::from_utf8(made).unwrap().trim().parse().unwrap();
    let main = "refs/heads/main".parse().unwrap();
    assert!(repo.move_ref(&main, &commit.zero_like(), &commit, "x").unwrap());
    assert_eq!(repo.resolve_commit("HEAD").unwrap(), Some(commit));
}

#[test]
fn configuration_reads_back_and_the_last_of_several_values_counts() {
    on_each(|f| {
        assert_eq!(f.repo.config("receive.procReceiveRefs").unwrap(), None);
        f.repo.set_config("receive.procReceiveRefs", "refs/heads/main").unwrap();
        assert_eq!(f.repo.config("receive.procreceiverefs").unwrap().as_deref(), Some("refs/heads/main"));
        f.git(&["config", "--add", "receive.procReceiveRefs", "refs/heads/b c # d"]);
        assert_eq!(f.repo.config("receive.procReceiveRefs").unwrap().as_deref(), Some("refs/heads/b c # d"));
        f.repo.set_config("receive.procReceiveRefs", "refs/heads/x").unwrap();
        assert_eq!(f.git(&["config", "--get-all", "receive.procReceiveRefs"]), "refs/heads/x");
        assert!(f.repo.set_config("nodot", "x").is_err());
        assert!(f.repo.config("-x").is_err());
    });
}

#[test]
fn ids_are_peeled_to_commits_and_everything_else_is_none() {
    on_each(|f| {
        let (blob, tree) = (f.blob(b"x"), f.tree(&[]));
        let commit = f.commit(&tree, &[], "one");
        let peel = |id: &ObjectId| f.repo.peel_to_commit(id).unwrap();
        let tag = |kind: &str, id: &ObjectId| {
            f.raw("tag", format!("object {id}\ntype {kind}\ntag t\ntagger A <a> 1 +0000\n\nx\n").as_bytes())
        };
        assert_eq!(peel(&commit), Some(commit.clone()));
        let one = tag("commit", &commit);
        assert_eq!(peel(&one), Some(commit.clone()));
        assert_eq!(peel(&tag("tag", &one)), Some(commit.clone()));
        for other in [&blob, &tree, &f.nothing(), &f.zero(), &tag("blob", &blob), &tag("commit", &f.nothing())] {
            assert_eq!(peel(other), None, "{other}");
        }
        let digits = if f.repo.format() == ObjectFormat::Sha1 { 64 } else { 40 };
        assert_eq!(peel(&"a".repeat(digits).parse().unwrap()), None);
        let mut deep = one;
        for _ in 0..20 {
            deep = tag("tag", &deep);
        }
        assert_eq!(peel(&deep), None);
        assert!(f.repo.commit(&blob).is_err() && f.repo.commit(&f.nothing()).is_err());
    });
}

#[test]
fn blobs_are_read_within_their_limit() {
    on_each(|f| {
        let content = b"0123456789".repeat(10_000);
        let (blob, empty) = (f.blob(&content), f.blob(b""));
        assert_eq!(f.repo.blob(&blob, 100_000).unwrap(), content);
        assert_eq!(f.repo.blob(&blob, 99_999).unwrap_err().kind(), Kind::Refused);
        assert_eq!(f.repo.blob(&empty, 0).unwrap(), b"");
        let mut out = Vec::new();
        assert_eq!(f.repo.copy_blob(&blob, &mut out).unwrap(), 100_000);
        assert_eq!(out, content);
        assert!(f.repo.copy_blob(&f.nothing(), &mut out).is_err());
        assert!(f.repo.blob(&f.tree(&[]), 100).is_err());
        assert!(f.repo.copy_blob(&f.tree(&[]), &mut out).is_err());
        // A failed question leaves the conversation in step.
        assert_eq!(f.repo.blob(&empty, 0).unwrap(), b"");
    });
}

#[test]
fn a_large_blob_is_streamed_and_a_full_disk_is_an_error_after_which_reading_goes_on() {
    struct Full(u64);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len() as u64).ok_or_else(|| std::io::Error::from_raw_os_error(28))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    on_each(|f| {
        let size = super::STREAM_FROM + 5;
        let blob = f.blob(&vec![b'x'; usize::try_from(size).unwrap()]);
        let error = f.repo.copy_blob(&blob, &mut Full(1_000_000)).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        assert_eq!(f.repo.copy_blob(&blob, &mut Full(size)).unwrap(), size);
    });
}

#[test]
fn files_in_a_commit_are_found_by_path_and_links_and_directories_are_not() {
    on_each(|f| {
        let (one, target) = (f.blob(b"one"), f.blob(b"a"));
        let inner = f.tree(&[("100644", b"a", &one), ("120000", b"l", &target)]);
        let commit = f.commit_of(&[
            ("100755", b"a", &one),
            ("40000", b"d", &inner),
            ("100644", b"gone", &f.nothing()),
            ("120000", b"l", &target),
            ("160000", b"sub", &f.nothing()),
        ]);
        let at = |text: &str| f.repo.blob_at(&commit, &path(text), 10).unwrap();
        assert_eq!(at("a").as_deref(), Some(&b"one"[..]));
        assert_eq!(at("d/a").as_deref(), Some(&b"one"[..]));
        for none in ["d", "l", "d/l", "sub", "sub/x", "a/b", "x", "d/x", "l/x"] {
            assert_eq!(at(none), None, "{none}");
        }
        assert_eq!(f.repo.blob_at(&commit, &path("a"), 2).unwrap_err().kind(), Kind::Refused);
        assert!(f.repo.blob_at(&commit, &path("gone"), 2).is_err());
    });
}

#[test]
fn a_damaged_object_is_noticed_by_its_content() {
    on_each(|f| {
        let (good, evil) = (f.blob(b"good"), f.blob(b"evil"));
        let file = |id: &ObjectId| f.path.join("objects").join(&id.as_str()[..2]).join(&id.as_str()[2..]);
        std::fs::remove_file(file(&good)).unwrap();
        std::fs::copy(file(&evil), file(&good)).unwrap();
        let repo = f.again();
        assert!(repo.blob(&good, 10).is_err());
        assert!(repo.copy_blob(&good, &mut Vec::new()).is_err());
        assert_eq!(repo.blob(&evil, 10).unwrap(), b"evil");
    });
}

#[test]
fn objects_and_refs_of_a_later_push_are_seen_by_an_open_repository() {
    on_each(|f| {
        let one = f.commit_files(&[("a", b"1")], &[], "one");
        f.git(&["update-ref", "refs/heads/main", one.as_str()]);
        assert_eq!(f.repo.resolve_commit("main").unwrap(), Some(one.clone()));
        let two = f.commit_files(&[("a", b"2")], &[&one], "two");
        f.git(&["update-ref", "refs/heads/main", two.as_str()]);
        f.git(&["repack", "-adq"]);
        f.git(&["prune-packed"]);
        f.git(&["pack-refs", "--all"]);
        assert_eq!(f.repo.resolve_commit("main").unwrap(), Some(two.clone()));
        assert_eq!(f.repo.blob_at(&two, &path("a"), 10).unwrap().unwrap(), b"2");
        assert_eq!(f.repo.commit(&one).unwrap().subject, "one");
    });
}

#[test]
fn what_root_writes_into_a_shared_repository_stays_writable_for_its_group() {
    use std::os::unix::fs::PermissionsExt;
    let f = Fixture::new(Reader::Library);
    f.repo.set_config("core.sharedRepository", "group").unwrap();
    let commit = f.commit_of(&[]);
    f.repo.set_ref(&"refs/heads/topic/x".parse().unwrap(), &commit, "x").unwrap();
    let mode = std::fs::metadata(f.path.join("refs/heads/topic")).unwrap().permissions().mode();
    assert_eq!(mode & 0o070, 0o070, "{mode:o}");
}

#[test]
fn a_repository_may_move_to_another_thread() {
    let f = Fixture::new(Reader::Program);
    let blob = f.blob(b"x");
    let repo = f.again();
    assert_eq!(std::thread::spawn(move || repo.blob(&blob, 1).unwrap()).join().unwrap(), b"x");
}

#[test]
fn locks_that_a_killed_process_left_do_not_stop_configuration_head_or_notes() {
    on_each(|f| {
        let commit = f.commit_of(&[]);
        f.repo.add_note(&commit, "one").unwrap();
        for lock in ["config.lock", "HEAD.lock", "refs/notes/deploys.lock"] {
            let file = std::fs::File::create(f.path.join(lock)).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_mins(1)).unwrap();
        }
        f.repo.set_config("a.b", "c").unwrap();
        f.repo.set_head(&"refs/heads/x".parse().unwrap()).unwrap();
        f.repo.add_note(&commit, "two").unwrap();
        assert_eq!(f.repo.note(&commit).unwrap().unwrap(), "one\ntwo\n");
    });
}

/// How long the calls of a deployment take: `cargo test --release -- --ignored --nocapture how_long`.
#[test]
#[ignore = "a measurement"]
fn how_long_the_calls_of_a_deployment_take() {
    use std::time::Instant;
    on_each(|f| {
        let mut input = String::from("commit refs/heads/main\ncommitter C <c> 1 +0000\ndata 0\n");
        for n in 0..100_000 {
            let content = format!("content {n}");
            let text = format!("M 644 inline d{:03}/f{n}\ndata {}\n{content}\n", n / 100, content.len());
            input.push_str(&text);
        }
        assert!(f.try_git(&["fast-import", "--quiet"], input.as_bytes()).status.success());
        let repo = f.again();
        let limits = super::TreeLimits { files: 200_000, bytes: u64::MAX, file_bytes: u64::MAX };
        let commit = repo.resolve_commit("main").unwrap().unwrap();
        let start = Instant::now();
        let found = repo.list(&commit, &limits).unwrap();
        println!("  list {} entries: {:?}", found.len(), start.elapsed());
        let start = Instant::now();
        for entry in &found[..10_000] {
            repo.blob(&entry.oid, 100).unwrap();
        }
        println!("  10000 blobs: {:?}", start.elapsed());
        let start = Instant::now();
        for n in 0..10 {
            repo.set_ref(&format!("refs/deploys/x{n}").parse().unwrap(), &commit, "x").unwrap();
        }
        println!("  one ref: {:?}", start.elapsed() / 10);
        let start = Instant::now();
        repo.add_note(&commit, "x").unwrap();
        println!("  one note: {:?}", start.elapsed());
    });
}

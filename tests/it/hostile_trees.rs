//! Hostile things that stand still: hard links to what is root's, fifos, devices, programs with setuid, bombs of depth and
//! number, names that speak to a terminal; and contents that somebody still writes to.

use std::io::{Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use mc_project::sys::dir::Dir;
use mc_project::tree::hash::Hash;
use mc_project::tree::manifest::{Content, Entry, Manifest, Stamp};
use mc_project::tree::scan::{Own, identify};
use mc_project::tree::snapshot::Snapshots;
use mc_project::tree::store::{Held, Store, Supply};
use mc_project::tree::sync::{Keeping, Plan, Target, apply, seal};

use crate::attacks::{ACCOUNT, Arena, CANARY};

fn write_as_account(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    chown(path, Some(ACCOUNT), Some(ACCOUNT)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn make_dir_as_account(path: &Path) {
    std::fs::create_dir(path).unwrap();
    chown(path, Some(ACCOUNT), Some(ACCOUNT)).unwrap();
}

/// A device that does nothing, where one may be made.
fn null_device(path: &Path) -> bool {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).is_ok()
}

fn meta(path: &Path) -> (u32, u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn a_snapshot_of_hostile_data_gives_nothing_away_and_goes_on() {
    let Some(arena) = Arena::new() else { return };
    let data = arena.place.data();
    let before = arena.outside();
    std::fs::hard_link(arena.path("outside/secret"), data.join("linked")).unwrap();
    std::fs::hard_link(arena.path("outside/su"), data.join("su")).unwrap();
    symlink(arena.path("outside/secret"), data.join("followed")).unwrap();
    lchown(data.join("followed"), Some(ACCOUNT), Some(ACCOUNT)).unwrap();
    write_as_account(&data.join("mine"), "mine\n", 0o4750);
    let odd = data.join(std::ffi::OsStr::from_bytes(b"new\nline \x1b[31m \xff"));
    write_as_account(&odd, "odd\n", 0o600);
    nix::unistd::mkfifo(&data.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
    let has_device = null_device(&data.join("device"));

    let snapshots = Snapshots::new(&arena.place, arena.own);
    let manifest = snapshots.take(&None, false).unwrap();
    let mut left_out: Vec<String> = snapshots.left_out().iter().map(ToString::to_string).collect();
    left_out.retain(|name| name != "device");
    assert_eq!(left_out, ["fifo", "socket"]);
    assert_eq!(snapshots.left_out().len(), 2 + usize::from(has_device));
    let copy = arena.place.snapshot();
    assert_eq!(meta(&copy.join("linked")), (0o600, 0, 0), "it stays root's");
    assert_eq!(meta(&copy.join("su")), (0o755, 0, 0), "no second program of root's");
    assert_eq!(meta(&copy.join("mine")), (0o4750, ACCOUNT, ACCOUNT));
    assert_eq!(std::fs::read(copy.join(odd.file_name().unwrap())).unwrap(), b"odd\n");
    assert!(copy.join("followed").symlink_metadata().unwrap().is_symlink());

    // Restored in both ways.
    for unit in snapshots.units(&None).unwrap() {
        snapshots.restore(&unit).unwrap();
    }
    arena.assert_nothing_leaked();
    std::fs::remove_file(data.join("linked")).unwrap();
    std::fs::hard_link(arena.path("outside/secret"), data.join("mine-now")).unwrap();
    std::fs::remove_file(data.join("mine")).unwrap();
    std::fs::hard_link(arena.path("outside/shared"), data.join("mine")).unwrap();
    let archives = Dir::open(&arena.place.archives()).unwrap();
    let aside = archives.ensure_dir(Path::new("aside"), 0o700).unwrap();
    snapshots.materialise(&manifest).unwrap();
    snapshots.restore_by_copy(&None, &manifest, &aside).unwrap();
    assert_eq!(meta(&data.join("mine")), (0o4750, ACCOUNT, ACCOUNT));
    assert_eq!(std::fs::read_to_string(data.join("linked")).unwrap(), CANARY);
    arena.assert_nothing_leaked();
    assert_eq!(arena.outside(), before);
}

/// A manifest with files of this mode, and a store that holds their contents.
fn wanted(arena: &Arena, files: &[(&str, &str)], mode: u32) -> (Store, Manifest) {
    std::fs::create_dir(arena.path("pool")).unwrap();
    let store = Store::open(&arena.path("pool")).unwrap();
    let entry = |(path, text): &(&str, &str)| {
        let (hash, size) = store.add(&mut text.as_bytes()).unwrap();
        Entry {
            path: mc_project::sys::path::TreePath::new(path.as_bytes()).unwrap(),
            mode,
            owner: None,
            mtime: 1_790_000_000_000_000_000,
            content: Content::File { size, hash },
            hard_link: None,
            xattrs: Vec::new(),
            blob: None,
            stamp: Stamp::default(),
        }
    };
    let manifest = Manifest::new(files.iter().map(entry).collect()).unwrap();
    (store, manifest)
}

fn sync(arena: &Arena, tree: &Path, store: &Store, wanted: &Manifest) -> mc_project::sys::error::Result<()> {
    let tree = Dir::open_real(tree)?;
    let actual = identify(&tree, arena.own, None, &|_| true)?;
    let mut supply = Supply::new(store, vec![Held::new(&tree, &actual.manifest)]);
    let target = Target { tree: &tree, own: arena.own, point: "candidate.applying" };
    apply(&target, &Plan::new(&actual, wanted)?, &mut supply, &Keeping { store: Some(store), aside: None })?;
    seal(&tree, arena.own, wanted).map(|_| ())
}

#[test]
fn a_file_that_only_lacks_the_right_owner_and_mode_is_replaced_if_it_is_somebody_elses() {
    let Some(arena) = Arena::new() else { return };
    let before = arena.outside();
    let run = arena.place.run();
    // The content is as wanted, so that nothing but owner, mode and time would have to be set.
    let (store, manifest) = wanted(&arena, &[("a", "shared\n"), ("b", "mine\n"), ("c", "roots\n")], 0o640);
    std::fs::hard_link(arena.path("outside/shared"), run.join("a")).unwrap();
    write_as_account(&run.join("b"), "mine\n", 0o4777);
    std::fs::write(run.join("c"), "roots\n").unwrap();
    let inode = |name: &str| run.join(name).metadata().unwrap().ino();
    let inodes = (inode("a"), inode("b"), inode("c"));
    sync(&arena, &run, &store, &manifest).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(meta(&run.join(name)), (0o640, ACCOUNT, ACCOUNT), "{name}");
    }
    assert_ne!(inode("a"), inodes.0, "somebody else's file is replaced");
    assert_eq!(inode("b"), inodes.1, "the account's own is not");
    assert_ne!(inode("c"), inodes.2, "root's is");
    assert_eq!(arena.outside(), before);
}

#[test]
fn a_directory_of_somebody_else_gives_its_contents_to_a_new_one() {
    let Some(arena) = Arena::new() else { return };
    let run = arena.place.run();
    let (store, files) = wanted(&arena, &[("z", "z\n")], 0o644);
    let directory = Entry {
        path: mc_project::sys::path::TreePath::new(b"d").unwrap(),
        mode: 0o755,
        content: Content::Dir,
        ..files.entries().next().unwrap().clone()
    };
    let file = Entry { path: directory.path.join(b"z").unwrap(), ..files.entries().next().unwrap().clone() };
    let manifest = Manifest::new(vec![directory, file]).unwrap();
    sync(&arena, &run, &store, &manifest).unwrap();
    let (foreign, inode) = (ACCOUNT + 9, run.join("d").metadata().unwrap().ino());
    chown(run.join("d"), Some(foreign), Some(foreign)).unwrap();
    sync(&arena, &run, &store, &manifest).unwrap();
    assert_eq!(meta(&run.join("d")), (0o755, ACCOUNT, ACCOUNT));
    assert_ne!(run.join("d").metadata().unwrap().ino(), inode);
    assert_eq!(std::fs::read_to_string(run.join("d/z")).unwrap(), "z\n");
}

#[test]
fn what_somebody_still_writes_to_never_enters_the_store() {
    let Some(arena) = Arena::new() else { return };
    let spare = arena.place.spare();
    let (store, nothing) = (Store::open(&arena.place.store()).unwrap(), Manifest::default());
    write_as_account(&spare.join("open"), "before\n", 0o644);
    write_as_account(&spare.join("closed"), "closed\n", 0o644);
    let mut writer = std::fs::OpenOptions::new().write(true).open(spare.join("open")).unwrap();
    let closed = spare.join("closed").metadata().unwrap().ino();
    sync(&arena, &spare, &store, &nothing).unwrap();
    writer.rewind().unwrap();
    writer.write_all(b"AFTER!\n").unwrap();
    let (open, shut) = (Hash::of(b"before\n"), Hash::of(b"closed\n"));
    for (hash, text) in [(open, "before\n"), (shut, "closed\n")] {
        let path = arena.place.store().join(hash.hex());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(meta(&path), (0o600, 0, 0), "it is ours alone");
    }
    let inode = |hash: Hash| arena.place.store().join(hash.hex()).metadata().unwrap().ino();
    assert_eq!(inode(shut), closed, "what nobody writes to costs no copy");
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn a_content_of_the_store_that_was_tampered_with_is_an_error_and_never_deployed() {
    let Some(arena) = Arena::new() else { return };
    let run = arena.place.run();
    let (store, manifest) = wanted(&arena, &[("a", "good\n")], 0o644);
    let path = arena.path("pool").join(Hash::of(b"good\n").hex());
    std::fs::write(&path, "evil\n").unwrap();
    let error = sync(&arena, &run, &store, &manifest).unwrap_err();
    assert!(error.one_line().contains("damaged"), "{error}");
    assert!(!run.join("a").exists());
    // Renamed out instead of copied: it is read before, and one with another name or owner is copied.
    std::fs::write(&path, "good\n").unwrap();
    std::fs::hard_link(&path, arena.path("second-name")).unwrap();
    let tree = Dir::open_real(&run).unwrap();
    let plan = Plan::new(&identify(&tree, arena.own, None, &|_| true).unwrap(), &manifest).unwrap();
    let mut supply = Supply::new(&store, Vec::new()).taking(&manifest);
    let target = Target { tree: &tree, own: arena.own, point: "candidate.applying" };
    apply(&target, &plan, &mut supply, &Keeping::default()).unwrap();
    assert_eq!(run.join("a").metadata().unwrap().nlink(), 1, "no inode of run is reachable from elsewhere");
    assert_eq!(meta(&arena.path("second-name")).1, 0);
}

#[test]
fn what_the_account_did_not_make_is_found_in_a_build() {
    let Some(arena) = Arena::new() else { return };
    let build = arena.place.build_tree();
    write_as_account(&build.join("a"), "a\n", 0o644);
    let look = || identify(&Dir::open_real(&build).unwrap(), arena.own, None, &|_| true).unwrap();
    assert!(look().of_another(arena.own, |_| false).is_none());
    std::fs::hard_link(arena.path("outside/secret"), build.join("b")).unwrap();
    assert_eq!(look().of_another(arena.own, |_| false).unwrap().path.to_string(), "b");
}

#[test]
fn files_that_consist_of_holes_are_refused_before_they_are_read() {
    let Some(arena) = Arena::new() else { return };
    let huge = arena.place.data().join("huge");
    write_as_account(&huge, "", 0o644);
    let file = std::fs::OpenOptions::new().write(true).open(&huge).unwrap();
    if file.set_len(15 << 40).is_err() {
        eprintln!("skipped: the file system takes no file of 15 TiB");
        return;
    }
    let begin = Instant::now();
    let error = Snapshots::new(&arena.place, arena.own).take(&None, false).unwrap_err();
    assert!(error.one_line().contains("holes"), "{error}");
    assert!(begin.elapsed() < crate::support::PATIENCE, "{:?}", begin.elapsed());
}

/// Ten thousand directories in each other, made by descriptors: no path is that long.
fn depth_bomb(top: &Path) {
    use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
    make_dir_as_account(top);
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = open(top, flags, Mode::empty()).unwrap();
    for _ in 0..10_000 {
        mkdirat(&at, "deep", Mode::from_raw_mode(0o755)).unwrap();
        at = openat(&at, "deep", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn a_depth_bomb_is_refused_by_name_and_can_be_removed() {
    let Some(arena) = Arena::new() else { return };
    depth_bomb(&arena.place.data().join("bomb"));
    let begin = Instant::now();
    let error = Snapshots::new(&arena.place, arena.own).take(&None, false).unwrap_err();
    assert!(error.one_line().contains("levels deep"), "{error}");
    Dir::open_real(&arena.place.data()).unwrap().remove_tree(Path::new("bomb")).unwrap();
    assert!(!arena.place.data().join("bomb").exists());
    assert!(begin.elapsed() < crate::support::PATIENCE, "{:?}", begin.elapsed());
}

#[test]
fn very_many_files_are_kept_restored_and_removed() {
    let Some(arena) = Arena::new() else { return };
    let count = if std::env::var_os("MC_TEST_FULL").is_some() { 100_000 } else { 3_000 };
    let data = arena.place.data();
    for n in 0..count {
        let directory = data.join(format!("{}", n / 1000));
        if n % 1000 == 0 {
            make_dir_as_account(&directory);
        }
        write_as_account(&directory.join(format!("{n}")), &format!("{}", n % 100), 0o644);
    }
    let snapshots = Snapshots::new(&arena.place, arena.own);
    let manifest = snapshots.take(&None, false).unwrap();
    assert_eq!(manifest.files(), count);
    for unit in snapshots.units(&None).unwrap() {
        snapshots.restore(&unit).unwrap();
    }
    let found = identify(&Dir::open_real(&data).unwrap(), arena.own, None, &|_| true).unwrap();
    assert_eq!(found.manifest.tree_digest(), manifest.tree_digest());
    let archives = Dir::open(&arena.place.archives()).unwrap();
    archives.remove_tree(Path::new("data")).unwrap();
    assert!(!arena.place.snapshot().exists());
}

#[test]
fn no_privilege_comes_in_by_an_attribute_or_a_second_name() {
    let temp = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    let path: PathBuf = temp.path().join("f");
    std::fs::write(&path, "f").unwrap();
    for name in ["security.capability", "trusted.x", "system.nfs4_acl"] {
        let error = dir.set_xattrs("f".as_ref(), &[(name.to_string(), vec![1; 20])]).unwrap_err();
        assert!(error.one_line().contains("privilege"), "{error}");
    }
    std::fs::hard_link(&path, temp.path().join("g")).unwrap();
    let before = path.metadata().unwrap();
    let f = Path::new("f");
    assert!(dir.set_mode(f, 0o777).is_err() && dir.set_mtime(f, 0).is_err());
    assert!(dir.set_owner(f, Own::current().uid, Own::current().gid).is_err());
    assert!(dir.set_xattrs("f".as_ref(), &[]).is_err());
    let after = path.metadata().unwrap();
    assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()));
    // What looks like one name but leads elsewhere.
    symlink("/", temp.path().join("l")).unwrap();
    for path in ["..", "l/", "l/etc", "../x"] {
        assert!(dir.dir(Path::new(path)).is_err(), "{path}");
    }
}

//! A hostile project account against root: whatever it does in its trees while root works there, nothing outside of them
//! changes, and nothing that it may not read comes to where it can.
//!
//! `race.c` is the account. A naive sync by path (the control) is led out by it within moments; a test in which the control
//! stayed inside would prove nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use mc_project::project::layout::layout;
use mc_project::project::mode::Mode;
use mc_project::project::place::{NodePlace, Place};
use mc_project::sys::dir::Dir;
use mc_project::sys::error::Result;
use mc_project::tree::drift::Drift;
use mc_project::tree::layout::Owners;
use mc_project::tree::manifest::Manifest;
use mc_project::tree::scan::{Own, identify};
use mc_project::tree::snapshot::Snapshots;
use mc_project::tree::store::{Held, Store, Supply};
use mc_project::tree::sync::{Aside, Keeping, Plan, Target, apply, prove, seal};
use mc_project::tree::witness::Witness;

/// An account that needs no entry anywhere.
pub const ACCOUNT: u32 = 61_234;
const RECEIVER: u32 = 61_235;
/// What only root may read.
pub const CANARY: &str = "canary-5f1d3c: only root may read this";

/// A project's trees with their owner, and files of root beside them.
pub struct Arena {
    temp: tempfile::TempDir,
    pub place: Place,
    pub own: Own,
}

impl Arena {
    /// `None`, with the reason printed, where we are not root.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can be attacked by another account; run the tests as root");
            return None;
        }
        let temp = tempfile::Builder::new().prefix("mc-it-").tempdir_in("/var/tmp").unwrap();
        let name = "shop".parse().unwrap();
        let place = NodePlace::new(&temp.path().join("node")).project(&name);
        let owners = Owners { project: (ACCOUNT, ACCOUNT), receiver: (RECEIVER, RECEIVER) };
        mc_project::tree::layout::build(&place, &layout(Mode::Cooking, &name).unwrap(), Some(&owners)).unwrap();
        let arena = Self { temp, place, own: Own { uid: ACCOUNT, gid: ACCOUNT } };
        std::fs::create_dir(arena.path("attic")).unwrap();
        chown(arena.path("attic"), Some(ACCOUNT), Some(ACCOUNT)).unwrap();
        arena.make_outside();
        Some(arena)
    }

    pub fn path(&self, rel: &str) -> PathBuf {
        self.temp.path().join(rel)
    }

    /// What must never change: it looks like a tree, so that who is led here finds what was expected.
    fn make_outside(&self) {
        let outside = self.path("outside");
        std::fs::create_dir_all(outside.join("d/e")).unwrap();
        let files = [("secret", CANARY, 0o600), ("shared", "shared\n", 0o644), ("su", "a program of root's\n", 0o4755)];
        let twins = [("f", "outside f\n", 0o644), ("d/f", "outside d/f\n", 0o644), ("d/e/f", "outside\n", 0o600)];
        for (name, text, mode) in files.into_iter().chain(twins) {
            std::fs::write(outside.join(name), text).unwrap();
            std::fs::set_permissions(outside.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("secret", outside.join("link")).unwrap();
    }

    /// Everything about what is outside, but for the number of names and the time of a change of status: the account itself
    /// can have names made and taken away where the kernel allows it.
    pub fn outside(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        let mut stack = vec![self.path("outside")];
        while let Some(path) = stack.pop() {
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_dir() {
                stack.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            } else if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else {
                std::fs::read_to_string(&path).unwrap()
            };
            let times = (meta.mtime(), meta.mtime_nsec());
            let text = format!("{:o} {}:{} {times:?} {} {content}", meta.mode(), meta.uid(), meta.gid(), meta.ino());
            all.insert(path, text);
        }
        all
    }

    /// No file that the account could read holds what only root may read, and nobody got a program of root's.
    #[track_caller]
    pub fn assert_nothing_leaked(&self) {
        let (inodes, mut stack) = (self.inodes_outside(), vec![self.path("node"), self.path("attic")]);
        while let Some(dir) = stack.pop() {
            // The account is stopped, but what it left may be anything.
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                let meta = path.symlink_metadata().unwrap();
                if meta.is_dir() {
                    stack.push(path.clone());
                }
                if !meta.is_file() {
                    continue;
                }
                let is_roots = meta.uid() == 0 && meta.mode() & 0o066 == 0;
                let holds = std::fs::read(&path).unwrap().windows(12).any(|part| part == &CANARY.as_bytes()[..12]);
                assert!(!holds || is_roots, "{} of {} {:o}", path.display(), meta.uid(), meta.mode());
                let is_program = meta.uid() == 0 && meta.mode() & 0o6000 != 0;
                assert!(!is_program || inodes.contains(&meta.ino()), "{} is root's with setuid", path.display());
            }
        }
    }

    fn inodes_outside(&self) -> Vec<u64> {
        ["secret", "shared", "su"].map(|name| self.path("outside").join(name).metadata().unwrap().ino()).to_vec()
    }

    /// Two versions of a tree that differ in everything, and a store that has all their contents.
    fn versions(&self) -> (Store, Manifest, Manifest) {
        let pool = self.path("pool");
        std::fs::create_dir(&pool).unwrap();
        let store = Store::open(&pool).unwrap();
        let mut versions = Vec::new();
        for (name, text, mode) in [("one", "1\n", 0o644), ("two", "22\n", 0o755)] {
            let top = self.path(name);
            std::fs::create_dir_all(top.join("d/e")).unwrap();
            for file in ["f", "d/f", "d/e/f"] {
                std::fs::write(top.join(file), format!("{file} {text}")).unwrap();
                std::fs::set_permissions(top.join(file), std::fs::Permissions::from_mode(mode)).unwrap();
            }
            std::fs::set_permissions(top.join("d"), std::fs::Permissions::from_mode(mode | 0o711)).unwrap();
            std::fs::write(top.join("same"), "same\n").unwrap();
            std::fs::write(top.join(if mode == 0o755 { "d/new" } else { "gone" }), text).unwrap();
            symlink(text.trim(), top.join("l")).unwrap();
            let dir = Dir::open(&top).unwrap();
            let manifest = identify(&dir, Own::current(), None, &|_| true).unwrap().manifest;
            for entry in manifest.entries().filter(|entry| entry.hash().is_some()) {
                store.add(&mut dir.open_file(entry.path.as_path()).unwrap()).unwrap();
            }
            versions.push(manifest);
        }
        let two = versions.pop().unwrap();
        (store, versions.pop().unwrap(), two)
    }

    /// Lets the account race in these trees while `work` is done again and again; its errors are fine, hanging is not, and
    /// neither is any change outside.
    fn attack(&self, trees: &[PathBuf], mut work: impl FnMut(usize) -> Result<()> + Send) {
        let before = self.outside();
        let racer = Racer::start(self, trees);
        let full = std::env::var_os("MC_TEST_FULL").is_some();
        let (least, time) = if full { (5_000, Duration::from_mins(1)) } else { (40, Duration::from_secs(5)) };
        let (sender, receiver) = channel();
        let counts = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut good, begin) = (0, Instant::now());
                for n in 0_usize.. {
                    good += usize::from(work(n).is_ok());
                    if begin.elapsed() > time && n >= least {
                        break;
                    }
                    sender.send((n + 1, good)).unwrap();
                }
                drop(sender);
            });
            let mut counts = (0, 0);
            loop {
                match receiver.recv_timeout(Duration::from_mins(1)) {
                    Ok(now) => counts = now,
                    Err(RecvTimeoutError::Disconnected) => break counts,
                    Err(RecvTimeoutError::Timeout) => {
                        // The thread cannot be ended: the whole test is.
                        eprintln!("root hangs in a hostile tree after {counts:?} runs");
                        std::process::abort();
                    }
                }
                if counts.0 % 16 == 0 && self.outside() != before {
                    break counts;
                }
            }
        });
        racer.stop();
        eprintln!("{} runs in a raced tree, {} of them came through", counts.0, counts.1);
        assert_eq!(self.outside(), before, "something outside changed");
        self.assert_nothing_leaked();
        assert!(counts.0 >= least.min(40), "too few runs to prove anything: {counts:?}");
    }
}

/// The hostile account at work.
struct Racer(Child);

impl Racer {
    fn start(arena: &Arena, trees: &[PathBuf]) -> Self {
        let program = arena.path("race");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/race.c");
        let built = Command::new("gcc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(source).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let mut command = Command::new(&program);
        command.arg(ACCOUNT.to_string()).args([arena.path("outside"), arena.path("attic")]).args(trees);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 7];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        assert_eq!(&line, b"racing\n");
        Self(child)
    }

    fn stop(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        // Its child ends with it; what it was about to link may come a moment later.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Makes a raced tree one version, then the other, as a deployment makes the spare.
fn sync(tree: &Dir, own: Own, store: &Store, wanted: &Manifest, aside: Option<&Dir>) -> Result<()> {
    let actual = identify(tree, own, None, &|_| true)?;
    let mut supply = Supply::new(store, vec![Held::new(tree, &actual.manifest)]);
    let target = Target { tree, own, point: "candidate.applying" };
    let aside = aside.map(|dir| Aside { dir, only: None });
    apply(&target, &Plan::new(&actual, wanted)?, &mut supply, &Keeping { store: Some(store), aside })?;
    let witness = Witness::new(seal(tree, own, wanted)?, tree.stat_self()?.dev, None);
    prove(tree, own, wanted, Some(&witness)).map(|_| ())
}

#[test]
fn a_racing_owner_gets_nothing_out_of_a_sync() {
    let Some(arena) = Arena::new() else { return };
    let (store, one, two) = arena.versions();
    let (run, spare) = (arena.place.run(), arena.place.spare());
    arena.attack(&[run.clone(), spare.clone()], |n| {
        let tree = Dir::open_real(if n % 4 < 2 { &spare } else { &run })?;
        sync(&tree, arena.own, &store, if n % 2 == 0 { &one } else { &two }, None)
    });
}

#[test]
fn a_racing_owner_gets_nothing_out_of_a_switch_in_place_that_keeps_files_aside() {
    let Some(arena) = Arena::new() else { return };
    let (store, one, two) = arena.versions();
    let run = arena.place.run();
    arena.attack(std::slice::from_ref(&run), |n| {
        let archives = Dir::open_real(&arena.place.archives())?;
        archives.remove_tree(Path::new("aside"))?;
        let aside = archives.ensure_dir(Path::new("aside"), 0o700)?;
        let tree = Dir::open_real(&run)?;
        let done = sync(&tree, arena.own, &store, if n % 2 == 0 { &one } else { &two }, Some(&aside));
        mc_project::tree::switch::exchange(&arena.place)?;
        mc_project::tree::switch::exchange(&arena.place)?;
        done
    });
}

#[test]
fn a_racing_owner_gets_nothing_out_of_snapshots_and_restores() {
    let Some(arena) = Arena::new() else { return };
    Snapshots::new(&arena.place, arena.own).take(&None, true).unwrap();
    let (data, copy) = (arena.place.data(), arena.place.snapshot());
    // After an exchange, both are directories that the account has open.
    arena.attack(&[data, copy], |n| {
        let snapshots = Snapshots::new(&arena.place, arena.own);
        let manifest = snapshots.take(&None, n % 2 == 0);
        if n % 3 == 0 {
            for unit in snapshots.units(&None)? {
                snapshots.restore(&unit)?;
            }
        }
        let wanted = manifest?;
        if n % 3 == 1 {
            let aside = Dir::open_real(&arena.place.archives())?.ensure_dir(Path::new("aside"), 0o700)?;
            snapshots.restore_by_copy(&None, &wanted, &aside)?;
        }
        snapshots.materialise(&wanted)?;
        snapshots.sweep().map(|_| ())
    });
}

#[test]
fn a_racing_owner_gets_nothing_out_of_drift_removals_and_builds() {
    let Some(arena) = Arena::new() else { return };
    let (store, one, two) = arena.versions();
    let (run, build) = (arena.place.run(), arena.place.build_tree());
    arena.attack(&[run.clone(), build.clone()], |n| {
        let (run, build) = (Dir::open_real(&run)?, Dir::open_real(&build)?);
        let archives = Dir::open_real(&arena.place.archives())?;
        archives.remove_tree(Path::new("drift"))?;
        let kept = archives.ensure_dir(Path::new("drift"), 0o700)?;
        let drifted = identify(&run, arena.own, None, &|_| true).and_then(|told| {
            Drift::between(&one, &told, &|_, _| false).keep(&kept, &run, &one, &Supply::new(&store, Vec::new()))
        });
        let ingested = identify(&build, arena.own, None, &|_| true).and_then(|told| {
            for entry in told.manifest.entries().filter(|entry| entry.hash().is_some()) {
                store.add(&mut build.open_file(entry.path.as_path())?)?;
            }
            Ok(())
        });
        let removed =
            if n % 2 == 0 { build.remove_tree(Path::new("d")) } else { sync(&build, arena.own, &store, &two, None) };
        drifted.and(ingested).and(removed)
    });
}

/// What a program does that works by path: everything that this crate does not.
fn naive_sync(tree: &Path) -> std::io::Result<()> {
    for dir in ["d", "d/e"] {
        let _ = std::fs::create_dir(tree.join(dir));
        chown(tree.join(dir), Some(ACCOUNT), Some(ACCOUNT))?;
    }
    for file in ["f", "d/f", "d/e/f"] {
        let path = tree.join(file);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            std::fs::write(&path, "new\n")?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
            chown(&path, Some(ACCOUNT), Some(ACCOUNT))?;
        }
    }
    Ok(())
}

#[test]
fn a_naive_sync_is_led_out_by_the_same_account() {
    let Some(arena) = Arena::new() else { return };
    let before = arena.outside();
    let racer = Racer::start(&arena, &[arena.place.run()]);
    let (begin, mut runs) = (Instant::now(), 0);
    while arena.outside() == before {
        assert!(begin.elapsed() < Duration::from_mins(1), "the account is too slow: these tests prove nothing");
        let _ = naive_sync(&arena.place.run());
        runs += 1;
    }
    racer.stop();
    eprintln!("the naive sync was led out in run {runs}, after {:?}", begin.elapsed());
}

//! Where a campaign's node stands: a file system that is put back, to the last inode, before each fault.
//!
//! An image of ext4 or xfs on a memory disk is mounted at the node's root. Putting back is copying the image: inodes, times
//! and witnesses are the very same, so that what a deployment does on its fast path is what is tested.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::World;

/// The variable that says what to do where nothing can be mounted: with `skip` nothing is tried.
const WISH: &str = "MC_TEST_MACHINES";

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// The program that makes one.
    fn make(self, image: &Path) {
        let mut command = match self {
            Self::Ext4 => Command::new("mkfs.ext4"),
            Self::Xfs => Command::new("mkfs.xfs"),
        };
        // Everything is written while it is made: what is tested later is our own writing.
        match self {
            Self::Ext4 => command.args([
                "-q",
                "-F",
                "-b",
                "4096",
                "-m",
                "0",
                "-N",
                "2048",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
            ]),
            Self::Xfs => command.args(["-q", "-f"]),
        };
        run(command.arg(image));
    }

    /// XFS refuses a second file system of the same name, and a process in another mount namespace may still hold the copy
    /// that was mounted before.
    fn mount_options(self) -> &'static str {
        match self {
            Self::Ext4 => "loop",
            Self::Xfs => "loop,nouuid",
        }
    }

    /// The smallest size that is good for a node, in MiB.
    pub fn size(self) -> u64 {
        match self {
            Self::Ext4 => 48,
            // Below this mkfs.xfs refuses.
            Self::Xfs => 300,
        }
    }
}

/// The node's file system, mounted at the node's root; it is gone with this value.
pub struct Ground {
    dir: PathBuf,
    root: PathBuf,
    kind: Kind,
    number: Cell<u32>,
}

/// Whether file systems are to be mounted here; says so where they are not.
///
/// # Panics
/// If they cannot be, and `MC_TEST_MACHINES` does not say `skip`: a test that skips itself would be seen by nobody.
pub fn can_mount() -> bool {
    if std::env::var(WISH).is_ok_and(|wish| wish == "skip") {
        eprintln!("skipped: {WISH}=skip, and this mounts a file system of its own");
        return false;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root mounts a file system of its own");
        return false;
    }
    true
}

impl Ground {
    /// A new file system of so many MiB for this node, which has nothing in its root yet.
    pub fn new(world: &World, kind: Kind, mib: u64) -> Self {
        let dir = world.home().path("ground");
        std::fs::create_dir(&dir).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2g", "ground"]).arg(&dir));
        let ground = Self { dir, root: world.root(), kind, number: Cell::new(0) };
        std::fs::File::create(ground.image()).unwrap().set_len(mib << 20).unwrap();
        kind.make(&ground.image());
        ground.mount();
        // What mkfs and nobody else makes is no difference between two nodes.
        let _ = std::fs::remove_dir(ground.root.join("lost+found"));
        ground
    }

    /// The image's file.
    pub fn image(&self) -> PathBuf {
        self.dir.join(format!("image-{}", self.number.get()))
    }

    fn saved(&self) -> PathBuf {
        self.dir.join("saved")
    }

    /// Keeps the present state, to which [`Self::restore`] comes back.
    pub fn save(&self) {
        run(Command::new("sync").arg("-f").arg(&self.root));
        self.unmount();
        copy(&self.image(), &self.saved());
        self.mount();
    }

    /// Puts the file system back as it was saved.
    pub fn restore(&self) {
        self.unmount();
        self.start_from(&self.saved());
    }

    /// Mounts what this file holds, and copies nothing; nothing may be mounted.
    pub fn mount_file(&self, file: &Path) {
        run(Command::new("mount").args(["-o", self.kind.mount_options()]).arg(file).arg(&self.root));
    }

    /// What nobody asks to have written stays in memory: ext4 does not commit by its clock while a short run is filmed.
    pub fn stop_the_clock(&self) {
        run(Command::new("mount").args(["-o", "remount,commit=600"]).arg(&self.root));
    }

    /// A path on the memory disk.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts the saved image into this file.
    pub fn copy_saved(&self, to: &Path) {
        copy(&self.saved(), to);
    }

    /// Mounts it again, as a machine does that was cut off from its power; nothing may be mounted.
    pub fn mount_again(&self) {
        let before = self.image();
        self.start_from(&before);
    }

    /// Mounts a copy of this image. Always a new file: what a process in another mount namespace still holds of the old one
    /// (every step has a namespace of its own) must neither write into this one nor be found in the buffers of its device.
    pub fn start_from(&self, image: &Path) {
        let before = self.image();
        self.number.set(self.number.get() + 1);
        copy(image, &self.image());
        std::fs::remove_file(before).unwrap();
        self.mount();
    }

    fn mount(&self) {
        self.mount_file(&self.image());
    }

    /// Tells its ext4 of an error, as a failing disk does.
    pub fn break_it(&self) {
        use std::os::unix::fs::MetadataExt;
        let device = std::fs::metadata(&self.root).unwrap().dev();
        let device = format!("/sys/dev/block/{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let name = std::fs::canonicalize(device).unwrap();
        let trigger = Path::new("/sys/fs/ext4").join(name.file_name().unwrap()).join("trigger_fs_error");
        std::fs::write(trigger, "1").unwrap();
    }

    /// Unmounts it; waits for those who still work on it, and ends them after a while.
    pub fn unmount(&self) {
        let begin = Instant::now();
        while !is_done(Command::new("umount").arg(&self.root)) {
            if begin.elapsed() > Duration::from_secs(5) {
                let users = users_of(&self.root);
                for pid in &users {
                    crate::support::kill_9(*pid);
                }
                assert!(begin.elapsed() < Duration::from_secs(30), "{} is held by {users:?}", self.root.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.root).output();
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).output();
    }
}

/// The processes that work below `root`: by directory, command line or open file.
pub fn users_of(root: &Path) -> Vec<i32> {
    let mine = std::process::id().cast_signed();
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != mine && is_user(root, *pid)).collect()
}

fn is_user(root: &Path, pid: i32) -> bool {
    let at = PathBuf::from(format!("/proc/{pid}"));
    // A child of this test that has not become its program yet.
    if std::fs::read_link(at.join("exe")).ok() == std::env::current_exe().ok() {
        return false;
    }
    let leads_below = |link: PathBuf| std::fs::read_link(link).is_ok_and(|to| to.starts_with(root));
    let fds = std::fs::read_dir(at.join("fd")).into_iter().flatten().flatten();
    leads_below(at.join("cwd")) || fds.map(|fd| fd.path()).any(leads_below)
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").arg(from).arg(to));
}

fn is_done(command: &mut Command) -> bool {
    command.output().unwrap().status.success()
}

/// Runs a program of the system.
///
/// # Panics
/// If it cannot be started or fails.
#[track_caller]
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

//! What the tests share: the executable, directories, shell steps, and looking for processes.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mc_project::sys::process::{self, StepWatcher, base_environment};
use mc_project::sys::step_exec::StepOrder;

/// Longer than any test should take.
pub const LONG: Duration = Duration::from_mins(1);

/// Sees a step and remembers nothing.
pub struct Blind;

impl StepWatcher for Blind {
    fn line(&mut self, _line: &[u8]) {}
}

/// What the tests start as `mc_project`: a link to `detached.sh`, beside a link to the binary.
fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        // Named by the source tree: a target directory may have been copied from another one.
        let tree = blake3::hash(env!("CARGO_MANIFEST_DIR").as_bytes()).to_hex();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("exe-{}", &tree.as_str()[..16]));
        std::fs::create_dir_all(&dir).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/detached.sh");
        for (target, name) in [(env!("CARGO_BIN_EXE_mc_project"), "real"), (script, "mc_project")] {
            let link = dir.join(name);
            // Another test process may make the same link.
            let _ = std::os::unix::fs::symlink(target, &link);
            assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(target));
        }
        dir.join("mc_project")
    })
}

/// A directory of its own for one test, which is alone in its process as long as this lives: only one step runs at a
/// time in a process, and what a step leaves behind is looked for among all its children.
pub struct World {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

pub fn setup() -> World {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    process::set_executable(executable());
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    World { dir, _alone: alone }
}

pub fn sh(script: &str, cwd: &Path) -> StepOrder {
    let argv = ["/bin/sh", "-euc", script].map(OsString::from).into();
    StepOrder::new(argv, base_environment(Path::new("/")).into_iter().collect(), cwd.to_path_buf())
}

/// Processes whose command line contains `needle`, zombies left out.
pub fn processes_with(needle: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&text).replace('\0', " ").contains(needle)
    };
    pids.filter(|pid| *pid != std::process::id().cast_signed()).filter(has).collect()
}

pub fn wait_until(what: &str, check: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < end, "it did not happen: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A number of seconds to sleep that no other test uses, to find the process again.
pub fn unique_sleep() -> String {
    format!("1000{:07}", uuid::Uuid::now_v7().as_u128() % 9_999_999)
}

pub fn two_trees(root: &Path) -> (PathBuf, PathBuf) {
    let (old, new) = (root.join("run"), root.join("candidate"));
    for (dir, text) in [(&old, "old\n"), (&new, "new\n")] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("version"), text).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    (old, new)
}

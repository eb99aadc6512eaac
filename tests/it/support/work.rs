//! A developer's work tree with a remote called `node`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::finished::Running;
use super::{Finished, Home};

/// How long a deployment may be settled after its push.
const SETTLING: Duration = Duration::from_secs(10);

/// The work tree.
pub struct WorkTree<'a> {
    home: &'a Home,
    dir: PathBuf,
}

impl<'a> WorkTree<'a> {
    /// An empty repository at `dir` on branch `main`, with the remote `node` at `url`.
    #[track_caller]
    pub fn new(home: &'a Home, dir: PathBuf, url: &str) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        home.git(&dir, &["init", "--quiet", "--initial-branch=main"]).ok();
        home.git(&dir, &["remote", "add", "node", url]).ok();
        Self { home, dir }
    }

    /// The one that is at `dir` already.
    pub fn at(home: &'a Home, dir: PathBuf) -> Self {
        Self { home, dir }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs git in it.
    #[track_caller]
    pub fn git(&self, args: &[&str]) -> Finished {
        self.home.git(&self.dir, args)
    }

    /// Writes a file, with the directories above it; the first line `#!` makes it executable.
    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let at = self.dir.join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(&at, content.as_ref()).unwrap();
        if content.as_ref().starts_with(b"#!") {
            std::fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    /// Writes these files and commits everything; returns the commit's id.
    #[track_caller]
    pub fn commit(&self, message: &str, files: &[(&str, &str)]) -> String {
        for (path, content) in files {
            self.write(path, content);
        }
        self.commit_all(message)
    }

    /// Commits everything that the directory holds; returns the commit's id.
    #[track_caller]
    pub fn commit_all(&self, message: &str) -> String {
        self.git(&["add", "--all", "--force"]).ok();
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]).ok();
        self.head()
    }

    /// Copies a directory into the work tree.
    #[track_caller]
    pub fn copy_from(&self, dir: &Path) {
        let mut command = self.home.command("cp");
        command.arg("-a").arg(dir.join(".")).arg(&self.dir);
        Finished::of(command).ok();
    }

    /// The id of the commit that is checked out.
    #[track_caller]
    pub fn head(&self) -> String {
        self.home.git_text(&self.dir, &["rev-parse", "HEAD"])
    }

    /// `git push node` with these arguments. A node on this machine has settled the deployment when this returns; the pusher
    /// is let go before.
    #[track_caller]
    pub fn push(&self, args: &[&str]) -> Finished {
        let finished = Finished::of(self.push_command(args));
        if !args.contains(&"async") {
            self.settle();
        }
        finished
    }

    /// Waits until nobody holds the lock of the project that is pushed to, where that is a directory here; not for ever, since
    /// it may be another command that holds it.
    fn settle(&self) {
        let url = self.git(&["remote", "get-url", "node"]).stdout;
        let lock = Path::new(url.trim()).join("../../state/lock");
        let is_held = || std::fs::File::open(&lock).is_ok_and(|file| file.try_lock_shared().is_err());
        let end = Instant::now() + SETTLING;
        while is_held() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The same, only started.
    #[track_caller]
    pub fn start_push(&self, args: &[&str]) -> Running {
        Running::start(self.push_command(args))
    }

    /// The command of a push, to be changed before it is run.
    pub fn push_command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command("git");
        let (options, refs): (Vec<&str>, Vec<&str>) = split_options(args);
        command.current_dir(&self.dir).arg("push").args(options).arg("node").args(refs);
        command
    }

    /// The tree of a commit as git itself writes it, without anything of ours: what `run` must be.
    #[track_caller]
    pub fn reference_tree(&self, commit: &str) -> super::Tree {
        let into = tempfile::tempdir_in(self.home.dir()).unwrap();
        let archive = into.path().join("tree.tar");
        self.git(&["archive", "--format=tar", "-o", archive.to_str().unwrap(), commit]).ok();
        let tree = into.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut tar = self.home.command("tar");
        // git archive writes 0664 and 0775; with the umask of every server these are 0644 and 0755.
        tar.arg("--no-same-permissions").arg("-xf").arg(&archive).arg("-C").arg(&tree);
        Finished::of(tar).ok();
        super::digest(&tree)
    }
}

/// Options first, as git wants them: everything that begins with `-`, and the value of `-o`.
fn split_options<'s>(args: &[&'s str]) -> (Vec<&'s str>, Vec<&'s str>) {
    let (mut options, mut refs) = (Vec::new(), Vec::new());
    let mut is_value = false;
    for arg in args {
        if is_value || arg.starts_with('-') {
            options.push(*arg);
        } else {
            refs.push(*arg);
        }
        is_value = *arg == "-o";
    }
    (options, refs)
}

//! Repositories for the tests: real ones, made by the git program, read by each backend.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::sys::error::Kind;
use crate::sys::names::ObjectId;
use crate::sys::path::TreePath;

use super::{Backend, GitEntry, ObjectFormat, Repo, TreeLimits};

/// Which reader a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Library,
    Program,
    ProgramSha256,
}

pub struct Fixture {
    pub temp: tempfile::TempDir,
    pub path: PathBuf,
    pub repo: Repo,
    pub reader: Reader,
}

/// Runs a test on every backend and every format.
pub fn on_each(test: impl Fn(&Fixture)) {
    for reader in [Reader::Library, Reader::Program, Reader::ProgramSha256] {
        println!("on {reader:?}");
        test(&Fixture::new(reader));
    }
}

pub const LIMITS: TreeLimits = TreeLimits { files: 1000, bytes: 100_000, file_bytes: 10_000 };

impl Fixture {
    pub fn new(reader: Reader) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("r.git");
        let format = if reader == Reader::ProgramSha256 { ObjectFormat::Sha256 } else { ObjectFormat::Sha1 };
        Repo::init_bare(&path, format).unwrap();
        let fixture = Self { repo: open(&path, reader), temp, path, reader };
        assert_eq!(matches!(fixture.repo.backend, Backend::Library(_)), reader == Reader::Library);
        fixture
    }

    /// The repository opened once more, as by another process.
    pub fn again(&self) -> Repo {
        open(&self.path, self.reader)
    }

    pub fn git(&self, args: &[&str]) -> String {
        self.git_with(args, b"")
    }

    pub fn git_with(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.try_git(args, input);
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_string()
    }

    pub fn try_git(&self, args: &[&str], input: &[u8]) -> std::process::Output {
        let mut child = Command::new("git")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.temp.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_AUTHOR_NAME", "A Author")
            .env("GIT_AUTHOR_EMAIL", "a@example.org")
            .env("GIT_COMMITTER_NAME", "C")
            .env("GIT_COMMITTER_EMAIL", "c@example.org")
            .env("GIT_AUTHOR_DATE", "1700000000 +0100")
            .env("GIT_COMMITTER_DATE", "1700000100 +0000")
            .arg("-C")
            .arg(&self.path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn blob(&self, content: &[u8]) -> ObjectId {
        self.git_with(&["hash-object", "-w", "--stdin"], content).parse().unwrap()
    }

    /// A raw tree, exactly as given.
    pub fn tree(&self, entries: &[(&str, &[u8], &ObjectId)]) -> ObjectId {
        let mut raw = Vec::new();
        for (mode, name, id) in entries {
            raw.extend_from_slice(mode.as_bytes());
            raw.push(b' ');
            raw.extend_from_slice(name);
            raw.push(0);
            raw.extend(
                (0..id.as_str().len()).step_by(2).map(|i| u8::from_str_radix(&id.as_str()[i..i + 2], 16).unwrap()),
            );
        }
        self.raw("tree", &raw)
    }

    pub fn raw(&self, kind: &str, raw: &[u8]) -> ObjectId {
        self.git_with(&["hash-object", "-t", kind, "-w", "--stdin", "--literally"], raw).parse().unwrap()
    }

    pub fn commit(&self, tree: &ObjectId, parents: &[&ObjectId], message: &str) -> ObjectId {
        let mut args = vec!["commit-tree", tree.as_str(), "-m", message];
        for parent in parents {
            args.extend(["-p", parent.as_str()]);
        }
        self.git(&args).parse().unwrap()
    }

    /// A commit of one raw tree.
    pub fn commit_of(&self, entries: &[(&str, &[u8], &ObjectId)]) -> ObjectId {
        let tree = self.tree(entries);
        self.commit(&tree, &[], "raw")
    }

    /// A commit of these files (regular ones; directories are made).
    pub fn commit_files(&self, files: &[(&str, &[u8])], parents: &[&ObjectId], message: &str) -> ObjectId {
        let index = self.temp.path().join("index");
        let _ = std::fs::remove_file(&index);
        let mut lines = String::new();
        for (path, content) in files {
            writeln!(lines, "100644 {}\t{path}", self.blob(content)).unwrap();
        }
        let index = format!("--git-dir={}", self.path.display());
        let run = |args: &[&str], input: &[u8]| {
            let mut child = Command::new("git")
                .env("GIT_INDEX_FILE", self.temp.path().join("index"))
                .arg(&index)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input).unwrap();
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_string()
        };
        run(&["update-index", "--add", "--index-info"], lines.as_bytes());
        let tree: ObjectId = run(&["write-tree"], b"").parse().unwrap();
        self.commit(&tree, parents, message)
    }

    pub fn list(&self, commit: &ObjectId) -> Vec<GitEntry> {
        self.repo.list(commit, &LIMITS).unwrap()
    }

    /// The listing is refused, in one line that holds each of these words, and with a hint.
    #[track_caller]
    pub fn assert_refused(&self, commit: &ObjectId, words: &[&str]) {
        let error = self.repo.list(commit, &LIMITS).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        for word in words {
            assert!(error.message().contains(word), "no `{word}` in: {error}");
        }
        assert!(!error.message().contains(char::is_control) && error.hint_text().is_some(), "{error:?}");
    }

    /// An id of this format that names nothing.
    pub fn nothing(&self) -> ObjectId {
        "deadbeef".repeat(self.repo.format().digits() / 8).parse().unwrap()
    }

    pub fn zero(&self) -> ObjectId {
        self.nothing().zero_like()
    }
}

fn open(path: &std::path::Path, reader: Reader) -> Repo {
    match reader {
        Reader::Program => Repo::open_with_program(path, ObjectFormat::Sha1, None).unwrap(),
        Reader::Library | Reader::ProgramSha256 => Repo::open(path).unwrap(),
    }
}

pub fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

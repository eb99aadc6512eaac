//! Submodules, for recipes that allow them: what `.gitmodules` says, and fetching exactly the commit that is named.

use std::fmt;
use std::path::Path;

use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::names::{ObjectId, RefName};
use crate::sys::path::TreePath;

use super::list::Mode;
use super::program::Git;
use super::{EntryKind, ObjectFormat, Repo};

/// A larger `.gitmodules` is refused.
const LIMIT: u64 = 64 * 1024;
const ALLOWED: &str = "a submodule needs a url of the form https://…, ssh://… or user@host:path";

/// One submodule of a commit.
#[derive(Clone, PartialEq, Eq)]
pub struct Submodule {
    /// Where it belongs in the tree.
    pub path: TreePath,
    /// Its name in `.gitmodules`.
    pub name: String,
    /// Where it is fetched from: https or ssh. It may hold a password; [`Submodule::shown_url`] does not.
    pub url: String,
    /// The commit that the tree names.
    pub commit: ObjectId,
}

impl Submodule {
    /// The URL, safe to show: without user and password.
    #[must_use]
    pub fn shown_url(&self) -> String {
        shown_url(&self.url)
    }
}

impl fmt::Debug for Submodule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Submodule({} {} {} {})", self.path, escape::visible(&self.name), self.shown_url(), self.commit)
    }
}

impl Repo {
    /// The submodules of a commit, sorted by path. An entry of `.gitmodules` without a submodule in the tree is left
    /// out; whoever needs every submodule of the tree compares with [`Repo::list`].
    ///
    /// # Errors
    /// If `.gitmodules` is a link, too large or malformed, or names something that is not allowed.
    pub fn submodules(&self, commit: &ObjectId) -> Result<Vec<Submodule>> {
        let file = TreePath::new(b".gitmodules")?;
        let Some((mode, blob)) = self.entry_at(commit, &file)? else { return Ok(Vec::new()) };
        if !matches!(Mode::parse(&mode), Some(Mode::Entry(EntryKind::File | EntryKind::Executable))) {
            return Err(Error::refused("`.gitmodules` is no regular file").hint("replace it by a file"));
        }
        if self.header(&blob)?.ok_or_else(|| self.missing(&blob))?.size > LIMIT {
            return Err(Error::refused(format!("`.gitmodules` is larger than {}", crate::sys::size::words(LIMIT))));
        }
        // git itself reads its own format: no second parser can come to another conclusion.
        let output = self
            .git()
            .args(["config", &format!("--blob={blob}"), "--null", "--list"])
            .run("read `.gitmodules`")
            .map_err(|error| Error::refused(error.message()).hint("git config -f .gitmodules --list"))?;
        let mut found = Vec::new();
        for declared in declared(&output)? {
            let path = checked_path(&declared)?;
            let Some((mode, commit)) = self.entry_at(commit, &path)? else { continue };
            if !matches!(Mode::parse(&mode), Some(Mode::Entry(EntryKind::Submodule))) {
                continue;
            }
            let url = checked_url(&declared)?;
            found.push(Submodule { path, name: declared.name, url, commit });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = found.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(refuse(&pair[1].name, "has the path of another one"));
        }
        Ok(found)
    }
}

/// What `.gitmodules` says about one submodule.
struct Declared {
    name: String,
    path: Option<String>,
    url: Option<String>,
}

/// Reads the output of `git config --null --list`: `submodule.NAME.key LF value NUL`.
fn declared(output: &[u8]) -> Result<Vec<Declared>> {
    let mut all: Vec<Declared> = Vec::new();
    for record in output.split(|b| *b == 0) {
        let Ok(record) = std::str::from_utf8(record) else {
            return Err(Error::refused("`.gitmodules` is no UTF-8 text"));
        };
        // No name holds a line feed (git-config(1)), so the first one ends the key.
        let Some(rest) = record.strip_prefix("submodule.") else { continue };
        let (key, value) = rest.split_once('\n').unwrap_or((rest, ""));
        let Some((name, key)) = key.rsplit_once('.') else { continue };
        check_name(name)?;
        let place = all.iter().position(|known| known.name == name).unwrap_or_else(|| {
            all.push(Declared { name: name.to_string(), path: None, url: None });
            all.len() - 1
        });
        match key {
            "path" => all[place].path = Some(value.to_string()),
            "url" => all[place].url = Some(value.to_string()),
            // `update = !command` and the like are never obeyed.
            _ => {}
        }
    }
    Ok(all)
}

/// A name becomes a directory name in some programs (CVE-2018-11235).
fn check_name(name: &str) -> Result<()> {
    let leaves = name.split(['/', '\\']).any(|part| part == "..");
    if name.is_empty() || name.starts_with('-') || leaves || name.contains(char::is_control) {
        return Err(refuse(name, "has a name that is not allowed"));
    }
    Ok(())
}

fn checked_path(declared: &Declared) -> Result<TreePath> {
    let path = declared.path.as_deref().ok_or_else(|| refuse(&declared.name, "has no path"))?;
    // A trailing carriage return: CVE-2025-48384.
    if path.starts_with('-') || path.contains(char::is_control) {
        return Err(refuse(&declared.name, "has a path that is not allowed"));
    }
    TreePath::new(path.as_bytes())
}

fn checked_url(declared: &Declared) -> Result<String> {
    let url = declared.url.as_deref().ok_or_else(|| refuse(&declared.name, "has no url"))?;
    if is_allowed_url(url) {
        return Ok(url.to_string());
    }
    Err(refuse(&declared.name, &format!("has the url `{}`, which is not allowed", shown_url(url))).hint(ALLOWED))
}

fn is_allowed_url(url: &str) -> bool {
    let lower = url.to_ascii_lowercase();
    // An encoded line end would be decoded on its way to a credential helper (CVE-2020-5260).
    let smuggled = ["%00", "%0a", "%0d"].iter().any(|code| lower.contains(code));
    if url.len() > 2048 || smuggled || url.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return false;
    }
    let host_of = |authority: &str| authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_string();
    if let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("ssh://")) {
        let authority = rest.split('/').next().unwrap_or_default();
        // A host or a user that begins with `-` would be an option of ssh (CVE-2017-1000117).
        let host = host_of(authority);
        return !authority.starts_with('-') && !host.starts_with('-') && !host.is_empty();
    }
    let Some((user, rest)) = url.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let plain = |text: &str| {
        text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    plain(user) && plain(host) && !path.is_empty() && !path.starts_with(['-', ':'])
}

fn shown_url(url: &str) -> String {
    let shown = match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => url.to_string(),
    };
    escape::visible_bounded(shown.as_bytes(), 200)
}

fn refuse(name: &str, problem: &str) -> Error {
    let shown = escape::visible_bounded(name.as_bytes(), 100);
    Error::refused(format!("submodule `{shown}` {problem}")).hint("correct .gitmodules, commit and push again")
}

/// The mirror, made if there is none. One that belongs to another user is not looked into by ourselves.
fn mirror_of(path: &Path, format: ObjectFormat, identity: Option<(u32, u32)>) -> Result<Repo> {
    if identity.is_none() {
        return Repo::init_bare(path, format);
    }
    let doing = format!("make the repository {}", path.display());
    let words = ["init", "--quiet", "--bare", "--template=", "--initial-branch=main"];
    let format_word = format!("--object-format={}", format.as_str());
    Git::outside().identity(identity).args(words).arg(format_word).arg("--").arg(path).run(&doing)?;
    Repo::open_with_program(path, format, identity)
}

/// Fetches the commit of a submodule into the bare mirror at `mirror`, which is made if there is none. Nothing is
/// fetched if the commit is there already; submodules of the submodule are not followed. `ssh_command` is what git
/// starts instead of `ssh`. With an `identity` (user, group) git works as that user, whom the mirror then belongs to.
///
/// # Errors
/// If the commit cannot be fetched.
pub fn fetch_submodule(
    mirror: &Path,
    sub: &Submodule,
    ssh_command: Option<&str>,
    identity: Option<(u32, u32)>,
) -> Result<Repo> {
    let repo = mirror_of(mirror, ObjectFormat::of(&sub.commit), identity)?;
    let kept: RefName = format!("refs/kept/{}", sub.commit).parse()?;
    // The ref, not the object, tells that the fetch was complete.
    if repo.read_ref(&kept)?.is_some() {
        return Ok(repo);
    }
    if !is_allowed_url(&sub.url) {
        return Err(refuse(&sub.name, "has a url that is not allowed").hint(ALLOWED));
    }
    let doing = format!("fetch the submodule `{}` from {}", escape::visible(&sub.name), sub.shown_url());
    let fetch = |arguments: &[&str]| {
        Git::of(repo.path())
            .identity(identity)
            .with_system_config()
            .setting("protocol.allow=never")
            .setting("protocol.https.allow=always")
            .setting("protocol.ssh.allow=always")
            // A host that sends nothing for a minute is given up.
            .setting("http.lowSpeedLimit=1")
            .setting("http.lowSpeedTime=60")
            .setting("gc.auto=0")
            .setting("maintenance.auto=false")
            .env("GIT_ALLOW_PROTOCOL", "https:ssh")
            .env(
                "GIT_SSH_COMMAND",
                ssh_command.unwrap_or("ssh -oBatchMode=yes -oConnectTimeout=30 -oServerAliveInterval=15"),
            )
            // Known, so that git does not probe what kind of ssh this is.
            .env("GIT_SSH_VARIANT", "ssh")
            .args(["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"])
            .args(arguments)
            .output()
    };
    let exactly = format!("+{}:{kept}", sub.commit);
    if fetch(&["--depth=1", "--", &sub.url, &exactly])?.code == Some(0) {
        return Ok(repo);
    }
    // Not every server gives out a commit that no branch points to: then all branches are fetched.
    let output = fetch(&["--", &sub.url, "+refs/heads/*:refs/heads/*"])?;
    if output.code != Some(0) {
        // What ssh or git say may repeat the url with its password.
        let said = output.said().replace(&sub.url, &sub.shown_url());
        return Err(Error::failed(format!("cannot {doing}: {said}")));
    }
    if repo.peel_to_commit(&sub.commit)?.as_ref() != Some(&sub.commit) {
        return Err(Error::failed(format!("cannot {doing}: it has no commit {}", sub.commit.short()))
            .hint("push the submodule's commit to its own repository first"));
    }
    repo.set_ref(&kept, &sub.commit, "fetched")?;
    Ok(repo)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, Reader, on_each, path};
    use super::*;
    use crate::sys::error::Kind;

    #[test]
    fn only_https_and_ssh_urls_without_tricks_are_allowed() {
        let good = [
            "https://example.org/a.git",
            "https://user:pass@example.org:8443/a",
            "ssh://git@example.org/a",
            "git@example.org:a/b.git",
        ];
        for url in good {
            assert!(is_allowed_url(url), "{url}");
        }
        let bad = [
            "",
            "http://x/y",
            "git://x/y",
            "file:///etc",
            "/etc",
            "../x",
            "ext::sh -c id",
            "ext::https://x/y",
            "--upload-pack=id",
            "-x@h:y",
            "ssh://-oProxyCommand=id/x",
            "ssh://a@-oProxyCommand=id/x",
            "ssh://-oX@h/x",
            "https:///x",
            "a@h:-x",
            "a@h::x",
            "a@-h:x",
            "https://x/y\r",
            "https://x/%0ahost=evil",
            "https://x/a b",
            "HTTPS://x/y",
        ];
        for url in bad {
            assert!(!is_allowed_url(url), "{url:?}");
        }
    }

    #[test]
    fn passwords_in_urls_are_not_shown() {
        assert_eq!(shown_url("https://me:secret@x.org/a@b"), "https://x.org/a@b");
        assert_eq!(shown_url("git@x.org:a"), "git@x.org:a");
        assert_eq!(shown_url("ext::sh\u{1b}"), "ext::sh\\u{1b}");
    }

    /// A commit with this `.gitmodules` and submodules at `a` and `d/b`.
    fn commit_with(f: &Fixture, modules: &str) -> ObjectId {
        let (file, gone) = (f.blob(modules.as_bytes()), f.nothing());
        let inner = f.tree(&[("160000", b"b", &gone)]);
        f.commit_of(&[("100644", b".gitmodules", &file), ("160000", b"a", &gone), ("40000", b"d", &inner)])
    }

    #[test]
    fn gitmodules_is_read_as_git_reads_it() {
        on_each(|f| {
            let commit = commit_with(
                f,
                "[submodule \"x.y\"]\n path = d/b # comment\n url = \"https://e.org/\\\nb\"\n update = !id\n\
                 [submodule \"a\"]\n\tpath=a\n\turl=git@e.org:a\n[submodule \"stale\"]\n path = gone\n url = ext::id\n",
            );
            let found = f.repo.submodules(&commit).unwrap();
            let seen: Vec<_> = found.iter().map(|s| (s.path.clone(), s.name.as_str(), s.url.as_str())).collect();
            assert_eq!(seen, [(path("a"), "a", "git@e.org:a"), (path("d/b"), "x.y", "https://e.org/b")]);
            assert_eq!(found[0].commit, f.nothing());
            let none = f.commit_of(&[]);
            assert!(f.repo.submodules(&none).unwrap().is_empty());
        });
    }

    #[test]
    fn hostile_gitmodules_are_refused() {
        on_each(|f| {
            let entry = |name: &str, path: &str, url: &str| {
                format!("[submodule \"{name}\"]\n path = \"{path}\"\n url = \"{url}\"\n")
            };
            let good = "https://e.org/a";
            let cases = [
                entry("../../x", "a", good),
                entry("x/../../y", "a", good),
                entry("-x", "a", good),
                entry("", "a", good),
                entry("a", "../a", good),
                entry("a", "/a", good),
                entry("a", "-a", good),
                entry("a", "a\r", good),
                entry("a", "a", "ext::sh -c id"),
                entry("a", "a", "--upload-pack=id"),
                entry("a", "a", "file:///etc"),
                entry("a", "a", "https://e.org/a\r"),
                entry("a", "a", "../a"),
                "[submodule \"a\"]\n path = a\n".to_string(),
                format!("{}{}", entry("a", "a", good), entry("b", "a", good)),
                "[submodule \"a\"\n".to_string(),
                format!("#{}", "x".repeat(70_000)),
            ];
            for modules in cases {
                let commit = commit_with(f, &modules);
                let error = f.repo.submodules(&commit).expect_err(&modules);
                assert_eq!(error.kind(), Kind::Refused, "{modules} {error}");
                assert!(!error.message().contains(char::is_control), "{error:?}");
            }
            let target = f.blob(b"x");
            let link = f.commit_of(&[("120000", b".gitmodules", &target)]);
            assert!(f.repo.submodules(&link).is_err());
        });
    }

    /// An ssh that stays on this machine: it runs the last argument, and notes that it was called.
    fn fake_ssh(f: &Fixture) -> String {
        let ssh = f.temp.path().join("ssh");
        let calls = f.temp.path().join("calls");
        let text = format!("#!/bin/sh\necho call >> {}\nfor last; do :; done\nexec sh -c \"$last\"\n", calls.display());
        std::fs::write(&ssh, text).unwrap();
        crate::sys::fs::set_mode(&ssh, 0o755).unwrap();
        ssh.display().to_string()
    }

    fn calls(f: &Fixture) -> usize {
        std::fs::read_to_string(f.temp.path().join("calls")).map_or(0, |text| text.lines().count())
    }

    #[test]
    fn exactly_the_named_commit_is_fetched_once() {
        for reader in [Reader::Library, Reader::ProgramSha256] {
            let f = Fixture::new(reader);
            let one = f.commit_files(&[("a", b"1")], &[], "one");
            let two = f.commit_files(&[("a", b"2")], &[&one], "two");
            let three = f.commit_files(&[("a", b"3")], &[&two], "three");
            f.git(&["update-ref", "refs/heads/main", three.as_str()]);
            let ssh = fake_ssh(&f);
            let url = format!("ssh://me@host{}", f.path.display());
            let sub = Submodule { path: path("a"), name: "a".into(), url, commit: two.clone() };
            let mirror = f.temp.path().join("mirror");
            let repo = fetch_submodule(&mirror, &sub, Some(&ssh), None).unwrap();
            assert_eq!(repo.blob_at(&two, &path("a"), 10).unwrap().unwrap(), b"2");
            assert_eq!(repo.peel_to_commit(&three).unwrap(), None);
            assert_eq!(calls(&f), 1);
            fetch_submodule(&mirror, &sub, Some(&ssh), None).unwrap();
            assert_eq!(calls(&f), 1);
            let newer = Submodule { commit: three.clone(), ..sub.clone() };
            fetch_submodule(&mirror, &newer, Some(&ssh), None).unwrap();
            assert_eq!(repo.commit(&three).unwrap().subject, "three");
            let gone = Submodule { commit: f.nothing(), ..sub };
            let error = fetch_submodule(&mirror, &gone, Some(&ssh), None).unwrap_err();
            assert!(error.message().contains("has no commit deadbeef"), "{error}");
        }
    }

    #[test]
    fn a_server_that_gives_no_single_commits_is_asked_for_its_branches() {
        let f = Fixture::new(Reader::Library);
        let one = f.commit_files(&[("a", b"1")], &[], "one");
        let two = f.commit_files(&[("a", b"2")], &[&one], "two");
        f.git(&["update-ref", "refs/heads/main", two.as_str()]);
        let ssh = fake_ssh(&f);
        // Protocol 0 with its default settings gives out what refs point to and nothing else.
        let text = std::fs::read_to_string(&ssh).unwrap().replace("exec sh", "unset GIT_PROTOCOL\nexec sh");
        std::fs::write(&ssh, text).unwrap();
        let url = format!("ssh://me@host{}", f.path.display());
        let sub = Submodule { path: path("a"), name: "a".into(), url, commit: one.clone() };
        let repo = fetch_submodule(&f.temp.path().join("mirror"), &sub, Some(&ssh), None).unwrap();
        assert_eq!(repo.commit(&one).unwrap().subject, "one");
        assert_eq!(calls(&f), 2);
    }

    #[test]
    fn a_submodule_is_never_fetched_from_the_machine_itself() {
        let f = Fixture::new(Reader::Library);
        let one = f.commit_files(&[("a", b"1")], &[], "one");
        f.git(&["update-ref", "refs/heads/main", one.as_str()]);
        for url in [format!("file://{}", f.path.display()), f.path.display().to_string(), "ext::sh -c id".into()] {
            let sub = Submodule { path: path("a"), name: "a".into(), url, commit: one.clone() };
            let error = fetch_submodule(&f.temp.path().join("mirror"), &sub, None, None).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{error}");
        }
    }
}

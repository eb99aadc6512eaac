//! The demonstration: a node in a directory, real pushes of a real example, and every claim checked while it is made.
//!
//! Nothing here reaches behind the curtain: it types the commands that a person would type, and looks at the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;

use crate::cli::screen;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, ExitCode, Result};
use crate::sys::process::{self, Captured};
use crate::sys::{escape, fs, git};

/// The example that is deployed: `examples/static-site`, compiled in.
const EXAMPLE: [(&str, &str); 6] = [
    (".gitignore", include_str!("../examples/static-site/.gitignore")),
    ("mc_project.yaml", include_str!("../examples/static-site/mc_project.yaml")),
    ("build.sh", include_str!("../examples/static-site/build.sh")),
    ("pages/about.html", include_str!("../examples/static-site/pages/about.html")),
    ("pages/opening-hours.html", include_str!("../examples/static-site/pages/opening-hours.html")),
    ("style/site.css", include_str!("../examples/static-site/style/site.css")),
];

/// The step that the demonstration adds to the example, so that there are data to lose.
const UPGRADE: &str = "#!/bin/sh
# Brings the guest book to the newest form.
set -eu
[ -s \"$MC_DATA/guests.txt\" ] || echo 'form 1' > \"$MC_DATA/guests.txt\"
";

/// The same step as somebody wrote it on a bad day.
const BAD_UPGRADE: &str = "#!/bin/sh
# Brings the guest book to the newest form.
set -eu
echo 'form 2' > \"$MC_DATA/guests.txt\"
echo 'and now the guests ... where are they?' >&2
exit 1
";

const PROJECT: &str = "site";
/// Longer than any command here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Shows it all in a new directory; the result is the exit code: a claim that did not hold is a failure.
///
/// # Errors
/// If git is missing or too old, the directory is in use, or something cannot be read.
pub fn run(dir: Option<&Path>) -> Result<u8> {
    needs_git()?;
    let mut demo = Demo::new(new_directory(dir)?)?;
    screen::line(format!("Everything happens in {}; your own configuration is not used.", demo.root.display()));
    demo.makes_a_node()?;
    demo.deploys()?;
    demo.refuses_a_broken_version()?;
    demo.undoes_a_failing_upgrade()?;
    demo.rolls_back_by_hand()?;
    demo.notices_a_hand_edit()?;
    demo.tells()?;
    demo.ends()
}

fn needs_git() -> Result<()> {
    match git::program_version() {
        Ok(version) if version >= (2, 29) => Ok(()),
        Ok((major, minor)) => {
            Err(Error::refused(format!("git {major}.{minor} cannot let a push wait for its verdict"))
                .hint("the demonstration needs git 2.29 or newer"))
        }
        Err(error) => Err(Error::refused("git is needed").because(error).hint("apt-get install git")),
    }
}

/// The directory of the demonstration, made new; one that was named may exist if it is empty.
fn new_directory(dir: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = dir {
        fs::ensure_dir(dir, 0o755)?;
        if !Dir::open(dir)?.names()?.is_empty() {
            return Err(Error::usage(format!("{} is not empty", dir.display())).hint("name a new directory"));
        }
        return fs::canonical(dir);
    }
    let parent = fs::canonical(&std::env::temp_dir())?;
    let name = format!("mc_project-demo-{}", std::process::id());
    Dir::open(&parent)?.make_dir(Path::new(&name), 0o700)?;
    Ok(parent.join(name))
}

/// A demonstration under way.
struct Demo {
    root: PathBuf,
    program: PathBuf,
    env: BTreeMap<String, String>,
    began: Instant,
    act: u32,
    broken_claims: u32,
    bold: bool,
}

impl Demo {
    fn new(root: PathBuf) -> Result<Self> {
        for name in ["home", "node", "site", "site/pages", "site/style"] {
            fs::ensure_dir(&root.join(name), 0o755)?;
        }
        let mut env = process::base_environment(&root.join("home"));
        if let Ok(path) = std::env::var("PATH") {
            env.insert("PATH".into(), path);
        }
        let people = ["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"];
        for name in people {
            let value = if name.ends_with("NAME") { "Ann Example" } else { "ann@example.org" };
            env.insert(name.into(), value.into());
        }
        env.insert("MC_ROOT".into(), root.join("node").display().to_string());
        let program = fs::canonical(process::self_exe())?;
        let bold = screen::style().colour;
        Ok(Self { root, program, env, began: Instant::now(), act: 0, broken_claims: 0, bold })
    }

    /// Begins an act: one line says what comes, before it is done.
    fn act(&mut self, text: &str) {
        self.act += 1;
        let text = format!("{}. {text}", self.act);
        screen::line("");
        screen::line(&if self.bold { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text });
    }

    /// Says something about what was done, and whether it is so.
    fn claim(&mut self, text: &str, is_so: bool) {
        if is_so {
            screen::line(format!("  => {text}"));
        } else {
            self.broken_claims += 1;
            screen::line(format!("  => THIS DOES NOT HOLD: {text}"));
        }
    }

    fn project(&self) -> PathBuf {
        self.root.join("node/srv/projects").join(PROJECT)
    }

    /// The path as it is told: below the directory of the demonstration.
    fn told<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    /// Types a command of git in the project's repository, and shows it with its output.
    fn git(&self, args: &[&str]) -> Result<Captured> {
        screen::line(format!("  $ git {}", typed(args)));
        let site = self.root.join("site").display().to_string();
        let all: Vec<&str> = ["-C", &site].into_iter().chain(args.iter().copied()).collect();
        let done = process::run_captured("git", &all, &self.env, b"", PATIENCE)?;
        Self::output(&done);
        Ok(done)
    }

    /// As [`Self::git`], without a word: what everybody knows.
    fn git_silently(&self, args: &[&str]) -> Result<String> {
        let site = self.root.join("site").display().to_string();
        let all: Vec<&str> = ["-C", &site].into_iter().chain(args.iter().copied()).collect();
        let done = process::run_captured("git", &all, &self.env, b"", PATIENCE)?;
        if !done.status.is_ok() {
            return Err(Error::failed(format!("git {} failed: {}", typed(args), done.last_words())));
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_string())
    }

    /// Types a command of ours, and shows it with its output.
    fn ours(&self, args: &[&str]) -> Result<Captured> {
        screen::line(format!("  $ mc_project {}", typed(args)));
        let done = process::run_captured(&self.program, args, &self.env, b"", PATIENCE)?;
        Self::output(&done);
        Ok(done)
    }

    fn output(done: &Captured) {
        for text in [&done.stdout, &done.stderr] {
            for line in String::from_utf8_lossy(text).trim_end().lines() {
                // The progress that git rewrites with carriage returns is for terminals.
                let line = line.rsplit('\r').next().unwrap_or(line).trim_end();
                screen::line(format!("    {}", escape::visible_lines(line)));
            }
        }
    }

    /// Shows a file as `cat` would.
    fn show(&self, path: &Path) -> Result<String> {
        screen::line(format!("  $ cat {}", self.told(path)));
        let text = fs::read_text(path)?;
        text.trim_end().lines().for_each(|line| screen::line(format!("    {line}")));
        Ok(text)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write_in_place(&self.root.join("site").join(name), text.as_bytes())
    }

    fn index(&self) -> PathBuf {
        self.project().join("run/public/index.html")
    }

    fn guests(&self) -> PathBuf {
        self.project().join("data/guests.txt")
    }

    fn commit(&self, message: &str) -> Result<String> {
        screen::line(format!("  $ git add --all && git commit --message '{message}'"));
        self.git_silently(&["add", "--all"])?;
        self.git_silently(&["commit", "--quiet", "--message", message])?;
        self.git_silently(&["rev-parse", "HEAD"])
    }

    fn makes_a_node(&mut self) -> Result<()> {
        self.act("A node is a directory. Here is one, with a project on it.");
        screen::line(format!("  $ export MC_ROOT={}", self.root.join("node").display()));
        let made = self.ours(&["init", PROJECT])?;
        let hook = self.project().join("git/project/hooks/proc-receive");
        self.claim("the repository to push to has its hooks", made.status.is_ok() && fs::exists(&hook));
        Ok(())
    }

    fn deploys(&mut self) -> Result<()> {
        self.act("A small web site: its build makes an index of its pages, its upgrade keeps a guest book. Push it.");
        for (name, text) in EXAMPLE {
            let with_upgrade = text.replacen("stages:\n", "stages:\n  upgrade:\n    - sh upgrade.sh\n", 1);
            self.write(name, if name == "mc_project.yaml" { &with_upgrade } else { text })?;
        }
        self.write("upgrade.sh", UPGRADE)?;
        self.git_silently(&["init", "--quiet", "-b", "main"])?;
        let recipe = self.root.join("site/mc_project.yaml");
        self.show(&recipe)?;
        let commit = self.commit("The first version")?;
        let url = self.project().join("git/project").display().to_string();
        self.git(&["remote", "add", "node", &url])?;
        let pushed = self.git(&["push", "node", "main"])?;
        let index = self.show(&self.index())?;
        self.claim(
            "the push succeeded, and what runs is this commit",
            pushed.status.is_ok() && index.contains(&commit),
        );
        Ok(())
    }

    fn refuses_a_broken_version(&mut self) -> Result<()> {
        self.act("A version that cannot be built. Its push is refused, and nothing changes.");
        let before = (fs::read_text(&self.index())?, self.branch()?);
        self.write("build.sh", &format!("{}exit 3\n", EXAMPLE[2].1))?;
        screen::line("  $ echo 'exit 3' >> build.sh");
        self.commit("Broken")?;
        let pushed = self.git(&["push", "node", "main"])?;
        self.claim("git push failed", !pushed.status.is_ok());
        let after = (fs::read_text(&self.index())?, self.branch()?);
        self.claim("the old version still runs, and the branch of the node did not move", before == after);
        self.git(&["reset", "--quiet", "--hard", "HEAD~1"])?;
        Ok(())
    }

    /// The head of the deploy branch on the node.
    fn branch(&self) -> Result<String> {
        self.git_silently(&["ls-remote", "node", "refs/heads/main"])
    }

    fn undoes_a_failing_upgrade(&mut self) -> Result<()> {
        self.act(
            "An upgrade that fails after the switch, when it has spoilt the data. Code and data go back by themselves.",
        );
        let mut book = fs::read_text(&self.guests())?;
        book.push_str("Bob was here\nCarol too\n");
        fs::write_in_place(&self.guests(), book.as_bytes())?;
        let (data, index) = (self.show(&self.guests())?, fs::read_text(&self.index())?);
        self.write("upgrade.sh", BAD_UPGRADE)?;
        self.write("pages/about.html", "<h1>About us</h1>\n<p>We moved.</p>\n")?;
        self.show(&self.root.join("site/upgrade.sh"))?;
        self.commit("New form of the guest book")?;
        let pushed = self.git(&["push", "node", "main"])?;
        let said = String::from_utf8_lossy(&pushed.stderr).contains("rolled back at upgrade");
        self.claim("git push failed, and says that it was rolled back", !pushed.status.is_ok() && said);
        let same = self.show(&self.guests())? == data;
        self.claim("the data are as before", same);
        let same = fs::read_text(&self.index())? == index;
        self.claim("the code is as before", same);
        self.git(&["reset", "--quiet", "--hard", "HEAD~1"])?;
        Ok(())
    }

    fn rolls_back_by_hand(&mut self) -> Result<()> {
        self.act("A version that is good, only not liked. Deploy it, then go back by hand.");
        self.write("pages/prices.html", "<h1>Prices</h1>\n<p>Everything costs twice as much.</p>\n")?;
        self.commit("New prices")?;
        let before = fs::read_text(&self.index())?;
        let pushed = self.git(&["push", "node", "main"])?;
        let prices = self.project().join("run/public/prices.html");
        self.claim("the new page is there", pushed.status.is_ok() && fs::exists(&prices));
        let back = self.ours(&["rollback", PROJECT, "--reason", "nobody likes the prices"])?;
        let is_back = !fs::exists(&prices) && fs::read_text(&self.index())? == before;
        self.claim("the version before runs again, exactly", back.status.is_ok() && is_back);
        Ok(())
    }

    fn notices_a_hand_edit(&mut self) -> Result<()> {
        self.act("Somebody edits what runs, on the node, by hand. It is noticed, and would be kept as drift.");
        let page = self.project().join("run/public/about.html");
        let text = fs::read_text(&page)?.replace("Two people", "Three people");
        screen::line(format!("  $ sed -i 's/Two people/Three people/' {}", self.told(&page)));
        fs::write_in_place(&page, text.as_bytes())?;
        let drift = self.ours(&["drift", PROJECT])?;
        let told = String::from_utf8_lossy(&drift.stdout).trim() == "~ public/about.html";
        self.claim("exactly this file is named", told);
        Ok(())
    }

    fn tells(&mut self) -> Result<()> {
        self.act("What happened? The history knows every attempt, the mail tells one of them.");
        let history = self.ours(&["history", PROJECT])?;
        let text = String::from_utf8_lossy(&history.stdout).into_owned();
        let verdicts = text.lines().filter(|line| line.contains("deployed")).count();
        let all = verdicts == 3 && text.contains("failed at build") && text.contains("rolled back at upgrade");
        self.claim("three were deployed, one failed, one was rolled back", all);
        let status = self.ours(&["status", PROJECT])?;
        self.claim("the project is well", status.status.is_ok());
        let maildir = self.root.join("node/var/mail/mc_project/new");
        let mut rolled_back = None;
        for name in fs::names(&maildir)? {
            let letter = letter_text(&fs::read_text(&maildir.join(&name))?);
            if letter.contains("rolled back at upgrade") && letter.starts_with("Subject: ") {
                rolled_back = Some(letter);
            }
        }
        screen::line(format!("  $ cat {}/…", self.told(&maildir)));
        for line in rolled_back.iter().flat_map(|letter| letter.lines()) {
            screen::line(format!("    {}", escape::visible_lines(line)));
        }
        self.claim("there is a mail about the failed upgrade", rolled_back.is_some());
        Ok(())
    }

    fn ends(&mut self) -> Result<u8> {
        let node = self.root.join("node");
        let size = fs_extra::dir::get_size(&node).context(|| format!("cannot measure {}", node.display()))?;
        let (seconds, size) = (self.began.elapsed().as_secs_f32(), size.div_ceil(1024));
        screen::line("");
        screen::line(format!(
            "That took {seconds:.1} s, and the whole node, archives and logs included, takes {size} KiB."
        ));
        screen::line(format!("  the project    {}", self.root.join("site").display()));
        screen::line(format!("  the node       {}", node.display()));
        screen::line(format!("  what runs      {}", self.project().join("run").display()));
        screen::line(format!("  logs           {}", node.join("var/log/mc_project").join(PROJECT).display()));
        screen::line(format!("  remove it all  rm -r {}", self.root.display()));
        screen::line("To go on, deploy something of your own:");
        screen::line(format!("  export MC_ROOT={}", node.display()));
        screen::line(format!("  {} init shop        # prints what to type next", self.program.display()));
        screen::line("README.md tells the rest.");
        if self.broken_claims > 0 {
            let (count, verb) = (self.broken_claims, if self.broken_claims == 1 { "claim does" } else { "claims do" });
            screen::error_line(format!("error: {count} {verb} not hold (see above)"));
            return Ok(ExitCode::Failed as u8);
        }
        Ok(0)
    }
}

/// Arguments as a person types them.
fn typed(args: &[&str]) -> String {
    let word = |arg: &&str| if arg.contains(' ') { format!("'{arg}'") } else { (*arg).to_string() };
    args.iter().map(word).collect::<Vec<String>>().join(" ")
}

/// The subject and the plain text of a mail of ours, its encodings undone; its other headers are for programs.
fn letter_text(mail: &str) -> String {
    let mail = mail.replace("\r\n", "\n");
    let (headers, body) = headers_and_body(&mail);
    let subject = headers.lines().find(|line| line.starts_with("Subject: ")).unwrap_or_default();
    let boundary = headers.split_once("boundary=\"").and_then(|(_, rest)| rest.split('"').next());
    // Of two forms of the same the plain one comes first.
    let first = boundary.and_then(|boundary| body.split(&format!("--{boundary}\n")).nth(1)?.split("\n--").next());
    let (headers, body) = first.map_or((headers.clone(), body), headers_and_body);
    let is_quoted = headers.to_ascii_lowercase().contains("content-transfer-encoding: quoted-printable");
    let body = if is_quoted { unquoted(body) } else { body.to_string() };
    format!("{}\n\n{}\n", decoded(subject), body.trim_end())
}

/// A long header goes on in lines that begin with a space: they are made one.
fn headers_and_body(text: &str) -> (String, &str) {
    let (headers, body) = text.split_once("\n\n").unwrap_or((text, ""));
    (headers.replace("\n ", " "), body)
}

/// Undoes the encoding of words in a header (RFC 2047, the form that we write).
fn decoded(header: &str) -> String {
    let mut parts = header.split("=?utf-8?b?");
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (word, rest) = part.split_once("?=").unwrap_or((part, ""));
        let bytes = base64::engine::general_purpose::STANDARD.decode(word).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&bytes));
        // The blank between two encoded words is none of the text.
        text.push_str(rest.strip_suffix(' ').filter(|rest| rest.is_empty()).unwrap_or(rest));
    }
    text
}

/// Undoes quoted-printable (RFC 2045); what is no escape stays as it is.
fn unquoted(body: &str) -> String {
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digit =
            |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (first, tail.first(), digit(0), digit(1)) {
            (b'=', Some(b'\n'), _, _) => rest = &tail[1..],
            (b'=', _, Some(high), Some(low)) => {
                bytes.push(high * 16 + low);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine"), "").unwrap();
        let error = run(Some(dir.path())).unwrap_err();
        assert!(error.message().contains("is not empty"), "{error:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_example_takes_the_upgrade_of_the_demonstration() {
        let recipe = EXAMPLE.iter().find(|(name, _)| *name == "mc_project.yaml").unwrap().1;
        assert_eq!(recipe.matches("stages:\n").count(), 1);
        assert!(!recipe.contains("upgrade:"));
        assert_eq!(EXAMPLE[2].0, "build.sh");
    }

    #[test]
    fn words_with_spaces_are_quoted() {
        assert_eq!(typed(&["commit", "-m", "a b"]), "commit -m 'a b'");
    }

    #[test]
    fn a_quoted_printable_mail_becomes_readable() {
        let mail = "From: a\r\nSubject: long\r\n subject\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nlong =\r\nline =E2=9C=93 1=3D1\r\n";
        assert_eq!(letter_text(mail), "Subject: long subject\n\nlong line ✓ 1=1\n");
    }

    #[test]
    fn of_two_forms_the_plain_one_is_read_and_encoded_words_are_undone() {
        let mail = "Subject: =?utf-8?b?4pyX?= shop: =?utf-8?b?w7w=?= =?utf-8?b?w7w=?=\nContent-Type: multipart/alternative;\n boundary=\"b1\"\n\n\
                    --b1\nContent-Transfer-Encoding: quoted-printable\n\na =3D b\n--b1\nContent-Type: text/html\n\n<p>\n--b1--\n";
        assert_eq!(letter_text(mail), "Subject: ✗ shop: üü\n\na = b\n");
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unquoted("a=b=zz="), "a=b=zz=");
    }

    #[test]
    fn a_plain_mail_stays_plain() {
        assert_eq!(letter_text("Subject: s\n\na=3Db\n"), "Subject: s\n\na=3Db\n");
    }
}

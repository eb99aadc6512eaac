//! One `git push`, and what git says of it: `--porcelain` on standard output, the node's words on standard error.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::Watched;
use crate::entrance::far::checkout::OF_ONE_REPOSITORY;
use crate::entrance::far::ssh::Ssh;
use crate::entrance::far::trouble::Heard;
use crate::entrance::options::EVENTS;
use crate::project::address::Login;
use crate::sys::error::{Error, Result};
use crate::sys::escape::{output_line, visible};
use crate::sys::process::{Beside, LINE_LIMIT, Said, StepStatus, Tick, run_beside};

/// What git writes before each line of a hook.
const REMOTE: &str = "remote: ";
/// How often the screen is brought up to date.
pub const FRAME: Duration = Duration::from_millis(200);

/// A push, ready to run.
#[derive(Debug, Clone)]
pub struct GitPush {
    /// The work tree.
    pub dir: PathBuf,
    /// A remote or a URL.
    pub to: String,
    /// The ssh that leads there.
    pub ssh: Option<Ssh>,
    /// What the node is called for people.
    pub shown: String,
    /// What is pushed.
    pub refs: Vec<String>,
    /// Push options.
    pub options: Vec<String>,
    /// Whether the refs are forced.
    pub force: bool,
    /// Whether nothing is pushed, and only looked.
    pub dry_run: bool,
}

/// What git says of one ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefLine {
    /// ` ` pushed, `+` forced, `*` new, `-` deleted, `=` there already, `!` refused.
    pub flag: char,
    /// `from:to`.
    pub refs: String,
    /// The rest: `[remote rejected] (why)`.
    pub summary: String,
}

/// How a push ended.
#[derive(Debug)]
pub struct Pushed {
    status: StepStatus,
    lines: Vec<RefLine>,
    /// What stood on standard error.
    pub heard: Heard,
}

impl GitPush {
    /// Runs it; what the node says is heard by `watched`.
    ///
    /// # Errors
    /// If git cannot be run.
    pub fn run(&self, watched: &mut Watched<'_>) -> Result<Pushed> {
        let mut argv: Vec<OsString> = ["git", "push", "--porcelain"].map(OsString::from).to_vec();
        argv.extend(self.dry_run.then(|| "--dry-run".into()));
        argv.extend(self.force.then(|| "--force".into()));
        for option in &self.options {
            argv.extend(["-o".into(), option.into()]);
        }
        argv.push("--".into());
        argv.push(self.to.clone().into());
        argv.extend(self.refs.iter().map(OsString::from));
        let order = self.order(argv);
        let (mut lines, mut heard) = (Vec::new(), Heard::default());
        let status = run_beside(order, &mut |said| {
            match said {
                Said::Out(line) => lines.extend(RefLine::parse(line)),
                Said::Err(line) => hear(line, &mut heard, watched),
                Said::Runs => watched.tick(),
            }
            Tick::GoOn
        })
        .map_err(|error| error.hint("apt install git"))?;
        Ok(Pushed { status, lines, heard })
    }

    /// A program that runs as this push does.
    fn order(&self, argv: Vec<OsString>) -> Beside {
        let mut env: Vec<(&'static str, OsString)> = vec![("LC_ALL", "C.UTF-8".into()), ("LANGUAGE", "C".into())];
        env.extend(self.ssh.as_ref().map(|ssh| ("GIT_SSH_COMMAND", ssh.for_git())));
        Beside { env, without: OF_ONE_REPOSITORY, dir: Some(self.dir.clone()), every: FRAME, ..Beside::new(argv) }
    }

    /// Whether what is there and what was to be pushed have no commit in common. It is fetched to be seen, but no branch
    /// here follows it.
    fn is_unrelated(&self, refs: &str) -> bool {
        let ends = |words: &[&str], with: StepStatus| {
            let order = self.order(words.iter().map(OsString::from).collect());
            run_beside(order, &mut |_| Tick::GoOn).is_ok_and(|status| status == with)
        };
        let Some((ours, theirs)) = refs.split_once(':') else { return false };
        ends(&["git", "fetch", "--quiet", "--no-tags", "--refmap=", "--", &self.to, theirs], StepStatus::Ok)
            && ends(&["git", "merge-base", ours, "FETCH_HEAD"], StepStatus::Exit(1))
    }

    /// What to do where the node's branch does not lead to what was to be pushed.
    fn lacking(&self, refs: &str, name: &str) -> String {
        let to = visible(&self.to);
        if self.is_unrelated(refs) {
            return format!(
                "{name} on the node has another history, and no commit of it is in yours: is {to} the right project?\n\
                 to replace what is there all the same: mc_project push --force"
            );
        }
        format!("the node has commits that you lack: git pull --rebase {to} {name}")
    }

    /// Who is pushed to, over ssh.
    #[must_use]
    pub fn login(&self) -> Option<&Login> {
        self.ssh.as_ref().map(Ssh::to)
    }
}

/// One line of git's standard error.
fn hear(line: &[u8], heard: &mut Heard, watched: &mut Watched<'_>) {
    // Progress is written over itself: what follows the last carriage return counts.
    for part in line.split(|b| *b == b'\r').filter(|part| !part.is_empty()) {
        heard.hear(part);
        let text = output_line(part, LINE_LIMIT);
        if let Some(said) = text.strip_prefix(REMOTE).map(str::trim_end).filter(|said| !said.is_empty()) {
            watched.hear(said);
        }
    }
}

impl RefLine {
    /// Reads a line of `git push --porcelain`: flag, refs and summary with tabs between them.
    fn parse(line: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(line).into_owned();
        let mut fields = text.splitn(3, '\t');
        let (flag, refs, summary) = (fields.next()?, fields.next()?, fields.next()?);
        let mut flags = flag.chars();
        let flag = flags.next().filter(|flag| " +*-=!".contains(*flag) && flags.next().is_none())?;
        Some(Self { flag, refs: refs.to_string(), summary: summary.to_string() })
    }
}

impl Pushed {
    /// Whether git is content.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == StepStatus::Ok
    }

    /// The refs that were refused.
    pub fn rejected(&self) -> impl Iterator<Item = &RefLine> {
        // What was on its way when the connection was lost is not refused by anybody.
        let is_refused = |line: &&RefLine| line.flag == '!' && !line.summary.starts_with("[remote failure]");
        self.lines.iter().filter(is_refused)
    }

    /// Whether everything is there already.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        self.is_ok() && self.lines.iter().all(|line| line.flag == '=')
    }

    /// Whether the node does not know what events are.
    #[must_use]
    pub fn is_option_unknown(&self) -> bool {
        let name = EVENTS.split('=').next().unwrap_or(EVENTS);
        !self.is_ok() && self.heard.has(&format!("unknown push option `{name}"))
    }

    /// A refused ref as an error.
    #[must_use]
    pub fn refusal(&self, line: &RefLine, push: &GitPush) -> Error {
        let to_ref = line.refs.rsplit(':').next().unwrap_or(&line.refs);
        let name = visible(to_ref.strip_prefix("refs/heads/").unwrap_or(to_ref));
        let (what, why) = line.summary.split_once("] (").unwrap_or((&line.summary, ""));
        let why = visible(why.strip_suffix(')').unwrap_or(why));
        let error = Error::refused(if why.is_empty() {
            format!("the push of {name} was refused: {}", visible(what))
        } else {
            format!("the push of {name} was refused: {why}")
        });
        if what.starts_with("[rejected") {
            return error.hint(push.lacking(&line.refs, &name));
        }
        if why == "pre-receive hook declined" { error.hint("the lines above say why") } else { error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_says_of_refs_is_read() {
        let line =
            RefLine::parse(b"!\trefs/heads/main:refs/heads/main\t[remote rejected] (failed at build: exit 2)").unwrap();
        assert_eq!((line.flag, line.summary.as_str()), ('!', "[remote rejected] (failed at build: exit 2)"));
        assert!(RefLine::parse(b"To mc@host:shop").is_none() && RefLine::parse(b"Done").is_none());
        let pushed = Pushed { status: StepStatus::Exit(1), lines: vec![line], heard: Heard::default() };
        // A directory that is no repository: nothing can be fetched to look at.
        let dir = tempfile::tempdir().unwrap();
        let push = GitPush {
            dir: dir.path().to_path_buf(),
            to: "node".to_string(),
            ssh: None,
            shown: "node".to_string(),
            refs: Vec::new(),
            options: Vec::new(),
            force: false,
            dry_run: false,
        };
        let error = pushed.refusal(pushed.rejected().next().unwrap(), &push);
        assert_eq!(error.message(), "the push of main was refused: failed at build: exit 2");
        let old = RefLine::parse(b"!\trefs/heads/main:refs/heads/main\t[rejected] (fetch first)").unwrap();
        assert_eq!(
            pushed.refusal(&old, &push).hint_text(),
            Some("the node has commits that you lack: git pull --rebase node main")
        );
        let lost = RefLine::parse(b"!\ta:b\t[remote failure] (remote failed to report status)").unwrap();
        assert!(
            Pushed { status: StepStatus::Exit(1), lines: vec![lost], heard: Heard::default() }
                .rejected()
                .next()
                .is_none()
        );
    }
}

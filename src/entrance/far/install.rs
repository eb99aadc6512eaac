//! Makes a machine a node from afar, or brings a newer program there: over ssh, and with nothing there but a shell.
//!
//! First a look ([`look`]), then the program is sent beside the old one, compared with what was sent, and must answer there;
//! only then its own `setup` replaces the old one by one rename. Whatever is lost on the way, the old program stays.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::ssh::Ssh;
use super::trouble::{self, Heard};
use super::{SSH_FAILED, Way, joined};
use crate::sys::error::{Error, Result};
use crate::sys::escape::{output_line, visible};
use crate::sys::fs;
use crate::sys::process::{Beside, Input, Said, StepStatus, Tick, run_beside, self_exe};
use crate::sys::size::words;

/// Where `setup` puts the program of a whole machine.
const INSTALLED: &str = "/usr/local/bin/mc_project";
/// The exit codes by which [`SEND`] tells what went wrong.
const DAMAGED: i32 = 81;
const NOT_RUNNABLE: i32 = 82;

/// Looks round without changing anything; `$1` is where the program would be.
const LOOK: &str = "PATH=$PATH:/usr/sbin:/sbin; echo os=$(uname -s); echo arch=$(uname -m); echo uid=$(id -u); \
    if command -v sudo >/dev/null; then if sudo -n true 2>/dev/null; then echo sudo=yes; else echo sudo=asks; fi; fi; \
    for name in git sshd sha256sum apt-get; do if command -v $name >/dev/null; then echo has=$name; fi; done; \
    if [ -d /run/systemd/system ]; then echo has=systemd; fi; \
    if [ -r /etc/os-release ]; then . /etc/os-release; echo \"system=$PRETTY_NAME\"; fi; \
    echo \"room=$(df -Pk \"$HOME\" | tail -n 1)\"; p=${1:-$HOME/.local/bin/mc_project}; echo \"target=$p\"; \
    if [ -x \"$p\" ]; then echo \"version=$(\"$p\" --version 2>&1 | head -n 1)\"; \
    echo \"digest=$(sha256sum < \"$p\" | cut -d ' ' -f 1)\"; fi; true";

/// Takes the program from standard input into a directory of its own, and says where it answered; `$1` is its digest.
const SEND: &str = "set -eu; umask 077; d=$HOME/.mc_project-setup; rm -rf \"$d\"; mkdir \"$d\"; good=; \
    trap 'if [ -z \"$good\" ]; then rm -rf \"$d\"; fi' EXIT; trap 'exit 1' HUP INT TERM; cat > \"$d/mc_project\"; \
    if [ \"$(sha256sum < \"$d/mc_project\" | cut -d ' ' -f 1)\" != \"$1\" ]; then exit 81; fi; \
    chmod 755 \"$d\" \"$d/mc_project\"; \"$d/mc_project\" --version || exit 82; good=1; echo \"at=$d/mc_project\"";

/// Puts the program of a directory node at its place by one rename, and says which one answers there now.
const PLACE: &str = "set -eu; mkdir -p \"${2%/*}\"; cp \"$1\" \"$2.new\"; chmod 755 \"$2.new\"; mv -f \"$2.new\" \"$2\"; \"$2\" --version";

/// As root: the program's own `setup`, and, where the program is a new one (`$2` is not empty), `init` of each project, which
/// brings its hooks and directories up to date. `$1` is the program that answered.
const SET_UP: &str = "p=$1; new=$2; shift 2; \"$p\" setup \"$@\" || exit; if [ -z \"$new\" ]; then exit 0; fi; \
    p=/usr/local/bin/mc_project; for name in $(\"$p\" list); do \"$p\" init \"$name\" >/dev/null || exit; \
    echo \"done: hooks and directories of $name are those of this version\"; done";

/// Removes what [`SEND`] left.
const TIDY: &str = "rm -rf \"$HOME/.mc_project-setup\"";

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Say what would be done, and do nothing.
    pub plan: bool,
    /// Install git and the ssh server where they are missing.
    pub packages: bool,
    /// Another program than this one, for another kind of machine.
    pub binary: Option<PathBuf>,
    /// The words of `setup` there.
    pub words: Vec<String>,
    /// Whether a person is at a terminal, who can type a password for sudo.
    pub terminal: bool,
}

/// What is found on a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    os: String,
    arch: String,
    uid: Option<u32>,
    sudo: Option<String>,
    has: Vec<String>,
    system: String,
    room: Option<u64>,
    /// The version of the program that is there.
    pub version: Option<String>,
    target: String,
    digest: Option<String>,
}

impl Found {
    fn read(lines: &[String]) -> Self {
        let mut found = Self::default();
        for (key, value) in lines.iter().filter_map(|line| line.split_once('=')) {
            let value = visible(value.trim());
            match key {
                "os" => found.os = value,
                "arch" => found.arch = value,
                "uid" => found.uid = value.parse().ok(),
                "sudo" => found.sudo = Some(value),
                "has" => found.has.push(value),
                "system" => found.system = value,
                // df -P: file system, blocks, used, available, …
                "room" => found.room = value.split_whitespace().nth(3).and_then(|kib| kib.parse().ok()),
                "version" => found.version = Some(value),
                "target" => found.target = value,
                "digest" => found.digest = Some(value),
                _ => {}
            }
        }
        found
    }

    fn has(&self, name: &str) -> bool {
        self.has.iter().any(|own| own == name)
    }

    /// The packages that a node needs and that are not there.
    #[must_use]
    pub fn missing_packages(&self) -> Vec<&'static str> {
        let needed = [("git", "git"), ("sshd", "openssh-server")];
        needed.into_iter().filter(|(program, _)| !self.has(program)).map(|(_, package)| package).collect()
    }

    /// The machine in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        let system = if self.system.is_empty() { &self.os } else { &self.system };
        let init = if self.has("systemd") { "systemd" } else { "no systemd" };
        format!("{system}, {}, {init}", self.arch)
    }

    fn needs_sudo(&self) -> bool {
        self.uid != Some(0)
    }

    fn refuse_without_root(&self, who: &str, terminal: bool) -> Result<()> {
        match (self.needs_sudo(), self.sudo.as_deref()) {
            (false, _) | (true, Some("yes")) => Ok(()),
            (true, Some(_)) if terminal => Ok(()),
            (true, Some(_)) => {
                Err(Error::refused(format!("sudo asks {who} for a password, and nobody is at a terminal"))
                    .hint("run it at a terminal, or name root: --node root@HOST"))
            }
            (true, None) => Err(Error::refused(format!("{who} is not root, and there is no sudo"))
                .hint("name root (--node root@HOST), or on the machine, as root: apt install sudo")),
        }
    }

    fn refuse_other_machine(&self, who: &str) -> Result<()> {
        let ours = std::env::consts::ARCH;
        let theirs = match self.arch.as_str() {
            "amd64" => "x86_64",
            "arm64" => "aarch64",
            other => other,
        };
        if self.os == "Linux" && (theirs == ours || (theirs == "i686" && ours == "x86")) {
            return Ok(());
        }
        let hint = "build the program for that machine, and say where it is: setup --binary FILE";
        Err(Error::refused(format!("{who} is {} {}, and this program is for Linux {ours}", self.os, self.arch))
            .hint(hint))
    }
}

/// A machine that is reached by ssh, with a shell.
pub struct Machine<'a> {
    ssh: &'a Ssh,
    is_directory: bool,
    target: String,
}

/// What a line of sh said there.
struct Answer {
    status: StepStatus,
    out: Vec<String>,
    heard: Heard,
}

impl<'a> Machine<'a> {
    /// The machine at the end of a way.
    ///
    /// # Errors
    /// If it is this one.
    pub fn of(way: &'a Way) -> Result<Self> {
        let Way::Ssh { ssh, root, program } = way else {
            return Err(Error::usage("this node is on this machine").hint("sudo mc_project setup"));
        };
        let is_directory = root.as_deref().is_some_and(|root| root != Path::new("/"));
        let named = program.as_ref().map(|path| path.display().to_string());
        let target = named.unwrap_or_else(|| if is_directory { String::new() } else { INSTALLED.to_string() });
        Ok(Self { ssh, is_directory, target })
    }

    fn who(&self) -> String {
        self.ssh.to().shown()
    }

    /// Looks what there is.
    ///
    /// # Errors
    /// If it cannot be reached, or no shell answers.
    pub fn look(&self) -> Result<Found> {
        let answer = self.sh(LOOK, &[&self.target], Input::None, false)?;
        let found = Found::read(&answer.out);
        if answer.status == StepStatus::Ok && found.uid.is_some() {
            return Ok(found);
        }
        let said = answer.heard.last_words();
        Err(Error::refused(format!("{} has no shell for us: {said}", self.who()))
            .hint("setup needs root, or an account with sudo: `admin:` in nodes.yaml, or --node root@HOST"))
    }

    /// Runs a line of sh with arguments there.
    fn sh(&self, script: &str, args: &[&str], input: Input, terminal: bool) -> Result<Answer> {
        let words: Vec<OsString> = ["sh", "-c", script, "sh"].iter().chain(args).map(OsString::from).collect();
        self.words(&words, input, terminal, &mut |_| ())
    }

    fn words(&self, words: &[OsString], input: Input, terminal: bool, on: &mut dyn FnMut(&str)) -> Result<Answer> {
        let mut order = Beside::new(self.ssh.argv(terminal, &joined(words)));
        order.input = input;
        order.shows = terminal;
        let (mut out, mut heard) = (Vec::new(), Heard::default());
        let status = run_beside(order, &mut |said| {
            match said {
                Said::Out(line) => {
                    let line = output_line(line, 4096);
                    on(&line);
                    out.push(line);
                }
                Said::Err(line) => heard.hear(line),
                Said::Runs => {}
            }
            Tick::GoOn
        })?;
        if status == StepStatus::Exit(SSH_FAILED) {
            return Err(trouble::of_ssh(&heard, self.ssh.to()).error);
        }
        Ok(Answer { status, out, heard })
    }

    /// Does it all, step by step, and says each.
    ///
    /// # Errors
    /// If a step cannot be done; what was there before runs on.
    pub fn setup(&self, wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<()> {
        let (found, who) = (self.look()?, self.who());
        say(&format!("{who}: {}", found.words()));
        if wanted.binary.is_none() {
            found.refuse_other_machine(&who)?;
        }
        if !self.is_directory {
            found.refuse_without_root(&who, wanted.terminal)?;
        }
        self.packages(&found, wanted, say)?;
        let at = self.bring(&found, wanted, say)?;
        let done = if self.is_directory {
            self.place(&found, &at, wanted, say)
        } else {
            self.set_up(&found, &at, wanted, say)
        };
        if at != found.target {
            self.sh(TIDY, &[], Input::None, false)?;
        }
        self.ssh.forget();
        done
    }

    fn packages(&self, found: &Found, wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<()> {
        let missing = found.missing_packages();
        if missing.is_empty() {
            return Ok(());
        }
        let list = missing.join(" ");
        if !wanted.packages && missing.contains(&"git") {
            return Err(Error::refused(format!("{} lacks the packages {list}", self.who()))
                .hint(format!("setup --packages installs them, or on the machine, as root: apt install {list}")));
        }
        if !wanted.packages {
            say(&format!("note: {list} is not installed"));
            return Ok(());
        }
        if !found.has("apt-get") {
            return Err(Error::refused(format!("{} has no apt-get to install {list} with", self.who()))
                .hint(format!("install there: {list}")));
        }
        if wanted.plan {
            say(&format!("would install the packages {list}"));
            return Ok(());
        }
        say(&format!("installing the packages {list}"));
        let line = "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install \"$@\"";
        let answer = self.as_root(found, line, &missing, wanted, &mut |_| ())?;
        match answer.status {
            StepStatus::Ok => Ok(()),
            status => Err(Error::failed(format!(
                "the packages {list} were not installed ({}): {}",
                status.words(),
                answer.heard.last_words()
            ))),
        }
    }

    /// Brings the program there, if it is not there already; where it answers.
    fn bring(&self, found: &Found, wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<String> {
        let file = fs::canonical(wanted.binary.as_deref().unwrap_or_else(|| self_exe()))?;
        let (digest, size, who) = (fs::sha256(&file)?, fs::size_of(&file)?, self.who());
        if found.digest.as_ref() == Some(&digest) {
            say(&format!("{} is there already", found.version.as_deref().unwrap_or("this program")));
            return Ok(found.target.clone());
        }
        if let Some(version) = &found.version {
            say(&format!("{version} is there, another one than this"));
        }
        if let Some(room) = found.room.map(|kib| kib * 1024).filter(|room| *room < size + size / 8) {
            let text = format!("the disk of {who} has {} free, the program takes {}", words(room), words(size));
            return Err(Error::failed(text).hint("make room there: df -h"));
        }
        say(&format!("sending the program ({})", words(size)));
        let answer = self.sh(SEND, &[&digest], Input::File(fs::open_read(&file)?), false)?;
        let at = answer.out.iter().find_map(|line| line.strip_prefix("at=")).map(str::to_string);
        let answers = answer.out.iter().find(|line| line.starts_with("mc_project "));
        match (answer.status, at, answers) {
            (StepStatus::Ok, Some(at), Some(version)) => {
                say(&format!("it answers there: {version}"));
                Ok(at)
            }
            (StepStatus::Exit(DAMAGED), ..) => {
                Err(Error::failed(format!("what arrived on {who} is not what was sent; nothing was changed"))
                    .hint("try again"))
            }
            (StepStatus::Exit(NOT_RUNNABLE) | StepStatus::Ok, ..) => Err(trouble::not_runnable(&answer.heard, &who)),
            _ => Err(trouble::no_node(&answer.heard, &who, "the program could not be sent")),
        }
    }

    /// Runs a line of sh as root. Where sudo asks for a password, it is asked at our terminal, which shows everything then.
    fn as_root(
        &self,
        found: &Found,
        script: &str,
        args: &[&str],
        wanted: &Wanted,
        say: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        let asks = found.needs_sudo() && found.sudo.as_deref() == Some("asks");
        let sudo: &[&str] = match (found.needs_sudo(), asks) {
            (false, _) => &[],
            (true, true) => &["sudo", "--"],
            (true, false) => &["sudo", "-n", "--"],
        };
        let words: Vec<OsString> =
            sudo.iter().chain(&["sh", "-c", script, "sh"]).chain(args).map(OsString::from).collect();
        let terminal = asks && wanted.terminal;
        self.words(&words, if terminal { Input::Ours } else { Input::None }, terminal, say)
    }

    /// The program's own `setup`; then what an older program left of projects is brought up to date.
    fn set_up(&self, found: &Found, at: &str, wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<()> {
        let is_new = at != found.target && !wanted.plan;
        let mut args = vec![at, if is_new { "new" } else { "" }];
        args.extend(wanted.plan.then_some("--plan"));
        args.extend(wanted.words.iter().map(String::as_str));
        let answer = self.as_root(found, SET_UP, &args, wanted, say)?;
        self.good(&answer, "setup")
    }

    /// The program of a node in a directory, which needs nothing else.
    fn place(&self, found: &Found, at: &str, wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<()> {
        let target = &found.target;
        match (at == target, wanted.plan) {
            (true, _) => say("nothing to do"),
            (false, true) => say(&format!("would install this program as {target}")),
            (false, false) => {
                let answer = self.sh(PLACE, &[at, target], Input::None, false)?;
                self.good(&answer, "installing the program")?;
                say(&format!("done: install this program as {target}"));
            }
        }
        Ok(())
    }

    fn good(&self, answer: &Answer, what: &str) -> Result<()> {
        if answer.status == StepStatus::Ok {
            return Ok(());
        }
        // Its own words, as far as they are an error's.
        let told: Vec<&str> = answer.heard.lines().collect();
        let error = told.iter().find_map(|line| line.strip_prefix("error: "));
        let hint = told.iter().find_map(|line| line.strip_prefix("hint: ")).unwrap_or_default().to_string();
        let why = error.map_or_else(|| answer.heard.last_words(), str::to_string);
        let error = Error::failed(format!("{what} on {} failed ({}): {why}", self.who(), answer.status.words()));
        Err(if hint.is_empty() { error } else { error.hint(hint) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Found {
        Found::read(&text.lines().map(str::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn what_the_look_says_is_read() {
        let seen = found(
            "Welcome!\nos=Linux\narch=x86_64\nuid=1000\nsudo=asks\nhas=git\nhas=systemd\nsystem=Debian GNU/Linux 13 (trixie)\n\
             room=/dev/vda1 100 50 20480 50% /\nversion=mc_project 0.1.0\ntarget=/usr/local/bin/mc_project\ndigest=ab\n",
        );
        assert_eq!(seen.words(), "Debian GNU/Linux 13 (trixie), x86_64, systemd");
        assert_eq!((seen.room, seen.missing_packages()), (Some(20480), vec!["openssh-server"]));
        assert!(
            seen.refuse_without_root("you@host", true).is_ok() && seen.refuse_without_root("you@host", false).is_err()
        );
        assert!(found("uid=0").refuse_without_root("root@host", false).is_ok());
        assert!(found("uid=1000").refuse_without_root("you@host", true).is_err());
    }

    #[test]
    fn another_kind_of_machine_is_refused_before_anything_is_sent() {
        let other = if std::env::consts::ARCH == "aarch64" { "x86_64" } else { "aarch64" };
        for text in [format!("os=Linux\narch={other}"), format!("os=FreeBSD\narch={}", std::env::consts::ARCH)] {
            let error = found(&text).refuse_other_machine("root@host").unwrap_err();
            assert!(
                error.message().contains("and this program is for Linux")
                    && error.hint_text().unwrap().contains("--binary")
            );
        }
        assert!(found(&format!("os=Linux\narch={}", std::env::consts::ARCH)).refuse_other_machine("x").is_ok());
    }
}

//! What ssh and git complain about, as a sentence that says what to do.

use std::collections::VecDeque;

use crate::project::address::Login;
use crate::sys::error::Error;
use crate::sys::escape::output_line;

/// How many lines of a program's complaints are kept.
const KEPT: usize = 60;

/// The last lines that a program wrote to standard error, safe to show.
#[derive(Debug, Default, Clone)]
pub struct Heard {
    lines: VecDeque<String>,
}

impl Heard {
    /// Hears one more line.
    pub fn hear(&mut self, line: &[u8]) {
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(output_line(line, 1024));
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.trim().is_empty())
    }

    /// Whether a line holds this text.
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        self.line_with(text).is_some()
    }

    fn line_with(&self, text: &str) -> Option<&str> {
        self.lines.iter().rev().find(|line| line.contains(text)).map(|line| line.trim())
    }

    /// The last line that says something.
    #[must_use]
    pub fn last_words(&self) -> String {
        let line = self.lines.iter().rev().find(|line| !line.trim().is_empty());
        line.map_or_else(|| "it said nothing".to_string(), |line| line.trim().to_string())
    }

    /// All of it.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// A fault between two machines.
#[derive(Debug)]
pub struct Trouble {
    /// In words.
    pub error: Error,
    /// Whether trying again can help: a network that is away for a while, and no wrong key.
    pub may_pass: bool,
}

impl Trouble {
    fn new(error: Error, may_pass: bool) -> Self {
        Self { error, may_pass }
    }
}

/// What ssh said when it failed itself.
#[must_use]
pub fn of_ssh(heard: &Heard, to: &Login) -> Trouble {
    of_keys(heard, to).or_else(|| of_network(heard, to)).unwrap_or_else(|| {
        let text = format!("ssh to {} failed: {}", to.shown(), heard.last_words());
        Trouble::new(Error::failed(text).hint(format!("ssh -v {}", to.shown())), true)
    })
}

fn of_keys(heard: &Heard, to: &Login) -> Option<Trouble> {
    let (who, host) = (to.shown(), &to.host);
    // Refused: whoever asks again is refused again.
    let fault = |text: String, hint: String| Some(Trouble::new(Error::refused(text).hint(hint), false));
    if heard.has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        return fault(
            format!("{host} is not the machine that it was: its host key has changed, or somebody stands between"),
            format!("only if you know that the machine was made anew: ssh-keygen -R {host}"),
        );
    }
    if heard.has("Host key verification failed") || heard.has("No matching host key fingerprint") {
        return fault(
            format!("the host key of {host} is not known here"),
            format!("connect once by hand and compare the fingerprint with that of the machine: ssh {who}"),
        );
    }
    if heard.has("Permission denied (") || heard.has("Too many authentication failures") {
        return fault(
            format!("{host} lets no key of yours in as {}", to.user.as_deref().unwrap_or("this account")),
            format!(
                "which keys are offered: ssh -v {who}\non the node, as root: mc_project keys add YOU --project NAME --key YOUR.pub"
            ),
        );
    }
    if heard.has("Bad owner or permissions") || heard.has("Bad configuration option") {
        return fault(
            format!("ssh does not like its own configuration: {}", heard.last_words()),
            format!("ssh -v {who}"),
        );
    }
    None
}

fn of_network(heard: &Heard, to: &Login) -> Option<Trouble> {
    let (who, host) = (to.shown(), &to.host);
    let fault = |text: String, hint: String| Some(Trouble::new(Error::failed(text).hint(hint), true));
    if heard.has("Could not resolve hostname") {
        return fault(format!("there is no host {host}, or no name server answers"), format!("getent hosts {host}"));
    }
    if heard.has("Connection refused") {
        return fault(
            format!("{host} refuses the connection: no ssh server listens there"),
            "is it the right port? on the machine: systemctl start ssh".to_string(),
        );
    }
    for sign in ["timed out", "No route to host", "Network is unreachable", "Timeout, server"] {
        if heard.has(sign) {
            return fault(
                format!("{host} does not answer"),
                "is the machine up, and is the network between you and it?".to_string(),
            );
        }
    }
    if LOST.iter().any(|sign| heard.has(sign)) {
        return fault(format!("the connection to {host} was lost"), format!("try again; ssh -v {who} tells more"));
    }
    None
}

/// How a connection that was lost is spoken of by ssh and git.
const LOST: [&str; 8] = [
    "Connection closed by",
    "Connection reset",
    "Broken pipe",
    "client_loop: send disconnect",
    "hung up unexpectedly",
    "early EOF",
    "unexpected disconnect",
    "mux_client_request_session",
];

/// What git said when a push came to no answer; `to` is who it was pushed to.
#[must_use]
pub fn of_push(heard: &Heard, to: Option<&Login>, shown: &str) -> Trouble {
    let fixed = |text: String, hint: String| Trouble::new(Error::failed(text).hint(hint), false);
    if let Some(trouble) = to.and_then(|to| of_keys(heard, to)) {
        return trouble;
    }
    if let Some(line) = full(heard) {
        return fixed(
            format!("the disk of {shown} is full: {line}"),
            "what takes the room, on the node: mc_project status NAME --disk, and df -h".to_string(),
        );
    }
    if heard.has("does not support push options") {
        return fixed(
            format!("{shown} is no repository of mc_project: it takes no push options"),
            "on the node: mc_project init NAME".to_string(),
        );
    }
    if heard.has("does not appear to be a git repository") || heard.has("there is no project") {
        return fixed(
            format!("there is no such project at {shown}, or none for you"),
            "on the node: mc_project list, mc_project init NAME".to_string(),
        );
    }
    if let Some(line) = heard.line_with("mc_project: ") {
        return fixed(line.trim_start_matches("mc_project: ").to_string(), "ask root of the node".to_string());
    }
    if let Some(trouble) = to.and_then(|to| of_network(heard, to)) {
        return trouble;
    }
    let said = heard.line_with("fatal: ").or_else(|| heard.line_with("error: ")).map(str::to_string);
    let text = format!("the push to {shown} failed: {}", said.unwrap_or_else(|| heard.last_words()));
    Trouble::new(Error::failed(text), to.is_some())
}

/// The line that tells of a full disk.
fn full(heard: &Heard) -> Option<&str> {
    ["No space left on device", "Disk quota exceeded"].iter().find_map(|sign| heard.line_with(sign))
}

/// What a program means that could not be run where it was brought.
#[must_use]
pub fn not_runnable(heard: &Heard, node: &str) -> Error {
    let newer = heard.line_with("GLIBC_");
    if let Some(line) = newer {
        return Error::failed(format!("the system of {node} is older than the one this program was built on: {line}"))
            .hint("build it on the same Debian or an older one, and: mc_project --node NODE setup --binary FILE");
    }
    if ["Exec format error", "cannot execute", "not found", "yntax error"].iter().any(|sign| heard.has(sign)) {
        return Error::failed(format!("the processor or the system of {node} is another one: {}", heard.last_words()))
            .hint("build it for that machine, and: mc_project --node NODE setup --binary FILE");
    }
    if let Some(line) = full(heard) {
        return Error::failed(format!("the disk of {node} is full: {line}")).hint("make room there: df -h");
    }
    Error::failed(format!("mc_project cannot be run on {node}: {}", heard.last_words()))
        .hint("does it run where it was built? may programs run from the home directory there (mount option noexec)?")
}

/// Somebody answers, and is no node.
#[must_use]
pub fn no_node(heard: &Heard, node: &str, status: &str) -> Error {
    if let Some(line) = full(heard) {
        return Error::failed(format!("the disk of {node} is full: {line}")).hint("make room there: df -h");
    }
    if heard.has("GLIBC_") || heard.has("Exec format error") {
        return not_runnable(heard, node);
    }
    // A program that refuses us says why in its own words.
    if let Some(line) = heard.line_with("mc_project: ") {
        return Error::refused(line.trim_start_matches("mc_project: ").to_string());
    }
    Error::failed(format!("{node} does not answer as a node does ({status}): {}", heard.last_words()))
        .hint("is it the right account? mc@HOST is for projects, root or an account with sudo for the machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str) -> Heard {
        let mut heard = Heard::default();
        text.lines().for_each(|line| heard.hear(line.as_bytes()));
        heard
    }

    #[test]
    fn what_ssh_says_becomes_a_sentence_with_something_to_do() {
        let to = Login::parse("mc@host").unwrap();
        for (text, part, may_pass) in [
            ("mc@host: Permission denied (publickey).", "lets no key of yours in as mc", false),
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
                "has changed",
                false,
            ),
            ("No ED25519 host key is known for host\nHost key verification failed.", "is not known here", false),
            ("ssh: Could not resolve hostname host: Name or service not known", "no host host", true),
            ("ssh: connect to host host port 22: Connection refused", "refuses the connection", true),
            ("ssh: connect to host host port 22: Connection timed out", "does not answer", true),
            ("client_loop: send disconnect: Broken pipe", "was lost", true),
            ("kex_exchange_identification: something new", "something new", true),
        ] {
            let trouble = of_ssh(&heard(text), &to);
            assert!(trouble.error.message().contains(part), "{text}: {}", trouble.error);
            assert_eq!(trouble.may_pass, may_pass, "{text}");
            assert!(trouble.error.hint_text().is_some(), "{text}");
        }
    }

    #[test]
    fn what_git_says_becomes_a_sentence_too() {
        let to = Login::parse("mc@host").unwrap();
        for (text, part, may_pass) in [
            ("remote: fatal: write error: No space left on device", "disk of host is full", false),
            ("fatal: the receiving end does not support push options", "no repository of mc_project", false),
            ("fatal: '/x' does not appear to be a git repository", "no such project", false),
            ("mc_project: rita may not deploy shop (role read); ask", "rita may not deploy shop", false),
            ("fatal: the remote end hung up unexpectedly", "was lost", true),
            (
                "ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote repository.",
                "refuses",
                true,
            ),
            ("fatal: bad config", "bad config", true),
        ] {
            let trouble = of_push(&heard(text), Some(&to), "host");
            assert!(trouble.error.message().contains(part), "{text}: {}", trouble.error);
            assert_eq!(trouble.may_pass, may_pass, "{text}");
        }
    }

    #[test]
    fn a_program_that_does_not_run_there_says_why() {
        for (text, part) in [
            ("./mc_project: /lib/libc.so.6: version `GLIBC_2.99' not found (required by x)", "older than the one"),
            ("sh: 1: ./mc_project: Exec format error", "the processor or the system"),
            ("cat: write error: No space left on device", "is full"),
        ] {
            assert!(not_runnable(&heard(text), "host").message().contains(part), "{text}");
        }
    }
}

//! How ssh is called: the very ssh that git uses, with the person's own configuration, keys and known hosts, and one
//! connection for all that is asked within a minute.
//!
//! The connection is shared by a socket in a private directory (`ControlMaster`, ssh_config(5)); what the program at its
//! other end said of itself is kept beside the socket for as long as that is the same socket. Where no private directory has
//! a path short enough for a socket, each command connects by itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::project::address::Login;
use crate::sys::{fs, socket};

/// How long the connection is kept for the next command.
const PERSIST: &str = "ControlPersist=60";
/// A connection that is dead is known as dead after a minute, one that does not come about after a quarter of one.
const PATIENCE: [&str; 3] = ["ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4"];
/// The longest path of a socket (unix(7)), less what ssh appends while it makes it.
const LONGEST: usize = 107 - 17;

/// ssh to one account.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// A line of sh, as `GIT_SSH_COMMAND` and `core.sshCommand` are.
    command: String,
    to: Login,
    port: Option<u16>,
    socket: Option<PathBuf>,
}

impl Ssh {
    /// ssh by this command, which is a line of sh as git takes it.
    #[must_use]
    pub fn new(command: &str, to: Login, port: Option<u16>) -> Self {
        let key = format!("{command}\0{}\0{port:?}", to.shown());
        let name = blake3::hash(key.as_bytes()).to_hex();
        let socket = private_dir().map(|dir| dir.join(&name[..16])).filter(|path| path.as_os_str().len() <= LONGEST);
        Self::with_socket(command, to, port, socket)
    }

    fn with_socket(command: &str, to: Login, port: Option<u16>, socket: Option<PathBuf>) -> Self {
        Self { command: command.to_string(), to, port, socket }
    }

    /// Who is reached.
    #[must_use]
    pub fn to(&self) -> &Login {
        &self.to
    }

    /// The process that runs a line of sh (or what a forced command takes) there.
    #[must_use]
    pub fn argv(&self, terminal: bool, line: &OsStr) -> Vec<OsString> {
        let mut argv: Vec<OsString> = Vec::new();
        if self.command == "ssh" {
            argv.push("ssh".into());
        } else {
            // As git does it: the line may hold arguments and quotes.
            argv.extend(["sh", "-c", &format!("{} \"$@\"", self.command), "ssh"].map(OsString::from));
        }
        for option in self.options() {
            argv.extend(["-o".into(), option]);
        }
        if let Some(port) = self.port {
            argv.extend(["-p".into(), port.to_string().into()]);
        }
        if terminal {
            // Without this ssh takes its leave of us at the end.
            argv.extend(["-o".into(), "LogLevel=ERROR".into(), "-t".into()]);
        } else {
            argv.push("-T".into());
        }
        argv.extend([self.to.shown().into(), "--".into(), line.to_os_string()]);
        argv
    }

    /// What git calls instead of its own choice, to share the connection: a line of sh.
    #[must_use]
    pub fn for_git(&self) -> OsString {
        let mut line = OsString::from(&self.command);
        for option in self.options() {
            line.push(" -o ");
            line.push(quoted(&option));
        }
        line
    }

    fn options(&self) -> Vec<OsString> {
        let mut options: Vec<OsString> = PATIENCE.map(OsString::from).to_vec();
        if let Some(socket) = &self.socket {
            let mut path = OsString::from("ControlPath=");
            path.push(socket);
            options.extend(["ControlMaster=auto".into(), PERSIST.into(), path]);
        }
        options
    }

    /// What was remembered over the connection that is open now.
    #[must_use]
    pub fn remembered(&self) -> Option<Vec<u8>> {
        let bytes = fs::read_bounded(&self.memory()?, 16 * 1024).ok()??;
        let (mark, rest) = bytes.split_at_checked(bytes.iter().position(|b| *b == b'\n')?)?;
        let is_this = mark == self.mark()?.as_bytes() && self.socket.as_deref().is_some_and(socket::is_alive);
        is_this.then(|| rest[1..].to_vec())
    }

    /// Remembers something for as long as the connection is open. Where that cannot be, it is asked for again.
    pub fn remember(&self, bytes: &[u8]) {
        if let (Some(path), Some(mark)) = (self.memory(), self.mark()) {
            let _ = fs::write_durable(&path, &[mark.as_bytes(), b"\n", bytes].concat(), 0o600);
        }
    }

    fn memory(&self) -> Option<PathBuf> {
        Some(self.socket.as_ref()?.with_extension("hello"))
    }

    /// What tells this socket from the next one at the same place, and this program from its successor.
    fn mark(&self) -> Option<String> {
        let meta = fs::examine(self.socket.as_ref()?).ok()??;
        Some(format!("{} {} {}", env!("CARGO_PKG_VERSION"), meta.ino(), meta.ctime_nsec()))
    }

    /// Forgets what was remembered: the program there is about to be another one.
    pub fn forget(&self) {
        if let Some(path) = self.memory() {
            let _ = fs::remove_file(&path);
        }
    }
}

/// A directory that is ours alone, for sockets.
fn private_dir() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let uid = rustix::process::geteuid().as_raw();
    let candidates = [
        of("XDG_RUNTIME_DIR").map(|dir| dir.join("mc_project")),
        of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache"))).map(|dir| dir.join("mc_project/ssh")),
        Some(PathBuf::from(format!("/tmp/mc_project-{uid}"))),
    ];
    candidates.into_iter().flatten().find(|dir| dir.as_os_str().len() + 17 <= LONGEST && is_ours_alone(dir, uid))
}

fn is_ours_alone(dir: &Path, uid: u32) -> bool {
    if fs::ensure_dir(dir, 0o700).is_err() {
        return false;
    }
    let meta = fs::examine(dir).ok().flatten();
    meta.is_some_and(|meta| meta.is_dir() && meta.uid() == uid && meta.mode() & 0o777 == 0o700)
}

/// A word as a shell takes it, and as git writes it: in single quotes, `'` and `!` outside of them.
#[must_use]
pub fn quoted(word: &OsStr) -> OsString {
    let is_plain =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':' | b'@' | b'%' | b'+' | b',');
    let bytes = word.as_bytes();
    // `=` and `~` mean something at the begin of a word to some shells.
    if !bytes.is_empty() && bytes.iter().all(is_plain) {
        return word.to_os_string();
    }
    let mut text = vec![b'\''];
    for b in bytes {
        match b {
            b'\'' | b'!' => text.extend([b'\'', b'\\', *b, b'\'']),
            b => text.push(*b),
        }
    }
    text.push(b'\'');
    OsString::from_vec(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrance::shell::words::split;

    const HOSTILE: [&str; 11] =
        ["", "a b", "it's", "!!", "$(id)", "`id`", "a\\b", "*", "#42", "'\\''; id; '", "é=\"x\" & | > <"];

    #[test]
    fn words_come_through_a_shell_and_through_the_forced_command_as_they_are() {
        for word in HOSTILE {
            let line = quoted(OsStr::new(word));
            assert_eq!(split(line.as_bytes()).unwrap(), [word], "{line:?}");
            for shell in ["sh", "bash"] {
                let mut order = crate::sys::process::Beside::new(vec![shell.into(), "-c".into(), {
                    let mut text = OsString::from("printf %s ");
                    text.push(&line);
                    text
                }]);
                order.every = std::time::Duration::from_secs(9);
                let mut out = Vec::new();
                crate::sys::process::run_beside(order, &mut |said| {
                    if let crate::sys::process::Said::Out(line) = said {
                        out.extend_from_slice(line);
                    }
                    crate::sys::process::Tick::GoOn
                })
                .unwrap();
                assert_eq!(out, word.as_bytes(), "{shell} {line:?}");
            }
        }
    }

    #[test]
    fn the_persons_own_options_come_first_and_the_line_is_one_argument() {
        let ssh = Ssh::with_socket("ssh -F '/my config'", Login::parse("mc@host").unwrap(), Some(2222), None);
        let argv = ssh.argv(false, OsStr::new("status shop"));
        assert_eq!(argv[..4], ["sh", "-c", "ssh -F '/my config' \"$@\"", "ssh"].map(OsString::from));
        assert_eq!(argv[argv.len() - 3..], ["mc@host", "--", "status shop"].map(OsString::from));
        assert!(argv.windows(2).any(|two| two[0] == "-p" && two[1] == "2222"));
        assert!(ssh.for_git().as_bytes().starts_with(b"ssh -F '/my config' -o 'ConnectTimeout=15'"));
    }
}

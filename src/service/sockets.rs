//! Sockets that are held while services come and go: nobody who connects is refused by a deployment.
//!
//! A small process for each project that has `listen:` in its recipe holds them, the *holder*. Whoever keeps services
//! running keeps the holder running too, as the first of them, and a deployment leaves it alone. What it is to hold stands in
//! a file in its directory. A service that takes a socket is started through [`take`]: it asks the holder, and becomes the
//! service's program with the sockets as sd_listen_fds(3) has it. To a service that has a port of its own [`forward`] passes
//! connections on, and keeps those that come while it does not run.
//!
//! The holder runs as the project's account and has nothing but what is that account's anyway. If it is killed, the sockets
//! that running programs have go on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::project::recipe::ServiceName;
use crate::project::recipe::service::listen::Listen;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs;
use crate::sys::socket::Channel;
use crate::sys::socket::pass::{connect_in, receive_text};

mod forward;
pub mod holder;
pub mod take;

/// The socket that the holder answers at.
const SOCKET: &str = "hold";
/// The largest file of what is held.
const LARGEST: u64 = 1 << 20;
/// Another one where holder and asker would not understand each other: then a deployment starts the holder anew.
pub const PROTOCOL: u32 = 1;
/// The longest question.
const LINE: usize = 4096;
/// How long the holder may take to read a question.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket that is to be held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The service that it is for.
    pub service: ServiceName,
    /// Where it listens, as the recipe has it.
    pub listen: String,
    /// The path, of a unix socket.
    pub path: Option<PathBuf>,
    /// The ports of the machine that connections are passed on to; none: the service takes the socket.
    pub ports: Vec<u16>,
}

impl Held {
    /// The address.
    ///
    /// # Errors
    /// If somebody else wrote it.
    pub fn address(&self) -> Result<Listen> {
        self.listen.parse()
    }
}

/// What is to be held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The sockets.
    pub sockets: Vec<Held>,
}

impl Wanted {
    /// Reads it, beside the directory of the holder; nothing, where nothing was written.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = Self::file(dir);
        let Some(bytes) = fs::read_bounded(&path, LARGEST)? else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).context(|| format!("cannot understand {}", path.display()))
    }

    /// Writes it where the holder's group can read it, and nobody but us can change it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, dir: &Path, group: Option<u32>) -> Result<()> {
        let text = serde_json::to_vec(self).context(|| "cannot write which sockets are held".to_string())?;
        let path = Self::file(dir);
        match group {
            Some(gid) => fs::write_durable_for(&path, &text, 0o640, gid),
            None => fs::write_durable(&path, &text, 0o600),
        }
    }

    fn file(dir: &Path) -> PathBuf {
        dir.with_extension("json")
    }
}

/// What the holder is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ask {
    /// The sockets of a service.
    Take(ServiceName),
    /// Hold what the file says now; answers what cannot be held.
    Check,
    /// Keep connections that are to be passed on, until this connection ends; answers when those that were passed on have
    /// ended, or after so many milliseconds.
    Pause(u64),
}

impl Ask {
    fn send(&self, channel: &mut Channel) -> Result<()> {
        let text = serde_json::to_vec(self).context(|| "cannot ask the holder of sockets".to_string())?;
        channel.send(&text, PATIENCE)
    }
}

/// The directory is the account's that runs the holder: what stands in it may be anything.
fn connect(dir: &Dir) -> Result<Channel> {
    connect_in(dir, Path::new(SOCKET)).map(|stream| Channel::new(stream, LINE))
}

/// Says why one of the hidden subcommands ends, where the service's output goes: nobody has set a log up in this process.
fn complain(error: &Error) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "mc_project: {}", error.one_line());
}

/// The holder of a project, asked by us.
#[derive(Debug)]
pub struct Holder {
    dir: Dir,
    uid: u32,
}

/// A pause; it ends when this does.
#[derive(Debug)]
pub struct Pause(#[expect(dead_code, reason = "the connection is what keeps the pause")] Channel);

impl Holder {
    /// The holder in this directory, which runs as this user.
    ///
    /// # Errors
    /// If there is no such directory.
    pub fn at(dir: &Path, uid: u32) -> Result<Self> {
        Ok(Self { dir: Dir::open_real(dir)?, uid })
    }

    fn ask(&self, ask: &Ask, patience: Duration) -> Result<(Channel, Vec<u8>)> {
        let mut channel = connect(&self.dir)?;
        let peer = channel.peer()?;
        if peer.uid != self.uid {
            return Err(Error::refused(format!("user {} answers instead of the holder of sockets", peer.uid)));
        }
        ask.send(&mut channel)?;
        let answer = receive_text(channel.as_fd(), patience)?;
        Ok((channel, answer))
    }

    /// Makes it hold what is wanted now.
    ///
    /// # Errors
    /// What it cannot listen at, and why.
    pub fn check(&self) -> Result<()> {
        let (_, answer) = self.ask(&Ask::Check, PATIENCE)?;
        refused(&answer)
    }

    /// Keeps connections from being passed on, and waits for the end of those that were, so long at most.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn pause(&self, at_most: Duration) -> Result<Pause> {
        let ms = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
        let (channel, answer) = self.ask(&Ask::Pause(ms), at_most + PATIENCE)?;
        refused(&answer)?;
        Ok(Pause(channel))
    }
}

/// An answer begins with `+`, or with `!` and why not.
fn refused(answer: &[u8]) -> Result<()> {
    match answer.split_first() {
        Some((b'+', _)) => Ok(()),
        Some((_, why)) => Err(Error::failed(crate::sys::escape::visible_bounded(why, 2048))),
        None => Err(Error::failed("the holder of sockets does not answer")),
    }
}

//! Unix sockets that carry lines, with a deadline on everything: a peer that is slow, stopped or gone delays nobody.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::error::{Context, Error, Result};

pub mod notify;
pub mod pass;

/// A path to an entry of a directory that is short however long the directory's own is: the address of a unix socket has
/// at most 107 bytes. It holds as long as the directory is held.
#[must_use]
pub fn short_path(dir: &super::dir::Dir, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd()))
}

/// Who is at the other end, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id when the connection was made.
    pub pid: i32,
}

/// What came within the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A line, without its line feed.
    Line(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// The other side has closed the connection.
    End,
}

/// Whether somebody listens at a socket: a dead one leaves its file behind.
#[must_use]
pub fn is_alive(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// A connection.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    buffer: Vec<u8>,
    limit: usize,
}

impl Channel {
    /// A connection whose lines from the other side have at most `limit` bytes.
    #[must_use]
    pub fn new(stream: UnixStream, limit: usize) -> Self {
        Self { stream, buffer: Vec::new(), limit }
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(path: &Path, limit: usize) -> Result<Self> {
        let stream = UnixStream::connect(path).context(|| format!("nobody answers at {}", path.display()))?;
        Ok(Self::new(stream, limit))
    }

    /// The connection that this process was started with as its standard input.
    ///
    /// # Errors
    /// If that is no unix socket.
    pub fn of_stdin(limit: usize) -> Result<Self> {
        let doing = || "standard input is no connection to the node's socket".to_string();
        let fd = std::io::stdin().as_fd().try_clone_to_owned().context(doing)?;
        let stream = UnixStream::from(fd);
        // A pipe or a terminal has no peer.
        let channel = Self::new(stream, limit);
        channel.peer().map_err(|cause| Error::usage(doing()).because(cause))?;
        Ok(channel)
    }

    /// To be polled together with other things. A line may wait in the buffer all the same: [`Channel::receive`] first.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// If this is no unix socket.
    pub fn peer(&self) -> Result<Peer> {
        let found = rustix::net::sockopt::socket_peercred(&self.stream);
        let found = found.context(|| "cannot ask who is at the other end of a socket".to_string())?;
        Ok(Peer { uid: found.uid.as_raw(), pid: found.pid.as_raw_nonzero().get() })
    }

    /// Sends one line; `patience` is the longest time without progress.
    ///
    /// # Errors
    /// If the other side is gone or takes nothing.
    pub fn send(&mut self, line: &[u8], patience: Duration) -> Result<()> {
        self.send_bytes(&[line, b"\n"].concat(), patience)
    }

    /// Sends bytes as they are; `patience` is the longest time without progress.
    ///
    /// # Errors
    /// If the other side is gone or takes nothing.
    pub fn send_bytes(&mut self, bytes: &[u8], patience: Duration) -> Result<()> {
        let doing = || "cannot send through a socket".to_string();
        let mut rest = bytes;
        let mut deadline = Instant::now() + patience;
        while !rest.is_empty() {
            match rustix::net::send(&self.stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => {
                    rest = &rest[n..];
                    deadline = Instant::now() + patience;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !wait(self.stream.as_fd(), PollFlags::OUT, deadline).context(doing)? {
                        return Err(Error::failed(doing()).because(Error::failed("nobody reads at the other end")));
                    }
                }
                Err(error) => return Err(error).context(doing),
            }
        }
        Ok(())
    }

    /// Waits for the next line, at most so long in all.
    ///
    /// # Errors
    /// If a line is too long or the connection is broken.
    pub fn receive(&mut self, at_most: Duration) -> Result<Received> {
        let doing = || "cannot read from a socket".to_string();
        let deadline = Instant::now() + at_most;
        let mut searched = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[searched..]) {
                let rest = self.buffer.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(Received::Line(line));
            }
            searched = self.buffer.len();
            if searched > self.limit {
                return Err(Error::usage(format!("a line through the socket is longer than {} bytes", self.limit)));
            }
            let mut piece = [0_u8; 16 * 1024];
            match rustix::net::recv(&self.stream, &mut piece, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(Received::End),
                Ok((n, _)) => self.buffer.extend_from_slice(&piece[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !wait(self.stream.as_fd(), PollFlags::IN, deadline).context(doing)? {
                        return Ok(Received::Nothing);
                    }
                }
                Err(error) => return Err(error).context(doing),
            }
        }
    }

    /// The next bytes as they are, at most so many; none at the end of the connection.
    ///
    /// # Errors
    /// If none came within the time, or the connection is broken.
    pub fn receive_bytes(&mut self, at_most: usize, patience: Duration) -> Result<Vec<u8>> {
        let doing = || "cannot read from a socket".to_string();
        if !self.buffer.is_empty() {
            let rest = self.buffer.split_off(self.buffer.len().min(at_most));
            return Ok(std::mem::replace(&mut self.buffer, rest));
        }
        let deadline = Instant::now() + patience;
        let mut piece = vec![0_u8; at_most];
        loop {
            match rustix::net::recv(&self.stream, &mut piece[..], RecvFlags::DONTWAIT) {
                Ok((n, _)) => {
                    piece.truncate(n);
                    return Ok(piece);
                }
                Err(Errno::CONNRESET) => return Ok(Vec::new()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !wait(self.stream.as_fd(), PollFlags::IN, deadline).context(doing)? {
                        return Err(Error::failed(doing()).because(Error::failed("nothing comes from the other end")));
                    }
                }
                Err(error) => return Err(error).context(doing),
            }
        }
    }

    /// Whether the other side has closed the connection, as far as is known without waiting.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
    }
}

/// Waits until a descriptor is ready; false at the deadline. An error of the descriptor counts as ready: using it tells.
fn wait(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
        match poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&limit)) {
            Ok(n) if n > 0 => return Ok(true),
            Ok(_) if left.is_zero() => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Listener(UnixListener);

impl Listener {
    /// The socket that whoever started us has opened already (`LISTEN_FDS`, sd_listen_fds(3)); `None` if none.
    ///
    /// # Errors
    /// If it is not exactly one listening unix socket.
    #[expect(unsafe_code, reason = "the protocol hands over descriptor 3 by its number; it is checked and taken once")]
    pub fn inherited() -> Result<Option<Self>> {
        let is_for_us = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        let Some(count) = std::env::var("LISTEN_FDS").ok().filter(|_| is_for_us) else { return Ok(None) };
        let bad = || Error::usage(format!("LISTEN_FDS is {count:.9}: exactly one listening unix socket is taken"));
        if count != "1" || rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(3) }).is_err() {
            return Err(bad());
        }
        // SAFETY: descriptor 3 is open, was given to us by this protocol, and nobody else in this process knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(3) };
        let listens = rustix::net::sockopt::socket_acceptconn(&fd).unwrap_or(false);
        let domain = rustix::net::sockopt::socket_domain(&fd);
        if !listens || domain != Ok(rustix::net::AddressFamily::UNIX) {
            return Err(bad());
        }
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).context(|| "cannot keep the socket".into())?;
        Ok(Some(Self(UnixListener::from(fd))))
    }

    /// Makes a socket at `path` that root and one group can connect to. One that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// If somebody listens there, or something else is in the way.
    pub fn bind(path: &Path, group: u32) -> Result<Self> {
        let doing = || format!("cannot listen at {}", path.display());
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(Error::refused(format!("{}: something that is no socket is in the way", doing())));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(Error::refused(format!("{}: somebody listens there already", doing())));
            }
            Ok(_) => super::fs::remove_file(path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(doing),
        }
        // Nobody can connect before owner and mode are right.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o777));
        let bound = UnixListener::bind(path);
        nix::sys::stat::umask(before);
        let listener = bound.context(doing)?;
        nix::unistd::chown(path, None, Some(nix::unistd::Gid::from_raw(group))).context(doing)?;
        super::fs::set_mode(path, 0o660)?;
        Ok(Self(listener))
    }

    /// The socket itself, for a runtime that watches it.
    #[must_use]
    pub fn into_std(self) -> UnixListener {
        self.0
    }

    /// To be polled together with other things: readable when somebody connects.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next connection; `None` if none came within the time.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn accept(&self, at_most: Duration) -> Result<Option<UnixStream>> {
        let doing = || "cannot accept a connection".to_string();
        if !wait(self.0.as_fd(), PollFlags::IN, Instant::now() + at_most).context(doing)? {
            return Ok(None);
        }
        match self.0.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            // Who has hung up already is nobody's fault.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error).context(doing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(limit: usize) -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a, limit), Channel::new(b, limit))
    }

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn lines_come_whole_and_in_order_and_the_end_is_told() {
        let (mut ours, mut theirs) = pair(100);
        assert_eq!(theirs.receive(SHORT).unwrap(), Received::Nothing);
        ours.send(b"one", SHORT).unwrap();
        ours.send(b"two", SHORT).unwrap();
        assert_eq!(theirs.receive(SHORT).unwrap(), Received::Line(b"one".to_vec()));
        assert!(!theirs.is_hung_up());
        drop(ours);
        assert!(theirs.is_hung_up());
        assert_eq!(theirs.receive(SHORT).unwrap(), Received::Line(b"two".to_vec()));
        assert_eq!(theirs.receive(SHORT).unwrap(), Received::End);
        assert!(theirs.send(b"x", SHORT).is_err(), "an error and not a signal");
    }

    #[test]
    fn a_peer_that_drips_or_never_ends_its_line_is_left() {
        let (ours, mut theirs) = pair(1000);
        let dripping = std::thread::spawn(move || {
            for _ in 0..100 {
                let _ = rustix::net::send(&ours.stream, b"x", SendFlags::NOSIGNAL);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let begin = Instant::now();
        assert_eq!(theirs.receive(Duration::from_millis(200)).unwrap(), Received::Nothing);
        assert!(begin.elapsed() < Duration::from_millis(900));
        dripping.join().unwrap();
        let (mut ours, mut theirs) = pair(1000);
        ours.send(&vec![b'x'; 20_000], SHORT).unwrap();
        assert!(theirs.receive(SHORT).is_err());
    }

    #[test]
    fn a_peer_that_reads_nothing_cannot_hold_us() {
        let (mut ours, _theirs) = pair(1000);
        let begin = Instant::now();
        assert!((0..10_000).any(|_| ours.send(&[b'x'; 10_000], SHORT).is_err()));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let group = nix::unistd::getegid().as_raw();
        let listener = Listener::bind(&path, group).unwrap();
        assert!(Listener::bind(&path, group).unwrap_err().message().contains("listens there already"));
        let us = Channel::connect(&path, 10).unwrap();
        let them = Channel::new(listener.accept(Duration::from_secs(5)).unwrap().unwrap(), 10);
        assert_eq!(them.peer().unwrap().uid, nix::unistd::geteuid().as_raw());
        assert_eq!(us.peer().unwrap().pid, std::process::id().cast_signed());
        drop(listener);
        assert!(Channel::connect(&path, 10).is_err());
        let listener = Listener::bind(&path, group).unwrap();
        assert!(
            listener.accept(Duration::ZERO).unwrap().is_some_and(|_| true) || listener.accept(SHORT).unwrap().is_none()
        );
        super::super::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(Listener::bind(&path, group).is_err());
    }
}

//! Sockets that are listened at, and descriptors that go from one process to another (unix(7), `SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};

/// The most descriptors of one message.
pub const MOST: usize = 16;
/// How many connections may wait to be accepted; the kernel has a limit of its own (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// The first descriptor that is handed over (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Listens by TCP. What was closed a moment ago is in nobody's way.
///
/// # Errors
/// If somebody else listens there, or the address is none of ours.
pub fn listen_tcp(address: SocketAddr) -> Result<OwnedFd> {
    let doing = || format!("cannot listen at {address}");
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).context(doing)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).context(doing)?;
    if address.is_ipv6() {
        // One address is one address: `0.0.0.0` of the same port may be another socket.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true).context(doing)?;
    }
    rustix::net::bind(&socket, &address).context(doing)?;
    rustix::net::listen(&socket, BACKLOG).context(doing)?;
    Ok(socket)
}

/// Listens at a unix socket that the owner and the group may connect to. A dead one is replaced.
///
/// # Errors
/// If somebody listens there, or something else is in the way.
pub fn listen_unix(path: &Path) -> Result<OwnedFd> {
    let doing = || format!("cannot listen at {}", path.display());
    if let Some(parent) = path.parent() {
        crate::sys::fs::ensure_dir(parent, 0o750)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() && !answers(path).context(doing)? => {
            crate::sys::fs::remove_file(path)?;
        }
        Ok(_) => return Err(Error::failed(format!("{}: something is in the way", doing()))),
        Err(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(doing)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).context(doing)?).context(doing)?;
    crate::sys::fs::set_mode(path, 0o660)?;
    rustix::net::listen(&socket, BACKLOG).context(doing)?;
    Ok(socket)
}

/// Whether somebody listens at a unix socket, found out without waiting.
fn answers(path: &Path) -> rustix::io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        // Its queue is full: somebody has it.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => true,
        Err(_) => false,
    })
}

/// Connects to a unix socket in a directory that somebody else may write to: a link is not followed, and nobody waits for a
/// queue that is full.
///
/// # Errors
/// If it is no socket, or nobody takes the connection now.
pub fn connect_in(dir: &Dir, name: &Path) -> Result<UnixStream> {
    use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
    let doing = || format!("nobody answers at {}", dir.path().join(name).display());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(dir.as_fd(), name, flags, Mode::empty()).context(doing)?;
    if FileType::from_raw_mode(fstat(&found).context(doing)?.st_mode) != FileType::Socket {
        return Err(Error::failed(format!("{}: it is no socket", doing())));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(doing)?;
    let magic = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::net::connect(&socket, &SocketAddrUnix::new(magic.as_str()).context(doing)?).context(doing)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).context(doing)?;
    Ok(stream)
}

/// Receives a text, if it comes within the time. Descriptors that come with it are not taken.
///
/// # Errors
/// If nothing comes.
pub fn receive_text(from: BorrowedFd<'_>, patience: Duration) -> Result<Vec<u8>> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    let doing = || "the holder of sockets does not answer".to_string();
    set_socket_timeout(from, Timeout::Recv, Some(patience)).context(doing)?;
    let mut text = vec![0_u8; 8192];
    let (got, _) = rustix::net::recv(from, text.as_mut_slice(), RecvFlags::empty()).context(doing)?;
    text.truncate(got);
    Ok(text)
}

/// Sends descriptors with a text that is not empty.
///
/// # Errors
/// If the other side is gone.
pub fn send_descriptors(to: BorrowedFd<'_>, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let doing = || "cannot hand sockets over".to_string();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Error::bug("more descriptors than one message holds"));
    }
    let sent = rustix::net::sendmsg(to, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL).context(doing)?;
    if sent == text.len() { Ok(()) } else { Err(Error::failed(doing())) }
}

/// Receives descriptors and the text that came with them, if they come within the time.
///
/// # Errors
/// If nothing comes.
pub fn receive_descriptors(from: BorrowedFd<'_>, patience: Duration) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    let mut text = vec![0_u8; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    set_socket_timeout(from, Timeout::Recv, Some(patience)).context(|| "cannot take sockets over".to_string())?;
    let got = rustix::net::recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut control, flags)
        .context(|| "cannot take sockets over".to_string())?;
    let mut all = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            all.extend(descriptors);
        }
    }
    text.truncate(got.bytes);
    Ok((text, all))
}

/// Puts descriptors where a program that is about to take this process expects them: from 3 on, and inherited.
///
/// # Errors
/// If one cannot be moved.
#[expect(unsafe_code, reason = "the protocol hands over descriptors by their numbers, from 3 on")]
pub fn place_descriptors(descriptors: Vec<OwnedFd>) -> Result<()> {
    let doing = || "cannot hand sockets over".to_string();
    let count = i32::try_from(descriptors.len()).unwrap_or(i32::MAX);
    // First out of the way of each other, so that none is closed by another that takes its number.
    let above = FIRST + count;
    let moved: Vec<OwnedFd> = descriptors
        .into_iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), above))
        .collect::<rustix::io::Result<_>>()
        .context(doing)?;
    for (number, fd) in (FIRST..).zip(moved) {
        // SAFETY: nothing of this process owns these numbers any more: everything that it opened was moved above them.
        let mut target = unsafe { OwnedFd::from_raw_fd(number) };
        let placed = rustix::io::dup2(&fd, &mut target);
        // The number belongs to the next program.
        let _ = target.into_raw_fd();
        placed.context(doing)?;
        rustix::io::ioctl_fionbio(unsafe { BorrowedFd::borrow_raw(number) }, false).context(doing)?;
    }
    Ok(())
}

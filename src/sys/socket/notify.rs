//! The socket through which a service says how it is (sd_notify(3)).
//!
//! Its address is abstract: it needs no directory that the service may enter, and ends with us. It also ends at the border
//! of a network namespace, so that a service without network cannot reach it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::sys::error::{Context, Result};

/// The longest message; a longer one is cut.
const LONGEST: usize = 4096;

/// What a service said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notice {
    /// It is up.
    pub ready: bool,
    /// How it is, in its own words; not escaped.
    pub status: Option<String>,
}

/// The socket of one service.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    name: String,
}

impl NotifySocket {
    /// Opens the socket with this abstract name.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn open(name: &str) -> Result<Self> {
        let doing = || "cannot open the socket through which a service tells that it is up".to_string();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).context(doing)?;
        rustix::net::sockopt::set_socket_passcred(&fd, true).context(doing)?;
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).context(doing)?;
        rustix::net::bind(&fd, &address).context(doing)?;
        Ok(Self { fd, name: name.to_string() })
    }

    /// What `NOTIFY_SOCKET` is for the service.
    #[must_use]
    pub fn address(&self) -> String {
        format!("@{}", self.name)
    }

    /// To be polled: readable when something was said.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next message of a process of this user or of root; `None` if there is none now.
    pub fn next(&self, uid: u32) -> Option<Notice> {
        for _ in 0..100 {
            let (text, from) = self.receive()?;
            if from == Some(uid) || from == Some(0) {
                return Some(parse(&String::from_utf8_lossy(&text)));
            }
        }
        None
    }

    fn receive(&self) -> Option<(Vec<u8>, Option<u32>)> {
        let mut text = [0_u8; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(&mut text)], &mut control, flags).ok()?;
        let mut from = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmCredentials(credentials) = message {
                from = Some(credentials.uid.as_raw());
            }
        }
        Some((text[..got.bytes.min(LONGEST)].to_vec(), from))
    }
}

/// Says that this process is up, where somebody wants to know (`NOTIFY_SOCKET`, sd_notify(3)).
pub fn say_ready() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Ok(address) = std::env::var("NOTIFY_SOCKET") else { return };
    let to = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name.as_bytes()),
        None => SocketAddr::from_pathname(&address),
    };
    // Nobody is told where nobody listens.
    let _ = to.and_then(|to| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &to));
}

fn parse(text: &str) -> Notice {
    let mut notice = Notice::default();
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => notice.ready = true,
            Some(("STATUS", words)) => notice.status = Some(words.to_string()),
            _ => {}
        }
    }
    notice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives_and_strangers_are_not_heard() {
        let name = format!("mc-test-{}", uuid::Uuid::now_v7().simple());
        let socket = NotifySocket::open(&name).unwrap();
        assert!(NotifySocket::open(&name).is_err());
        let us = nix::unistd::geteuid().as_raw();
        assert_eq!(socket.next(us), None);
        let sender = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).unwrap();
        let to = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let send = |text: &str| {
            rustix::net::sendto(&sender, text.as_bytes(), rustix::net::SendFlags::empty(), &to).unwrap();
        };
        send("READY=1\nSTATUS=serving = well\nMAINPID=3");
        let heard = socket.next(us).unwrap();
        assert_eq!(heard, Notice { ready: true, status: Some("serving = well".into()) });
        send("STATUS=x");
        assert!(!socket.next(us).unwrap().ready);
        if us != 0 {
            send("READY=1");
            assert_eq!(socket.next(us + 1), None);
        }
    }
}

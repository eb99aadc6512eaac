//! `with-sockets`: becomes the program of a service, with the sockets that are held for it (sd_listen_fds(3)).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Ask, PATIENCE, complain, connect, refused};
use crate::project::recipe::ServiceName;
use crate::project::recipe::service::listen::Listen;
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::process::become_program;
use crate::sys::socket::pass::{listen_tcp, place_descriptors, receive_descriptors};
use crate::sys::step_exec::COULD_NOT_START;

/// The name of the hidden subcommand.
pub const SUBCOMMAND: &str = "with-sockets";

/// The words that start a program with the sockets of a service.
#[must_use]
pub fn command(
    program: &Path,
    dir: &Path,
    service: &ServiceName,
    listen: &[Listen],
    argv: Vec<OsString>,
) -> Vec<OsString> {
    let addresses = listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut words: Vec<OsString> = vec![program.into(), SUBCOMMAND.into(), dir.into()];
    words.extend([service.as_str().into(), addresses.into()]);
    words.extend(argv);
    words
}

/// The body of the hidden subcommand: directory, service, addresses, program. Returns only where that is impossible.
#[must_use]
pub fn main(args: &[OsString]) -> u8 {
    let error = match become_service(args) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    complain(&error);
    COULD_NOT_START
}

fn become_service(args: &[OsString]) -> Result<std::convert::Infallible> {
    let [dir, service, addresses, program @ ..] = args else {
        return Err(Error::usage(format!("{SUBCOMMAND} takes a directory, a service, addresses and a program")));
    };
    let service: ServiceName = service.to_string_lossy().parse()?;
    let addresses = addresses.to_string_lossy();
    let sockets = match from_holder(&PathBuf::from(dir), &service) {
        Ok(sockets) => sockets,
        // Nobody holds them: the program gets its sockets all the same, and the next deployment finds the holder again.
        Err(Unheld::Away) => addresses.split(',').map(bind).collect::<Result<_>>()?,
        Err(Unheld::Refused(error)) => return Err(error),
    };
    let mut env: BTreeMap<String, String> = std::env::vars().collect();
    env.insert("LISTEN_FDS".into(), sockets.len().to_string());
    env.insert("LISTEN_PID".into(), std::process::id().to_string());
    env.insert("LISTEN_FDNAMES".into(), vec![service.as_str(); sockets.len()].join(":"));
    place_descriptors(sockets)?;
    Err(become_program(program, &env))
}

enum Unheld {
    /// Nobody answers.
    Away,
    /// The holder says no.
    Refused(Error),
}

fn from_holder(dir: &Path, service: &ServiceName) -> std::result::Result<Vec<OwnedFd>, Unheld> {
    let ask = || -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let dir = Dir::open_real(dir)?;
        let mut channel = connect(&dir)?;
        Ask::Take(service.clone()).send(&mut channel)?;
        receive_descriptors(channel.as_fd(), PATIENCE)
    };
    match ask() {
        Ok((answer, sockets)) if !answer.is_empty() => match refused(&answer) {
            Ok(()) => Ok(sockets),
            Err(error) => Err(Unheld::Refused(error)),
        },
        Ok(_) | Err(_) => Err(Unheld::Away),
    }
}

fn bind(address: &str) -> Result<OwnedFd> {
    match address.parse()? {
        Listen::Tcp(address) => listen_tcp(address),
        Listen::Unix(_) => {
            Err(Error::failed(format!("nobody holds the socket {address}")).hint("mc_project restart NAME"))
        }
    }
}

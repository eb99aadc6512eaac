//! The door where there is no systemd: listens, and starts one process for each connection.

use std::process::Child;
use std::time::Duration;

use crate::entrance::launch;
use crate::pipeline::setup::units::CONNECTIONS;
use crate::pipeline::site::Node;
use crate::sys::accounts::Account;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::process::spawn_serving;
use crate::sys::socket::Listener;

/// The hidden command that answers one connection.
pub const CONNECTION: &str = "serve-connection";

/// How long one wait for a connection lasts; between two, children that have ended are buried.
const PACE: Duration = Duration::from_secs(1);
/// How long we wait for a child where there are too many.
const FULL: Duration = Duration::from_millis(20);

/// Opens the node's socket: the one that we were started with, else our own.
///
/// # Errors
/// If we are not root, the node is no whole-machine node, or somebody listens already.
pub fn open(node: &Node) -> Result<Listener> {
    let system = node.system.as_ref().ok_or_else(|| {
        Error::refused(format!("{} is no whole-machine node: hooks need no service", node.place.root().display()))
            .hint("to make it one, as root: mc_project setup")
    })?;
    if !rustix::process::geteuid().is_root() {
        return Err(Error::refused("only root can serve the receiver of pushes").hint("sudo mc_project serve"));
    }
    if let Some(listener) = Listener::inherited()? {
        return Ok(listener);
    }
    let receiver = Account::of(&system.receiver)?;
    let receiver = receiver.ok_or_else(|| {
        Error::refused(format!("the account {} is missing", system.receiver)).hint("mc_project setup")
    })?;
    let path = node.place.socket();
    if let Some(dir) = path.parent() {
        fs::ensure_dir(dir, 0o755)?;
    }
    Listener::bind(&path, receiver.gid)
}

/// Serves connections until it is ended.
///
/// # Errors
/// If the socket is broken.
pub fn serve(node: &Node, listener: &Listener) -> Result<()> {
    let root = node.place.root().as_os_str().to_os_string();
    let args = ["--root".into(), root, CONNECTION.into()];
    let mut children: Vec<Child> = Vec::new();
    loop {
        children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        if children.len() >= CONNECTIONS {
            std::thread::sleep(FULL);
            continue;
        }
        let Some(stream) = listener.accept(PACE)? else { continue };
        match spawn_serving(stream, &args, &launch::environment()) {
            Ok(child) => children.push(child),
            // The hook at the other end sees the connection closed and says so; the next one may fare better.
            Err(error) => tracing::error!("{}", error.one_line()),
        }
    }
}

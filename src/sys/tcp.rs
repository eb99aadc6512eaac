//! The door to TCP: whether somebody listens.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::error::{Context, Result};

/// Connects to a port of this machine and hangs up.
///
/// # Errors
/// If nobody accepts the connection within the time.
pub fn knock(port: u16, timeout: Duration) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, timeout).map(drop).context(|| format!("no connection to {address}"))
}

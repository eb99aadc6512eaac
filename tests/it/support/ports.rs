//! Free TCP ports on loopback.

use std::net::TcpListener;

/// A port that is free at this moment; the kernel hands each out once before it begins again.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

//! A wire that can be cut: relays TCP connections on loopback, counts what comes back, and breaks off where it is told to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The relay; it takes no connection any more when this value goes away.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    back: AtomicU64,
    connections: AtomicUsize,
    is_over: AtomicBool,
    cuts: Mutex<Vec<u64>>,
}

impl Relay {
    /// Relays to this port of loopback.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let of_listener = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if of_listener.is_over.load(Ordering::Relaxed) {
                    return;
                }
                of_listener.connections.fetch_add(1, Ordering::Relaxed);
                let cut = of_listener.cuts.lock().unwrap().pop().unwrap_or(u64::MAX);
                let shared = Arc::clone(&of_listener);
                std::thread::spawn(move || relay(&client.unwrap(), port, cut, &shared));
            }
        });
        Self { port: own, shared }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks the next connections off after so many bytes from the server, each of these once.
    pub fn cut_after(&self, bytes: &[u64]) {
        *self.shared.cuts.lock().unwrap() = bytes.iter().rev().copied().collect();
    }

    /// How many bytes came from the server, in all.
    pub fn came_back(&self) -> u64 {
        self.shared.back.load(Ordering::Relaxed)
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn relay(client: &TcpStream, port: u16, cut: u64, shared: &Shared) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let (mut to_server, mut from_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (&server, client);
    let (mut buffer, mut left) = (vec![0_u8; 16 * 1024], cut);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Ok(count @ 1..) = from_server.read(&mut buffer[..most]) else { break };
        shared.back.fetch_add(count as u64, Ordering::Relaxed);
        left -= count as u64;
        if to_client.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    if left == 0 {
        // What was handed on before the cut arrives: ssh throws away what it has not written yet.
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

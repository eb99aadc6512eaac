//! Mail servers that do not do what they should, each in its own way.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::free_port;

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Nobody listens.
    Refuses,
    /// The connection is taken, and nothing is ever said.
    Hangs,
    /// "Try later", at the receiver's address.
    Later,
    /// "Never", at the receiver's address.
    Never,
    /// The connection ends when the mail was handed over, without an answer.
    DropsAfterData,
    /// One byte each second.
    Drips,
    /// A greeting that has no end, line by line.
    GreetsForEver,
    /// A line that has no end.
    NeverEndsALine,
}

/// Such a server; it ends when this value goes away.
pub struct BrokenSmtpd {
    port: u16,
    is_over: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl BrokenSmtpd {
    /// Starts it.
    pub fn start(how: Broken) -> Self {
        let (is_over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        if how == Broken::Refuses {
            return Self { port: free_port(), is_over, calls };
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let (over, count) = (is_over.clone(), calls.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        let over = over.clone();
                        std::thread::spawn(move || talk(stream, how, &over));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        });
        Self { port, is_over, calls }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections came.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for BrokenSmtpd {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn talk(mut stream: TcpStream, how: Broken, over: &AtomicBool) {
    stream.set_nonblocking(false).unwrap();
    let goes_on = || !over.load(Ordering::Relaxed);
    match how {
        Broken::Refuses => {}
        Broken::Hangs => {
            while goes_on() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Broken::Drips => {
            for byte in b"220 mail.example.org at your service\r\n".iter().cycle() {
                if !goes_on() || stream.write_all(&[*byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Broken::GreetsForEver => while goes_on() && stream.write_all(b"220-welcome, and wait\r\n").is_ok() {},
        Broken::NeverEndsALine => while goes_on() && stream.write_all(&[b'2'; 4096]).is_ok() {},
        Broken::Later | Broken::Never | Broken::DropsAfterData => converse(&mut stream, how),
    }
}

/// A conversation in lines that goes wrong where it should.
fn converse(stream: &mut TcpStream, how: Broken) {
    let _ = stream.write_all(b"220 test\r\n");
    let (mut line, mut byte, mut is_data) = (Vec::new(), [0], false);
    while stream.read(&mut byte).is_ok_and(|n| n == 1) {
        line.push(byte[0]);
        if !line.ends_with(b"\r\n") {
            continue;
        }
        let said = String::from_utf8_lossy(&line).trim_end().to_string();
        line.clear();
        let answer: &[u8] = match (is_data, said.split(':').next().unwrap(), how) {
            // Everything was handed over: whether it was taken, nobody knows.
            (true, ".", _) => return,
            (true, ..) => continue,
            (_, "RCPT TO", Broken::Later) => b"451 4.7.1 greylisted, try later\r\n",
            (_, "RCPT TO", Broken::Never) => b"550 5.1.1 no such user\r\n",
            (_, "DATA", _) => b"354 go on\r\n",
            _ => b"250 ok\r\n",
        };
        is_data = said == "DATA";
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

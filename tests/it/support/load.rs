//! A load generator: clients that ask for a page again and again, and count every answer that is not one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What came of the requests to one port.
#[derive(Debug, Default)]
pub struct Answers {
    /// How many were good.
    pub good: usize,
    /// What else happened.
    pub bad: Vec<String>,
    /// The longest wait.
    pub longest: Duration,
    /// The different bodies.
    pub bodies: std::collections::BTreeSet<String>,
}

/// Clients at work.
pub struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Answers>>,
}

impl Load {
    /// So many clients that ask at this port, each on a new connection, as fast as they are answered.
    pub fn at(port: u16, clients: usize) -> Self {
        Self::with(clients, move || ask(port))
    }

    /// Clients that ask by another way.
    pub fn with(clients: usize, ask: impl Fn() -> std::io::Result<String> + Send + Sync + Clone + 'static) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let begin = |_| {
            let (is_over, ask) = (Arc::clone(&is_over), ask.clone());
            std::thread::spawn(move || run(&is_over, &ask))
        };
        let clients = (0..clients).map(begin).collect();
        Self { is_over, clients }
    }

    /// Ends it, and tells what came of it.
    pub fn end(self) -> Answers {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Answers::default();
        for client in self.clients {
            let one = client.join().unwrap();
            all.good += one.good;
            all.bad.extend(one.bad);
            all.longest = all.longest.max(one.longest);
            all.bodies.extend(one.bodies);
        }
        all
    }
}

fn run(is_over: &AtomicBool, ask: &dyn Fn() -> std::io::Result<String>) -> Answers {
    let mut all = Answers::default();
    while !is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        match ask() {
            Ok(answer) if answer.lines().next().is_some_and(|line| line.ends_with(" 200 OK")) => {
                all.good += 1;
                all.bodies.insert(answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim().to_string());
            }
            Ok(answer) => all.bad.push(answer.lines().next().unwrap_or("nothing").to_string()),
            Err(error) => all.bad.push(error.to_string()),
        }
        all.longest = all.longest.max(begin.elapsed());
    }
    all
}

fn ask(port: u16) -> std::io::Result<String> {
    converse(TcpStream::connect(("127.0.0.1", port))?)
}

/// Asks for `/` and reads to the end.
pub fn converse(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

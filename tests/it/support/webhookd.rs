//! A real web server that takes webhooks and verifies their signatures in another language.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;

use super::smtpd::make_certificate;
use super::{World, free_port, wait_until};

/// A webhook as the server got it.
#[derive(Debug, Clone, Deserialize)]
pub struct Hook {
    /// The path of the URL.
    pub path: String,
    /// Whether it came with a signature.
    pub signed: bool,
    /// Whether that was the right one.
    pub verified: bool,
    /// The header that names the event.
    pub event: String,
    /// The header with the id of the delivery.
    pub delivery: String,
    /// The type of the body.
    #[serde(rename = "type")]
    pub kind: String,
    /// The body.
    pub body: serde_json::Value,
}

/// The server; it ends when this value goes away.
pub struct Webhookd {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Webhookd {
    /// Starts a server of this name that knows this secret; `scheme` is http or https.
    #[track_caller]
    pub fn start(world: &World, name: &str, secret: &str, scheme: &str) -> Self {
        let dir = world.home().path(name);
        std::fs::create_dir(&dir).unwrap();
        make_certificate(world.home(), &dir);
        let port = free_port();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("/usr/bin/python3")
            .env_clear()
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/webhookd.py"))
            .args([&dir, Path::new(&port.to_string()), Path::new(secret), Path::new(scheme)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, port, dir };
        wait_until("the web server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// What is answered from now on: a status, and where a redirection leads to.
    pub fn answer(&self, text: &str) {
        std::fs::write(self.dir.join("answer"), text).unwrap();
    }

    /// Everything that came, in order.
    pub fn hooks(&self) -> Vec<Hook> {
        let Ok(text) = std::fs::read_to_string(self.dir.join("hooks.jsonl")) else { return Vec::new() };
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Webhookd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A real web server that takes webhooks and verifies their signatures in another language.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{PythonServer, World, free_port};

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
pub struct Webhookd(PythonServer);

impl Webhookd {
    /// Starts a server of this name that knows this secret; `scheme` is http or https.
    #[track_caller]
    pub fn start(world: &World, name: &str, secret: &str, scheme: &str) -> Self {
        let program = (Path::new("/usr/bin/python3"), "webhookd.py");
        Self(PythonServer::start(world, name, program, free_port(), [secret, scheme]))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.0.authority()
    }

    /// What is answered from now on: a status, and where a redirection leads to.
    pub fn answer(&self, text: &str) {
        std::fs::write(self.0.dir().join("answer"), text).unwrap();
    }

    /// Everything that came, in order.
    pub fn hooks(&self) -> Vec<Hook> {
        let Ok(text) = std::fs::read_to_string(self.0.dir().join("hooks.jsonl")) else { return Vec::new() };
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

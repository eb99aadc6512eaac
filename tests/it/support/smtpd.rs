//! A real mail server (aiosmtpd) with STARTTLS and login, and a certificate of its own authority.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde::Deserialize;

use super::{Finished, Home, Mail, PythonServer, World, free_port};

/// The version that these tests were written with.
const AIOSMTPD: &str = "aiosmtpd==1.4.6";

/// A mail as the server took it.
#[derive(Debug, Deserialize)]
struct Taken {
    from: String,
    to: Vec<String>,
    tls: bool,
    data: String,
}

/// A mail and how it came.
#[derive(Debug)]
pub struct Received {
    /// The sender of the envelope.
    pub from: String,
    /// The recipients of the envelope.
    pub to: Vec<String>,
    /// Whether it came encrypted.
    pub tls: bool,
    /// The mail.
    pub mail: Mail,
}

/// The server; it ends when this value goes away. The login is `mc`, its password [`Smtpd::PASSWORD`].
pub struct Smtpd(PythonServer);

impl Smtpd {
    /// The right password.
    pub const PASSWORD: &str = "a-very-secret-word";

    /// Starts the server for this world; it wants STARTTLS.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        Self::start_at(world, free_port(), "starttls")
    }

    /// Starts a server that speaks TLS from the first byte.
    #[track_caller]
    pub fn start_tls(world: &World) -> Self {
        Self::start_at(world, free_port(), "tls")
    }

    /// Starts the server at this port.
    #[track_caller]
    pub fn start_at(world: &World, port: u16, tls: &str) -> Self {
        let python = PYTHON.join("bin/python");
        Self(PythonServer::start(world, "smtpd", (&python, "smtpd.py"), port, [Self::PASSWORD, tls]))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.0.authority()
    }

    /// Everything that was received, in order.
    #[track_caller]
    pub fn received(&self) -> Vec<Received> {
        let Ok(text) = std::fs::read_to_string(self.0.dir().join("mails.jsonl")) else { return Vec::new() };
        text.lines()
            .map(|line| serde_json::from_str::<Taken>(line).unwrap())
            .map(|t| Received { from: t.from, to: t.to, tls: t.tls, mail: Mail::read(t.data) })
            .collect()
    }
}

/// The virtualenv with the mail server, made once below `target/` and used by every test.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let venv = target.join("venv-smtpd");
    // Tests are processes of their own (nextest): the first one makes it, the others wait.
    let lock = std::fs::File::create(target.join("venv-smtpd.lock")).unwrap();
    lock.lock().unwrap();
    let marker = venv.join(AIOSMTPD);
    if !marker.exists() {
        run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&venv));
        run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", AIOSMTPD]));
        std::fs::write(marker, "").unwrap();
    }
    venv
});

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority and a certificate for localhost: rustls refuses a server that shows the authority's own.
#[track_caller]
pub fn make_certificate(home: &Home, dir: &Path) {
    std::fs::write(
        dir.join("server.cnf"),
        "basicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n",
    )
    .unwrap();
    for line in [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=Test-CA \
         -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem",
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout key.pem \
         -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.cnf -out cert.pem",
    ] {
        let mut command = home.command("openssl");
        command.current_dir(dir).args(line.split_whitespace());
        Finished::of(command).ok();
    }
}

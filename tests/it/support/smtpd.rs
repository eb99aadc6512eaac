//! A real mail server (aiosmtpd) with STARTTLS and login, and a certificate of its own authority.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde::Deserialize;

use super::{Finished, Home, Mail, World, free_port, wait_until};

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
pub struct Smtpd {
    child: Child,
    port: u16,
    dir: PathBuf,
}

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
        let dir = world.home().path("smtpd");
        std::fs::create_dir(&dir).unwrap();
        make_certificate(world.home(), &dir);
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new(PYTHON.join("bin/python"))
            .env_clear()
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/smtpd.py"))
            .args([&dir, Path::new(&port.to_string()), Path::new(Self::PASSWORD), Path::new(tls)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, port, dir };
        wait_until("the mail server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
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

    /// Everything that was received, in order.
    #[track_caller]
    pub fn received(&self) -> Vec<Received> {
        let Ok(text) = std::fs::read_to_string(self.dir.join("mails.jsonl")) else { return Vec::new() };
        text.lines()
            .map(|line| serde_json::from_str::<Taken>(line).unwrap())
            .map(|t| Received { from: t.from, to: t.to, tls: t.tls, mail: Mail::read(t.data) })
            .collect()
    }
}

impl Drop for Smtpd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

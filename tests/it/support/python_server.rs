//! A server of the tests that is a program in Python: it gets a directory of its own with a certificate, and a port.

use std::ffi::OsStr;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::smtpd::make_certificate;
use super::{World, wait_until};

/// The server; it ends when this value goes away.
pub struct PythonServer {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl PythonServer {
    /// Starts `script` (of `tests/it/support`) with this interpreter in a new directory of this name. Its arguments are the
    /// directory, the port and `args`.
    #[track_caller]
    pub fn start(world: &World, name: &str, (python, script): (&Path, &str), port: u16, args: [&str; 2]) -> Self {
        let dir = world.home().path(name);
        std::fs::create_dir(&dir).unwrap();
        make_certificate(world.home(), &dir);
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new(python)
            .env_clear()
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support").join(script))
            .args([dir.as_os_str(), OsStr::new(&port.to_string())])
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, port, dir };
        wait_until(&format!("{script} listens"), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }
}

impl Drop for PythonServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

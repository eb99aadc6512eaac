//! A real PostgreSQL server on loopback, with a role and a database `shop`.

use std::path::PathBuf;
use std::process::Command;

use super::{Finished, free_port};

/// The server; stopped when it is dropped.
pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
}

/// The password of the role `shop`: what must be found nowhere.
pub const PASSWORD: &str = "correct-horse-battery";

impl Postgres {
    /// Starts one.
    #[track_caller]
    pub fn start() -> Self {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("no PostgreSQL server (tests/run installs one)");
        let bin = versions.map(|entry| entry.unwrap().path().join("bin")).find(|bin| bin.join("initdb").exists());
        let bin = bin.expect("no PostgreSQL server (tests/run installs one)");
        let dir = tempfile::Builder::new().prefix("mc-it-postgres-").tempdir_in("/var/tmp").unwrap();
        let server = Self { dir, bin, port: free_port() };
        if nix::unistd::geteuid().is_root() {
            let mut chown = Command::new("chown");
            chown.arg("postgres:").arg(server.dir.path());
            Finished::of(chown).ok();
        }
        let data = server.dir.path().join("data");
        server.run("initdb", &["-D", data.to_str().unwrap(), "-U", "postgres", "-A", "trust", "-N"]);
        let options = format!("-h 127.0.0.1 -p {} -k {} -c fsync=off", server.port, server.dir.path().display());
        let log = server.dir.path().join("log");
        server
            .run("pg_ctl", &["-D", data.to_str().unwrap(), "-l", log.to_str().unwrap(), "-o", &options, "-w", "start"]);
        server.admin(&format!("CREATE ROLE shop LOGIN PASSWORD '{PASSWORD}'"));
        server.admin("CREATE DATABASE shop OWNER shop");
        server
    }

    /// The variables of libpq that lead to the database, as YAML of a pillar.
    pub fn pillar(&self) -> String {
        format!("PGHOST: 127.0.0.1, PGPORT: \"{}\", PGUSER: shop, PGDATABASE: shop, PGPASSWORD: {PASSWORD}", self.port)
    }

    /// What a query answers, without any decoration.
    #[track_caller]
    pub fn ask(&self, query: &str) -> String {
        self.psql("shop", query)
    }

    fn admin(&self, query: &str) -> String {
        self.psql("postgres", query)
    }

    #[track_caller]
    fn psql(&self, database: &str, query: &str) -> String {
        let port = self.port.to_string();
        let told = self.run(
            "psql",
            &[
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "postgres",
                "-d",
                database,
                "-AtqX",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                query,
            ],
        );
        told.stdout.trim_end().to_string()
    }

    /// Runs one of the server's programs; it refuses to be root.
    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> Finished {
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(self.bin.join(program));
            command
        } else {
            Command::new(self.bin.join(program))
        };
        command.args(args).env("LC_ALL", "C.UTF-8").current_dir("/");
        Finished::of(command).ok()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.dir.path().join("data");
        self.run("pg_ctl", &["-D", data.to_str().unwrap(), "-m", "immediate", "-w", "stop"]);
    }
}

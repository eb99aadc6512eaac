//! A real OpenSSH server on loopback, with its own keys and forced commands, as a node would have it.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Finished, Home, World, free_port, wait_until};

/// Git commands only, as the key's owner; everything else is refused.
const FORCED: &str = r#"#!/bin/sh
case $SSH_ORIGINAL_COMMAND in
git-receive-pack\ *|git-upload-pack\ *) exec git shell -c "$SSH_ORIGINAL_COMMAND" ;;
esac
echo "git only" >&2
exit 128
"#;

/// The server; it ends when this value goes away.
pub struct Sshd {
    child: Child,
    port: u16,
    dir: PathBuf,
    user: String,
}

impl Sshd {
    /// Starts the server for this world.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        let home = world.home();
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
        let keys = home.path("authorized_keys");
        let server = Self::start_for(home, &user, &keys, &["UsePAM no", "StrictModes no"]);
        let forced = server.dir.join("forced.sh");
        std::fs::write(&forced, FORCED).unwrap();
        set_mode(&forced, 0o755);
        let line = format!("command=\"{} alice\",restrict {}", forced.display(), server.public_key("alice"));
        std::fs::write(keys, line).unwrap();
        server
    }

    /// Starts a server that lets the account `user` in with the keys in this file, which may come later; the settings
    /// stand before all others. There are two people with keys, alice and bob.
    #[track_caller]
    pub fn start_for(home: &Home, user: &str, authorized_keys: &Path, settings: &[&str]) -> Self {
        let dir = home.path("sshd");
        std::fs::create_dir(&dir).unwrap();
        for name in ["host_key", "alice", "bob"] {
            make_key(home, &dir.join(name));
        }
        let is_root = nix::unistd::getuid().is_root();
        if is_root {
            // The privilege separation directory that the packaged service would make.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = free_port();
        std::fs::write(dir.join("config"), config(&dir, port, authorized_keys, settings)).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .env_clear()
            .env("PATH", super::home::PATH)
            .args(["-D", "-e", "-f"])
            .arg(dir.join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start sshd (package openssh-server; tests/run installs it): {e}"));
        let server = Self { child, port, dir, user: user.to_string() };
        wait_until("sshd listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The line of a person's public key.
    pub fn public_key(&self, person: &str) -> String {
        std::fs::read_to_string(self.public_key_file(person)).unwrap()
    }

    /// The file with a person's public key.
    pub fn public_key_file(&self, person: &str) -> PathBuf {
        self.dir.join(format!("{person}.pub"))
    }

    /// The value of `GIT_SSH_COMMAND` with which git reaches this server.
    pub fn git_ssh_command(&self) -> String {
        self.ssh_command_of("alice")
    }

    /// The same with the key of one of the two people.
    pub fn ssh_command_of(&self, person: &str) -> String {
        // `exec`, so that the child of git is ssh itself: a test that kills it kills the connection.
        format!(
            "exec ssh -F /dev/null -i {key} -p {port} -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes \
             -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={dir}/known_hosts",
            key = self.dir.join(person).display(),
            port = self.port,
            dir = self.dir.display(),
        )
    }

    /// Runs ssh with a person's key: the words go to the server as they are.
    pub fn ssh(&self, home: &Home, person: &str, words: &str) -> Finished {
        let mut command = home.command("sh");
        let ssh = format!("{} {}@127.0.0.1 \"$1\"", self.ssh_command_of(person), self.user);
        command.args(["-c", &ssh, "sh", words]);
        Finished::of(command)
    }

    /// The address of a repository that is named by a short word, as `mc@host:shop` is.
    pub fn short_url(&self, name: &str) -> String {
        format!("{}@127.0.0.1:{name}", self.user)
    }

    /// The address of a repository on this server.
    pub fn url(&self, repository: &Path) -> String {
        format!("ssh://{}@127.0.0.1{}", self.user, repository.display())
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(dir: &Path, port: u16, authorized_keys: &Path, settings: &[&str]) -> String {
    let mut text = String::new();
    // sshd takes the first word on anything. The private directory lies below /var/tmp, which others may write to: a
    // test whose keys are there sets StrictModes.
    for line in settings {
        let _ = writeln!(text, "{line}");
    }
    let dir = dir.display();
    for line in [
        format!("Port {port}"),
        "ListenAddress 127.0.0.1".into(),
        format!("HostKey {dir}/host_key"),
        format!("PidFile {dir}/pid"),
        format!("AuthorizedKeysFile {}", authorized_keys.display()),
        "PasswordAuthentication no".into(),
        "KbdInteractiveAuthentication no".into(),
        "PermitRootLogin forced-commands-only".into(),
        "AcceptEnv GIT_PROTOCOL".into(),
        // bash(1) reads ~/.bashrc for sshd unless it runs below another one: whoever runs the tests may have anything there.
        "SetEnv SHLVL=1".into(),
    ] {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn make_key(home: &Home, path: &Path) {
    let mut command = home.command("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path);
    Finished::of(command).ok();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

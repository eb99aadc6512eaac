//! A developer away from the node: a real ssh server stands between the two, and the program is run on the developer's side.

use std::path::Path;
use std::process::Command;

use super::{Finished, Sshd, WorkTree, World};

/// The developer's side of a world.
pub struct Away<'w> {
    world: &'w World,
    sshd: Sshd,
}

impl<'w> Away<'w> {
    /// Starts a server that gives the developer alice a shell in the node's own account.
    #[track_caller]
    pub fn start(world: &'w World) -> Self {
        let (home, user) = (world.home(), Self::user());
        let keys = home.path("authorized_keys");
        let sshd = Sshd::start_for(home, &user, &keys, &["PermitRootLogin yes", "UsePAM no", "StrictModes no"]);
        std::fs::write(keys, sshd.public_key("alice")).unwrap();
        Self { world, sshd }
    }

    /// The account that the tests run in.
    pub fn user() -> String {
        nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name
    }

    /// The server.
    pub fn sshd(&self) -> &Sshd {
        &self.sshd
    }

    /// A new work tree whose remote `node` is the project of this name, over ssh.
    #[track_caller]
    pub fn work(&self, project: &str) -> WorkTree<'w> {
        let work = self.world.clone_of(project);
        let url = self.sshd.url(&self.world.project(project).join("git/project"));
        work.git(&["remote", "set-url", "node", &url]).ok();
        work.git(&["config", "core.sshCommand", &self.sshd.ssh_command_of("alice")]).ok();
        work
    }

    /// Writes the developer's list of nodes.
    pub fn list(&self, yaml: &str) {
        write_list(self.world.home().dir(), yaml);
    }

    /// The program in `dir`, with alice's key.
    pub fn command(&self, dir: &Path, args: &[&str]) -> Command {
        self.command_with(dir, args, &self.sshd.ssh_command_of("alice"))
    }

    /// The same with another ssh.
    pub fn command_with(&self, dir: &Path, args: &[&str], ssh: &str) -> Command {
        let mut command = self.world.home().command(env!("CARGO_BIN_EXE_mc_project"));
        command.current_dir(dir).env("GIT_SSH_COMMAND", ssh).args(args);
        command
    }

    /// Runs it.
    #[track_caller]
    pub fn mc(&self, dir: &Path, args: &[&str]) -> Finished {
        Finished::of(self.command(dir, args))
    }

    /// Kills every ssh client of this developer, those that hold a shared connection too; how many there were.
    pub fn cut(&self) -> usize {
        cut(self.world.home().dir())
    }
}

/// Writes the list of nodes of the developer whose private place this is.
pub fn write_list(home: &Path, yaml: &str) {
    let dir = home.join("home/.config/mc_project");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("nodes.yaml"), yaml).unwrap();
}

/// Kills, by id, every ssh client whose command line or environment names this directory.
pub fn cut(home: &Path) -> usize {
    use std::os::unix::ffi::OsStrExt;
    let mut count = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let is_ssh = std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "ssh");
        let names_us = ["cmdline", "environ"].iter().any(|file| {
            std::fs::read(entry.path().join(file))
                .is_ok_and(|text| memchr::memmem::find(&text, home.as_os_str().as_bytes()).is_some())
        });
        if is_ssh && names_us {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            count += 1;
        }
    }
    count
}

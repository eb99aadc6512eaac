//! The key with which this node asks other nodes over ssh, and the machines that it knows (OpenSSH's own programs and files).
//!
//! Nobody is asked anything: a machine whose key is not known, or is another one, is refused. Nothing of the account's own
//! configuration of ssh takes part, but what stands in a file `ssh_config` beside the key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Error, Result};
use super::process::{Captured, StepStatus, base_environment, run_captured};
use super::{escape, fs};

/// How long ssh-keygen and ssh-keyscan may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A key of ssh and the machines that are known, in one directory.
#[derive(Debug, Clone)]
pub struct SshIdentity {
    dir: PathBuf,
}

/// The key of a machine, as it was found or is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    /// The line of `known_hosts`.
    pub line: String,
    /// `SHA256:…`, as ssh-keygen prints it.
    pub fingerprint: String,
    /// `ED25519`, `RSA`, …
    pub kind: String,
}

impl SshIdentity {
    /// What is in this directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// The file of the private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("fetch_ed25519")
    }

    /// The file of the machines that are known.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    /// The line of the public key; makes the key if there is none.
    ///
    /// # Errors
    /// If ssh-keygen is missing or fails.
    pub fn ensure(&self) -> Result<String> {
        let (key, public) = (self.key(), self.dir.join("fetch_ed25519.pub"));
        if !fs::exists(&key) || !fs::exists(&public) {
            fs::ensure_dir(&self.dir, 0o700)?;
            // Made beside, renamed last: half a key is none.
            let (new, new_public) = (self.dir.join(".fetch.new"), self.dir.join(".fetch.new.pub"));
            fs::remove_file(&new)?;
            fs::remove_file(&new_public)?;
            let host = super::machine::host_name().unwrap_or_default();
            let comment = format!("mc_project@{}", host.replace(|c: char| !c.is_ascii_graphic(), "_"));
            let args = ["-q", "-t", "ed25519", "-N", "", "-C", &comment, "-f"].map(OsString::from);
            run("ssh-keygen", &[&args[..], &[new.clone().into_os_string()]].concat(), b"")?;
            fs::rename_durable(&new_public, &public)?;
            fs::rename_durable(&new, &key)?;
        }
        Ok(fs::read_text(&public)?.trim_end().to_string())
    }

    /// The arguments of ssh that run `words` on a machine.
    #[must_use]
    pub fn arguments(&self, destination: &str, port: Option<u16>, words: &[String]) -> Vec<OsString> {
        let config = self.dir.join("ssh_config");
        let config = if fs::exists(&config) { config } else { PathBuf::from("/dev/null") };
        let mut args: Vec<OsString> = vec!["-F".into(), config.into(), "-T".into()];
        args.extend(["-i".into(), OsString::from(literal(&self.key()))]);
        let known = format!("UserKnownHostsFile=\"{}\"", literal(&self.known_hosts()));
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            known.as_str(),
            "UpdateHostKeys=no",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "PreferredAuthentications=publickey",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "PermitLocalCommand=no",
            "ControlPath=none",
            "ConnectTimeout=15",
            "ConnectionAttempts=1",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
        ] {
            args.extend(["-o".into(), option.into()]);
        }
        if let Some(port) = port {
            args.extend(["-p".into(), port.to_string().into()]);
        }
        args.extend(["--".into(), destination.into(), words.join(" ").into()]);
        args
    }

    /// The environment of ssh: nothing of ours.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        base_environment(&self.dir)
    }

    /// Asks a machine for its keys. What answers may be anybody: the fingerprint is to be compared.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn scan(&self, host: &str, port: Option<u16>) -> Result<Vec<HostKey>> {
        let mut args: Vec<OsString> = ["-T", "15"].map(OsString::from).to_vec();
        if let Some(port) = port {
            args.extend(["-p".into(), port.to_string().into()]);
        }
        args.extend(["--".into(), host.into()]);
        let scanned = run("ssh-keyscan", &args, b"")?;
        let text = String::from_utf8_lossy(&scanned.stdout).into_owned();
        let lines = text.lines().filter(|line| !line.starts_with('#') && line.split(' ').count() == 3);
        let mut keys = Vec::new();
        for line in lines {
            keys.extend(describe(line));
        }
        if keys.is_empty() {
            return Err(
                Error::failed(format!("no ssh server answers at {host}")).hint("is it up, and is the port right?")
            );
        }
        keys.sort_by_key(|key| (key.kind != "ED25519", key.kind.clone()));
        Ok(keys)
    }

    /// The machines that are known.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn known(&self) -> Result<Vec<HostKey>> {
        let text = fs::read_bounded(&self.known_hosts(), fs::CONFIG_LIMIT)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut keys = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            keys.extend(describe(line));
        }
        Ok(keys)
    }

    /// Knows a machine by this key from now on; other keys of it are forgotten.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn trust(&self, key: &HostKey) -> Result<()> {
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_string();
        let text = fs::read_bounded(&self.known_hosts(), fs::CONFIG_LIMIT)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let others = text.lines().filter(|line| name(line) != name(&key.line));
        let all: String = others.chain([key.line.as_str()]).flat_map(|line| [line, "\n"]).collect();
        fs::ensure_dir(&self.dir, 0o700)?;
        fs::write_durable(&self.known_hosts(), all.as_bytes(), 0o600)
    }
}

/// A path as ssh takes it literally: it expands what begins with `%`.
fn literal(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%%")
}

/// What ssh-keygen says of a line of `known_hosts`; nothing where it is none.
fn describe(line: &str) -> Option<HostKey> {
    let told = run("ssh-keygen", &["-l", "-f", "-"].map(OsString::from), format!("{line}\n").as_bytes());
    let text = String::from_utf8_lossy(&told.ok()?.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let fingerprint = words.get(1).filter(|word| word.starts_with("SHA256:"));
    let kind = words.last().map(|word| word.trim_matches(['(', ')']).to_string()).unwrap_or_default();
    fingerprint.map(|print| HostKey { line: line.to_string(), fingerprint: (*print).to_string(), kind })
}

fn run(program: &str, args: &[OsString], stdin: &[u8]) -> Result<Captured> {
    let done = run_captured(program, args, &base_environment(Path::new("/")), stdin, TIMEOUT)?;
    match &done.status {
        StepStatus::Ok => Ok(done),
        StepStatus::CouldNotStart(_) => Err(missing(program)),
        other => {
            Err(Error::failed(format!("{program} failed ({}): {}", other.words(), escape::visible(&done.last_words()))))
        }
    }
}

/// The error where OpenSSH is not installed.
#[must_use]
pub fn missing(program: &str) -> Error {
    Error::failed(format!("the program {program} is missing")).hint("sudo apt-get install openssh-client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_hosts_are_replaced_and_not_collected() {
        let dir = tempfile::tempdir().unwrap();
        let identity = SshIdentity::new(&dir.path().join("keys"));
        let public = identity.ensure().unwrap();
        assert!(public.starts_with("ssh-ed25519 AAAA") && public.contains(" mc_project@"), "{public}");
        assert_eq!(identity.ensure().unwrap(), public);
        assert!(identity.known().unwrap().is_empty());

        let blob = public.split(' ').nth(1).unwrap();
        let key = |name: &str| describe(&format!("{name} ssh-ed25519 {blob}")).unwrap();
        for name in ["a", "[b]:2222", "a"] {
            identity.trust(&key(name)).unwrap();
        }
        let known = identity.known().unwrap();
        assert_eq!(known.iter().map(|key| key.line.split(' ').next().unwrap()).collect::<Vec<_>>(), ["[b]:2222", "a"]);
        assert!(known[0].fingerprint.starts_with("SHA256:") && known[0].kind == "ED25519", "{known:?}");
    }

    #[test]
    fn what_ssh_is_told_stands_before_the_machine_and_nothing_of_it_is_expanded() {
        let identity = SshIdentity::new(Path::new("/a %h b"));
        let args = identity.arguments("mc@staging", Some(2222), &["release".into(), "list".into()]);
        let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        assert!(args.ends_with(&["-p", "2222", "--", "mc@staging", "release list"]), "{args:?}");
        assert!(args.contains(&"/a %%h b/fetch_ed25519"), "{args:?}");
        assert!(args.contains(&"UserKnownHostsFile=\"/a %%h b/known_hosts\""), "{args:?}");
        assert!(args.contains(&"StrictHostKeyChecking=yes") && args.contains(&"BatchMode=yes"));
    }
}

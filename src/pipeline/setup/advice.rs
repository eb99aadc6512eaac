//! What `setup` tells about the machine and does not change: ssh, the kernel's protections, accounts.

use std::path::{Path, PathBuf};

use crate::sys::error::{Context, Result};
use crate::sys::fs;
use crate::sys::process::StepStatus;

/// Where sshd is, where it is not in the `PATH`.
const SSHD: &str = "/usr/sbin/sshd";

/// Everything worth telling about this machine.
#[must_use]
pub fn of_machine(receiver: &str) -> Vec<String> {
    let mut notes = kernel(|name| fs::read_text(&Path::new("/proc/sys/fs").join(name)).ok());
    if fs::exists(Path::new(SSHD)) {
        let who = format!("user={receiver},host=localhost,addr=127.0.0.1");
        match super::run(SSHD, &["-T".into(), "-C".into(), who.into()]) {
            Ok(ended) if ended.status == StepStatus::Ok => {
                notes.extend(ssh(&String::from_utf8_lossy(&ended.stdout), receiver));
            }
            _ => notes.push("what sshd lets in could not be found out (sshd -T)".to_string()),
        }
    } else {
        notes.push("there is no sshd here: nobody can push from elsewhere (apt install openssh-server)".to_string());
    }
    notes
}

/// Whether others may make root follow their links.
fn kernel(read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let is_off = |name: &&str| read(name).is_some_and(|value| value.trim() == "0");
    let off = ["protected_hardlinks", "protected_symlinks"].into_iter().filter(is_off);
    off.map(|name| format!("fs.{name} is off: any user can lay traps with links; sysctl -w fs.{name}=1")).collect()
}

/// What the server's settings, as `sshd -T` prints them, would keep the receiver from.
fn ssh(settings: &str, receiver: &str) -> Vec<String> {
    let values = |key: &str| -> Vec<String> {
        let lines = settings.lines().filter_map(|line| line.split_once(' '));
        let of_key = lines.filter(|(name, _)| name.eq_ignore_ascii_case(key));
        of_key.flat_map(|(_, value)| value.split_ascii_whitespace().map(str::to_string)).collect()
    };
    let is_named = |list: &[String]| list.iter().any(|word| fits(word, receiver));
    let mut notes = Vec::new();
    let allowed = values("allowusers");
    if !allowed.is_empty() && !is_named(&allowed) {
        notes.push(format!("sshd lets in only AllowUsers {}: add {receiver} to it", allowed.join(" ")));
    }
    if is_named(&values("denyusers")) {
        notes.push(format!("sshd keeps {receiver} out: DenyUsers"));
    }
    let groups = values("allowgroups");
    if !groups.is_empty() && !is_named(&groups) {
        notes.push(format!("sshd lets in only AllowGroups {}: add the group {receiver} to it", groups.join(" ")));
    }
    if values("pubkeyauthentication").iter().any(|word| word == "no") {
        notes.push("sshd takes no keys: PubkeyAuthentication no".to_string());
    }
    if values("permituserenvironment").iter().any(|word| word != "no") {
        notes.push("PermitUserEnvironment is on: set it to no, so that a line of authorized_keys sets nothing".into());
    }
    let files = values("authorizedkeysfile");
    if !files.is_empty() && !files.iter().any(|file| file == ".ssh/authorized_keys" || file.contains('%')) {
        notes.push(format!("sshd looks for keys in {} and not in .ssh/authorized_keys", files.join(" ")));
    }
    notes
}

/// Whether a pattern of sshd_config(5) names this user; `*` and `?` at any place, what follows an `@` is ignored.
fn fits(pattern: &str, name: &str) -> bool {
    fn matches(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                matches(rest, name) || name.split_first().is_some_and(|(_, tail)| matches(pattern, tail))
            }
            (Some((b'?', rest)), Some((_, tail))) => matches(rest, tail),
            (Some((a, rest)), Some((b, tail))) => a == b && matches(rest, tail),
            _ => false,
        }
    }
    matches(pattern.split('@').next().unwrap_or_default().as_bytes(), name.as_bytes())
}

/// The home of an account.
///
/// # Errors
/// If the machine's accounts cannot be read.
pub fn home_of(name: &str) -> Result<Option<PathBuf>> {
    let user = nix::unistd::User::from_name(name).context(|| format!("cannot look up the account {name}"))?;
    Ok(user.map(|user| user.dir))
}

/// The first group of an account; one that is still to be made gets a group of its own name.
///
/// # Errors
/// If the machine's accounts cannot be read.
pub fn group_of(name: &str) -> Result<String> {
    let doing = || format!("cannot look up the account {name}");
    let Some(user) = nix::unistd::User::from_name(name).context(doing)? else { return Ok(name.to_string()) };
    let group = nix::unistd::Group::from_gid(user.gid).context(doing)?;
    Ok(group.map_or_else(|| user.gid.to_string(), |group| group.name))
}

/// Whether nobody can log in to an account, not even with a key: its password begins with `!` (shadow(5)).
///
/// # Errors
/// If the passwords cannot be read.
pub fn is_locked(name: &str) -> Result<bool> {
    Ok(password_is_locked(&fs::read_text(Path::new("/etc/shadow"))?, name))
}

fn password_is_locked(shadow: &str, name: &str) -> bool {
    let mut lines = shadow.lines().map(|line| line.split(':'));
    let found = lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.next().unwrap_or("")));
    found.is_some_and(|password| password.starts_with('!'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_sshd_that_keep_the_receiver_out_are_told() {
        let good = "port 22\npubkeyauthentication yes\npermituserenvironment no\nauthorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\n";
        assert_eq!(ssh(good, "mc"), [""; 0]);
        for (line, part) in [
            ("allowusers admin\nallowusers root@10.*\n", "AllowUsers admin root@10.*: add mc"),
            ("denyusers m?\n", "DenyUsers"),
            ("allowgroups ssh\n", "AllowGroups ssh: add the group mc"),
            ("pubkeyauthentication no\n", "takes no keys"),
            ("permituserenvironment yes\n", "PermitUserEnvironment is on"),
            ("authorizedkeysfile none\n", "looks for keys in none"),
        ] {
            let notes = ssh(line, "mc");
            assert!(notes.len() == 1 && notes[0].contains(part), "{line}: {notes:?}");
        }
        for line in ["allowusers admin m*\n", "allowusers mc@192.0.2.0/24\n", "denyusers mcx *x\n", "allowgroups *\n"] {
            assert_eq!(ssh(line, "mc"), [""; 0], "{line}");
        }
    }

    #[test]
    fn a_kernel_that_lets_others_lay_traps_is_told() {
        let notes = kernel(|name| (name == "protected_symlinks").then(|| "0\n".to_string()));
        assert!(notes.len() == 1 && notes[0].contains("sysctl -w fs.protected_symlinks=1"), "{notes:?}");
        assert_eq!(kernel(|_| Some("1\n".into())), [""; 0]);
    }

    #[test]
    fn a_locked_password_is_known() {
        let shadow = "root:$y$x:1::\nmc:!:2::\nmc2:*:2::\nmc3:!*:2::\n";
        assert!(password_is_locked(shadow, "mc") && password_is_locked(shadow, "mc3"));
        assert!(
            !password_is_locked(shadow, "mc2") && !password_is_locked(shadow, "x") && !password_is_locked("", "mc")
        );
    }
}

//! How git called us: which hook, in which repository, in which push.
//!
//! Everything in the environment may come from a caller who means harm. Only what is listed here is read, paths are
//! reduced to names below the repository, and nothing is passed on to programs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::entrance::RepoKind;
use crate::entrance::options::MAX_OPTIONS;
use crate::project::access::key::is_fingerprint;
use crate::sys::error::{Context, Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::fs;

/// The hooks that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookName {
    /// Refuses early.
    PreReceive,
    /// Deploys before git answers.
    ProcReceive,
    /// Deploys what no earlier hook has deployed.
    PostReceive,
}

impl HookName {
    /// Every hook that `init` links to the binary.
    pub const ALL: [Self; 3] = [Self::PreReceive, Self::ProcReceive, Self::PostReceive];

    /// The name as git knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PreReceive => "pre-receive",
            Self::ProcReceive => "proc-receive",
            Self::PostReceive => "post-receive",
        }
    }

    /// The hook that a program is called as: the last component of its `argv[0]`.
    #[must_use]
    pub fn of_program(argv0: &OsStr) -> Option<Self> {
        let name = Path::new(argv0).file_name()?;
        Self::ALL.into_iter().find(|hook| name == hook.name())
    }
}

/// One call of a hook by git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which hook.
    pub hook: HookName,
    /// The bare repository, absolute.
    pub repository: PathBuf,
    /// Which of the project's repositories that is.
    pub kind: RepoKind,
    /// Push options from the environment (pre-receive and post-receive), not yet understood.
    pub options: Vec<Vec<u8>>,
    /// Identifies the receive-pack process that called us: `<pid>-<start time>`; the same for every hook of one push.
    pub push: Option<String>,
    /// Who pushes, escaped.
    pub pusher: String,
    /// The fingerprint of the ssh key that the pusher came with, as the forced command tells it.
    pub key: Option<String>,
    /// Where pre-receive finds the pushed objects: git moves them out of here when it accepts the push.
    pub quarantine: Option<PathBuf>,
    /// Where git keeps the list of commits at which the pusher's history is cut off, if the pusher's clone is shallow.
    pub shallow_file: Option<PathBuf>,
}

impl Call {
    /// The call that this process is.
    ///
    /// # Errors
    /// Of kind `Usage` if this process was not called by git as a hook of a project's repository.
    pub fn of_process(hook: HookName) -> Result<Self> {
        let directory = std::env::current_dir().context(|| "cannot find the current directory".into())?;
        let environment: BTreeMap<_, _> = std::env::vars_os().collect();
        let mut call = Self::new(hook, &directory, &environment, std::io::stdin().is_terminal())?;
        call.push = push_id(std::os::unix::process::parent_id());
        call.pusher = pusher(&environment, &user_name());
        call.key = key(environment.get(OsStr::new("MC_KEY")).map(OsString::as_os_str));
        Ok(call)
    }

    fn new(
        hook: HookName,
        directory: &Path,
        environment: &BTreeMap<OsString, OsString>,
        at_terminal: bool,
    ) -> Result<Self> {
        let get = |name: &str| environment.get(OsStr::new(name)).map(OsString::as_os_str);
        // git runs a hook of a bare repository in that repository, with GIT_DIR=. (githooks(5)).
        if get("GIT_DIR").is_none() || at_terminal {
            return Err(not_a_hook(hook));
        }
        let kind = kind_of(directory).ok_or_else(|| not_a_hook(hook))?;
        let below = |variable: &str, dir: &str, prefixes: &[&str]| -> Option<PathBuf> {
            let name = Path::new(get(variable)?).file_name()?.to_str()?;
            prefixes.iter().any(|prefix| name.starts_with(prefix)).then(|| directory.join(dir).join(name))
        };
        Ok(Self {
            hook,
            repository: directory.to_path_buf(),
            kind,
            options: push_options(&get)?,
            push: None,
            pusher: String::new(),
            key: None,
            quarantine: below("GIT_QUARANTINE_PATH", "objects", &["tmp_objdir-", "incoming-"]),
            shallow_file: below("GIT_SHALLOW_FILE", "", &["shallow_"]),
        })
    }
}

/// The repository's kind by its place: `…/git/project` or `…/git/pillar`. The links `git/project.git` do not show
/// here: the current directory is told by the kernel without links.
fn kind_of(directory: &Path) -> Option<RepoKind> {
    let parent = directory.parent()?.file_name()?;
    match directory.file_name()?.to_str()? {
        "project" if parent == "git" => Some(RepoKind::Project),
        "pillar" if parent == "git" => Some(RepoKind::Pillar),
        _ => None,
    }
}

fn not_a_hook(hook: HookName) -> Error {
    Error::usage(format!(
        "{} is called by git in git/project or git/pillar of a project, when somebody pushes",
        hook.name()
    ))
    .hint("git push NODE:/srv/projects/NAME/git/project main   or   mc_project deploy NAME")
}

/// `GIT_PUSH_OPTION_COUNT` and `GIT_PUSH_OPTION_0…`; the count is unset when the pusher's git sends none.
fn push_options<'a>(get: &impl Fn(&str) -> Option<&'a OsStr>) -> Result<Vec<Vec<u8>>> {
    let Some(count) = get("GIT_PUSH_OPTION_COUNT") else { return Ok(Vec::new()) };
    let count: usize = count
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::usage("GIT_PUSH_OPTION_COUNT is no number"))?;
    if count > MAX_OPTIONS {
        return Err(Error::usage(format!("more than {MAX_OPTIONS} push options")));
    }
    (0..count)
        .map(|i| {
            get(&format!("GIT_PUSH_OPTION_{i}"))
                .map(|value| value.as_bytes().to_vec())
                .ok_or_else(|| Error::usage(format!("GIT_PUSH_OPTION_{i} is missing")))
        })
        .collect()
}

/// A process by pid and start time, so that a pid that is used again is another push.
#[must_use]
pub fn push_id(pid: u32) -> Option<String> {
    let stat = fs::read_text(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    start_time(&stat).map(|start| format!("{pid}-{start}"))
}

/// Field 22 of /proc/PID/stat (proc(5)); the second field, a name in parentheses, may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn user_name() -> String {
    let uid = nix::unistd::Uid::effective();
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

/// Who gave a command: the person that the node's service names, else the system user.
#[must_use]
pub fn commander() -> String {
    let named = std::env::var_os("MC_PUSHER").filter(|name| !name.is_empty());
    named.map_or_else(user_name, |name| visible_bounded(name.as_bytes(), 200))
}

/// Whether a text has the form of a push's name.
#[must_use]
pub fn is_push_id(text: &str) -> bool {
    let is_number = |part: &str| (1..=20).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    text.split_once('-').is_some_and(|(pid, start)| is_number(pid) && is_number(start))
}

/// Who pushes: the name that a forced ssh command or a web server gives, else the system user, and from which address.
fn pusher(environment: &BTreeMap<OsString, OsString>, user: &str) -> String {
    let get = |name: &str| environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
    let name = get("MC_PUSHER").or_else(|| get("REMOTE_USER")).map_or(user.as_bytes(), |name| name.as_bytes());
    let name = visible_bounded(name, 200);
    let address = get("SSH_CONNECTION")
        .and_then(|value| value.to_str())
        .and_then(|value| value.split(' ').next())
        .and_then(|value| value.parse::<std::net::IpAddr>().ok());
    match address {
        Some(address) => format!("{name} from {address}"),
        None => name,
    }
}

/// The key of whoever gave a command over ssh, as the node's service names it.
#[must_use]
pub fn commander_key() -> Option<String> {
    key(std::env::var_os("MC_KEY").as_deref())
}

/// `MC_KEY`, which the forced command sets; anything that is no fingerprint is left out.
fn key(value: Option<&OsStr>) -> Option<String> {
    let key = value?.to_str()?;
    is_fingerprint(key).then(|| key.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "/srv/projects/shop/git/project";

    fn call(directory: &str, environment: &[(&str, &str)]) -> Result<Call> {
        let environment = environment.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
        Call::new(HookName::PreReceive, Path::new(directory), &environment, false)
    }

    #[test]
    fn a_hook_is_known_by_the_name_it_is_called_by() {
        let of = |name: &str| HookName::of_program(OsStr::new(name));
        assert_eq!(of("hooks/post-receive"), Some(HookName::PostReceive));
        assert_eq!(of("./pre-receive"), Some(HookName::PreReceive));
        assert_eq!(of("proc-receive"), Some(HookName::ProcReceive));
        for other in ["mc_project", "hooks/update", "post-receive.local", "", "/"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_call_outside_git_is_a_usage_error() {
        use crate::sys::error::Kind;
        assert_eq!(call(PLACE, &[]).unwrap_err().kind(), Kind::Usage);
        for place in ["/", "/srv", "/srv/projects/shop", "/srv/projects/shop/project", "/home/me/project"] {
            assert_eq!(call(place, &[("GIT_DIR", ".")]).unwrap_err().kind(), Kind::Usage, "{place}");
        }
        let environment = [(OsString::from("GIT_DIR"), OsString::from("."))].into();
        assert!(Call::new(HookName::PreReceive, Path::new(PLACE), &environment, true).is_err(), "a terminal");
    }

    #[test]
    fn repository_kind_and_options_are_read() {
        let called = call(
            "/srv/projects/shop/git/pillar",
            &[
                ("GIT_DIR", "."),
                ("GIT_PUSH_OPTION_COUNT", "2"),
                ("GIT_PUSH_OPTION_0", "plan"),
                ("GIT_PUSH_OPTION_1", "reason=a b"),
            ],
        )
        .unwrap();
        assert_eq!(called.kind, RepoKind::Pillar);
        assert_eq!(called.options, [b"plan".to_vec(), b"reason=a b".to_vec()]);
        for (count, set) in [("x", true), ("101", true), ("-1", true), ("1", false)] {
            let mut environment = vec![("GIT_DIR", "."), ("GIT_PUSH_OPTION_COUNT", count)];
            if set {
                environment.push(("GIT_PUSH_OPTION_0", "plan"));
            }
            assert!(call(PLACE, &environment).is_err(), "{count}");
        }
    }

    #[test]
    fn paths_of_the_environment_stay_below_the_repository() {
        let called = call(
            PLACE,
            &[
                ("GIT_DIR", "."),
                ("GIT_QUARANTINE_PATH", "/srv/projects/shop/git/project.git/./objects/tmp_objdir-incoming-AFR"),
                ("GIT_SHALLOW_FILE", "/etc/shallow_nPF"),
            ],
        )
        .unwrap();
        assert_eq!(called.quarantine, Some(PathBuf::from(PLACE).join("objects/tmp_objdir-incoming-AFR")));
        assert_eq!(called.shallow_file, Some(PathBuf::from(PLACE).join("shallow_nPF")));
        let hostile = [("GIT_DIR", "."), ("GIT_QUARANTINE_PATH", "/etc"), ("GIT_SHALLOW_FILE", "/etc/shadow")];
        let called = call(PLACE, &hostile).unwrap();
        assert_eq!((called.quarantine, called.shallow_file), (None, None));
    }

    #[test]
    fn a_push_is_known_by_pid_and_start_time() {
        let stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8961 1 1";
        assert_eq!(start_time(stat), Some(8961));
        assert_eq!(start_time("x"), None);
        let me = std::process::id();
        assert!(push_id(me).unwrap().starts_with(&format!("{me}-")));
        assert_eq!(push_id(me), push_id(me));
    }

    #[test]
    fn the_pusher_is_named_and_escaped() {
        let of = |pairs: &[(&str, &str)]| {
            pusher(&pairs.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect(), "git")
        };
        assert_eq!(of(&[]), "git");
        assert_eq!(of(&[("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.1 22")]), "git from 192.0.2.7");
        assert_eq!(of(&[("MC_PUSHER", "ali\x1bce"), ("SSH_CONNECTION", "; rm x")]), "ali\\u{1b}ce");
        assert_eq!(of(&[("REMOTE_USER", "bob")]), "bob");
    }

    #[test]
    fn only_a_fingerprint_is_taken_as_the_pushers_key() {
        let of = |value: &str| key(Some(OsStr::new(value)));
        let good = "SHA256:qiGWwq6Dz4YpHzXWTzVJ0LIXF6EVD3Uhk6JmfT5Jqzs";
        assert_eq!(of(good).as_deref(), Some(good));
        for bad in ["", "SHA256:", "MD5:aa:bb", "SHA256:x y", &format!("{good}="), &format!("{good}\u{1b}")] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(key(None), None);
    }
}

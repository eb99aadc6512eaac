//! Makes this machine a whole-machine node: the receiver's account, the directories, the socket, the recovery at boot.
//!
//! First a plan, then the acts: [`plan`] looks and changes nothing, [`apply`] does one change of it. What is as it should
//! be is not in the plan, so that a second run has nothing to do, and a run of a newer program brings up what differs.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::project::mode::Environment;
use crate::project::place::NodePlace;
use crate::project::system::System;
use crate::sys::accounts::{Account, Login};
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::git::program_version;
use crate::sys::process::{self, Captured, StepStatus, run_captured};
use crate::sys::{escape, fs, machine};

pub mod advice;
pub mod salt;
pub mod units;

/// How long a program of the machine may take.
const PROGRAM: Duration = Duration::from_mins(2);

/// What `setup` was asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The node's root.
    pub root: PathBuf,
    /// The account that receives pushes.
    pub receiver: String,
    /// What the node is for, where nobody has said so yet.
    pub environment: Environment,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The running program is copied.
    Install {
        /// Where to.
        to: PathBuf,
    },
    /// An account is made.
    Account {
        /// Its name.
        name: String,
        /// Its home, which belongs to root.
        home: PathBuf,
    },
    /// An account without a password is opened for logins by key.
    Unlock {
        /// Its name.
        name: String,
    },
    /// A directory is made, or gets its owner and mode.
    Directory {
        /// Where.
        path: PathBuf,
        /// Its mode; it belongs to root.
        mode: u32,
        /// Whether it is not there yet.
        is_new: bool,
    },
    /// A file is written.
    File {
        /// Where.
        path: PathBuf,
        /// Its text.
        text: String,
        /// Its mode; it belongs to root.
        mode: u32,
        /// Whether it is not there yet.
        is_new: bool,
    },
    /// systemd reads its units again.
    Reload,
    /// A unit is switched on.
    Enable {
        /// Its name.
        unit: String,
        /// Whether it is started, or started anew, at once.
        start: bool,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |is_new: &bool| if *is_new { "make" } else { "repair" };
        match self {
            Self::Install { to } => write!(f, "install this program as {}", to.display()),
            Self::Account { name, home } => {
                write!(f, "make the account {name} (home {}, no password, logins by key only)", home.display())
            }
            Self::Unlock { name } => write!(f, "open the account {name} for logins by key"),
            Self::Directory { path, mode, is_new } => {
                write!(f, "{} {}/ (root, {mode:04o})", verb(is_new), path.display())
            }
            Self::File { path, mode, is_new: true, .. } => write!(f, "write {} (root, {mode:04o})", path.display()),
            Self::File { path, .. } => write!(f, "update {}", path.display()),
            Self::Reload => f.write_str("let systemd read its units again"),
            Self::Enable { unit, start: true } => write!(f, "switch on and start {unit}"),
            Self::Enable { unit, start: false } => write!(f, "switch on {unit}"),
        }
    }
}

/// What is to be done, and what is to be said.
#[derive(Debug, Default)]
pub struct Plan {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// What a person should know; nothing of it stops us.
    pub notes: Vec<String>,
}

/// Looks what is missing.
///
/// # Errors
/// If we are not root, git is missing, or the root is none that may become such a node.
pub fn plan(wish: &Wish) -> Result<Plan> {
    refuse_others(wish)?;
    let place = NodePlace::new(&wish.root);
    let projects = configured_projects(&place)?;
    let place = place.with_projects_dir(&projects);
    let mut plan = Plan::default();
    let version = program_version().map_err(|error| error.hint("apt install git"))?;
    if version < (2, 29) {
        plan.notes.push(format!(
            "git {}.{} cannot let a failed deployment fail the push (2.29 can): the verdict is told later",
            version.0, version.1
        ));
    }
    plan_binary(&place, &mut plan)?;
    plan_account(&place, wish, &mut plan)?;
    for (path, mode) in directories(&place) {
        plan_directory(&path, mode, &mut plan)?;
    }
    plan_files(&place, wish, &mut plan)?;
    if wish.root == Path::new("/") && machine::runs_systemd() {
        plan_units(&place, wish, &mut plan)?;
    } else {
        plan.notes.push(format!(
            "no systemd here: let the machine's init run `{0} serve` for as long as it runs, and `MC_BOOT=1 {0} recover --all` at boot",
            command(&place)
        ));
    }
    plan.notes.extend(advice::of_machine(&wish.receiver));
    Ok(plan)
}

/// How the installed program is called for this node.
fn command(place: &NodePlace) -> String {
    let binary = place.binary();
    if place.root() == Path::new("/") {
        return binary.display().to_string();
    }
    format!("{} --root {}", binary.display(), place.root().display())
}

fn refuse_others(wish: &Wish) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::refused("only root can set up a whole-machine node")
            .hint("sudo mc_project setup; a node in a directory needs no setup: mc_project --root DIR init NAME"));
    }
    let name = &wish.receiver;
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if name == "root" || name.starts_with("mc-") || !begins || name.len() > 32 || !name.bytes().all(is_plain) {
        let shown = escape::visible_bounded(name.as_bytes(), 64);
        return Err(Error::usage(format!("`{shown}` cannot receive pushes"))
            .hint("an account of its own: a-z, 0-9, _ and -, at most 32, not root and none of mc-*"));
    }
    if wish.root != Path::new("/") {
        refuse_strange_root(&wish.root)?;
    }
    Ok(())
}

/// A node elsewhere than at `/` is for a root of its own (a container's, a test's): every directory above it is root's.
fn refuse_strange_root(root: &Path) -> Result<()> {
    for dir in root.ancestors() {
        let meta = Dir::open_real(dir)?.stat_self()?;
        // A sticky directory such as /tmp lets nobody take away what is root's.
        if meta.uid != 0 || (meta.mode & 0o022 != 0 && meta.mode & 0o1000 == 0) {
            return Err(Error::refused(format!("{} is not root's alone", dir.display())).hint(
                "setup works on this machine (without --root), or on a directory below root's directories only",
            ));
        }
    }
    Ok(())
}

/// Where the node's configuration has the projects.
fn configured_projects(place: &NodePlace) -> Result<PathBuf> {
    let path = place.config();
    Ok(match fs::read_bounded(&path, fs::CONFIG_LIMIT)? {
        Some(bytes) => crate::project::node::NodeConfig::parse(&path.display().to_string(), &bytes)?.projects_dir,
        None => crate::project::node::NodeConfig::default().projects_dir,
    })
}

fn plan_binary(place: &NodePlace, plan: &mut Plan) -> Result<()> {
    let (to, from) = (place.binary(), fs::canonical(process::self_exe())?);
    if !is_roots(&to, 0o755)? || (to != from && fs::digest(&to)? != fs::digest(&from)?) {
        plan.changes.push(Change::Install { to });
    }
    Ok(())
}

/// Whether a regular file of root's with this mode stands there.
fn is_roots(path: &Path, mode: u32) -> Result<bool> {
    let Some(meta) = fs::examine(path)? else { return Ok(false) };
    if !meta.is_file() {
        return Err(Error::refused(format!("{} is in the way: it is no regular file", path.display())));
    }
    Ok((meta.uid(), meta.gid(), meta.mode() & 0o7777) == (0, 0, mode))
}

fn plan_account(place: &NodePlace, wish: &Wish, plan: &mut Plan) -> Result<()> {
    let (name, home) = (wish.receiver.clone(), place.receiver_home());
    let Some(account) = Account::of(&name)? else {
        plan.changes.push(Change::Account { name, home });
        return Ok(());
    };
    if account.uid == 0 {
        return Err(Error::refused(format!("the account {name} is root by another name")).hint("--receiver mc"));
    }
    // An account that somebody else made is left as it is.
    if advice::home_of(&name)?.as_deref() != Some(home.as_path()) {
        plan.notes.push(format!(
            "the account {name} was there already and is left as it is; keys are looked for in its own home"
        ));
    } else if advice::is_locked(&name)? {
        plan.changes.push(Change::Unlock { name });
    }
    Ok(())
}

/// The directories of the node, with their modes; all are root's.
fn directories(place: &NodePlace) -> Vec<(PathBuf, u32)> {
    let root = place.root();
    vec![
        (root.join("etc/mc_project"), 0o755),
        // Everybody may pass through to what is theirs, nobody may look round.
        (place.projects().to_path_buf(), 0o751),
        (root.join("var/log/mc_project"), 0o750),
        (place.receiver_home(), 0o755),
        (place.receiver_home().join(".ssh"), 0o755),
    ]
}

fn plan_directory(path: &Path, mode: u32, plan: &mut Plan) -> Result<()> {
    let is_new = match fs::examine(path)? {
        None => true,
        Some(meta) if !meta.is_dir() => {
            return Err(Error::refused(format!("{} is in the way: it is no directory", path.display()))
                .hint("a link to a directory elsewhere: say `projects_dir:` in node.yaml, or mount it there"));
        }
        Some(meta) if (meta.uid(), meta.gid(), meta.mode() & 0o7777) == (0, 0, mode) => return Ok(()),
        Some(_) => false,
    };
    plan.changes.push(Change::Directory { path: path.to_path_buf(), mode, is_new });
    Ok(())
}

fn plan_files(place: &NodePlace, wish: &Wish, plan: &mut Plan) -> Result<()> {
    let config = place.config();
    if fs::examine(&config)?.is_none() {
        let text = starter(wish.environment);
        plan.changes.push(Change::File { path: config, text, mode: 0o600, is_new: true });
    }
    let path = place.system();
    let before = match fs::read_bounded(&path, fs::CONFIG_LIMIT)? {
        Some(bytes) => Some(System::parse(&path.display().to_string(), &bytes)?),
        None => None,
    };
    let wanted = System { format: 1, receiver: wish.receiver.clone() };
    if let Some(before) = before.as_ref().filter(|before| before.receiver != wanted.receiver) {
        return Err(Error::refused(format!("this node's pushes are received by {} already", before.receiver))
            .hint(format!("mc_project setup --receiver {}", before.receiver)));
    }
    if before.is_none() {
        let projects = fs::names(place.projects())?;
        if !projects.is_empty() {
            plan.notes.push(format!(
                "projects that are here already belong to root: `mc_project init NAME` gives each its own account ({})",
                projects.join(", ")
            ));
        }
    }
    if before.as_ref() != Some(&wanted) || !is_roots(&path, 0o644)? {
        let mut text = serde_json::to_string_pretty(&wanted).context(|| "cannot write the record".to_string())?;
        text.push('\n');
        plan.changes.push(Change::File { path, text, mode: 0o644, is_new: before.is_none() });
    }
    Ok(())
}

fn plan_units(place: &NodePlace, wish: &Wish, plan: &mut Plan) -> Result<()> {
    let mut changed = Vec::new();
    for (path, text) in units::all(place, &advice::group_of(&wish.receiver)?) {
        let before = fs::read_bounded(&path, fs::CONFIG_LIMIT)?;
        if before.as_deref() != Some(text.as_bytes()) || !is_roots(&path, 0o644)? {
            changed.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
            plan.changes.push(Change::File { path, text, mode: 0o644, is_new: before.is_none() });
        }
    }
    if !changed.is_empty() {
        plan.changes.push(Change::Reload);
    }
    for (unit, start) in units::ENABLED {
        let is = |question: &str| {
            let asked = run("systemctl", &[question.into(), "--quiet".into(), unit.into()]);
            asked.is_ok_and(|ended| ended.status == StepStatus::Ok)
        };
        let is_new = changed.iter().any(|name| name == unit);
        if !is("is-enabled") || (start && (is_new || !is("is-active"))) {
            plan.changes.push(Change::Enable { unit: unit.to_string(), start });
        }
    }
    Ok(())
}

/// Does one change.
///
/// # Errors
/// If it cannot be done; what was done before stays, and the next run goes on from there.
pub fn apply(change: &Change) -> Result<()> {
    match change {
        Change::Install { to } => {
            if let Some(dir) = to.parent() {
                fs::ensure_dir(dir, 0o755)?;
            }
            fs::install(&fs::canonical(process::self_exe())?, to, 0o755)
        }
        Change::Account { name, home } => Account::make(name, home, "receives pushes", Login::ByKey).map(|_| ()),
        Change::Unlock { name } => Account::unlock(name),
        Change::Directory { path, mode, .. } => {
            fs::ensure_dir(path, *mode)?;
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
            let parent = Dir::open_real(parent)?;
            parent.set_owner(Path::new(name), 0, 0)?;
            parent.set_mode(Path::new(name), *mode)
        }
        Change::File { path, text, mode, .. } => {
            if let Some(dir) = path.parent() {
                fs::ensure_dir(dir, 0o755)?;
            }
            fs::write_durable(path, text.as_bytes(), *mode)
        }
        Change::Reload => done("systemctl", &["daemon-reload".into()]),
        Change::Enable { unit, start } => {
            done("systemctl", &["enable".into(), "--quiet".into(), unit.into()])?;
            if *start { done("systemctl", &["restart".into(), unit.into()]) } else { Ok(()) }
        }
    }
}

fn run(program: &str, args: &[OsString]) -> Result<Captured> {
    run_captured(program, args, &process::base_environment(Path::new("/")), b"", PROGRAM)
}

fn done(program: &str, args: &[OsString]) -> Result<()> {
    let ended = run(program, args)?;
    if ended.status == StepStatus::Ok {
        return Ok(());
    }
    Err(Error::failed(format!("{program} failed ({}): {}", ended.status.words(), ended.last_words())))
}

/// The first `node.yaml` of this machine.
fn starter(environment: Environment) -> String {
    let memory = three_quarters_of_memory().map(|mib| format!("memory: {mib}MiB, ")).unwrap_or_default();
    STARTER.replace("@environment@", environment.name()).replace("@memory@", &memory)
}

/// In MiB, of what the kernel says the machine has (proc_meminfo(5)).
fn three_quarters_of_memory() -> Option<u64> {
    let text = fs::read_text(Path::new("/proc/meminfo")).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib / 1024 / 4 * 3).filter(|mib| *mib > 0)
}

/// The first `node.yaml`: what can be said there, said in comments.
const STARTER: &str = "\
# This node, for mc_project. Everything here is optional; the README tells every key, under \"The node\".
environment: @environment@        # staging, test, qa, preprod build here; prod deploys what was built elsewhere; dev: editable
steps: {@memory@processes: 4096}  # what a step may use at most: no project starves the others

# branch: main                  # the branch that deploys; without it the first pushed one of main and master
# force: refuse                 # a push that takes commits away is refused
# wait: 1h                      # how long a push waits for the deployment before it

# mail:
#   from: node@example.org
#   to: [ops@example.org]
#   transport: smtp
#   smtp: {host: mail.example.org, user: node, password: …, tls: tls}

# projects:
#   shop:
#     environment: prod
#     disk: 20GiB
#     allow: {units: [shop.service], reload: [nginx.service]}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::node::NodeConfig;

    fn wish(root: &Path) -> Wish {
        // An account that is there everywhere and that setup leaves as it is.
        Wish { root: root.to_path_buf(), receiver: "nobody".into(), environment: Environment::Prod }
    }

    #[test]
    fn the_starter_is_a_good_configuration_as_it_is_and_with_its_comments_taken_off() {
        let text = starter(Environment::Prod);
        assert_eq!(NodeConfig::parse("n", text.as_bytes()).unwrap().environment, Environment::Prod);
        let open: Vec<String> = text.lines().skip(4).map(|line| line.trim_start_matches("# ").to_string()).collect();
        let open: Vec<String> = text.lines().take(3).map(str::to_string).chain(open).collect();
        let mut open = open.join("\n").replace("#   ", "  ");
        open = open.replace("password: …", "password: hunter2hunter2");
        NodeConfig::parse("n", open.as_bytes()).unwrap();
    }

    #[test]
    fn what_was_applied_is_not_planned_again() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let first = plan(&wish(root)).unwrap();
        let texts: Vec<String> = first.changes.iter().map(ToString::to_string).collect();
        let text = texts.join("\n").replace(root.to_str().unwrap(), "");
        assert_eq!(
            text,
            "install this program as /usr/local/bin/mc_project
make /etc/mc_project/ (root, 0755)
make /srv/projects/ (root, 0751)
make /var/log/mc_project/ (root, 0750)
make /var/lib/mc_project/ (root, 0755)
make /var/lib/mc_project/.ssh/ (root, 0755)
write /etc/mc_project/node.yaml (root, 0600)
write /etc/mc_project/system.json (root, 0644)"
        );
        assert!(first.notes.iter().any(|note| note.contains(" serve`")), "{:?}", first.notes);
        assert!(!fs::exists(&root.join("etc")), "a plan changes nothing");
        for change in &first.changes {
            apply(change).unwrap();
        }
        assert_eq!(plan(&wish(root)).unwrap().changes, []);
        std::fs::write(root.join("etc/mc_project/node.yaml"), "environment: staging\n").unwrap();
        fs::set_mode(&root.join("srv/projects"), 0o777).unwrap();
        std::fs::write(root.join("usr/local/bin/mc_project"), "an older one").unwrap();
        let again: Vec<String> = plan(&wish(root)).unwrap().changes.iter().map(ToString::to_string).collect();
        assert_eq!(again.len(), 2, "{again:?}");
        assert!(again[0].starts_with("install") && again[1].starts_with("repair"), "{again:?}");
        let other = Wish { receiver: "daemon".into(), ..wish(root) };
        assert!(plan(&other).unwrap_err().message().contains("received by nobody already"));
    }

    #[test]
    fn strange_roots_and_receivers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for receiver in ["root", "mc-shop", "", "-x", "a b", "A", "a;b"] {
            assert!(plan(&Wish { receiver: receiver.into(), ..wish(dir.path()) }).is_err(), "{receiver:?}");
        }
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
        assert!(plan(&wish(&theirs)).unwrap_err().message().contains("not root's alone"));
        assert!(plan(&wish(&theirs.join("below"))).is_err());
    }
}

//! The developer's side: a node elsewhere, and its own commands run there over the system's OpenSSH.
//!
//! [`find`] says which node a word means, [`ssh`] how it is reached, [`trouble`] what went wrong in words, [`install`] makes
//! a machine a node. What is asked for is run by the node's own copy of the program; before the first command of a connection
//! the two say which versions they are ([`super::hello`]).

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::entrance::hello::{self, Behind, Hello, PROTOCOL};
use crate::project::address::{Address, Login};
use crate::project::ids::ProjectName;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::process::{Beside, Input, Said, StepStatus, Tick, run_beside, self_exe};

pub mod checkout;
pub mod find;
pub mod install;
pub mod ssh;
pub mod trouble;

use ssh::{Ssh, quoted};
use trouble::Heard;

/// The exit code of ssh where ssh itself failed (ssh(1)).
pub const SSH_FAILED: i32 = 255;
/// The exit code of a shell that does not find a program, and of one that cannot run it.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// Where the program may be besides the `PATH` of a session without a terminal.
/// A node in a directory (the first argument) may have a program that only its hooks name.
const SEARCH: &str = "PATH=$PATH:/usr/local/sbin:/usr/local/bin:$HOME/.local/bin:$HOME/.cargo/bin; root=$1; shift; \
    if [ \"$1\" = mc_project ] && ! command -v mc_project >/dev/null; then \
    for hook in \"$root\"/srv/projects/*/git/project/hooks/post-receive; do [ -x \"$hook\" ] || continue; \
    shift; set -- \"$(readlink -f \"$hook\")\" \"$@\"; break; done; fi; exec \"$@\"";

/// A node elsewhere.
#[derive(Debug)]
pub struct Far {
    /// As it was named.
    pub name: String,
    /// The ways to it, in the order in which they are tried.
    pub ways: Vec<Way>,
    /// The project that is meant where none is named.
    pub project: Option<ProjectName>,
    /// The repository of code to push to, where one is known.
    pub repository: Option<Address>,
    /// What git calls that repository.
    pub remote: Option<String>,
    /// The checkout of the pillar on this machine.
    pub pillar: Option<PathBuf>,
}

/// One way to a node.
#[derive(Debug)]
pub enum Way {
    /// It is in a directory of this machine.
    Here {
        /// Its root.
        root: PathBuf,
    },
    /// It is reached by ssh.
    Ssh {
        /// How.
        ssh: Ssh,
        /// The root of a node in a directory.
        root: Option<PathBuf>,
        /// Where the program is, if not where it is looked for.
        program: Option<PathBuf>,
    },
}

/// What answered at the end of a way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Met {
    /// A program that says which one it is.
    Program(Hello),
    /// One from before programs said so.
    Older(Behind),
    /// A shell, and no program.
    Nothing,
}

/// A command for a node.
#[derive(Debug)]
pub struct Errand {
    /// The words of the command line, without the program.
    pub words: Vec<OsString>,
    /// What it reads.
    pub input: Input,
    /// Whether a person may be asked at a terminal, which it gets where it runs.
    pub terminal: bool,
}

impl Errand {
    /// A command that reads nothing and asks nothing.
    pub fn new(words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { words: words.into_iter().map(Into::into).collect(), input: Input::None, terminal: false }
    }
}

impl Far {
    /// Runs a command of the node with our standard output; its exit code.
    ///
    /// # Errors
    /// If the node cannot be reached, or has no program that does this.
    pub fn run(&self, errand: Errand) -> Result<u8> {
        let (way, met) = self.way_for(&errand.words)?;
        let mut heard = Heard::default();
        let mut order = way.order(&met, &errand);
        order.input = errand.input;
        order.shows = true;
        let status = run_beside(order, &mut |said| {
            if let Said::Err(line) = said {
                heard.hear(line);
                let _ = std::io::stderr().lock().write_all(&[line, b"\n"].concat());
            }
            Tick::GoOn
        })?;
        match status {
            // ssh never fails without a word; a command may.
            StepStatus::Exit(SSH_FAILED) if !heard.is_empty() && !way.is_here() => Err(way.trouble(&heard)),
            StepStatus::Exit(code) => {
                if let (Met::Older(_), 2) = (&met, code) {
                    let text = format!(
                        "note: mc_project on {} is older than here ({}); to bring this version there: {}\n",
                        way.shown(),
                        env!("CARGO_PKG_VERSION"),
                        self.typed("setup")
                    );
                    let _ = std::io::stderr().lock().write_all(text.as_bytes());
                }
                Ok(u8::try_from(code).unwrap_or(1))
            }
            StepStatus::Ok => Ok(0),
            other => Err(Error::failed(format!("ssh ended with {}", other.words()))),
        }
    }

    /// Runs a command of the node and hands on the lines that it says.
    ///
    /// # Errors
    /// As [`Far::run`].
    pub fn listen(
        &self,
        errand: &Errand,
        every: Duration,
        on: &mut dyn FnMut(Said<'_>),
    ) -> Result<(StepStatus, Heard)> {
        let (way, met) = self.way_for(&errand.words)?;
        let mut heard = Heard::default();
        let mut order = way.order(&met, errand);
        order.every = every;
        let status = run_beside(order, &mut |said| {
            if let Said::Err(line) = said {
                heard.hear(line);
            }
            on(said);
            Tick::GoOn
        })?;
        Ok((status, heard))
    }

    /// The first way by which a command is served, and what answers there.
    ///
    /// # Errors
    /// If there is none, or it cannot be reached.
    pub fn way_for(&self, words: &[OsString]) -> Result<(&Way, Met)> {
        let mut served = None;
        for way in &self.ways {
            let met = way.meet()?;
            way.refuse_other_protocol(&met, &self.name)?;
            if met == Met::Nothing {
                return Err(way.no_program(&self.name));
            }
            match &met {
                Met::Program(Hello { behind: Behind::ForcedCommand, commands, .. }) if !serves(commands, words) => {
                    served = Some(commands.join(", "));
                }
                _ => return Ok((way, met)),
            }
        }
        let (name, list) = (&self.name, served.unwrap_or_default());
        let command = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        Err(Error::refused(format!(
            "{name} does not serve `{}` to the keys of projects",
            crate::sys::escape::visible(&command)
        ))
        .hint(format!(
            "served are: list, {list}\nfor all others say in nodes.yaml who administers it: `admin: root@HOST` or an \
                 account with sudo"
        )))
    }

    /// The ssh that leads to a repository of this node.
    #[must_use]
    pub fn ssh_for(&self, repository: &Address) -> Option<Ssh> {
        let login = repository.login.as_ref()?;
        self.ways.iter().find_map(|way| match way {
            Way::Ssh { ssh, .. } if ssh.to() == login => Some(ssh.clone()),
            _ => None,
        })
    }

    /// The account by which the node is reached first.
    #[must_use]
    pub fn first_login(&self) -> Option<&Login> {
        self.ways.iter().find_map(|way| match way {
            Way::Ssh { ssh, .. } => Some(ssh.to()),
            Way::Here { .. } => None,
        })
    }

    /// How a command for this node is typed on this machine, for hints.
    #[must_use]
    pub fn typed(&self, command: &str) -> String {
        format!("mc_project --node {} {command}", self.name)
    }
}

impl Way {
    /// Who is at the end of it, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Here { root } => root.display().to_string(),
            Self::Ssh { ssh, .. } => ssh.to().shown(),
        }
    }

    fn is_here(&self) -> bool {
        matches!(self, Self::Here { .. })
    }

    /// Asks who is there; what was asked over a connection that is still open is remembered.
    ///
    /// # Errors
    /// If nobody can be reached, or who answers is no node at all.
    pub fn meet(&self) -> Result<Met> {
        let Self::Ssh { ssh, root, program } = self else { return Ok(Met::Program(Hello::ours(Behind::Shell))) };
        if let Some(hello) = ssh.remembered().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(Met::Program(hello));
        }
        let is_plain = root.is_none() && program.is_none();
        let mut heard = self.say_hello(ssh, is_plain)?;
        if heard.status == StepStatus::Exit(NOT_FOUND) && is_plain {
            heard = self.say_hello(ssh, false)?;
        }
        let met = heard.met(self)?;
        if let Met::Program(hello) = &met {
            ssh.remember(&serde_json::to_vec(hello).unwrap_or_default());
        }
        Ok(met)
    }

    /// Asks with the words that a forced command understands too, or by a shell that looks for the program.
    fn say_hello(&self, ssh: &Ssh, is_plain: bool) -> Result<Greeting> {
        let words = if is_plain {
            OsString::from(format!("mc_project {}", hello::COMMAND))
        } else {
            self.shell_words(&[OsString::from(hello::COMMAND)], None)
        };
        let (mut heard, mut out) = (Heard::default(), Vec::new());
        let status = run_beside(Beside::new(ssh.argv(false, &words)), &mut |said| {
            match said {
                Said::Out(line) => out.push(line.to_vec()),
                Said::Err(line) => heard.hear(line),
                Said::Runs => {}
            }
            Tick::GoOn
        })?;
        Ok(Greeting { status, out, heard })
    }

    /// The process that runs a command at the end of this way.
    fn order(&self, met: &Met, errand: &Errand) -> Beside {
        let Self::Ssh { ssh, .. } = self else {
            let Self::Here { root } = self else { return Beside::new(Vec::new()) };
            let before = [self_exe().as_os_str(), OsStr::new("--root"), root.as_os_str()].map(OsStr::to_os_string);
            return Beside::new(before.into_iter().chain(errand.words.iter().cloned()).collect());
        };
        if met.behind() == Behind::ForcedCommand {
            return Beside::new(ssh.argv(false, &joined(&errand.words)));
        }
        let sudo = self.needs_sudo(met).then_some(errand.terminal);
        Beside::new(ssh.argv(errand.terminal, &self.shell_words(&errand.words, sudo)))
    }

    /// The words for a shell: the program with its root and a command, behind sudo where that is needed (which may ask for a
    /// password only at a terminal).
    fn shell_words(&self, words: &[OsString], sudo: Option<bool>) -> OsString {
        let Self::Ssh { root, program, .. } = self else { return OsString::new() };
        let mut all: Vec<OsString> = ["sh", "-c", SEARCH, "sh"].map(OsString::from).to_vec();
        all.push(root.clone().unwrap_or_default().into_os_string());
        match sudo {
            Some(true) => all.extend(["sudo", "--"].map(OsString::from)),
            Some(false) => all.extend(["sudo", "-n", "--"].map(OsString::from)),
            None => {}
        }
        all.push(program.as_ref().map_or_else(|| "mc_project".into(), |path| path.clone().into_os_string()));
        if let Some(root) = root {
            all.extend(["--root".into(), root.clone().into_os_string()]);
        }
        all.extend(words.iter().cloned());
        joined(&all)
    }

    /// Whether the node is the whole machine and this account is not root.
    fn needs_sudo(&self, met: &Met) -> bool {
        let Self::Ssh { ssh, root, .. } = self else { return false };
        let is_root = match met {
            Met::Program(hello) => hello.uid == 0,
            Met::Older(_) | Met::Nothing => ssh.to().user.as_deref() == Some("root"),
        };
        let is_whole_machine = root.as_deref().is_none_or(|root| root == Path::new("/"));
        is_whole_machine && !is_root
    }

    /// What ssh's own failure means.
    #[must_use]
    pub fn trouble(&self, heard: &Heard) -> Error {
        match self {
            Self::Here { .. } => Error::failed(heard.last_words()),
            Self::Ssh { ssh, .. } => trouble::of_ssh(heard, ssh.to()).error,
        }
    }

    fn no_program(&self, node: &str) -> Error {
        let hint = match self {
            Self::Ssh { root: Some(_), .. } => format!(
                "install it there, and say where it is (`program:` in nodes.yaml), or: mc_project --node {node} setup"
            ),
            _ => format!("mc_project --node {node} setup"),
        };
        Error::failed(format!("mc_project is not installed on {}", self.shown())).hint(hint)
    }

    fn refuse_other_protocol(&self, met: &Met, node: &str) -> Result<()> {
        let Met::Program(hello) = met else { return Ok(()) };
        if hello.protocol == PROTOCOL {
            return Ok(());
        }
        let ours = env!("CARGO_PKG_VERSION");
        let said = format!(
            "mc_project {} on {} and {ours} here do not understand each other (protocol {} and {PROTOCOL})",
            hello.version(),
            self.shown(),
            hello.protocol
        );
        Err(Error::refused(said).hint(if hello.protocol > PROTOCOL {
            "install the newer version on this machine too".to_string()
        } else {
            format!("bring this version to the node: mc_project --node {node} setup")
        }))
    }
}

impl Met {
    /// Behind what it answers.
    #[must_use]
    pub fn behind(&self) -> Behind {
        match self {
            Self::Program(hello) => hello.behind,
            Self::Older(behind) => *behind,
            Self::Nothing => Behind::Shell,
        }
    }
}

/// What was said to a hello.
struct Greeting {
    status: StepStatus,
    out: Vec<Vec<u8>>,
    heard: Heard,
}

impl Greeting {
    fn met(self, way: &Way) -> Result<Met> {
        // What a login script prints may stand before it.
        let said = self.out.iter().rev().find_map(|line| serde_json::from_slice::<Hello>(line).ok());
        let has = |text: &str| self.heard.has(text);
        match (&self.status, said) {
            (_, Some(hello)) => Ok(Met::Program(hello)),
            (StepStatus::Exit(SSH_FAILED), _) => Err(way.trouble(&self.heard)),
            (StepStatus::Exit(NOT_FOUND), _) => Ok(Met::Nothing),
            (StepStatus::Exit(NOT_RUNNABLE), _) => Err(trouble::not_runnable(&self.heard, &way.shown())),
            (_, None) if has("is not served here") => Ok(Met::Older(Behind::ForcedCommand)),
            (_, None) if has("unrecognized subcommand") => Ok(Met::Older(Behind::Shell)),
            (status, None) => Err(trouble::no_node(&self.heard, &way.shown(), &status.words())),
        }
    }
}

/// Whether a forced command serves these words; some of its commands have two.
fn serves(commands: &[String], words: &[OsString]) -> bool {
    let is_it = |name: &str| name.split(' ').enumerate().all(|(n, part)| words.get(n).is_some_and(|word| word == part));
    is_it("list") || commands.iter().any(|name| is_it(name))
}

/// Words as one text that a shell, and our own forced command, splits into these words again.
fn joined(words: &[OsString]) -> OsString {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(OsStr::new(" "))
}

/// The directory of the developer's own files, `~`.
///
/// # Errors
/// If nobody says where it is.
pub fn home() -> Result<PathBuf> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
        .ok_or_else(|| Error::usage("HOME is not set, so there is no ~/.config/mc_project/nodes.yaml"))
}

/// Where the developer's list of nodes is.
///
/// # Errors
/// As [`home`].
pub fn list_file() -> Result<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let config = config.map_or_else(|| home().map(|home| home.join(".config")), Ok)?;
    Ok(config.join("mc_project/nodes.yaml"))
}

/// The developer's list of nodes; an empty one, where there is no file.
///
/// # Errors
/// If it cannot be read or is invalid.
pub fn list() -> Result<crate::project::nodes::Nodes> {
    let path = list_file()?;
    match fs::canonical(&path).ok().map(|path| fs::read_bounded(&path, fs::CONFIG_LIMIT)).transpose()?.flatten() {
        Some(bytes) => crate::project::nodes::Nodes::parse(&path.display().to_string(), &bytes, &home()?),
        None => Ok(crate::project::nodes::Nodes::default()),
    }
}

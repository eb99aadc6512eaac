//! Commands about people: who may come in, and the forced command that they come in by.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::screen;
use super::{Cli, KeysCommand};
use crate::entrance::shell::{self, Answer};
use crate::pipeline::people::People;
use crate::pipeline::site::Node;
use crate::project::access::key::{FILE_LIMIT, SshKey};
use crate::project::access::{Access, Person, PersonName, Role, Scope};
use crate::sys::error::{Context, Error, ExitCode, Kind, Result};
use crate::sys::{escape, fs, machine, process};

/// `keys add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The person: a letter, then at most 31 of a-z 0-9 . _ -
    pub person: PersonName,
    /// A project that they get a role for; `*` is every project. May be repeated
    #[arg(long, value_name = "NAME")]
    pub project: Vec<Scope>,
    /// Their role there: read looks and fetches, deploy pushes, admin does everything [default: deploy]
    #[arg(long, value_enum, requires = "project", hide_default_value = true)]
    pub role: Option<Role>,
    /// The file with their public key, `-` for standard input; without it only grants change
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// `keys remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The person; with nothing else they are removed with all their keys
    pub person: PersonName,
    /// A project that they lose their role for; `*` takes the role for every project away. May be repeated
    #[arg(long, value_name = "NAME")]
    pub project: Vec<Scope>,
    /// One of their keys, as `keys list` prints it
    #[arg(long, value_name = "FINGERPRINT")]
    pub key: Option<String>,
}

/// `keys list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// One person only
    pub person: Option<PersonName>,
    /// Only those who have a role for this project
    #[arg(long, value_name = "NAME", conflicts_with = "person")]
    pub project: Option<Scope>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// The person whose key it was
    pub person: String,
    /// The fingerprint of that key
    pub key: Option<String>,
}

/// `keys …`.
///
/// # Errors
/// If a key is not taken, or we may not say who comes in.
pub fn keys(cli: &Cli, command: &KeysCommand) -> Result<u8> {
    match command {
        KeysCommand::Show(args) => super::signing::show(cli, args),
        KeysCommand::Trust(args) => super::signing::trust(cli, args),
        KeysCommand::Distrust(args) => super::signing::distrust(cli, args),
        KeysCommand::Host(args) => super::signing::host(cli, args),
        KeysCommand::Add(args) => add(&cli.node()?, args),
        KeysCommand::Remove(args) => remove(&cli.node()?, args),
        KeysCommand::List(args) => list(&cli.node()?, args),
    }
}

fn add(node: &Node, args: &AddArgs) -> Result<u8> {
    let people = People::open(node)?;
    let keys = args.key.as_deref().map(read_keys).transpose()?.unwrap_or_default();
    if keys.is_empty() && args.project.is_empty() {
        return Err(Error::usage("nothing to add was named")
            .hint(format!("mc_project keys add {} --project NAME --key FILE", args.person)));
    }
    let role = args.role.unwrap_or(Role::Deploy);
    let written = people.change(|access| {
        let is_new = access.person(args.person.as_str()).is_none();
        access.add(&args.person, keys, &args.project, role).map(|changes| (changes, is_new))
    })?;
    let (lines, is_new) = &written.done;
    tell(lines, &written.warnings);
    let known = node.projects()?;
    for scope in &args.project {
        if let Scope::Project(name) = scope
            && !known.contains(name)
        {
            screen::error_line(format!(
                "warning: there is no project {name} here yet; to make it: mc_project init {name}"
            ));
        }
    }
    if let Some(person) = written.access.person(args.person.as_str()) {
        missing(&args.person, person);
        if *is_new {
            first_words(&args.person, person, &people.receiver().name);
        }
    }
    Ok(0)
}

/// What a person still needs before they can come in and do something.
fn missing(name: &PersonName, person: &Person) {
    if person.keys.is_empty() {
        screen::line(format!("{name} has no key yet; to add one: mc_project keys add {name} --key FILE"));
    }
    if person.grants.is_empty() {
        screen::line(format!("{name} has no project yet; to give one: mc_project keys add {name} --project NAME"));
    }
}

/// What a new person types on their own machine.
fn first_words(name: &PersonName, person: &Person, receiver: &str) {
    let Some((scope, role)) = person.grants.iter().max_by_key(|(_, role)| **role) else { return };
    let project = match scope {
        Scope::All => "NAME",
        Scope::Project(name) => name.as_str(),
    };
    let host = machine::host_name().unwrap_or_default();
    let url = format!("{receiver}@{}:{project}", escape::visible(&host));
    screen::line(format!("next, on {name}'s machine:"));
    match role {
        Role::Read => screen::line(format!("  git clone {url}")),
        Role::Deploy | Role::Admin => screen::line(format!("  git remote add node {url} && git push node main")),
    }
}

fn remove(node: &Node, args: &RemoveArgs) -> Result<u8> {
    let people = People::open(node)?;
    let written = people.change(|access| access.remove(&args.person, &args.project, args.key.as_deref()))?;
    tell(&written.done, &written.warnings);
    Ok(0)
}

fn tell(changes: &[String], warnings: &[String]) {
    changes.iter().for_each(screen::line);
    if changes.is_empty() {
        screen::line("nothing to do: it is so already");
    }
    for warning in warnings {
        screen::error_line(format!("warning: {warning}"));
    }
}

/// The keys in a file that the operator named (a link is followed), or on standard input.
fn read_keys(path: &Path) -> Result<Vec<SshKey>> {
    if path == Path::new("-") {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let mut input = std::io::stdin().take(FILE_LIMIT + 1);
        input.read_to_end(&mut bytes).context(|| "cannot read the key from standard input".to_string())?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(Error::usage("this is too long for a public key"));
        }
        return SshKey::parse_file(&bytes);
    }
    let found = fs::canonical(path).and_then(|path| fs::read_bounded(&path, FILE_LIMIT))?;
    SshKey::parse_file(&found.unwrap_or_default()).map_err(|error| {
        let hint = error.hint_text().unwrap_or_default().to_string();
        Error::usage(format!("{}: {}", path.display(), error.message())).hint(hint)
    })
}

/// One person, as `keys list` tells of them.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    person: &'a PersonName,
    #[serde(flatten)]
    what: &'a Person,
}

fn list(node: &Node, args: &ListArgs) -> Result<u8> {
    let access: Access = People::open(node)?.read()?;
    let is_wanted = |name: &PersonName, person: &Person| match (&args.person, &args.project) {
        (Some(wanted), _) => name == wanted,
        (None, Some(Scope::All)) => person.grants.contains_key(&Scope::All),
        (None, Some(Scope::Project(project))) => person.role(project).is_some(),
        (None, None) => true,
    };
    let people = access.people().iter().filter(|(name, person)| is_wanted(name, person));
    let people: Vec<Listed> = people.map(|(person, what)| Listed { person, what }).collect();
    if let (Some(wanted), true) = (&args.person, people.is_empty()) {
        return Err(Error::usage(format!("there is no {wanted} here")).hint("mc_project keys list"));
    }
    if args.json {
        screen::json(&people)?;
        return Ok(0);
    }
    if people.is_empty() {
        screen::line(
            "nobody may come in yet; to let somebody in: mc_project keys add PERSON --project NAME --key FILE",
        );
    }
    for Listed { person, what } in people {
        screen::line(person.as_str());
        for (scope, role) in &what.grants {
            screen::line(format!("  {scope}: {}", role.name()));
        }
        for key in &what.keys {
            screen::line(format!("  {} {} {}", key.fingerprint(), key.kind(), key.comment()).trim_end());
        }
    }
    Ok(0)
}

/// `shell`: the forced command. What it refuses is one line on standard error.
///
/// # Errors
/// None: everything is told here.
pub fn shell(cli: &Cli, args: &ShellArgs) -> Result<u8> {
    match run_shell(cli, args) {
        Ok(code) => Ok(code),
        Err(error) => {
            let hint = error.hint_text().map(|hint| format!("; {}", escape::visible(hint))).unwrap_or_default();
            screen::error_line(format!("mc_project: {}{hint}", escape::visible(&error.one_line())));
            Ok(match error.kind() {
                Kind::Usage => ExitCode::Usage as u8,
                Kind::Bug => ExitCode::Bug as u8,
                _ => ExitCode::Failed as u8,
            })
        }
    }
}

fn run_shell(cli: &Cli, args: &ShellArgs) -> Result<u8> {
    let root = if root_was_typed() { cli.absolute_root()? } else { PathBuf::from("/") };
    let environment = std::env::vars_os().collect();
    match shell::answer(&root, &args.person, args.key.as_deref(), &environment)? {
        Answer::Say(lines) => {
            lines.iter().for_each(screen::line);
            Ok(0)
        }
        Answer::Git { argv, env } => Err(process::become_program(&argv, &env)),
        Answer::Send { who, wanted } => shell::send_deliverable(&root, &who, &wanted).map(|()| 0),
        Answer::Remote { who, words } => shell::remote_command(&root, &who, &words),
    }
}

/// Whether the root stands in the forced command itself: `MC_ROOT` may come from whoever connects.
fn root_was_typed() -> bool {
    let is_root = |word: &OsStr| word == "--root" || word.as_encoded_bytes().starts_with(b"--root=");
    std::env::args_os().skip(1).any(|word| is_root(&word))
}

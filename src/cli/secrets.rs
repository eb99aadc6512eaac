//! `secret`: what the node keeps for its projects, and what a project is given.

use std::io::{IsTerminal, Read};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Cli, screen};
use crate::pipeline::secret_store::{MOST_BYTES, SecretStore, made_up};
use crate::pipeline::secrets::{Record, Which, record_of};
use crate::project::ids::ProjectName;
use crate::project::secrets::{LENGTHS, SecretName};
use crate::sys::error::{Context, Error, Result};

/// What is done with secrets. Without `--project` they are the node's: each of its projects may name them.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Keep a secret: the next deployment that names it is given it. Read from standard input, or asked for
    Set(SetArgs),
    /// Print a secret as it is
    Get(OneSecret),
    /// List what is kept, and what the live version was given; no values
    List(ListArgs),
    /// Forget a secret with all its versions
    Remove(OneSecret),
}

/// A secret of a project or of the node.
#[derive(Debug, Args)]
pub struct OneSecret {
    /// The secret
    name: SecretName,
    /// The project that it belongs to; the whole node if not given
    #[arg(long, value_name = "NAME")]
    project: Option<ProjectName>,
}

/// `secret set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    which: OneSecret,
    /// Make one up with so many characters
    #[arg(long, value_name = "LENGTH", value_parser = clap::value_parser!(u64).range(*LENGTHS.start()..=*LENGTHS.end()))]
    generate: Option<u64>,
}

/// `secret list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this project
    #[arg(long, value_name = "NAME")]
    project: Option<ProjectName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `secret`.
///
/// # Errors
/// If there is no such project or secret, or it cannot be read or written.
pub fn secret(cli: &Cli, command: &SecretCommand) -> Result<u8> {
    match command {
        SecretCommand::Set(args) => set(cli, args),
        SecretCommand::Get(args) => get(cli, args),
        SecretCommand::List(args) => list(cli, args),
        SecretCommand::Remove(args) => remove(cli, args),
    }
}

fn store(cli: &Cli, project: Option<&ProjectName>) -> Result<SecretStore> {
    match project {
        Some(name) => Ok(SecretStore::of_project(&cli.site(name)?)),
        None => Ok(SecretStore::of_node(&cli.node()?)),
    }
}

fn set(cli: &Cli, args: &SetArgs) -> Result<u8> {
    let store = store(cli, args.which.project.as_ref())?;
    let value = match args.generate {
        Some(length) => made_up(usize::try_from(length).unwrap_or(32))?.into_bytes(),
        None => asked_for(&args.which.name)?,
    };
    let version = store.add(&args.which.name, &value)?;
    let (whose, deploy) = match &args.which.project {
        Some(project) => (format!("of {project}"), format!("mc_project deploy {project} --force")),
        None => ("of this node".to_string(), "mc_project deploy NAME --force".to_string()),
    };
    screen::line(format!("{} {whose} is kept as version {version}; {deploy} gives it to what serves", args.which.name));
    Ok(0)
}

/// The value from standard input as it is; from a terminal one line, not shown while it is typed.
fn asked_for(name: &SecretName) -> Result<Vec<u8>> {
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        return Ok(screen::ask_hidden(&format!("{name}: "))?.into_bytes());
    }
    let mut value = Vec::new();
    stdin
        .by_ref()
        .take(MOST_BYTES as u64 + 1)
        .read_to_end(&mut value)
        .context(|| "cannot read the secret".to_string())?;
    Ok(value)
}

fn get(cli: &Cli, args: &OneSecret) -> Result<u8> {
    let store = store(cli, args.project.as_ref())?;
    let (_, value) = store.newest(&args.name)?.ok_or_else(|| unknown(&args.name))?;
    screen::bytes(&value)?;
    Ok(0)
}

fn remove(cli: &Cli, args: &OneSecret) -> Result<u8> {
    let store = store(cli, args.project.as_ref())?;
    let kept = store.list()?.into_iter().find(|kept| kept.name == args.name).ok_or_else(|| unknown(&args.name))?;
    store.forget(&kept)?;
    screen::line(format!("{} is forgotten; what runs has it until it is deployed again", args.name));
    Ok(0)
}

fn unknown(name: &SecretName) -> Error {
    Error::usage(format!("nobody has set the secret `{name}`"))
        .hint("mc_project secret list [--project NAME] tells what is kept")
}

/// A secret that is kept, as it is told.
#[derive(Serialize)]
struct Listed {
    name: SecretName,
    project: Option<ProjectName>,
    versions: Vec<u64>,
}

/// A secret that the live version was given.
#[derive(Serialize)]
struct Given {
    name: SecretName,
    project: ProjectName,
    which: String,
}

fn list(cli: &Cli, args: &ListArgs) -> Result<u8> {
    let node = cli.node()?;
    let projects = match &args.project {
        Some(name) => vec![name.clone()],
        None => node.projects()?,
    };
    let (mut kept, mut given) = (Vec::new(), Vec::new());
    if args.project.is_none() {
        let all = SecretStore::of_node(&node).list()?;
        kept.extend(all.into_iter().map(|one| Listed { name: one.name, project: None, versions: one.versions }));
    }
    for name in projects {
        let site = cli.site(&name)?;
        let all = SecretStore::of_project(&site).list()?.into_iter();
        kept.extend(all.map(|one| Listed { name: one.name, project: Some(name.clone()), versions: one.versions }));
        let Some(serving) = site.serves()? else { continue };
        let record = record_of(&site, &serving.id)?.unwrap_or_default();
        given.extend(given_by(&record).map(|(secret, which)| Given { name: secret, project: name.clone(), which }));
    }
    if args.json {
        screen::json(&serde_json::json!({ "kept": kept, "given": given }))?;
        return Ok(0);
    }
    if kept.is_empty() && given.is_empty() {
        screen::line("no secrets are kept");
    }
    for one in &kept {
        let whose = one.project.as_ref().map_or_else(|| "the node".to_string(), ToString::to_string);
        let versions: Vec<String> = one.versions.iter().map(u64::to_string).collect();
        screen::line(format!("{}  kept for {whose}, version {}", one.name, versions.join(", ")));
    }
    for one in &given {
        screen::line(format!("{}  given to {}: {}", one.name, one.project, one.which));
    }
    Ok(0)
}

fn given_by(record: &Record) -> impl Iterator<Item = (SecretName, String)> + '_ {
    record.which.iter().map(|(name, which)| {
        let which = match which {
            Which::OfProject(kept, version) => format!("version {version} of {kept}, kept for the project"),
            Which::OfNode(kept, version) => format!("version {version} of {kept}, kept for the node"),
            Which::Seen(print) => format!("found elsewhere when it was deployed, {}", &print[..print.len().min(8)]),
        };
        (name.clone(), which)
    })
}

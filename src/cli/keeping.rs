//! Commands for deliverables and kept releases.

use clap::Args;
use serde::Serialize;

use super::deploying::lock_for_a_command;
use super::reading::release_of;
use super::screen;
use super::{Cli, NameArgs, PickArgs, ReleaseCommand};
use crate::entrance::handover::{self, Served};
use crate::pipeline::download::{Download, Tell};
use crate::pipeline::fetch;
use crate::pipeline::settle::{pack_release, write_tree};
use crate::pipeline::site::Site;
use crate::project::ids::{DeploymentId, ObjectId, ProjectName};
use crate::project::outcome::Serving;
use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::size::words;
use crate::tree::deliverable::{Deliverable, Statement};
use crate::tree::release::{Provenance, Releases};

/// `release fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The project
    pub name: ProjectName,
    /// The whole commit; what serves on the other node if not given
    pub commit: Option<ObjectId>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `release …`.
///
/// # Errors
/// If the release is not kept or does not fit.
pub fn release(cli: &Cli, command: &ReleaseCommand) -> Result<u8> {
    match command {
        ReleaseCommand::List(args) => list(cli, args),
        ReleaseCommand::Pack(args) => pack(cli, args),
        ReleaseCommand::Checkout { name, id, dir } => {
            let site = cli.site(name)?;
            let id = release_of(&site, Some(id))?;
            let files = write_tree(&site, &id, &crate::sys::fs::absolute(dir)?)?;
            screen::line(format!("{files} files of {id} are in {}", dir.display()));
            Ok(0)
        }
        ReleaseCommand::Verify(args) => verify(cli, args),
        ReleaseCommand::Fetch(args) => fetch_one(cli, args),
        ReleaseCommand::Serve(args) => serve(cli, &args.name),
    }
}

#[derive(Serialize)]
struct Listed {
    kept: Vec<Provenance>,
    deliverables: Vec<String>,
    live: Option<DeploymentId>,
}

fn list(cli: &Cli, args: &NameArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let releases = Releases::new(&site.place);
    let mut kept = releases.ids()?.iter().map(|id| releases.provenance(id)).collect::<Result<Vec<_>>>()?;
    kept.sort_by_key(|provenance| std::cmp::Reverse(provenance.seq));
    let found = Deliverable::list(&site.place.releases(), site.place.name())?;
    let deliverables: Vec<String> = found.iter().map(|d| d.name().to_string()).collect();
    let live = site.serves()?.map(|serving: Serving| serving.id);
    if args.json {
        screen::json(&Listed { kept, deliverables, live })?;
        return Ok(0);
    }
    for provenance in &kept {
        let mark = if live.as_ref() == Some(&provenance.id) { "*" } else { " " };
        let packed = Deliverable::new(&site.place.releases(), site.place.name(), &provenance.commit).exists();
        let packed = if packed { ", deliverable" } else { "" };
        screen::line(format!("{mark} #{} {} {}{packed}", provenance.seq, provenance.commit.short(), provenance.id));
    }
    if kept.is_empty() {
        screen::line("nothing is deployed yet");
    }
    Ok(0)
}

fn pack(cli: &Cli, args: &PickArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let _lock = lock_for_a_command(&site)?;
    let id = release_of(&site, args.id.as_deref())?;
    let statement: Statement = pack_release(&site, &id)?;
    if args.json {
        screen::json(&statement)?;
    } else {
        let packed = Deliverable::new(&site.place.releases(), site.place.name(), &statement.commit);
        screen::line(format!("{} ({} bytes)", packed.file("tar.zst").display(), statement.size));
    }
    Ok(0)
}

fn verify(cli: &Cli, args: &PickArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let id = release_of(&site, args.id.as_deref())?;
    let commit = Releases::new(&site.place).provenance(&id)?.commit;
    let own = Deliverable::new(&site.place.releases(), site.place.name(), &commit);
    let found = fetch::found_here(&site, &commit).unwrap_or(own);
    let (statement, manifest) = found.verify(&site.trusted_keys()?)?;
    found.check_archive(&statement, &manifest)?;
    if args.json {
        screen::json(&statement)?;
    } else {
        screen::line(format!("{}: signature, manifest and all {} contents are good", found.name(), manifest.files()));
        for (name, value) in statement.provenance.iter().flat_map(Provenance::facts) {
            screen::line(format!("  {name:<9}{}", escape::visible(&value)));
        }
    }
    Ok(0)
}

/// `release fetch`: brings a deliverable and deploys nothing.
fn fetch_one(cli: &Cli, args: &FetchArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let mut tell = |line: String| screen::error_line(escape::visible(&line));
    let commit = match &args.commit {
        Some(commit) => commit.clone(),
        None => serving_elsewhere(&site, &mut tell)?,
    };
    let typed = |error| site.typed(error);
    let found = fetch::by_hand(&site, &commit, &mut tell).map_err(typed)?;
    let (statement, manifest) = found.verify(&site.trusted_keys()?).map_err(typed)?;
    found.check_archive(&statement, &manifest)?;
    if args.json {
        screen::json(&statement)?;
    } else {
        let archive = found.file("tar.zst");
        screen::line(format!("{} ({}), signature and digests good", archive.display(), words(statement.size)));
        screen::line(format!("to deploy it: push {} here", commit.short()));
    }
    Ok(0)
}

/// What serves on the first other node that can be asked.
fn serving_elsewhere(site: &Site, tell: Tell<'_>) -> Result<ObjectId> {
    let mut failed = Error::usage("no other node is named to fetch from, so name a commit")
        .hint("`release_sources: [ssh://…/NAME]` in node.yaml names one");
    for remote in fetch::remotes(site) {
        match Download::new(site, remote, site.node.config.fetch_within, &mut *tell).and_then(|mut way| way.serving()) {
            Ok(Some(commit)) => return Ok(commit),
            Ok(None) => failed = Error::refused(format!("nothing is deployed at {remote}, so nothing was chosen")),
            Err(error) => failed = error,
        }
    }
    Err(site.typed(failed))
}

/// `release serve`: the forced command of another node's key. What is refused is one line on standard error.
fn serve(cli: &Cli, name: &ProjectName) -> Result<u8> {
    let original = std::env::var_os("SSH_ORIGINAL_COMMAND");
    match handover::words_of_ssh(original.as_deref(), name)? {
        Served::List => list(cli, &NameArgs { name: name.clone(), json: true }),
        Served::Send(wanted) => handover::serve_own(&cli.site(name)?, &wanted).map(|()| 0),
    }
}

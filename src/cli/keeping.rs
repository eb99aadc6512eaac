//! Commands for deliverables and kept releases.

use serde::Serialize;

use super::reading::release_of;
use super::screen;
use super::{Cli, NameArgs, PickArgs, ReleaseCommand};
use crate::pipeline::settle::{pack_release, write_tree};
use crate::project::ids::DeploymentId;
use crate::project::outcome::Serving;
use crate::sys::error::Result;
use crate::tree::deliverable::{Deliverable, Statement};
use crate::tree::release::{Provenance, Releases};

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
    let all = site.release_sources().into_iter().map(|dir| Deliverable::new(&dir, site.place.name(), &commit));
    let found = all.into_iter().find(Deliverable::exists).unwrap_or(own);
    let (statement, manifest) = found.verify(&site.trusted_keys()?)?;
    found.check_archive(&statement, &manifest)?;
    if args.json {
        screen::json(&statement)?;
    } else {
        screen::line(format!("{}: signature, manifest and all {} contents are good", found.name(), manifest.files()));
    }
    Ok(0)
}

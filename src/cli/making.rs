//! Commands that make, examine and remove projects.

use std::path::PathBuf;

use super::screen;
use super::{Cli, DestroyArgs, Format, InitArgs, JsonArgs, NameArgs, With};
use crate::pipeline::init as making;
use crate::pipeline::links;
use crate::pipeline::parking::{self, layout_mode};
use crate::pipeline::recover::finish_interrupted;
use crate::pipeline::site::Rights;
use crate::project::mode::Mode;
use crate::sys::error::{Error, Result};
use crate::sys::git::ObjectFormat;
use crate::sys::lock::Lock;
use crate::sys::{fs, machine};

/// `init`.
///
/// # Errors
/// If something is in the way.
pub fn init(cli: &Cli, args: &InitArgs) -> Result<u8> {
    fs::ensure_dir(&cli.absolute_root()?, 0o755)?;
    let node = cli.node()?;
    let format = match args.object_format {
        Format::Sha1 => ObjectFormat::Sha1,
        Format::Sha256 => ObjectFormat::Sha256,
    };
    let made = making::init(&node, &args.name, args.environment, format)?;
    let (site, place) = (&made.site, &made.site.place);
    let is_new = made.is_new;
    if !is_new {
        made.changes.iter().for_each(|change| screen::line(format!("  repaired: {change}")));
    }
    screen::line(format!(
        "{} is ready: {} mode ({})",
        args.name,
        site.config.mode.name(),
        site.config.environment.name()
    ));
    if site.config.environment == crate::project::mode::Environment::Prod && site.config.mode == Mode::Cooking {
        screen::line("  no release_sources are configured in node.yaml, so this production node builds by itself");
    }
    if site.config.mode == Mode::Editable {
        screen::line(format!(
            "  what is pushed is checked out in a clone, to be worked in: {}",
            place.project().display()
        ));
        if let Err(reason) = crate::pipeline::binding::possible(site)? {
            screen::line(format!("  project is a link to run, no mount: {reason}"));
        }
    } else if let Err(reason) = &made.namespaces {
        screen::line(format!("  build steps work in build/tree, not at the path of run: {reason}"));
    }
    if site.config.trust_root {
        screen::line("  !! trust: root in node.yaml: whoever pushes to this project IS ROOT on this machine");
    }
    let branch = site.config.branch.as_deref().unwrap_or("main");
    if let Rights::Separate { receiver, project } = &site.rights {
        screen::line(format!("  its account:   {}", project.name));
        screen::line(format!("  code:          {}@{}:{}", receiver.name, host_name(), args.name));
        screen::line(format!("  configuration: {}@{}:{}/pillar", receiver.name, host_name(), args.name));
        if is_new {
            screen::line("next, let somebody push to it (alice.pub is the file with their public ssh key):");
            screen::line(format!("  mc_project keys add alice --project {} --key alice.pub", args.name));
            screen::line("and in their repository:");
            screen::line(format!("  git remote add node {}@{}:{}", receiver.name, host_name(), args.name));
            screen::line(format!("  git push node {branch}"));
        }
        return Ok(0);
    }
    screen::line(format!("  code:          {}", place.git_project().display()));
    screen::line(format!("  configuration: {}", place.git_pillar().display()));
    if is_new {
        screen::line("next, in your repository:");
        screen::line(format!("  git remote add node {}", place.git_project().display()));
        screen::line(format!("  git push node {branch}"));
    }
    Ok(0)
}

/// What this machine calls itself: the best guess of how a developer reaches it.
fn host_name() -> String {
    machine::host_name().unwrap_or_else(|| "NODE".to_string())
}

/// `destroy`.
///
/// # Errors
/// If the name was not confirmed.
pub fn destroy(cli: &Cli, args: &DestroyArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let with_data = args.with == Some(With::Data);
    let clones: Vec<String> = parking::clones(&site)?.iter().map(|path| path.display().to_string()).collect();
    if !args.yes {
        let (dir, what) = (site.place.dir(), removal_words(&clones, with_data));
        let question = format!("this removes {} {what}; type the project's name to go on:", dir.display());
        if !screen::confirm(&question, args.name.as_str())? {
            return Err(Error::refused("not confirmed; nothing was done"));
        }
    }
    let _lock = Lock::take(&site.place.lock(), Some(std::time::Instant::now()), |_| Ok(()))?;
    finish_interrupted(&site)?;
    if let Err(error) = super::deploying::stop_services(&site) {
        screen::error_line(format!("warning: its services may still run: {}", error.one_line()));
    }
    let left = making::destroy(&site, with_data)?;
    match &left.data {
        Some(kept) => screen::line(format!("{} is removed; its data are in {}", args.name, kept.display())),
        None => screen::line(format!("{} is removed", args.name)),
    }
    if let Some(kept) = &left.clones {
        screen::line(format!("  what was made in editable mode is in {}", kept.display()));
    } else if !clones.is_empty() {
        screen::line(format!("  removed too, what was made in editable mode: {}", clones.join(", ")));
    }
    left.grants.iter().for_each(|gone| screen::line(format!("  {gone}")));
    if let Some(account) = &left.account {
        let owns = if left.data.is_some() || left.clones.is_some() { ", what was kept belongs to it" } else { "" };
        screen::line(format!("  the account {account} stays{owns}; to remove it: userdel {account}"));
    }
    Ok(0)
}

/// What becomes of the data and of what editable mode kept, as the question of `destroy` says it.
fn removal_words(clones: &[String], with_data: bool) -> String {
    let names = clones.join(", ");
    match (with_data, clones.is_empty()) {
        (true, true) => "and its data".to_string(),
        (true, false) => format!("and its data, and for ever what was made in editable mode: {names}"),
        (false, true) => "(its data are moved aside)".to_string(),
        (false, false) => format!("(its data are moved aside, and what was made in editable mode: {names})"),
    }
}

/// `link`.
///
/// # Errors
/// If something is in the way.
pub fn link(cli: &Cli, args: &NameArgs) -> Result<u8> {
    told(args, &links::link(&cli.site(&args.name)?)?, "linked")
}

/// `unlink`.
///
/// # Errors
/// If something else stands there.
pub fn unlink(cli: &Cli, args: &NameArgs) -> Result<u8> {
    told(args, &links::unlink(&cli.site(&args.name)?)?, "unlinked")
}

fn told(args: &NameArgs, paths: &[PathBuf], word: &str) -> Result<u8> {
    if args.json {
        screen::json(&paths)?;
    } else if paths.is_empty() {
        screen::line("nothing to do");
    } else {
        for path in paths {
            screen::line(format!("{word}: {}", path.display()));
        }
    }
    Ok(0)
}

/// `layout`.
///
/// # Errors
/// If there is no such project.
pub fn layout(cli: &Cli, args: &NameArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let layout = links::expected(&site.place, layout_mode(&site)?)?;
    let mut items = Vec::new();
    for entry in &layout.entries {
        let path = site.place.node().root().join(entry.spot.below_root(&site.place)?);
        items.push((path, entry.link_text(&site.place)?));
    }
    if args.json {
        let items: Vec<_> = items.iter().map(|(path, link)| serde_json::json!({"path": path, "link": link})).collect();
        screen::json(&items)?;
        return Ok(0);
    }
    for (path, link) in items {
        match link {
            Some(target) => screen::line(format!("{} -> {}", path.display(), target.display())),
            None => screen::line(format!("{}/", path.display())),
        }
    }
    Ok(0)
}

/// `list`.
///
/// # Errors
/// If the node cannot be read.
pub fn list(cli: &Cli, args: &JsonArgs) -> Result<u8> {
    let node = cli.made_node()?;
    let names = node.projects()?;
    if args.json {
        screen::json(&names)?;
    } else {
        for name in &names {
            screen::line(name.as_str());
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_of_destroy_names_what_editable_mode_kept() {
        let clones = ["archives/editable-1".to_string(), "archives/aside-2".to_string()];
        for with_data in [false, true] {
            let asked = removal_words(&clones, with_data);
            assert!(asked.contains("archives/editable-1, archives/aside-2"), "{asked}");
            assert_eq!(asked.contains("moved aside"), !with_data, "{asked}");
            assert_eq!(asked.contains("for ever"), with_data, "{asked}");
            assert!(!removal_words(&[], with_data).contains("editable"));
        }
    }
}

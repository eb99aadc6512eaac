//! `config`: the configuration that a version is given, and where each value comes from.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Cli, screen};
use crate::pipeline::configuration::{self, Sources, Trust};
use crate::pipeline::site::{Rights, Site};
use crate::pipeline::worker::pillar_head;
use crate::project::ids::{ObjectId, ProjectName};
use crate::project::pillar::layers::{Said, get};
use crate::project::pillar::{Explained, Pillar};
use crate::project::recipe::Recipe;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible;
use crate::sys::git::Repo;

/// What can be typed behind `config`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ConfigArgs {
    #[command(subcommand)]
    new: Option<ConfigCommand>,
    /// The project
    #[arg(required = true)]
    name: Option<ProjectName>,
    /// Only this key: names with dots between them
    key: Option<String>,
    /// Say of each value, or of this key alone, which file and line it comes from and what the others say
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    explain: Option<String>,
    /// Show secrets as they are; on a whole-machine node root alone may
    #[arg(long)]
    secrets: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What else `config` does.
#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a first pillar for a project, from the template that its recipe names
    New {
        /// The project
        name: ProjectName,
    },
}

/// A configuration as it was found: by which commits.
struct Found {
    pillar: Pillar,
    code: Option<ObjectId>,
    private: Option<ObjectId>,
}

/// `config`.
///
/// # Errors
/// If recipe or pillar are invalid, or there is no such key.
pub fn config(cli: &Cli, args: &ConfigArgs) -> Result<u8> {
    if let Some(ConfigCommand::New { name }) = &args.new {
        return first_pillar(&cli.site(name)?);
    }
    let name = args.name.as_ref().ok_or_else(|| Error::usage("config wants a project"))?;
    let site = cli.site(name)?;
    if args.secrets && matches!(site.rights, Rights::Separate { .. }) && !rustix::process::geteuid().is_root() {
        return Err(Error::usage("secrets are shown to root alone").hint("without --secrets they are hidden"));
    }
    let found = find(&site)?;
    let key = args.explain.as_deref().filter(|key| !key.is_empty()).or(args.key.as_deref()).unwrap_or("");
    if args.explain.is_some() {
        return explain(&site, &found, key, args.json);
    }
    let config = if args.secrets { found.pillar.config().clone() } else { found.pillar.masked() };
    let value = at(&config, key).ok_or_else(|| unknown(&site, key))?;
    if args.json {
        screen::json(value)?;
        return Ok(0);
    }
    let mut lines = Vec::new();
    flatten(key, value, &mut lines);
    if lines.is_empty() {
        screen::line("the configuration is empty");
    }
    lines.iter().for_each(screen::line);
    if key.is_empty() {
        tell_about(&site, &found)?;
    }
    Ok(0)
}

/// By which commits and rule it was put together, and what its author may not have meant.
fn tell_about(site: &Site, found: &Found) -> Result<()> {
    let short = |id: &Option<ObjectId>| id.as_ref().map_or("none", |id| id.short()).to_string();
    let rule = if found.pillar.is_makina() { "makina" } else { "plain" };
    screen::error_line(format!(
        "code {}, pillar {}, merged by the rule {rule}",
        short(&found.code),
        short(&found.private)
    ));
    let serves = match site.serves()? {
        Some(serving) => crate::tree::release::Releases::new(&site.place).provenance(&serving.id).ok(),
        None => None,
    };
    if let Some(serves) = serves.filter(|serves| serves.pillar != found.private) {
        let hint = format!("mc_project deploy {} --force deploys what serves with this one", site.place.name());
        screen::error_line(format!("what serves has the pillar {}; {hint}", short(&serves.pillar)));
    }
    for warning in found.pillar.warnings() {
        screen::error_line(format!("warning: {}", visible(warning)));
    }
    Ok(())
}

fn explain(site: &Site, found: &Found, key: &str, json: bool) -> Result<u8> {
    let all = found.pillar.explain(key).ok_or_else(|| unknown(site, key))?;
    if json {
        let shown: Vec<Value> = all.iter().map(explained_json).collect();
        screen::json(&shown)?;
        return Ok(0);
    }
    if key.is_empty() && found.pillar.config().as_object().is_none_or(serde_json::Map::is_empty) {
        screen::line("the configuration is empty");
        return Ok(0);
    }
    for one in &all {
        explained_lines(one).iter().for_each(screen::line);
    }
    Ok(0)
}

/// A value and what the layers say of it, as JSON.
fn explained_json(one: &Explained) -> Value {
    let said = |said: &Said| json!({"place": said.place, "layer": said.origin.word(), "value": said.value});
    let said: Vec<Value> = one.said.iter().map(said).collect();
    json!({"key": one.key, "value": one.value, "resolved": one.is_resolved, "said": said})
}

/// A value, the place that it comes from, and below it what it stands over.
fn explained_lines(one: &Explained) -> Vec<String> {
    let mut lines = vec![format!("{} = {}", visible(&one.key), visible(&one.value.to_string()))];
    let width = one.said.iter().map(|said| said.place.chars().count()).max().unwrap_or(0);
    for (number, said) in one.said.iter().enumerate() {
        let word = if number == 0 { "from" } else { "over" };
        let value = match (number, one.is_resolved) {
            (0, false) => String::new(),
            _ => format!("  {}", visible(&said.value.to_string())),
        };
        let place = visible(&said.place);
        lines.push(format!("  {word} {place:width$}  {}{value}", said.origin.word()));
    }
    lines
}

/// What the next deployment of the code that serves would be given; before the first one, of the deploy branch.
fn find(site: &Site) -> Result<Found> {
    let (repo, private) = (site.repo()?, site.pillar_repo()?);
    let code = code_of(site, &repo)?;
    let head = pillar_head(site)?;
    let sources = Sources {
        project: site.place.name(),
        code: code.as_ref().map(|code| (&repo, code)),
        pillar: head.as_ref().map(|head| (&private, head)),
    };
    let recipe = sources.recipe(&site.node.config.defaults, Trust::of(site))?;
    let (pillar, _) =
        sources.read(&recipe, &configuration::facts(site, &configuration::PasswordVersions::default())?)?;
    Ok(Found { pillar, code, private: head })
}

fn code_of(site: &Site, repo: &Repo) -> Result<Option<ObjectId>> {
    if let Some(serving) = site.serves()? {
        return Ok(Some(serving.commit));
    }
    match site.deploy_branch()? {
        Some(branch) => repo.read_ref(&branch),
        None => Ok(None),
    }
}

fn at<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    let names: Vec<&str> = key.split('.').filter(|name| !name.is_empty()).collect();
    if names.is_empty() { Some(config) } else { get(config.as_object()?, &names) }
}

fn unknown(site: &Site, key: &str) -> Error {
    Error::usage(format!("the configuration has no key `{}`", visible(key)))
        .hint(format!("mc_project config {} lists them", site.place.name()))
}

/// One line for each value that is no mapping, with its way of keys.
fn flatten(key: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() || key.is_empty() => {
            for (name, inner) in map {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&below, inner, lines);
            }
        }
        _ => lines.push(format!("{} = {}", visible(key), visible(&value.to_string()))),
    }
}

/// `config new`.
fn first_pillar(site: &Site) -> Result<u8> {
    let repo = site.repo()?;
    let code = code_of(site, &repo)?;
    let code = code.ok_or_else(|| {
        Error::usage("nothing was pushed yet, so there is no template")
            .hint("git push -o no-deploy node main stores the code and deploys nothing")
    })?;
    let sources = Sources { project: site.place.name(), code: Some((&repo, &code)), pillar: None };
    let recipe: Recipe = sources.recipe(&site.node.config.defaults, Trust::of(site))?;
    let Some(path) = &recipe.config.template else {
        return Err(Error::usage("the recipe names no template for a pillar")
            .hint("config: {template: pillar.sample.j2} in mc_project.yaml names one"));
    };
    let (file, bytes) = sources.wanted(path, "config.template")?;
    let text = configuration::first_pillar(site, &file, &bytes)?;
    screen::line(text.trim_end());
    Ok(0)
}

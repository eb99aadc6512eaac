//! `doctor`: examines the node and its projects, and says what to do.

use serde::Serialize;

use super::deploying::running;
use super::screen;
use super::services::{service_lines, services_of};
use super::{Cli, JsonArgs};
use crate::pipeline::boxes;
use crate::pipeline::init::needed_repairs;
use crate::pipeline::people::People;
use crate::pipeline::salt;
use crate::pipeline::setup::{self, Wish};
use crate::pipeline::site::{Node, Site};
use crate::pipeline::verify::verify;
use crate::report::spool;
use crate::sys::error::{ExitCode, Result};
use crate::sys::git::program_version;
use crate::sys::size::{exact, words};
use crate::sys::{escape, fs, mount};

/// One finding of `doctor`.
#[derive(Debug, Serialize)]
struct Finding {
    about: String,
    /// Nothing is wrong with what we do.
    good: bool,
    /// It is as it may be, and still to be known.
    warning: bool,
    text: String,
    hint: Option<String>,
}

impl Finding {
    fn good(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { about: about.into(), good: true, warning: false, text: text.into(), hint: None }
    }

    fn warning(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { warning: true, ..Self::good(about, text) }
    }

    fn bad(about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { good: false, ..Self::good(about, text) }
    }

    fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    fn mark(&self) -> char {
        match (self.good, self.warning) {
            (false, _) => '✗',
            (true, true) => '!',
            (true, false) => '✓',
        }
    }
}

/// `doctor`.
///
/// # Errors
/// If the node cannot be read at all.
pub fn doctor(cli: &Cli, args: &JsonArgs) -> Result<u8> {
    let mut findings = Vec::new();
    findings.push(git_finding());
    let node = cli.node()?;
    findings
        .push(Finding::good("node", format!("{} ({})", node.place.root().display(), node.config.environment.name())));
    findings.extend(machine_findings(&node)?);
    findings.push(namespace_finding(&node)?);
    findings.extend(boxes::shortcomings(&node)?.into_iter().map(|text| Finding::warning("limits of steps", text)));
    for name in node.projects()? {
        match Site::open(&node, &name).and_then(|site| project_findings(&site)) {
            Ok(found) => findings.extend(found),
            // One project that cannot be read hides nothing of the others.
            Err(error) => findings
                .push(Finding::bad(name.to_string(), error.one_line()).hint(error.hint_text().map(str::to_string))),
        }
    }
    if args.json {
        screen::json(&findings)?;
    } else {
        for finding in &findings {
            screen::line(format!("{} {}: {}", finding.mark(), finding.about, finding.text));
            if let Some(hint) = &finding.hint {
                screen::line(format!("    hint: {hint}"));
            }
        }
    }
    Ok(if findings.iter().all(|finding| finding.good) { 0 } else { ExitCode::Failed as u8 })
}

/// That what serves cannot be deployed again, where states of Salt do it and Salt is missing.
fn salt_finding(site: &Site) -> Option<Finding> {
    let live = running(site).ok().flatten()?;
    live.version.recipe.all_salt_runs().next()?;
    let error = salt::program(site).err()?;
    Some(Finding::bad(site.place.name().to_string(), error.one_line()).hint(error.hint_text().map(str::to_string)))
}

fn git_finding() -> Finding {
    let about = "git".to_string();
    match program_version() {
        Ok(version) if version >= (2, 29) => Finding::good(about, format!("version {}.{}", version.0, version.1)),
        Ok(version) => Finding::warning(
            about,
            format!("version {}.{}: a push cannot wait for the verdict, it is told later", version.0, version.1),
        )
        .hint("git 2.29 or newer lets a failed deployment fail the push".to_string()),
        Err(error) => Finding::bad(about, error.one_line()).hint("apt install git".to_string()),
    }
}

/// What `setup` would change on a whole-machine node, and its notes.
fn machine_findings(node: &Node) -> Result<Vec<Finding>> {
    let Some(system) = &node.system else { return Ok(Vec::new()) };
    let wish = Wish {
        root: node.place.root().to_path_buf(),
        receiver: system.receiver.clone(),
        environment: node.config.environment,
    };
    let plan = setup::plan(&wish)?;
    let about = "machine".to_string();
    let mut findings: Vec<Finding> = Vec::new();
    for change in &plan.changes {
        findings.push(
            Finding::bad(about.clone(), format!("not as setup leaves it; it would {change}"))
                .hint("mc_project setup".to_string()),
        );
    }
    findings.extend(plan.notes.iter().map(|note| Finding::warning(about.clone(), note.clone())));
    let access = People::open(node)?.read()?;
    let people = match access.people().len() {
        1 => "1 person".to_string(),
        count => format!("{count} people"),
    };
    if plan.changes.is_empty() {
        let text = format!("set up; {} receives pushes of {people}", system.receiver);
        findings.push(Finding::good(about, text));
    }
    Ok(findings)
}

fn namespace_finding(node: &Node) -> Result<Finding> {
    let about = "building at the path of run".to_string();
    let projects = node.place.projects();
    let scratch = if fs::exists(projects) { projects } else { node.place.root() };
    Ok(match mount::probe_namespace(scratch)? {
        Ok(()) => Finding::good(about, "possible"),
        Err(reason) => Finding::warning(about, format!("impossible ({reason}); build steps work in build/tree"))
            .hint("build tools that write absolute paths need it: allow user namespaces, or run as root".to_string()),
    })
}

fn project_findings(site: &Site) -> Result<Vec<Finding>> {
    let name = site.place.name().to_string();
    let mut findings: Vec<Finding> = needed_repairs(site)?
        .into_iter()
        .map(|text| Finding::bad(name.clone(), text).hint(format!("mc_project init {name}")))
        .collect();
    match verify(site) {
        Ok(verified) => findings.extend(
            verified
                .problems
                .into_iter()
                .map(|problem| Finding::bad(name.clone(), problem.text).hint(format!("mc_project verify {name}"))),
        ),
        Err(error) => {
            findings.push(Finding::bad(name.clone(), error.one_line()).hint(error.hint_text().map(str::to_string)));
        }
    }
    findings.extend(space_findings(site)?);
    findings.extend(service_findings(site)?);
    findings.extend(mail_findings(site)?);
    findings.extend(salt_finding(site));
    if site.config.trust_root {
        findings.push(
            Finding::warning(name.clone(), "!! trust: root: whoever may push to it IS ROOT on this machine")
                .hint("take `trust: root` out of node.yaml if no step needs it any more".to_string()),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::good(name, "everything fits together"));
    }
    let typed = |hint: Option<String>| hint.map(|hint| site.hints(&[hint]).concat());
    Ok(findings.into_iter().map(|finding| Finding { hint: typed(finding.hint), ..finding }).collect())
}

/// File systems of the project that have less free than a deployment must leave.
fn space_findings(site: &Site) -> Result<Vec<Finding>> {
    let name = site.place.name().to_string();
    let full = crate::pipeline::disk::file_systems(site)?.into_iter().filter(|disk| disk.below_reserve);
    let told = full.map(|disk| {
        Finding::bad(
            name.clone(),
            format!(
                "{} has {} free, less than the reserve of {}: deployments are refused",
                disk.point.display(),
                exact(disk.free),
                words(disk.reserve)
            ),
        )
        .hint(format!("mc_project status {name} --disk tells what takes it"))
    });
    Ok(told.collect())
}

/// Services that do not run although they are to, or that are not those of what serves.
fn service_findings(site: &Site) -> Result<Vec<Finding>> {
    let name = site.place.name();
    let all = services_of(site, running(site)?.as_ref())?;
    let told = all.iter().zip(service_lines(&all)).filter(|(service, _)| service.ails()).map(|(service, line)| {
        Finding::bad(name.to_string(), format!("service {line}"))
            .hint(format!("mc_project logs {name} --service {}", service.look.instance.service))
    });
    Ok(told.collect())
}

/// Mail that nobody got: who waits for it and why it could not be sent.
fn mail_findings(site: &Site) -> Result<Vec<Finding>> {
    let about = site.place.name().to_string();
    let hint = Some(format!("look at `mail:` in node.yaml; {0} mail test; {0} mail flush {about}", site.command()));
    let mut findings: Vec<Finding> = spool::list(&site.place)?
        .into_iter()
        .filter(|waiting| waiting.attempts > 0)
        .map(|waiting| {
            let text = format!("{} waits, tried {} times: {}", waiting.notice.shown(), waiting.attempts, waiting.error);
            Finding::bad(about.clone(), escape::visible(&text)).hint(hint.clone())
        })
        .collect();
    let given_up = spool::given_up(&site.place)?;
    if let Some(last) = given_up.last() {
        let text =
            format!("{} notices were given up, last the {}: {}", given_up.len(), last.notice.shown(), last.error);
        let text = escape::visible(&text);
        findings.push(Finding::bad(about, text).hint(hint));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_news_have_no_tick_before_them() {
        let marks = [Finding::good("a", "b"), Finding::warning("a", "b"), Finding::bad("a", "b")].map(|one| one.mark());
        assert_eq!(marks, ['✓', '!', '✗']);
        assert!(Finding::warning("a", "b").good, "it fails no `doctor`");
    }
}

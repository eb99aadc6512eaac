//! `doctor`: examines the node and its projects, and says what to do.

use serde::Serialize;

use super::deploying::running;
use super::screen;
use super::services::{service_lines, services_of};
use super::{Cli, JsonArgs};
use crate::pipeline::boxes;
use crate::pipeline::init::needed_repairs;
use crate::pipeline::people::People;
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
    good: bool,
    text: String,
    hint: Option<String>,
}

/// `doctor`.
///
/// # Errors
/// If the node cannot be read at all.
pub fn doctor(cli: &Cli, args: &JsonArgs) -> Result<u8> {
    let mut findings = Vec::new();
    findings.push(git_finding());
    let node = cli.node()?;
    findings.push(Finding {
        about: "node".into(),
        good: true,
        text: format!("{} ({})", node.place.root().display(), node.config.environment.name()),
        hint: None,
    });
    findings.extend(machine_findings(&node)?);
    findings.push(namespace_finding(&node)?);
    findings.extend(boxes::shortcomings(&node)?.into_iter().map(|text| Finding {
        about: "limits of steps".into(),
        good: true,
        text,
        hint: None,
    }));
    for name in node.projects()? {
        match Site::open(&node, &name).and_then(|site| project_findings(&site)) {
            Ok(found) => findings.extend(found),
            // One project that cannot be read hides nothing of the others.
            Err(error) => findings.push(Finding {
                about: name.to_string(),
                good: false,
                text: error.one_line(),
                hint: error.hint_text().map(str::to_string),
            }),
        }
    }
    if args.json {
        screen::json(&findings)?;
    } else {
        for finding in &findings {
            screen::line(format!("{} {}: {}", if finding.good { "✓" } else { "✗" }, finding.about, finding.text));
            if let Some(hint) = &finding.hint {
                screen::line(format!("    hint: {hint}"));
            }
        }
    }
    Ok(if findings.iter().all(|finding| finding.good) { 0 } else { ExitCode::Failed as u8 })
}

fn git_finding() -> Finding {
    let about = "git".to_string();
    match program_version() {
        Ok(version) if version >= (2, 29) => {
            Finding { about, good: true, text: format!("version {}.{}", version.0, version.1), hint: None }
        }
        Ok(version) => Finding {
            about,
            good: true,
            text: format!("version {}.{}: a push cannot wait for the verdict, it is told later", version.0, version.1),
            hint: Some("git 2.29 or newer lets a failed deployment fail the push".into()),
        },
        Err(error) => Finding { about, good: false, text: error.one_line(), hint: Some("apt install git".into()) },
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
        findings.push(Finding {
            about: about.clone(),
            good: false,
            text: format!("not as setup leaves it; it would {change}"),
            hint: Some("mc_project setup".into()),
        });
    }
    findings.extend(plan.notes.iter().map(|note| Finding {
        about: about.clone(),
        good: true,
        text: note.clone(),
        hint: None,
    }));
    let access = People::open(node)?.read()?;
    let people = match access.people().len() {
        1 => "1 person".to_string(),
        count => format!("{count} people"),
    };
    if plan.changes.is_empty() {
        let text = format!("set up; {} receives pushes of {people}", system.receiver);
        findings.push(Finding { about, good: true, text, hint: None });
    }
    Ok(findings)
}

fn namespace_finding(node: &Node) -> Result<Finding> {
    let about = "building at the path of run".to_string();
    let projects = node.place.projects();
    let scratch = if fs::exists(projects) { projects } else { node.place.root() };
    Ok(match mount::probe_namespace(scratch)? {
        Ok(()) => Finding { about, good: true, text: "possible".into(), hint: None },
        Err(reason) => Finding {
            about,
            good: true,
            text: format!("impossible ({reason}); build steps work in build/tree"),
            hint: Some("build tools that write absolute paths need it: allow user namespaces, or run as root".into()),
        },
    })
}

fn project_findings(site: &Site) -> Result<Vec<Finding>> {
    let name = site.place.name().to_string();
    let mut findings: Vec<Finding> = needed_repairs(site)?
        .into_iter()
        .map(|text| Finding { about: name.clone(), good: false, text, hint: Some(format!("mc_project init {name}")) })
        .collect();
    match verify(site) {
        Ok(verified) => findings.extend(verified.problems.into_iter().map(|problem| Finding {
            about: name.clone(),
            good: false,
            text: problem.text,
            hint: Some(format!("mc_project verify {name}")),
        })),
        Err(error) => findings.push(Finding {
            about: name.clone(),
            good: false,
            text: error.one_line(),
            hint: error.hint_text().map(str::to_string),
        }),
    }
    findings.extend(space_findings(site)?);
    findings.extend(service_findings(site)?);
    findings.extend(mail_findings(site)?);
    if site.config.trust_root {
        findings.push(Finding {
            about: name.clone(),
            good: true,
            text: "!! trust: root: whoever may push to it IS ROOT on this machine".into(),
            hint: Some("take `trust: root` out of node.yaml if no step needs it any more".into()),
        });
    }
    if findings.is_empty() {
        findings.push(Finding { about: name, good: true, text: "everything fits together".into(), hint: None });
    }
    let typed = |hint: Option<String>| hint.map(|hint| site.hints(&[hint]).concat());
    Ok(findings.into_iter().map(|finding| Finding { hint: typed(finding.hint), ..finding }).collect())
}

/// File systems of the project that have less free than a deployment must leave.
fn space_findings(site: &Site) -> Result<Vec<Finding>> {
    let name = site.place.name().to_string();
    let full = crate::pipeline::disk::file_systems(site)?.into_iter().filter(|disk| disk.below_reserve);
    let told = full.map(|disk| Finding {
        about: name.clone(),
        good: false,
        text: format!(
            "{} has {} free, less than the reserve of {}: deployments are refused",
            disk.point.display(),
            exact(disk.free),
            words(disk.reserve)
        ),
        hint: Some(format!("mc_project status {name} --disk tells what takes it")),
    });
    Ok(told.collect())
}

/// Services that do not run although they are to, or that are not those of what serves.
fn service_findings(site: &Site) -> Result<Vec<Finding>> {
    let name = site.place.name();
    let all = services_of(site, running(site)?.as_ref())?;
    let told =
        all.iter().zip(service_lines(&all)).filter(|(service, _)| service.ails()).map(|(service, line)| Finding {
            about: name.to_string(),
            good: false,
            text: format!("service {line}"),
            hint: Some(format!("mc_project logs {name} --service {}", service.look.instance.service)),
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
            Finding { about: about.clone(), good: false, text: escape::visible(&text), hint: hint.clone() }
        })
        .collect();
    let given_up = spool::given_up(&site.place)?;
    if let Some(last) = given_up.last() {
        let text =
            format!("{} notices were given up, last the {}: {}", given_up.len(), last.notice.shown(), last.error);
        let text = escape::visible(&text);
        findings.push(Finding { about, good: false, text, hint });
    }
    Ok(findings)
}

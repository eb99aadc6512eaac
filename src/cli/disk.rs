//! `status --disk`: what projects cost on the disk.

use super::screen;
use super::{Cli, StatusArgs};
use crate::pipeline::disk::{FileSystem, Kept, Report, report};
use crate::project::ids::ObjectId;
use crate::sys::error::Result;
use crate::sys::size::{exact, grouped, words};

/// `status --disk`.
///
/// # Errors
/// If something cannot be read.
pub fn status(cli: &Cli, args: &StatusArgs) -> Result<u8> {
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => cli.made_node()?.projects()?,
    };
    let reports = names.iter().map(|name| report(&cli.site(name)?)).collect::<Result<Vec<Report>>>()?;
    match (args.json, &args.name) {
        (true, Some(_)) => reports.iter().try_for_each(screen::json)?,
        (true, None) => screen::json(&reports)?,
        (false, _) if reports.is_empty() => screen::line("this node has no projects; make one: mc_project init NAME"),
        (false, _) => {
            reports.iter().flat_map(lines).for_each(screen::line);
            if reports.len() > 1 {
                let sum: u64 = reports.iter().map(|report| report.total.bytes).sum();
                screen::line(format!("all {} projects: {}", reports.len(), exact(sum)));
            }
        }
    }
    Ok(0)
}

/// The report for people.
fn lines(report: &Report) -> Vec<String> {
    let limit = report.limit.map(|limit| format!(", of {} that it may take", words(limit))).unwrap_or_default();
    let mut lines = vec![format!("{}: {} on the disk{limit}", report.project, exact(report.total.bytes))];
    let parts = report.parts.iter().map(|part| {
        let unread = match part.usage.unread {
            0 => String::new(),
            count => format!("  ({count} directories could not be looked into)"),
        };
        let path = format!("{}{unread}", part.path.display());
        [part.part.to_string(), words(part.usage.bytes), grouped(part.usage.inodes), path]
    });
    let header = ["part", "takes", "inodes", "where"].map(str::to_string);
    let total = ["total".to_string(), words(report.total.bytes), grouped(report.total.inodes), String::new()];
    lines.extend(table(&[header].into_iter().chain(parts).chain([total]).collect::<Vec<_>>()));
    lines.extend(kept("kept deployments", &report.deployments));
    lines.extend(kept("restore points", &report.restore_points));
    lines.extend(report.file_systems.iter().map(file_system));
    lines
}

fn kept(what: &str, all: &[Kept]) -> Vec<String> {
    if all.is_empty() {
        return Vec::new();
    }
    let header = [what, "alone", "shared", "frees"].map(str::to_string);
    let rows = all.iter().map(|one| {
        let commit = one.commit.as_ref().map(ObjectId::short).unwrap_or_default();
        let tree = one.tree.map(|tree| format!(" in {tree}")).unwrap_or_default();
        let frees = if one.tree == Some("run") { "it serves".to_string() } else { words(one.cost.frees) };
        [format!("#{} {commit}{tree}", one.seq), words(one.cost.alone), words(one.cost.shared), frees]
    });
    table(&[header].into_iter().chain(rows).collect::<Vec<_>>())
}

fn file_system(disk: &FileSystem) -> String {
    let inodes = disk.free_inodes.map(|free| format!(", {} inodes", grouped(free))).unwrap_or_default();
    let state = if disk.below_reserve { "less than the" } else { "with the" };
    format!(
        "  {}: {} of {} free{inodes}, {state} reserve of {}",
        disk.point.display(),
        words(disk.free),
        words(disk.total),
        words(disk.reserve)
    )
}

/// Columns: the first to the left, numbers to the right, a path to the left.
fn table(rows: &[[String; 4]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [a, b, c] = [0, 1, 2].map(width);
    let is_path = rows.first().is_some_and(|row| row[3] == "where");
    let d = if is_path { 0 } else { width(3) };
    let line = |row: &[String; 4]| {
        let last = if is_path { row[3].clone() } else { format!("{:>d$}", row[3]) };
        format!("  {:<a$}  {:>b$}  {:>c$}  {last}", row[0], row[1], row[2]).trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

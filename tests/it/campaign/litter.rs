//! What may be left behind: nothing that does not stand there in a life without faults.

use std::collections::BTreeSet;
use std::path::Path;

use super::ground::users_of;
use crate::support::World;

/// The paths of a project, with ids, contents and numbers replaced by a word.
#[derive(Debug, Default)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// Adds what stands there now.
    pub fn see(&mut self, world: &World) {
        self.0.extend(names(world));
    }
}

fn names(world: &World) -> Vec<String> {
    let project = world.project("shop");
    let mut names = Vec::new();
    walk(&project, Path::new(""), &mut names);
    names
}

/// Trees whose contents others check, and logs that grow for good.
const ELSEWHERE: [&str; 7] = ["run", "data", "project", "build/tree", "deploy/spare", "archives/data", "git/pillar"];

fn walk(dir: &Path, rel: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir.join(rel)).into_iter().flatten().flatten() {
        let at = rel.join(entry.file_name());
        let name = words(&at.to_string_lossy());
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Objects, also those that were being written, are git's to collect (gc).
        if !name.starts_with("git/project/objects/") {
            names.push(name);
        }
        if is_dir && !ELSEWHERE.iter().any(|tree| at == Path::new(tree)) {
            walk(dir, &at, names);
        }
    }
}

/// The path without what differs from run to run.
fn words(path: &str) -> String {
    let parts = path.split('/').map(|part| {
        let stem = part.trim_end_matches(".jsonl");
        if stem.parse::<mc_project::project::ids::DeploymentId>().is_ok() {
            return part.replace(stem, "ID");
        }
        if part.len() >= 40 && part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return "HASH".to_string();
        }
        // Any tree may have any form of a witness; how many there are is for `verify` to say.
        if part.starts_with("witness-") {
            return "witness".to_string();
        }
        // A deliverable of one commit is as good as that of another.
        match part.split_once('-') {
            Some((name, rest)) if path.starts_with("releases/") && rest.len() > 40 => {
                format!("{name}-COMMIT{}", &rest[40..])
            }
            _ => part.to_string(),
        }
    });
    parts.collect::<Vec<_>>().join("/")
}

/// What a failed deployment keeps on purpose, for whoever looks for the reason.
fn is_kept(name: &str) -> bool {
    // A mail that the fault hit waits for its next try.
    if name.starts_with("state/spool/") && Path::new(name).extension().is_some_and(|end| end == "json") {
        return true;
    }
    [
        "archives/ID/run.failed",
        "archives/ID/data.failed",
        "archives/ID/drift",
        "archives/ID/dumps",
        "git/project/refs/deploys/last-failed",
        // Whose turn it is to send mail: a lock, made with the first mail that had to wait.
        "state/spool/.postman",
    ]
    .iter()
    .any(|kept| name.strip_prefix(kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// What is left behind on the node: files, mounts, processes, refs.
pub fn left_behind(world: &World, clean: &Names) -> Vec<String> {
    let now: BTreeSet<String> = names(world).into_iter().collect();
    let mut left: Vec<String> = now.difference(&clean.0).filter(|name| !is_kept(name)).cloned().collect();
    let root = world.root();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    left.extend(below.filter(|at| *at != root && at.starts_with(&root)).map(|at| format!("mount {}", at.display())));
    left.extend(users_of(&root).iter().filter_map(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
        // The postman is there as long as a mail waits.
        (!line.contains(" postman ")).then(|| format!("process {pid}: {line}"))
    }));
    if let Some(commit) = world.node_ref("shop", "refs/deploys/inflight") {
        left.push(format!("a ref in flight to {commit}"));
    }
    left
}

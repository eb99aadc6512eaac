//! The naive model: whole directories, copied with `cp -a`, and the rule of rotation in a few lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A good deployment.
#[derive(Debug, Clone)]
pub struct Release {
    /// A full copy of its tree.
    pub tree: PathBuf,
    /// Index of its upgrade step, run again by a rollback to it.
    pub upgrade: usize,
    /// How many restore points its recipe keeps.
    pub keep: usize,
    /// What the upgrade step calls itself.
    pub name: String,
}

/// A restore point.
#[derive(Debug, Clone)]
pub struct Point {
    pub seq: u64,
    pub id: String,
    /// Whether its deployment became live.
    pub is_good: bool,
    /// What served before.
    pub before: Option<String>,
    /// A full copy of the data before.
    pub data: PathBuf,
}

/// Everything that should be on the node.
pub struct Oracle {
    dir: PathBuf,
    copies: usize,
    pub releases: BTreeMap<String, Release>,
    pub points: Vec<Point>,
    pub live: Option<String>,
}

impl Oracle {
    /// A model of an empty node whose copies are kept below `dir`.
    pub fn new(dir: PathBuf) -> Self {
        std::fs::create_dir_all(dir.join("run")).unwrap();
        Self { dir, copies: 0, releases: BTreeMap::new(), points: Vec::new(), live: None }
    }

    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// A path for a new copy.
    pub fn fresh(&mut self) -> PathBuf {
        self.copies += 1;
        self.dir.join(format!("copy-{}", self.copies))
    }

    /// A full copy.
    pub fn copy_of(&mut self, from: &Path) -> PathBuf {
        let to = self.fresh();
        copy(from, &to);
        to
    }

    /// Makes `run` a copy of a release.
    pub fn serve(&mut self, id: &str) {
        let tree = self.releases[id].tree.clone();
        std::fs::remove_dir_all(self.run()).unwrap();
        copy(&tree, &self.run());
        self.live = Some(id.to_string());
    }

    /// Makes `data` a copy of this directory.
    pub fn set_data(&self, from: &Path) {
        std::fs::remove_dir_all(self.data()).unwrap();
        copy(from, &self.data());
    }

    /// The restore point that has the data of a release: the last one that was made when it was replaced.
    pub fn data_of(&self, release: &str) -> Option<&Point> {
        self.points.iter().rev().find(|point| point.before.as_deref() == Some(release))
    }

    /// The rule: the last `keep` restore points of good deployments, and as many of failed ones since; the releases of the
    /// good ones and what each of these replaced; what serves.
    pub fn rotate(&mut self) {
        let Some(live) = self.live.clone() else { return self.rotate_points(3) };
        self.rotate_points(self.releases[&live].keep);
        let mut kept: BTreeSet<String> = BTreeSet::from([live]);
        for point in self.points.iter().filter(|point| point.is_good) {
            kept.insert(point.id.clone());
            kept.extend(point.before.clone());
        }
        self.releases.retain(|id, _| kept.contains(id));
    }

    fn rotate_points(&mut self, keep: usize) {
        let good: Vec<u64> = self.points.iter().filter(|point| point.is_good).map(|point| point.seq).collect();
        let oldest = good.get(good.len().saturating_sub(keep)).copied().unwrap_or(0);
        let failed = self.points.iter().filter(|point| !point.is_good && point.seq >= oldest).map(|point| point.seq);
        let failed: Vec<u64> = failed.collect();
        let kept_failed: Vec<u64> = failed.iter().rev().take(keep).copied().collect();
        self.points.retain(|point| if point.is_good { point.seq >= oldest } else { kept_failed.contains(&point.seq) });
    }
}

/// `cp -a`, contents and links and times.
pub fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Runs a command of the tables in `dir`.
pub fn shell(command: &str, dir: &Path, data: &Path, version: &str) {
    let mut sh = Command::new("sh");
    sh.env("LC_ALL", "C.UTF-8").args(["-euc", command]).current_dir(dir).env("D", data).env("V", version);
    assert!(sh.status().unwrap().success(), "{command}");
}

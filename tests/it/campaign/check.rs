//! The one checker of what must hold after every fault (I1 to I8): one whole version with its data, honest words, nothing left
//! behind, nothing outside touched, a recovery that may be repeated, and a next deployment that works.

use super::litter::left_behind;
use super::stage::{Scenario, Stage, outside_of, run_to_end, tree_of};
use crate::support::{Finished, Record, digest};

/// What kind of promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A tree, or code and data, that are neither old nor new.
    Half,
    /// What was said is not what is.
    Dishonest,
    Panic,
    Hang,
    Litter,
    Other,
    /// A person is needed: promised for a fault inside the way back, and for nothing else.
    NeedsPerson,
}

/// One broken promise.
#[derive(Debug, Clone)]
pub struct Finding {
    pub broken: Broken,
    pub text: String,
}

/// Counts a finding into a record.
pub fn count(record: &mut Record, findings: &[Finding]) {
    for finding in findings {
        let field = match finding.broken {
            Broken::Half => &mut record.half_states,
            Broken::Dishonest => &mut record.dishonest_exits,
            Broken::Panic => &mut record.panics,
            Broken::Hang => &mut record.hangs,
            Broken::Litter => &mut record.litter,
            Broken::Other => &mut record.other,
            Broken::NeedsPerson => &mut record.needs_person,
        };
        *field += 1;
    }
}

/// Collects what is found.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, broken: Broken, text: impl Into<String>) {
        self.0.push(Finding { broken, text: text.into() });
    }

    fn check(&mut self, broken: Broken, is_good: bool, text: impl FnOnce() -> String) {
        if !is_good {
            self.add(broken, text());
        }
    }

    /// No command may panic, hang, or end as if it were a bug.
    fn words_of(&mut self, ended: Result<Finished, String>) -> Option<Finished> {
        match ended {
            Ok(ended) => {
                let is_bug = matches!(ended.exit_code(), Some(70 | 101 | 134));
                if is_bug || ended.stderr.contains("panicked at") || ended.stdout.contains("panicked at") {
                    self.add(Broken::Panic, ended.to_string());
                }
                Some(ended)
            }
            Err(text) => {
                self.add(Broken::Hang, text);
                None
            }
        }
    }
}

/// Whether this line of `verify` tells of something that is only superfluous.
fn is_litter(line: &str) -> bool {
    line.trim_start().starts_with("litter: ")
}

/// Whether this line of `verify` tells of a content of the pool that a power cut left empty. It is nobody's, if the next
/// deployment removes it; one that a kept release needs is missed after that, and found then.
fn is_left_empty(line: &str) -> bool {
    line.trim_start().starts_with("store: content ") && line.ends_with(" is damaged")
}

impl Stage {
    /// Recovers, and examines the node. `ended` is how the disturbed command ended; `None`, if nobody heard its end.
    pub fn aftermath(&self, ended: Option<Result<Finished, String>>) -> Vec<Finding> {
        self.aftermath_and(ended, &|| ())
    }

    /// The same; `relieve` takes away what is in the way of the next deployment.
    pub fn aftermath_and(&self, ended: Option<Result<Finished, String>>, relieve: &dyn Fn()) -> Vec<Finding> {
        let mut found = Findings::default();
        let ended = ended.and_then(|ended| found.words_of(ended));
        let Some(recovered) = found.words_of(run_to_end(self.world.mc_command(&["recover", "shop"]))) else {
            return found.0;
        };
        match recovered.exit_code() {
            Some(0 | 1) => {}
            Some(5) => {
                found.add(Broken::NeedsPerson, recovered.stdout.clone());
                let back = self.world.mc_command(&["recover", "shop", "--back", "--with", "data"]);
                let back = found.words_of(run_to_end(back));
                let is_back = back.as_ref().is_some_and(|back| matches!(back.exit_code(), Some(0 | 1)));
                found.check(Broken::Other, is_back, || format!("going back by hand failed: {back:?}"));
            }
            _ => found.add(Broken::Other, format!("the recovery failed: {recovered}")),
        }
        if !found.0.iter().any(|finding| finding.broken == Broken::Other) {
            found.0.extend(self.examine(ended.as_ref()));
            found.0.extend(self.repeat());
            relieve();
            found.0.extend(self.go_on());
        }
        found.0
    }

    /// Examines the node as it is. What lived to tell of a fault may leave the rest of tidying up to the next deployment, and
    /// says so; what was killed may not, because recovery had no fault.
    pub fn examine(&self, ended: Option<&Finished>) -> Vec<Finding> {
        let mut found = Findings::default();
        let is_killed = ended.and_then(Finished::exit_code).is_none_or(|code| code > 100);
        let serves = self.world.serves("shop");
        match self.legal.iter().find(|legal| legal.serves == serves) {
            None => found.add(Broken::Half, format!("{serves:?} serves")),
            Some(legal) => {
                let differs = legal.tree.differences(&tree_of(&self.world));
                found.check(Broken::Half, differs.is_empty(), || format!("run of {serves:?} differs:\n{differs}"));
                let branch = self.world.node_ref("shop", "refs/heads/main");
                let is_right = branch == legal.branch || self.legal.iter().all(|other| other.serves == legal.serves);
                found.check(Broken::Dishonest, is_right, || format!("{serves:?} serves, main is {branch:?}"));
            }
        }
        self.examine_data(&mut found, serves.is_some());
        if let Some(code) = ended.and_then(Finished::exit_code) {
            self.examine_words(&mut found, code, serves.as_ref());
        }
        let last = self.world.last("shop");
        let is_closed = last.as_ref().is_none_or(|last| !last.open && last.needs_person.is_none());
        found.check(Broken::Other, is_closed, || format!("not closed: {last:?}"));
        let current = std::fs::read_link(self.world.project("shop").join("deploy/current")).ok();
        let current = current.map(|path| path.display().to_string());
        let id = last.and_then(|last| last.serves.map(|serves| serves.id.to_string()));
        found.check(Broken::Dishonest, current == id, || format!("deploy/current is {current:?}, {id:?} serves"));
        let commit = self.world.node_ref("shop", "refs/deploys/current");
        found.check(Broken::Dishonest, commit == serves, || {
            format!("refs/deploys/current is {commit:?}, {serves:?} serves")
        });
        let outside = self.outside.differences(&outside_of(&self.world));
        found.check(Broken::Other, outside.is_empty(), || format!("outside differs:\n{outside}"));
        if let Some(verified) = found.words_of(run_to_end(self.world.mc_command(&["verify", "--all"]))) {
            let told: Vec<&str> = verified.stdout.lines().filter(|line| line.starts_with("  ")).collect();
            let bad: Vec<&str> = told.iter().filter(|line| !is_left_empty(line)).copied().collect();
            let is_only_litter = bad.iter().all(|line| is_litter(line));
            let is_left = bad.is_empty() && !told.is_empty();
            let is_bad = verified.exit_code() != Some(0) && !is_left && (is_killed || !is_only_litter);
            let broken = if is_only_litter { Broken::Litter } else { Broken::Half };
            found.check(broken, !is_bad, || verified.to_string());
        }
        let left = if is_killed { left_behind(&self.world, &self.names) } else { Vec::new() };
        found.check(Broken::Litter, left.is_empty(), || left.join("\n"));
        found.0
    }

    /// The data are of the generation of the code. A rollback without data leaves the newer ones, as documented.
    fn examine_data(&self, found: &mut Findings, is_serving: bool) {
        if !is_serving || self.scenario == Scenario::Rollback {
            return;
        }
        let db = std::fs::read_to_string(self.world.project("shop").join("data/db")).unwrap_or_default();
        let version = std::fs::read_to_string(self.world.run_path("shop", "version")).unwrap_or_default();
        found.check(Broken::Half, db == version, || format!("data are of generation {db:?}, code of {version:?}"));
    }

    /// Exit 0 means that the new version serves; 1 and the others, that the old one does.
    fn examine_words(&self, found: &mut Findings, code: i32, serves: Option<&String>) {
        let (old, new) = (self.legal[0].serves.as_ref(), self.legal.last().and_then(|legal| legal.serves.as_ref()));
        if self.deploys() {
            let is_true = match code {
                0 => serves == new,
                1..=4 => serves == old,
                _ => true,
            };
            found.check(Broken::Dishonest, is_true, || format!("exit {code}, and {serves:?} serves"));
        } else if self.scenario != Scenario::Recover {
            found.check(Broken::Dishonest, code != 0, || format!("exit {code} of what cannot succeed"));
        }
    }

    /// A recovery of what is recovered changes nothing.
    fn repeat(&self) -> Vec<Finding> {
        let mut found = Findings::default();
        let before = digest(&self.world.project("shop"));
        if let Some(ended) = found.words_of(run_to_end(self.world.mc_command(&["recover", "shop"]))) {
            found.check(Broken::Other, ended.exit_code() == Some(0), || format!("a second recovery: {ended}"));
        }
        let differs = before.differences_but(&digest(&self.world.project("shop")), &["state/lock"]);
        found.check(Broken::Other, differs.is_empty(), || format!("a second recovery changed\n{differs}"));
        found.0
    }

    /// The next deployment works.
    fn go_on(&self) -> Vec<Finding> {
        let mut found = Findings::default();
        let Some(ended) = found.words_of(run_to_end(self.next())) else { return found.0 };
        let serves = self.world.serves("shop");
        let is_good = ended.exit_code() == Some(0) && serves.as_deref() == Some(self.third.as_str());
        found.check(Broken::Other, is_good, || format!("the next deployment: {serves:?} serves\n{ended}"));
        let left = left_behind(&self.world, &self.names);
        if let Some(verified) = found.words_of(run_to_end(self.world.mc_command(&["verify", "--all"]))) {
            found.check(Broken::Half, verified.exit_code() == Some(0), || {
                format!("after the next deployment: {verified}")
            });
        }
        found.check(Broken::Litter, left.is_empty(), || format!("after the next deployment:\n{}", left.join("\n")));
        found.0
    }
}

//! Control groups: every step in one of its own, with limits of memory and processes, and killed as a whole at its end.
//!
//! A group is made below our own one, in each hierarchy that has a part in it: the unified one (version 2: limits where
//! its controllers are there, `cgroup.kill`), and those of version 1 for memory and processes. So a step never escapes
//! what limits us. Where systemd runs, the unified hierarchy is systemd's: we divide our group only if systemd handed it
//! over (`Delegate=yes`), and move our own processes into a leaf first, because a group that gives controllers to its
//! children may have no processes itself.
//!
//! The names of groups begin with the deployment's id ([`GroupOrder::name`]): what a killed worker leaves behind is
//! found by it ([`remove_leftovers`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result};

mod hierarchy;

use hierarchy::{Hierarchy, Kind};

/// What the name of every group of a step begins with.
const STEP: &str = "mc-step.";
/// What the name of a group of daemons begins with.
const SERVICE: &str = "mc-service.";
/// How long we wait for the processes of a killed group.
const DEATH: Duration = Duration::from_secs(10);
/// How long we try to remove an empty group: the last of its processes may still be on their way out.
const REMOVAL: Duration = Duration::from_secs(2);

/// Memory is charged in portions, so that a group at its limit may use a little less.
const CHARGED_AT_ONCE: u64 = 512 * 1024;

/// What the processes of a group may use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    /// Bytes of memory, swap included.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u32>,
}

impl Caps {
    /// Whether anything is limited.
    #[must_use]
    pub fn limit_anything(&self) -> bool {
        self.memory.is_some() || self.processes.is_some()
    }
}

/// The control group that a step gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOrder {
    /// Its name, unique among the steps that run; for daemons that live on, the name of what they belong to.
    pub name: String,
    /// The limits.
    pub caps: Caps,
    /// Whether its processes live on after the step: then it is neither killed nor removed while one is left, and a later
    /// step of the same name joins it.
    pub kept: bool,
}

impl GroupOrder {
    fn dir_name(&self) -> String {
        // A slash would make another directory; the names of ours have none.
        let name = self.name.replace('/', "-");
        format!("{}{name}", if self.kept { SERVICE } else { STEP })
    }
}

/// What this process can limit, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// Memory.
    pub memory: std::result::Result<(), String>,
    /// Processes.
    pub processes: std::result::Result<(), String>,
}

impl Support {
    /// Why these limits do not hold here; `None` if they do.
    #[must_use]
    pub fn missing(&self, caps: &Caps) -> Option<String> {
        let memory = self.memory.as_ref().err().filter(|_| caps.memory.is_some());
        let processes = self.processes.as_ref().err().filter(|_| caps.processes.is_some());
        match (memory, processes) {
            (None, None) => None,
            (Some(reason), None) => Some(format!("the limit of memory does not hold here: {reason}")),
            (None, Some(reason)) => Some(format!("the limit of processes does not hold here: {reason}")),
            (Some(one), Some(other)) if one == other => {
                Some(format!("limits of memory and processes do not hold here: {one}"))
            }
            (Some(one), Some(other)) => {
                Some(format!("limits of memory ({one}) and processes ({other}) do not hold here"))
            }
        }
    }
}

/// What happened in a group since it was made or joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Happened {
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Whether the group's own limit was reached, not the machine's or that of a group above.
    pub own_limit: bool,
    /// How often a new process was refused because of the limit.
    pub refused_forks: u64,
}

/// Where the parts of a group are, for whoever goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlace(Vec<(Kind, PathBuf)>);

/// A control group of ours.
#[derive(Debug)]
pub struct Group {
    parts: Vec<(Kind, PathBuf)>,
    before: Happened,
    kept: bool,
}

impl Group {
    /// Makes the group that is ordered; with it comes what of it is not possible here. `None` if nothing is.
    ///
    /// # Errors
    /// If our own groups cannot be found at all.
    pub fn make(order: &GroupOrder) -> Result<(Option<Self>, Support)> {
        let found = hierarchy::ours()?;
        let name = order.dir_name();
        let mut group = Self { parts: Vec::new(), before: Happened::default(), kept: order.kept };
        let support = Support {
            memory: group.part(&found, Kind::Memory, &name, order.caps.memory.map(|_| &order.caps)),
            processes: group.part(&found, Kind::Processes, &name, order.caps.processes.map(|_| &order.caps)),
        };
        if group.unified().is_none()
            && let Ok(hierarchy) = &found.unified
        {
            // For killing alone, then.
            let _ = group.add(hierarchy, &name);
        }
        if group.parts.is_empty() {
            let _ = group.part(&found, Kind::Processes, &name, Some(&Caps::default()));
        }
        group.before = group.counted();
        Ok(((!group.parts.is_empty()).then_some(group), support))
    }

    /// Makes the part of the group that limits one thing, in the hierarchy that has its controller.
    fn part(
        &mut self,
        found: &hierarchy::Found,
        kind: Kind,
        name: &str,
        caps: Option<&Caps>,
    ) -> std::result::Result<(), String> {
        let Some(caps) = caps else { return Ok(()) };
        let hierarchy = found.with_controller(kind)?;
        let dir = self.add(hierarchy, name).map_err(|error| error.one_line())?;
        limit(&dir, hierarchy.kind, kind, caps).map_err(|error| error.one_line())
    }

    /// Makes the group's directory in a hierarchy, once.
    fn add(&mut self, hierarchy: &Hierarchy, name: &str) -> Result<PathBuf> {
        let dir = hierarchy.base.join(name);
        if self.parts.iter().any(|(_, part)| *part == dir) {
            return Ok(dir);
        }
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && self.kept => {}
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Error::refused("this user may not make control groups"));
            }
            made => made.context(|| format!("cannot make the control group {}", dir.display()))?,
        }
        self.parts.push((hierarchy.kind, dir.clone()));
        Ok(dir)
    }

    fn unified(&self) -> Option<&Path> {
        self.of(Kind::Unified)
    }

    fn of(&self, kind: Kind) -> Option<&Path> {
        self.parts.iter().find(|(k, _)| *k == kind).map(|(_, dir)| dir.as_path())
    }

    /// The files that a process writes itself into to join.
    #[must_use]
    pub fn doors(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|(_, dir)| dir.join("cgroup.procs")).collect()
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> GroupPlace {
        GroupPlace(self.parts.clone())
    }

    /// The kept group that somebody made there before us; `None` if nothing of it is left.
    #[must_use]
    pub fn at(place: &GroupPlace) -> Option<Self> {
        let parts: Vec<_> = place.0.iter().filter(|(_, dir)| super::fs::exists(dir)).cloned().collect();
        let mut group = Self { parts, before: Happened::default(), kept: true };
        group.before = group.counted();
        (!group.parts.is_empty()).then_some(group)
    }

    /// The processes in it.
    ///
    /// # Errors
    /// If the group cannot be read.
    pub fn members(&self) -> Result<Vec<i32>> {
        self.parts.first().map_or(Ok(Vec::new()), |(_, dir)| members(dir))
    }

    /// The bytes of memory that it uses, if that is counted.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        let file = |(kind, dir): &(Kind, PathBuf)| match kind {
            Kind::Unified => Some(dir.join("memory.current")),
            Kind::Memory => Some(dir.join("memory.usage_in_bytes")),
            Kind::Processes => None,
        };
        let text = self.parts.iter().filter_map(file).find_map(|file| super::fs::read_text(&file).ok())?;
        text.trim().parse().ok()
    }

    /// The processor time that it has used in milliseconds, if that is counted.
    #[must_use]
    pub fn cpu_ms(&self) -> Option<u64> {
        let file = self.unified()?.join("cpu.stat");
        super::fs::exists(&file).then(|| counter(&file, "usage_usec") / 1000)
    }

    /// What happened since the group was made or joined.
    #[must_use]
    pub fn happened(&self) -> Happened {
        let now = self.counted();
        Happened {
            oom_kills: now.oom_kills.saturating_sub(self.before.oom_kills),
            own_limit: now.own_limit,
            refused_forks: now.refused_forks.saturating_sub(self.before.refused_forks),
        }
    }

    fn counted(&self) -> Happened {
        let mut all = Happened::default();
        for (kind, dir) in &self.parts {
            match kind {
                Kind::Unified => {
                    all.oom_kills += counter(&dir.join("memory.events"), "oom_kill");
                    all.own_limit |= counter(&dir.join("memory.events"), "oom") > 0;
                    all.refused_forks += counter(&dir.join("pids.events"), "max");
                }
                Kind::Memory => {
                    all.oom_kills += counter(&dir.join("memory.oom_control"), "oom_kill");
                    // `memory.failcnt` would be the plain answer; newer kernels do not count there.
                    let number = |file: &str| number(&dir.join(file));
                    let (most, limit) = (number("memory.max_usage_in_bytes"), number("memory.limit_in_bytes"));
                    all.own_limit |= most.saturating_add(CHARGED_AT_ONCE) > limit;
                }
                Kind::Processes => all.refused_forks += counter(&dir.join("pids.events"), "max"),
            }
        }
        all
    }

    /// Kills everything in the group, at once where the kernel can; returns what does not die.
    ///
    /// # Errors
    /// If the group cannot be read.
    pub fn kill(&self) -> Result<Vec<i32>> {
        let end = Instant::now() + DEATH;
        let mut pause = Duration::from_millis(1);
        loop {
            let left = self.kill_once()?;
            if left.is_empty() || Instant::now() >= end {
                return Ok(left);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Kills everything in the group without waiting for its end; returns what was there.
    ///
    /// # Errors
    /// If the group cannot be read.
    pub fn kill_once(&self) -> Result<Vec<i32>> {
        for (kind, dir) in &self.parts {
            match kind {
                // Linux 5.14.
                Kind::Unified => drop(write(&dir.join("cgroup.kill"), "1")),
                // Whoever is left cannot start another one while we kill.
                Kind::Processes => drop(write(&dir.join("pids.max"), "0")),
                Kind::Memory => {}
            }
        }
        Ok(super::process::kill_these(&self.members()?))
    }

    fn remove(&mut self) {
        for (_, dir) in std::mem::take(&mut self.parts) {
            remove(&dir, if self.kept { Duration::ZERO } else { REMOVAL });
        }
    }
}

impl Drop for Group {
    /// Removes the group; of a kept one only what is empty.
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.kill();
        }
        self.remove();
    }
}

/// Joins groups: this process, and what it starts from now on.
///
/// # Errors
/// If a group is gone or may not be joined.
pub fn join(doors: &[PathBuf]) -> Result<()> {
    doors.iter().try_for_each(|door| write(door, "0"))
}

/// Tries what can be limited here by really making a group and removing it.
///
/// Where systemd runs and we are root, the worker has a unit of its own that is handed over to it, which the process that
/// asks need not have: then it counts whether the machine has the controllers.
///
/// # Errors
/// If our own groups cannot be found at all.
pub fn probe() -> Result<Support> {
    let name = format!("probe.{}", uuid::Uuid::now_v7().simple());
    let caps = Caps { memory: Some(64 << 20), processes: Some(100) };
    let (group, support) = Group::make(&GroupOrder { name, caps, kept: false })?;
    drop(group);
    let worker_has_a_unit = rustix::process::geteuid().is_root() && crate::sys::machine::runs_systemd();
    if !worker_has_a_unit {
        return Ok(support);
    }
    let machine = hierarchy::of_the_machine();
    Ok(Support {
        memory: support.memory.or_else(|reason| if machine.contains(&Kind::Memory) { Ok(()) } else { Err(reason) }),
        processes: support
            .processes
            .or_else(|reason| if machine.contains(&Kind::Processes) { Ok(()) } else { Err(reason) }),
    })
}

/// Kills and removes the groups of steps whose names begin with `prefix`, wherever they are: what a killed worker left
/// behind. Groups of daemons stay.
///
/// # Errors
/// If processes do not die.
pub fn remove_leftovers(prefix: &str) -> Result<()> {
    let prefix = format!("{STEP}{prefix}");
    let mut found = Vec::new();
    for (kind, root) in hierarchy::mounted()? {
        hierarchy::walk(&root, &mut |dir| {
            let is_it = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
            if is_it {
                found.push((kind, dir.to_path_buf()));
            }
        });
    }
    let mut alive = Vec::new();
    for (kind, dir) in found {
        let group = Group { parts: vec![(kind, dir)], before: Happened::default(), kept: false };
        alive.extend(group.kill()?);
    }
    if alive.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!("steps of the dead worker cannot be killed: processes {alive:?}")))
}

/// Sets the limits of one kind on a group.
fn limit(dir: &Path, hierarchy: Kind, what: Kind, caps: &Caps) -> Result<()> {
    let set = |name: &str, value: String| write(&dir.join(name), &value);
    match (hierarchy, what, caps.memory, caps.processes) {
        (Kind::Unified, Kind::Memory, Some(bytes), _) => {
            set("memory.max", bytes.to_string())?;
            // Without swap or on an older kernel these are not there: the limit holds all the same.
            for (name, value) in [("memory.swap.max", "0"), ("memory.oom.group", "1")] {
                if super::fs::exists(&dir.join(name)) {
                    set(name, value.to_string())?;
                }
            }
            Ok(())
        }
        (Kind::Memory, _, Some(bytes), _) => {
            // A group that is in use may have a lower limit of both together: that one must not be below the other.
            let both = "memory.memsw.limit_in_bytes";
            let counts_swap = super::fs::exists(&dir.join(both));
            if counts_swap {
                let _ = set(both, "-1".to_string());
            }
            set("memory.limit_in_bytes", bytes.to_string())?;
            if counts_swap { set(both, bytes.to_string()) } else { Ok(()) }
        }
        (_, Kind::Processes, _, Some(count)) => set("pids.max", count.to_string()),
        // A kept group may be used again after it was killed.
        (Kind::Processes, Kind::Processes, _, None) => set("pids.max", "max".to_string()),
        _ => Ok(()),
    }
}

/// The number in a file; 0 if there is none.
fn number(file: &Path) -> u64 {
    super::fs::read_text(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The number behind a word in a file of `word number` lines; 0 if it is not there.
fn counter(file: &Path, word: &str) -> u64 {
    let text = super::fs::read_text(file).unwrap_or_default();
    let value = |line: &str| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

fn members(dir: &Path) -> Result<Vec<i32>> {
    match super::fs::read_if_there(&dir.join("cgroup.procs"))? {
        Some(bytes) => {
            Ok(String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.trim().parse().ok()).collect())
        }
        None => Ok(Vec::new()),
    }
}

/// Removes an empty group, trying for so long; one that is not empty stays.
fn remove(dir: &Path, patience: Duration) {
    let end = Instant::now() + patience;
    while let Err(error) = std::fs::remove_dir(dir) {
        if error.kind() == std::io::ErrorKind::NotFound || Instant::now() >= end {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    // Files of the kernel: never made, and one write is one order.
    let open = std::fs::OpenOptions::new().write(true).open(file);
    open.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .context(|| format!("cannot write {text} to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these files, as the kernel fills a new group with them.
    fn group_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn limits_stand_in_the_files_of_both_versions() {
        let caps = Caps { memory: Some(64 << 20), processes: Some(20) };
        let new = group_of(&[("memory.max", ""), ("memory.swap.max", ""), ("memory.oom.group", ""), ("pids.max", "")]);
        for what in [Kind::Memory, Kind::Processes] {
            limit(new.path(), Kind::Unified, what, &caps).unwrap();
        }
        let text = |dir: &tempfile::TempDir, name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((text(&new, "memory.max").as_str(), text(&new, "memory.swap.max").as_str()), ("67108864", "0"));
        assert_eq!((text(&new, "memory.oom.group").as_str(), text(&new, "pids.max").as_str()), ("1", "20"));
        // Without swap in the kernel the files for it are not there, and nothing is made.
        let bare = group_of(&[("memory.max", "")]);
        limit(bare.path(), Kind::Unified, Kind::Memory, &caps).unwrap();
        assert_eq!(std::fs::read_dir(bare.path()).unwrap().count(), 1);
        assert!(limit(bare.path(), Kind::Unified, Kind::Processes, &caps).is_err());
    }

    #[test]
    fn what_happened_is_read_from_both_versions_and_counted_from_the_beginning() {
        let new = group_of(&[
            ("memory.events", "low 0\nhigh 0\nmax 40\noom 1\noom_kill 3\noom_group_kill 1\n"),
            ("pids.events", "max 7\n"),
        ]);
        let mut group =
            Group { parts: vec![(Kind::Unified, new.path().into())], before: Happened::default(), kept: true };
        let all = Happened { oom_kills: 3, own_limit: true, refused_forks: 7 };
        assert_eq!(group.happened(), all);
        group.before = Happened { oom_kills: 2, ..all };
        assert_eq!(group.happened(), Happened { oom_kills: 1, own_limit: true, refused_forks: 0 });
        let old = group_of(&[
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("memory.max_usage_in_bytes", "67108864\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let group = Group { parts: vec![(Kind::Memory, old.path().into())], before: Happened::default(), kept: true };
        // Killed because a group above was full, not this one.
        assert_eq!(group.happened(), Happened { oom_kills: 1, own_limit: false, refused_forks: 0 });
    }

    #[test]
    fn a_name_makes_one_directory_and_tells_steps_from_daemons() {
        let order = |kept| GroupOrder { name: "a/../b".into(), caps: Caps::default(), kept };
        assert_eq!(
            (order(false).dir_name().as_str(), order(true).dir_name().as_str()),
            ("mc-step.a-..-b", "mc-service.a-..-b")
        );
    }

    #[test]
    fn what_is_missing_is_told_once_for_the_same_reason() {
        let no = |reason: &str| Err::<(), _>(reason.to_string());
        let caps = Caps { memory: Some(1), processes: None };
        let both = Support { memory: no("x"), processes: no("x") };
        assert_eq!(both.missing(&caps).unwrap(), "the limit of memory does not hold here: x");
        let caps = Caps { processes: Some(1), ..caps };
        assert_eq!(both.missing(&caps).unwrap(), "limits of memory and processes do not hold here: x");
        assert_eq!(both.missing(&Caps::default()), None);
        assert_eq!(Support { memory: Ok(()), processes: Ok(()) }.missing(&caps), None);
    }
}

//! Enlarge: where a deployment finds too little room, the program that the node allows for it is asked to make some.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::draft::Draft;
use super::halt::Step;
use super::preflight::Disk;
use super::steps::Watcher;
use crate::project::node::Enlarge;
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::sys::dir::Dir;
use crate::sys::escape::visible_bounded;
use crate::sys::size::exact;
use crate::sys::step_exec::StepOrder;
use crate::sys::{process, trust};

/// How long it may take to enlarge a file system.
const LIMIT: Duration = Duration::from_mins(10);
/// The longest command that is told.
const TOLD: usize = 200;

impl Draft<'_> {
    /// Runs the program that the node allows, once, for one file system; it is told in its environment what is needed. On a
    /// whole-machine node it runs as root, and only if it is root's alone. Returns what came of it, in one sentence.
    ///
    /// # Errors
    /// If the program may not be run, or we cannot do our own part.
    pub fn enlarge(&mut self, enlarge: &Enlarge, disk: &Disk) -> Step<String> {
        let site = self.site;
        if site.node.system.is_some() {
            trust::refuse_unless_roots_alone(enlarge.program())?;
        }
        let title = visible_bounded(enlarge.argv().join(" ").as_bytes(), TOLD);
        self.tell(Event::Step { stage: Stage::Accept, title: format!("enlarge {}: {title}", disk.point.display()) })?;
        let begin = Instant::now();
        let order = order(enlarge, disk, site.place.name().as_str());
        let ended = process::run_step(&order, LIMIT, &mut Watcher { telling: self.telling, beats: false })?;
        let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.tell(Event::StepDone { stage: Stage::Accept, status: ended.words(), ms })?;
        let after = Dir::open(&disk.point)?.free_space()?;
        Ok(format!(
            "{} was enlarged ({}): {} were free before, {} are now",
            disk.point.display(),
            ended.words(),
            exact(disk.available),
            exact(after.bytes)
        ))
    }
}

fn order(enlarge: &Enlarge, disk: &Disk, project: &str) -> StepOrder {
    let mut env = process::base_environment(Path::new("/"));
    let needed = disk.need.bytes.saturating_add(disk.reserve);
    for (name, value) in [
        ("MC_NEED_BYTES", needed.to_string()),
        ("MC_NEED_INODES", disk.need.inodes.to_string()),
        ("MC_FREE_BYTES", disk.available.to_string()),
        ("MC_DIR", disk.point.display().to_string()),
        ("MC_PROJECT", project.to_string()),
    ] {
        env.insert(name.to_string(), value);
    }
    let argv = enlarge.argv().iter().map(OsString::from).collect();
    StepOrder::new(argv, env.into_iter().collect(), PathBuf::from("/"))
}

//! The box that a step runs in: who it is, what it sees of the machine, what it may use.
//!
//! On a whole-machine node a step is the project's account, has `/tmp`, `/var/tmp` and `/dev/shm` of the project's own
//! and sees no process of others. On a directory node everything is one user's, and the step sees what that user sees.
//! Limits hold on both where the machine can enforce them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::draft::Draft;
use super::halt::{Halt, Step};
use super::site::{Node, Rights, Site};
use crate::project::limits::{Asked, StepLimits, User};
use crate::project::recipe::service::ServiceLimits;
use crate::project::recipe::{self, Recipe, Service};
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::report::stream::Reporter;
use crate::sys::cgroup::{self, Caps, GroupOrder};
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::process::{StepResult, StepStatus};
use crate::sys::step_exec::{Bind, Processes, StepOrder, View};
use crate::sys::{fs, mount, process, size};

/// What every project has a private one of.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// The shared memory of a step whose memory is not limited.
const SHARED_MEMORY: u64 = 256 << 20;
/// Stages whose temporary files are gone with the next build.
const BUILDING: [Stage; 4] = [Stage::PreInstall, Stage::Build, Stage::PostBuild, Stage::Configure];

/// Puts a step into its box: identity, view, limits. `order` has its own binds already.
///
/// # Errors
/// If the step asks to be root and may not.
pub fn close(site: &Site, stage: Stage, step: &recipe::Step, order: &mut StepOrder) -> Result<()> {
    let is_root = step.user == User::Root;
    if is_root {
        refuse_root(site)?;
    }
    let limits = limits(site, step);
    order.view.network = step.network;
    if let Some(identity) = site.project_identity().filter(|_| !is_root) {
        order.run_as = Some(identity);
        let own = if BUILDING.contains(&stage) { site.place.build_tmp() } else { site.place.service_tmp() };
        private_view(site, &own, limits.memory, &mut order.view);
    }
    order.group = group(site, order, limits);
    Ok(())
}

/// Puts a service into its box: as a step's, and all services of a project share their temporary files.
pub fn close_service(site: &Site, service: &Service, limits: ServiceLimits, order: &mut StepOrder) {
    order.view.network = service.network;
    order.limits.open_files = limits.open_files.map(u64::from);
    if let Some(identity) = site.project_identity() {
        order.run_as = Some(identity);
        private_view(site, &site.place.service_tmp(), limits.memory, &mut order.view);
    }
}

/// What a service may use while it is tried: as when it serves, and it ends with the trial.
pub fn limit_trial(site: &Site, limits: ServiceLimits, order: &mut StepOrder) {
    let limits = StepLimits { memory: limits.memory, processes: limits.processes, timeout: None };
    order.group = group(site, order, limits);
}

/// Puts a program that finds a secret into the box of a step without limits of its own.
pub fn close_for_secret(site: &Site, order: &mut StepOrder) {
    if let Some(identity) = site.project_identity() {
        order.run_as = Some(identity);
        private_view(site, &site.place.build_tmp(), None, &mut order.view);
    }
    order.group = group(site, order, site.config.steps);
}

/// What a step may use: what the recipe says, and never more than the node allows.
#[must_use]
pub fn limits(site: &Site, step: &recipe::Step) -> StepLimits {
    step.limits().within(site.config.steps)
}

fn private_view(site: &Site, own: &Path, memory: Option<u64>, view: &mut View) {
    let (private, _) = temporary(site.place.node().root());
    view.binds.extend(private.into_iter().map(|at| Bind { source: own.to_path_buf(), at, read_only: false }));
    view.shm = fs::exists(Path::new("/dev/shm")).then(|| memory.unwrap_or(SHARED_MEMORY).min(SHARED_MEMORY));
    view.processes = Processes::Own;
}

/// The directories for temporary files that a project can have to itself, and those that it cannot because the node lies
/// in them. A link (`/var/tmp -> /tmp`) is neither: what it names counts.
fn temporary(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let root = fs::canonical(root).unwrap_or_else(|_| root.to_path_buf());
    let there = TEMPORARY.iter().map(PathBuf::from).filter(|dir| fs::exists(dir) && fs::link_target(dir).is_none());
    there.partition(|dir| !root.starts_with(dir))
}

/// The group of a step. What a `start` step leaves behind lives on in a group of the project, if anything limits it.
fn group(site: &Site, order: &StepOrder, limits: StepLimits) -> Option<GroupOrder> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let caps = Caps { memory: limits.memory, processes: limits.processes };
    if order.keep_background {
        // The same name on two nodes of one machine is two projects.
        let node = blake3::hash(site.place.dir().as_os_str().as_encoded_bytes()).to_hex();
        let name = format!("{}.{}", site.place.name(), &node.as_str()[..8]);
        return caps.limit_anything().then_some(GroupOrder { name, caps, kept: true });
    }
    let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let name = match &order.marker {
        Some(marker) => format!("{marker}.{pid}-{count}"),
        None => format!("by-hand.{pid}-{count}"),
    };
    Some(GroupOrder { name, caps, kept: false })
}

/// Refuses a recipe that asks for more than the node allows the project: before anything changes.
///
/// # Errors
/// Of kind Invalid, with the line of the recipe and both numbers.
pub fn refuse_demands(site: &Site, recipe: &Recipe) -> Result<()> {
    recipe.check_demands(&site.config.steps, &site.config.services, site.config.trust_root)?;
    match recipe.demands.iter().find(|demand| demand.what == Asked::Root) {
        Some(demand) => refuse_root(site).map_err(|error| {
            Error::invalid(format!("{}: {}", demand.place, error.message())).hint(error.hint_text().unwrap_or_default())
        }),
        None => Ok(()),
    }
}

fn refuse_root(site: &Site) -> Result<()> {
    if !site.config.trust_root {
        return Err(Error::refused("`user: root` is not allowed to this project")
            .hint("`trust: root` for NAME in node.yaml makes everybody who may push to it root"));
    }
    if !rustix::process::geteuid().is_root() {
        let user = process::user_name();
        return Err(Error::refused(format!("`user: root` is impossible on this node: everything is done by {user}"))
            .hint("a node that was set up as root (mc_project setup) can do it"));
    }
    Ok(())
}

/// Tells what the box of a step that is about to run lacks: loudly, that it is root.
///
/// # Errors
/// If it cannot be told.
pub fn announce(site: &Site, step: &recipe::Step, telling: &mut Reporter) -> Result<()> {
    if step.user != User::Root || site.rights == Rights::OneUser {
        return Ok(());
    }
    telling.emit(Event::Warning { text: format!("AS ROOT (trust: root in node.yaml): {}", step.title()) })
}

/// Tells what the limits of a step that has ended did, and that they do not hold here, once.
///
/// # Errors
/// If it cannot be told.
pub fn report(result: &StepResult, telling: &mut Reporter) -> Result<()> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if let Some(text) = &result.unenforced
        && !TOLD.swap(true, Ordering::Relaxed)
    {
        telling.emit(Event::Note { text: text.clone() })?;
    }
    result.notes.iter().try_for_each(|text| telling.emit(Event::Note { text: text.clone() }))
}

/// What to do about a step that ran out of memory.
#[must_use]
pub fn hint(site: &Site, step: &recipe::Step, status: &StepStatus) -> Option<String> {
    let StepStatus::OutOfMemory { limit } = status else { return None };
    let cap = site.config.steps.memory;
    let Some(limit) = limit else {
        return Some("the machine itself, or what it gives to mc_project, had no memory left".to_string());
    };
    Some(match cap {
        Some(cap) if *limit >= cap => format!(
            "{} is the node's cap: `steps: {{memory: …}}` in node.yaml, for all projects or for {}",
            size::words(cap),
            site.place.name()
        ),
        Some(cap) => format!("ask for more: `memory:` of the step; this node allows at most {}", size::words(cap)),
        None if step.memory.is_some() => "ask for more: `memory:` of the step or in `limits:`".to_string(),
        None => "ask for more: `memory:` of the step".to_string(),
    })
}

impl Draft<'_> {
    /// Empties the temporary directory of builds: what an earlier one left decides nothing about this one.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn empty_build_tmp(&mut self) -> Step {
        if self.site.rights == Rights::OneUser {
            return Ok(());
        }
        let tmp = Dir::open_real(&self.site.place.build_tmp()).map_err(|error| {
            Halt::from(error).hint(format!("{} init {}", self.site.command(), self.site.place.name()))
        })?;
        for name in tmp.names()? {
            tmp.remove_tree(Path::new(&name))?;
        }
        Ok(())
    }
}

/// What the boxes of this node lack, in sentences: for `doctor`. Nothing, where everything holds.
///
/// # Errors
/// If it cannot be found out.
pub fn shortcomings(node: &Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let support = cgroup::probe()?;
    found.extend(support.missing(&Caps { memory: Some(1), processes: Some(1) }));
    if node.system.is_none() {
        return Ok(found);
    }
    if let Err(reason) = mount::probe_hidden_processes()? {
        found.push(format!("steps see the processes of others: {reason}"));
    }
    let (_, shared) = temporary(node.place.root());
    found.extend(
        shared.iter().map(|dir| format!("steps of all projects share {}: the node itself lies in it", dir.display())),
    );
    Ok(found)
}

//! The services of a version: what of them is to run, who keeps them running, and the stages that stop and start them.
//!
//! Whatever is done here may be repeated, by a recovery or by a person: which version's services run is decided by the
//! last call alone, never by what ran before.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::activate::in_run;
use super::boxes;
use super::cancel;
use super::draft::{Deployed, Draft, Version};
use super::environment::environment;
use super::halt::{Halt, Step};
use super::held;
use super::prepare::make_shared;
use super::site::{Rights, Site};
use super::steps::{Watcher, argv_of, steps_words};
use crate::project::ids::DeploymentId;
use crate::project::recipe::Service;
use crate::project::recipe::service::{Unchanged, WorkDir};
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::report::stream::Reporter;
use crate::service::backend::{Backend, Look};
use crate::service::definition::{Definition, Instance, Running};
use crate::service::supervisor::{Supervisor, SupervisorPlace};
use crate::service::systemd::backend::Systemd;
use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::process::{self, StepStatus, StepWatcher};
use crate::sys::step_exec::StepOrder;
use crate::sys::{clock, fault, fs, machine};
use crate::tree::release::Releases;

/// Instances with the digests of their definitions: those that a deployment leaves running.
pub type Staying = HashSet<(Instance, String)>;

/// How services are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// All of them anew, as a new version.
    Anew,
    /// As they ran before: what runs already by the same definition goes on.
    Again,
}

/// Who keeps the services of a project running on this node.
#[must_use]
pub fn backend(site: &Site) -> Box<dyn Backend> {
    if is_kept_by_systemd(site) {
        return Box::new(Systemd::new(site.place.name(), site.place.services()));
    }
    Box::new(supervisor(site))
}

fn is_kept_by_systemd(site: &Site) -> bool {
    matches!(site.rights, Rights::Separate { .. }) && machine::runs_systemd()
}

/// A node that was one user's directory and is the whole machine now has another back end: what the old one still runs ends.
fn retire_supervisor(site: &Site, on: &mut dyn StepWatcher) -> Result<()> {
    if is_kept_by_systemd(site) && fs::exists(&site.place.supervisor()) { supervisor(site).forget(on) } else { Ok(()) }
}

/// The supervisor of a project, wherever it is what keeps services running.
fn supervisor(site: &Site) -> Supervisor {
    let place = SupervisorPlace {
        project: site.place.name().clone(),
        state: site.place.supervisor(),
        logs: site.place.service_logs(),
        command: site.command(),
    };
    Supervisor::new(place)
}

/// Whether a version has services in its mode.
#[must_use]
pub fn has_some(version: &Version) -> bool {
    version.recipe.services.iter().any(|service| service.applies(version.mode))
}

/// One definition for each instance of each service of a version, in the order in which they start.
///
/// # Errors
/// If a service's port is to come from a variable that names none.
pub fn definitions(site: &Site, of: &Deployed) -> Result<Vec<Definition>> {
    let services = of.version.recipe.services.iter().filter(|service| service.applies(of.version.mode));
    let instances = services.flat_map(|service| (1..=service.count).map(move |number| (service, number)));
    let own = instances.map(|(service, number)| definition(site, of, service, number));
    held::definition(site, of).transpose().into_iter().chain(own).collect()
}

fn definition(site: &Site, of: &Deployed, service: &Service, number: u32) -> Result<Definition> {
    Ok(Definition {
        instance: Instance { service: service.name.clone(), number },
        kind: service.kind,
        restart: service.restart,
        stop_signal: service.stop_signal,
        stop_timeout: service.stop_timeout,
        start_timeout: service.start_timeout,
        limits: service.limits.within(site.config.services),
        unchanged: service.unchanged,
        order: order(site, of, service, number)?.0,
        running: Running { deployment: Some(of.id.clone()), commit: Some(of.version.commit.id.clone()) },
        // What it is given in memory is read from there: it is written to no disk.
        secrets: of.version.pillar.secrets().into_iter().map(|(_, value)| value).collect(),
    })
}

/// Program, environment, directory, identity and box of an instance, and its port.
///
/// # Errors
/// If the port is to come from a variable that names none.
pub fn order(site: &Site, of: &Deployed, service: &Service, number: u32) -> Result<(StepOrder, Option<u16>)> {
    let mut env = variables(site, of, service);
    let port = service.port_of(number, &env)?;
    env.insert("MC_SERVICE".into(), service.name.to_string());
    env.insert("MC_INSTANCE".into(), number.to_string());
    env.extend(port.map(|port| ("PORT".to_string(), port.to_string())));
    let mut order = StepOrder::new(argv_of(&service.command), env.into_iter().collect(), directory(site, service));
    boxes::close_service(site, service, service.limits.within(site.config.services), &mut order);
    held::wrap(site, service, &mut order)?;
    Ok((order, port))
}

/// The ports of all instances of a service.
fn ports(site: &Site, of: &Deployed, service: &Service) -> Result<Vec<u16>> {
    let env = variables(site, of, service);
    (1..=service.count).filter_map(|number| service.port_of(number, &env).transpose()).collect()
}

/// The variables that all instances of a service have.
fn variables(site: &Site, of: &Deployed, service: &Service) -> BTreeMap<String, String> {
    let version = &of.version;
    environment(site, &version.recipe, &version.pillar, &version.setting(site, Some(&of.id)), &service.env)
}

fn directory(site: &Site, service: &Service) -> PathBuf {
    let (base, below) = match &service.dir {
        WorkDir::Run(below) => (site.place.run(), below),
        WorkDir::Data(below) => (site.place.data(), below),
    };
    below.as_ref().map_or_else(|| base.clone(), |below| base.join(below.as_path()))
}

/// Makes the directories below `data` that services work in.
///
/// # Errors
/// If one cannot be made.
pub fn make_directories(site: &Site, version: &Version) -> Result<()> {
    for service in &version.recipe.services {
        if let WorkDir::Data(Some(below)) = &service.dir {
            make_shared(&Dir::open_real(&site.place.data())?, site.own, below, true)?;
        }
    }
    Ok(())
}

/// Stops the services of the project, whichever version's they are, except those that are left. Tells how many.
///
/// # Errors
/// If one cannot be stopped.
pub fn stop(site: &Site, telling: &mut Reporter, left: &Staying, beats: bool) -> Step<usize> {
    retire_supervisor(site, &mut Watcher { telling, beats })?;
    let backend = backend(site);
    let is_left = |instance: &Instance, digest: &str| left.contains(&(instance.clone(), digest.to_string()));
    let known = backend.look()?;
    let going: Vec<Instance> =
        known.into_iter().filter(|look| !is_left(&look.instance, &look.digest)).map(|look| look.instance).collect();
    if going.is_empty() {
        return Ok(0);
    }
    let begin = begin_step(telling, Stage::Stop, &format!("stop {}", names(&going)))?;
    let stopped = backend.stop(&|instance, digest| !is_left(instance, digest), &mut Watcher { telling, beats });
    end_step(telling, Stage::Stop, begin, stopped.as_ref().err().map(|error| error.message().to_string()))?;
    stopped.map_err(|error| Halt { refused: false, ..Halt::from(error) }.tail(telling.tail()))?;
    fault::point("services.stopped")?;
    Ok(going.len())
}

/// Makes the services of a version what runs, and nothing else; `None`: nothing. Tells how many.
///
/// # Errors
/// The first one that does not come up, with its last lines.
pub fn start(site: &Site, telling: &mut Reporter, of: Option<&Deployed>, how: How, beats: bool) -> Step<usize> {
    retire_supervisor(site, &mut Watcher { telling, beats })?;
    let backend = backend(site);
    if let Some(of) = of.filter(|of| has_some(&of.version)) {
        of.version.write_config(site)?;
    }
    let wanted = of.map(|of| definitions(site, of)).transpose()?.unwrap_or_default();
    let known = backend.look()?;
    if let Some(of) = of.filter(|_| !wanted.is_empty()) {
        make_directories(site, &of.version)?;
        let prepared = held::prepare(site, of, |service| ports(site, of, service));
        unless_again(how, telling, prepared)?;
    } else {
        if !known.is_empty() {
            // Nothing is started, so nothing can fail to come up.
            let _nothing = backend.converge(&[], &mut Watcher { telling, beats })?;
        }
        return Ok(0);
    }
    let instances: Vec<Instance> = wanted.iter().map(|definition| definition.instance.clone()).collect();
    let begin = begin_step(telling, Stage::Start, &format!("start {}", names(&instances)))?;
    let mut watcher = Watcher { telling, beats };
    let started = if how == How::Again && is_known(&wanted, &known)? {
        backend.start(&|_, _| true, &mut watcher)
    } else {
        backend.converge(&wanted, &mut watcher)
    };
    let status = match &started {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(format!("{} {}", failure.instance, failure.reason)),
        Err(error) => Some(error.message().to_string()),
    };
    end_step(telling, Stage::Start, begin, status.clone())?;
    if status.is_some() {
        cancel::check()?;
    }
    if let (Err(failure), Some(status)) = (started?, status) {
        let why = of.and_then(|of| held::trouble(site, of, &failure.instance));
        let reason = why.map_or_else(|| status.clone(), |why| format!("{status}: {why}"));
        let hint = format!("mc_project logs NAME --service {}", failure.instance.service);
        return Err(Halt::failed(reason).tail(telling.tail()).hint(hint));
    }
    if let Some(of) = of {
        unless_again(how, telling, held::check(site, of))?;
    }
    fault::point("services.started")?;
    Ok(instances.len())
}

/// What holds sockets keeps no version from being brought back.
fn unless_again(how: How, telling: &mut Reporter, held: Result<()>) -> Step {
    match held {
        Err(error) if how == How::Again => {
            telling.emit(Event::Warning { text: format!("sockets are not held: {}", error.one_line()) })?;
            Ok(())
        }
        held => Ok(held?),
    }
}

/// Whether exactly these definitions are what the back end knows.
fn is_known(wanted: &[Definition], known: &[Look]) -> Result<bool> {
    if wanted.len() != known.len() {
        return Ok(false);
    }
    for (definition, look) in wanted.iter().zip(known) {
        if definition.instance != look.instance
            || definition.running != look.running
            || definition.digest()? != look.digest
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Starts the services that ran last, whichever version's they are.
///
/// # Errors
/// If the back end cannot do its part; what does not come up is left to be started again by itself.
pub fn start_known(site: &Site) -> Result<()> {
    let backend = backend(site);
    // A boot has emptied the memory that their secrets were in.
    let ran: BTreeSet<DeploymentId> = backend.look()?.into_iter().filter_map(|look| look.running.deployment).collect();
    for id in ran {
        if let Err(error) = secrets_of(site, &id) {
            tracing::warn!("the services of {id} start without secrets: {}", error.one_line());
        }
    }
    backend.start(&|_, _| true, &mut Silent).map(|_| ())
}

fn secrets_of(site: &Site, id: &DeploymentId) -> Result<()> {
    let provenance = Releases::new(&site.place).provenance(id)?;
    let (repo, pillar) = (site.repo()?, provenance.pillar.as_ref());
    let version = Version::load_kept(site, &repo, &provenance.commit, pillar, (provenance.mode, id))?;
    version.find_secrets(site).map(|_| ())
}

/// Starts what keeps services running again, if it was killed and none of them is watched; tells whether it was.
///
/// # Errors
/// If it cannot be started.
pub fn heal(site: &Site) -> Result<bool> {
    if is_kept_by_systemd(site) { Ok(false) } else { supervisor(site).heal() }
}

/// Stops everything of a project and leaves nothing of it with any back end.
///
/// # Errors
/// If something cannot be stopped or removed.
pub fn forget(site: &Site) -> Result<()> {
    backend(site).forget(&mut Silent)
}

/// Hears nothing: nobody is there to be told.
struct Silent;

impl StepWatcher for Silent {
    fn line(&mut self, _: &[u8]) {}
}

fn begin_step(telling: &mut Reporter, stage: Stage, title: &str) -> Result<Instant> {
    telling.emit(Event::Step { stage, title: title.to_string() })?;
    Ok(Instant::now())
}

fn end_step(telling: &mut Reporter, stage: Stage, begin: Instant, failure: Option<String>) -> Result<()> {
    let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    telling.emit(Event::StepDone { stage, status: failure.unwrap_or_else(|| StepStatus::Ok.words()), ms })
}

/// `web, worker@1, worker@2`: the number only where there are several.
fn names(instances: &[Instance]) -> String {
    let is_alone =
        |instance: &Instance| instances.iter().filter(|other| other.service == instance.service).count() == 1;
    let name =
        |instance: &Instance| if is_alone(instance) { instance.service.to_string() } else { instance.to_string() };
    instances.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// `1 service`, `3 services`, with the number of steps.
fn note(services: usize, steps: usize) -> Option<String> {
    let services = match services {
        0 => None,
        1 => Some("1 service".to_string()),
        count => Some(format!("{count} services")),
    };
    let parts: Vec<String> = services.into_iter().chain((steps > 0).then(|| steps_words(steps))).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

impl Draft<'_> {
    /// What serves, as its services know it; `None` before the first deployment and where its commit is gone.
    #[must_use]
    pub fn old_deployed(&self) -> Option<Deployed> {
        self.live.as_ref()?.deployed()
    }

    /// The new version.
    #[must_use]
    pub fn next_deployed(&self) -> Deployed {
        Deployed { version: self.next.clone(), id: self.id().clone() }
    }

    /// Whether the new version has services.
    #[must_use]
    pub fn has_services(&self) -> bool {
        has_some(&self.next)
    }

    /// Stop: the services except those that are left, then the steps of a version.
    ///
    /// # Errors
    /// What could not be stopped.
    pub fn stop_stage(&mut self, version: Option<&Version>, left: &Staying) -> Step {
        let steps = version.map(|version| self.steps_of(version, Stage::Stop)).unwrap_or_default();
        let left = &with_holder(self.site, left)?;
        let has_services =
            backend(self.site).look()?.into_iter().any(|look| !left.contains(&(look.instance, look.digest)));
        if !has_services && steps.is_empty() {
            return Ok(());
        }
        self.stage(Stage::Stop, |draft| {
            draft.telling.secure()?;
            // From here to the end of the old ones connections wait with the holder, and then for the port of the new ones.
            let paused = held::pause(draft.site);
            let beats = draft.switching.is_some();
            let count = stop(draft.site, draft.telling, left, beats)?;
            drop(paused);
            if let Some(version) = version {
                let place = in_run(draft.site, version, draft.id(), None);
                draft.run_steps(version, Stage::Stop, &steps, &place)?;
            }
            Ok(((), note(count, steps.len())))
        })
    }

    /// Start: the steps of a version, then its services. Without a version nothing is left running.
    ///
    /// # Errors
    /// The failed step, or the service that does not come up.
    pub fn start_stage(&mut self, of: Option<&Deployed>, how: How) -> Step {
        let steps = of.map(|of| self.steps_of(&of.version, Stage::Start)).unwrap_or_default();
        let has_services = of.is_some_and(|of| has_some(&of.version));
        if !has_services && steps.is_empty() {
            return start(self.site, self.telling, of, how, false).map(|_| ());
        }
        self.stage(Stage::Start, |draft| {
            if let Some(of) = of {
                let place = in_run(draft.site, &of.version, draft.id(), None);
                draft.run_steps(&of.version, Stage::Start, &steps, &place)?;
            }
            let beats = draft.switching.is_some();
            draft.started = Some(clock::now());
            let count = start(draft.site, draft.telling, of, how, beats)?;
            Ok(((), note(count, steps.len())))
        })
    }

    /// The services that this deployment does not touch: the recipe allows it, their definition is the same, and they hold
    /// nothing of the tree that is about to be replaced.
    ///
    /// # Errors
    /// If it cannot be found out.
    pub fn left_running(&mut self) -> Result<Staying> {
        let next = definitions(self.site, &self.next_deployed())?;
        let may_stay = next.iter().filter(|definition| definition.unchanged == Unchanged::Leave);
        let may_stay = may_stay.map(|definition| Ok((definition.instance.clone(), definition.digest()?)));
        let may_stay: Staying = may_stay.collect::<Result<_>>()?;
        let mut left = Staying::new();
        for look in backend(self.site).look()? {
            if may_stay.contains(&(look.instance.clone(), look.digest.clone())) {
                left.insert((look.instance, look.digest));
            }
        }
        if left.is_empty() {
            return Ok(left);
        }
        for user in process::processes_using(&self.site.place.run())?.found {
            let holds = |(instance, _): &(Instance, String)| is_of(self.site, user.pid, instance);
            let holding: Vec<(Instance, String)> = left.iter().filter(|left| holds(left)).cloned().collect();
            for holder in holding {
                self.note(format!(
                    "{} is restarted although it may be left: it has something of run open ({})",
                    holder.0, user.how
                ));
                left.remove(&holder);
            }
        }
        Ok(left)
    }
}

/// Those that are left, and what holds the sockets: it goes with the version that has none any more.
fn with_holder(site: &Site, left: &Staying) -> Result<Staying> {
    let holders = backend(site).look()?.into_iter().filter(|look| held::is_holder(&look.instance));
    Ok(left.iter().cloned().chain(holders.map(|look| (look.instance, look.digest))).collect())
}

/// Whether a process belongs to an instance, by the environment that every one of them has.
fn is_of(site: &Site, pid: i32, instance: &Instance) -> bool {
    let dir: &Path = site.place.dir();
    let wanted = [
        ("MC_PROJECT_DIR", dir.display().to_string()),
        ("MC_SERVICE", instance.service.to_string()),
        ("MC_INSTANCE", instance.number.to_string()),
    ];
    wanted.iter().all(|(name, value)| process::has_variable(pid, name, value))
}

//! The trial of a version before it takes the place of the one that serves: its services run beside the live ones, with the
//! candidate at the path of `run` and at a port of their own, and are asked. One that is not well changes nothing that runs.
//!
//! The tree cannot be written meanwhile. `data` is that of the version that serves: a recipe asks for a trial by `before: true`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::boxes;
use super::cancel;
use super::checks::{Answer, Question};
use super::draft::{Deployed, Draft, Version};
use super::halt::{Halt, Step};
use super::services;
use super::steps::{At, Place};
use crate::project::recipe::Service;
use crate::project::recipe::service::listen::Listen;
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::service::definition::Instance;
use crate::service::sockets::take;
use crate::sys::error::{Context, Error, Result};
use crate::sys::process::{Patience, StepResult, StepWatcher, Tick, run_step_patiently};
use crate::sys::step_exec::{Bind, StepOrder};

/// How often it is looked whether the trial is over.
const LOOK: Duration = Duration::from_millis(50);
/// How many lines of a service are told.
const LINES: usize = 40;

/// The services of a version that are tried.
pub fn tried(version: &Version) -> impl Iterator<Item = &Service> {
    let is_tried = |service: &&Service| service.check.as_ref().is_some_and(|check| check.before);
    version.recipe.services.iter().filter(|service| service.applies(version.mode)).filter(is_tried)
}

impl Draft<'_> {
    /// Check: the steps, then the trial of the services.
    ///
    /// # Errors
    /// What is not well.
    pub fn check_stage(&mut self, next: &Version, place: &Place) -> Step {
        let steps = self.steps_of(next, Stage::Check);
        let (only, skip) = (&self.options.only, &self.options.skip);
        let is_skipped = skip.contains(&Stage::Check) || (!only.is_empty() && !only.contains(&Stage::Check));
        let has_trial = tried(next).next().is_some() && !is_skipped;
        if steps.is_empty() && !has_trial {
            return Ok(());
        }
        self.stage(Stage::Check, |draft| {
            let ran = draft.run_steps(next, Stage::Check, &steps, place)?;
            let tried = if has_trial { draft.try_services(next, &place.at)? } else { 0 };
            let of_trial = (tried > 0)
                .then(|| if tried == 1 { "1 service tried".to_string() } else { format!("{tried} services tried") });
            let of_steps = (ran.count > 0).then(|| ran.words());
            Ok(((), Some(of_steps.into_iter().chain(of_trial).collect::<Vec<_>>().join(", "))))
        })
    }

    /// Tries the services of the new version whose recipe asks for it. Returns how many.
    ///
    /// # Errors
    /// The first one that is not well, with its answer and the last lines that it wrote.
    pub fn try_services(&mut self, next: &Version, at: &At) -> Step<usize> {
        if matches!(at, At::Plain(_)) {
            self.note("no service is tried: nothing can be shown at the path of run here");
            return Ok(0);
        }
        services::make_directories(self.site, next)?;
        let services: Vec<Service> = tried(next).cloned().collect();
        for service in &services {
            self.try_service(next, service, at)?;
        }
        Ok(services.len())
    }

    fn try_service(&mut self, next: &Version, service: &Service, at: &At) -> Step {
        let Some(check) = service.check.clone() else { return Ok(()) };
        self.telling.also_keep_secret(&next.secret_values());
        self.tell(Event::Step { stage: Stage::Check, title: format!("try {}", service.name) })?;
        let begin = Instant::now();
        let port = free_port()?;
        let order = self.order_of_trial(next, service, port, at)?;
        let instance = Instance { service: service.name.clone(), number: 1 };
        let question = Question { instance, check, port, order };
        let (answer, result, lines) = beside(&question, service)?;
        for line in lines {
            self.telling.output(&line);
        }
        let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let status = if answer.good { "ok" } else { "failed" };
        self.tell(Event::StepDone { stage: Stage::Check, status: status.to_string(), ms })?;
        cancel::check()?;
        if answer.good {
            self.note(format!("{} of the new version is well: {}: {}", service.name, answer.question, answer.answer));
            return Ok(());
        }
        // What ended by itself was not ended by us.
        let ended = match result.status {
            crate::sys::process::StepStatus::Cancelled => String::new(),
            status => format!("; it ended ({})", status.words()),
        };
        let reason =
            format!("{} of the new version is not well: {}: {}{ended}", service.name, answer.question, answer.answer);
        Err(Halt::failed(reason).tail(self.telling.tail()).hint("nothing that runs was changed"))
    }

    /// The service with the candidate at the path of `run`, at a port of its own.
    fn order_of_trial(&self, next: &Version, service: &Service, port: u16, at: &At) -> Result<StepOrder> {
        let of = Deployed { version: next.clone(), id: self.id().clone() };
        let own = Service { listen: Vec::new(), ..service.clone() };
        let (mut order, _) = services::order(self.site, &of, &own, 1)?;
        order.env.retain(|(name, _)| name != "PORT");
        order.env.push(("MC_TRIAL".to_string(), "1".to_string()));
        if service.port.is_some() {
            order.env.push(("PORT".to_string(), port.to_string()));
        } else {
            // Nobody holds a socket for it: it is given one that is its own.
            let argv = std::mem::take(&mut order.argv);
            let further = service.listen.iter().skip(1).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
            let ports = std::iter::once(port).chain(further);
            let listen: Vec<Listen> =
                ports.map(|port| Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))).collect();
            order.argv =
                take::command(&self.site.node.program()?, Path::new("/nonexistent"), &service.name, &listen, argv);
        }
        let run = self.site.place.run();
        match at {
            At::Mounted(tree) => {
                order.view.binds.insert(0, Bind { source: tree.clone(), at: run, read_only: true });
            }
            At::Plain(_) | At::Run => return Err(Error::bug("a trial in what runs")),
        }
        order.marker = Some(format!("{}.trial", self.id()));
        boxes::limit_trial(self.site, service.limits.within(self.site.config.services), &mut order);
        Ok(order)
    }
}

/// Runs the service in a thread, asks it meanwhile, and ends it.
fn beside(question: &Question, service: &Service) -> Result<(Answer, StepResult, VecDeque<Vec<u8>>)> {
    let (is_over, has_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let runner = std::thread::Builder::new().spawn_scoped(scope, || {
            let mut watcher = Watcher { is_over: &is_over, lines: VecDeque::new() };
            let timeout = question.check.within + service.start_timeout;
            let patience = Patience { timeout, grace: service.stop_timeout, tick: LOOK };
            let result = run_step_patiently(&question.order, &patience, &mut watcher);
            has_ended.store(true, Ordering::Relaxed);
            result.map(|result| (result, watcher.lines))
        });
        let runner = runner.context(|| "cannot start a thread for a trial".to_string())?;
        let answer = question.ask_on(|| !has_ended.load(Ordering::Relaxed) && cancel::asked().is_none());
        is_over.store(true, Ordering::Relaxed);
        let ended = runner.join().map_err(|_| Error::bug("the thread of a trial has panicked"))?;
        ended.map(|(result, lines)| (answer, result, lines))
    })
}

struct Watcher<'a> {
    is_over: &'a AtomicBool,
    lines: VecDeque<Vec<u8>>,
}

impl StepWatcher for Watcher<'_> {
    fn line(&mut self, line: &[u8]) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_vec());
    }

    fn tick(&mut self) -> Tick {
        if self.is_over.load(Ordering::Relaxed) { Tick::Cancel } else { Tick::GoOn }
    }
}

/// A port that nobody listens at now.
fn free_port() -> Result<u16> {
    let doing = || "cannot find a free port".to_string();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(doing)?;
    listener.local_addr().map(|address| address.port()).context(doing)
}

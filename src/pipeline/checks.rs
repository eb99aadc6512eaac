//! The checks of services: all are asked at the same time, each until it has been good several times in a row or its time
//! is over.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::activate::in_run;
use super::cancel;
use super::draft::{Deployed, Draft};
use super::halt::{Halt, Step};
use super::held;
use super::services::{backend, order};
use super::site::Site;
use super::steps::{Watcher, argv_of, steps_words};
use crate::project::ids::DeploymentId;
use crate::project::recipe::check::{Check, Probe};
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::report::stream::Reporter;
use crate::service::backend::LogQuery;
use crate::service::definition::Instance;
use crate::service::probe::{self, Page};
use crate::sys::error::{Context, Error, Result};
use crate::sys::process::{self, StepWatcher, run_step};
use crate::sys::step_exec::StepOrder;
use crate::sys::{clock, escape, fs};

/// How many lines of a service's log are told when its check failed.
const LOG_LINES: usize = 20;

/// What was answered to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who was asked.
    pub instance: Instance,
    /// What, in words.
    pub question: String,
    /// Whether the answer was good.
    pub good: bool,
    /// The answer, in words.
    pub answer: String,
}

/// The answers of the last deployment that asked (`state/health.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// When.
    pub at: jiff::Timestamp,
    /// Of which deployment's services.
    pub deployment: DeploymentId,
    /// The answers.
    pub answers: Vec<Answer>,
}

impl Health {
    /// Reads it; `None` if nothing was asked yet.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(site: &Site) -> Result<Option<Self>> {
        let path = site.place.health();
        let Some(bytes) = fs::read_if_there(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).context(|| format!("cannot understand {}", path.display()))
    }

    fn write(&self, site: &Site) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context(|| "cannot write the answers of checks".to_string())?;
        fs::write_durable(&site.place.health(), &text, 0o600)
    }
}

/// One question to one instance.
pub struct Question {
    /// Who is asked.
    pub instance: Instance,
    /// What.
    pub check: Check,
    /// At which port.
    pub port: u16,
    /// The program that asks, if it is one.
    pub order: StepOrder,
}

impl Question {
    fn words(&self) -> String {
        match &self.check.probe {
            Probe::Http { path, .. } => format!("GET {path} at port {}", self.port),
            Probe::Tcp => format!("connect to port {}", self.port),
            Probe::Run(command) => command.title(),
        }
    }

    /// Asks once.
    fn ask(&self, timeout: Duration) -> Result<String> {
        match &self.check.probe {
            Probe::Http { path, host, expect, body } => {
                let page = Page { path, host: host.as_deref(), expect, body: body.as_deref() };
                probe::page(self.port, &page, timeout)
            }
            Probe::Tcp => probe::port(self.port, timeout),
            Probe::Run(_) => {
                let mut last = LastLine(Vec::new());
                let result = run_step(&self.order, timeout, &mut last)?;
                if result.status.is_ok() {
                    return Ok(result.words());
                }
                let line = escape::output_line(&last.0, 200);
                let said = if line.is_empty() { String::new() } else { format!(": {line}") };
                Err(Error::failed(format!("{}{said}", result.words())))
            }
        }
    }

    /// Asks until the answers were good often enough, the time is over, or it is no use any more.
    pub fn ask_on(&self, is_of_use: impl Fn() -> bool) -> Answer {
        let (check, deadline) = (&self.check, Instant::now() + self.check.within);
        let mut in_a_row = 0;
        loop {
            // The last question may begin before the deadline and end after it, by its own time at most.
            let (good, said) = match self.ask(check.timeout) {
                Ok(said) => (true, said),
                Err(error) => (false, error.one_line()),
            };
            in_a_row = if good { in_a_row + 1 } else { 0 };
            if !is_of_use() {
                return self.answer(false, said);
            }
            if in_a_row == check.times {
                let times = if in_a_row == 1 { String::new() } else { format!(", {in_a_row} times in a row") };
                return self.answer(true, format!("{said}{times}"));
            }
            if Instant::now() + check.every > deadline {
                let said =
                    if good { format!("{said}, but only {in_a_row} of {} times in a row", check.times) } else { said };
                return self.answer(false, said);
            }
            std::thread::sleep(check.every);
        }
    }

    fn answer(&self, good: bool, answer: String) -> Answer {
        Answer { instance: self.instance.clone(), question: self.words(), good, answer }
    }
}

/// The last line that the program of a check wrote.
struct LastLine(Vec<u8>);

impl StepWatcher for LastLine {
    fn line(&mut self, line: &[u8]) {
        if !line.is_empty() {
            self.0 = line.to_vec();
        }
    }
}

/// The questions to the services of a version. Where all instances are asked at the same port, one is asked.
fn questions(site: &Site, of: &Deployed) -> Result<Vec<Question>> {
    let mut all = Vec::new();
    for service in of.version.recipe.services.iter().filter(|service| service.applies(of.version.mode)) {
        let Some(check) = &service.check else { continue };
        let is_shared = check.port.is_some() || (service.port.is_none() && held::local_port(service).is_some());
        let count = if is_shared { 1 } else { service.count };
        for number in 1..=count {
            let (mut order, own_port) = order(site, of, service, number)?;
            if let Probe::Run(command) = &check.probe {
                order.argv = argv_of(command);
            }
            let instance = Instance { service: service.name.clone(), number };
            let port = check.port.or(own_port).or_else(|| held::local_port(service)).unwrap_or_default();
            all.push(Question { instance, check: check.clone(), port, order });
        }
    }
    Ok(all)
}

/// Asks every service of a version once.
///
/// # Errors
/// If it is not known what to ask; a bad answer is none.
pub fn ask_once(site: &Site, of: &Deployed) -> Result<Vec<Answer>> {
    let all = questions(site, of)?;
    Ok(all
        .iter()
        .map(|question| match question.ask(question.check.timeout) {
            Ok(said) => question.answer(true, said),
            Err(error) => question.answer(false, error.one_line()),
        })
        .collect())
}

/// Asks all services of a version until they are well, one line told for each. Tells how many were asked.
///
/// # Errors
/// The first one that is not well in time, with the last lines that it wrote since its start.
fn check(draft: &mut Draft<'_>, of: &Deployed) -> Step<usize> {
    let (beats, since) = (draft.switching.is_some(), draft.started);
    let (site, telling) = (draft.site, &mut *draft.telling);
    let all = questions(site, of)?;
    if all.is_empty() {
        return Ok(0);
    }
    let before = restarts(site)?;
    let mut answers = ask_all(&all, telling, beats)?;
    cancel::check()?;
    // Who dies and comes back answers well too, most of the time.
    for (instance, times) in restarts(site)? {
        let died = before.iter().any(|(other, then)| *other == instance && *then < times);
        if died && let Some(answer) = answers.iter_mut().find(|answer| answer.instance == instance && answer.good) {
            answer.good = false;
            answer.answer.push_str(", but it died and was started again while it was asked");
        }
    }
    let health = Health { at: clock::now(), deployment: of.id.clone(), answers };
    health.write(site)?;
    let Some(bad) = health.answers.iter().find(|answer| !answer.good) else { return Ok(all.len()) };
    // Told once more and last, so that what is told of the failed stage is about it.
    telling.emit(Event::Step { stage: Stage::Health, title: format!("the last lines of {}", bad.instance.service) })?;
    let service = Some(bad.instance.service.clone());
    let query = LogQuery { service, last: Some(LOG_LINES), since, own: true, ..LogQuery::default() };
    let _ = backend(site).log(&query, &mut |line| {
        telling.output(&line.text);
        true
    });
    let hint = format!("mc_project logs NAME --service {}", bad.instance.service);
    let reason = format!("{} is not well: {}: {}", bad.instance, bad.question, bad.answer);
    Err(Halt::failed(reason).tail(telling.tail()).hint(hint))
}

/// How often each instance was started again by itself.
fn restarts(site: &Site) -> Result<Vec<(Instance, u32)>> {
    Ok(backend(site).look()?.into_iter().map(|look| (look.instance, look.restarts)).collect())
}

fn ask_all(all: &[Question], telling: &mut Reporter, beats: bool) -> Step<Vec<Answer>> {
    let mut answers: Vec<Option<Answer>> = vec![None; all.len()];
    std::thread::scope(|scope| -> Step {
        let (tell, told) = channel();
        for (index, question) in all.iter().enumerate() {
            let tell = tell.clone();
            // Nobody listens any more only if we could not tell an answer.
            let ask = move || drop(tell.send((index, question.ask_on(|| cancel::asked().is_none()))));
            std::thread::Builder::new()
                .spawn_scoped(scope, ask)
                .context(|| "cannot start a thread to ask a service".to_string())?;
        }
        drop(tell);
        loop {
            match told.recv_timeout(process::TICK) {
                Ok((index, answer)) => {
                    let service = answer.instance.service.clone();
                    answers[index] = Some(answer);
                    let of_service = all.iter().zip(&answers).filter(|(it, _)| it.instance.service == service);
                    if let Some(done) = of_service.map(|(_, answer)| answer.as_ref()).collect::<Option<Vec<_>>>() {
                        telling.emit(Event::Note { text: words_of(&done) })?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => drop(Watcher { telling, beats }.tick()),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    })?;
    Ok(answers.into_iter().flatten().collect())
}

/// One line about all instances of a service: the first bad answer, or the good one.
fn words_of(answers: &[&Answer]) -> String {
    let Some(told) = answers.iter().find(|answer| !answer.good).or_else(|| answers.first()) else {
        return String::new();
    };
    let Answer { instance, question, good, answer } = told;
    match (good, answers.len()) {
        (false, 1) => format!("{} is not well: {question}: {answer}", instance.service),
        (false, _) => format!("{instance} is not well: {question}: {answer}"),
        (true, 1) => format!("{} is well: {question}: {answer}", instance.service),
        (true, count) => format!("all {count} of {} are well: {question}: {answer}", instance.service),
    }
}

impl Draft<'_> {
    /// Health: the checks of the services, then the steps.
    ///
    /// # Errors
    /// What is not well.
    pub fn health_stage(&mut self, of: &Deployed) -> Step {
        let steps = self.steps_of(&of.version, Stage::Health);
        let skipped = self.options.skip.contains(&Stage::Health);
        let has_checks = !skipped && !questions(self.site, of)?.is_empty();
        if !has_checks && steps.is_empty() {
            return Ok(());
        }
        self.stage(Stage::Health, |draft| {
            let asked = if has_checks { check(draft, of)? } else { 0 };
            let place = in_run(draft.site, &of.version, draft.id(), None);
            draft.run_steps(&of.version, Stage::Health, &steps, &place)?;
            let asked = match asked {
                0 => None,
                1 => Some("1 check".to_string()),
                count => Some(format!("{count} checks")),
            };
            let parts: Vec<String> =
                asked.into_iter().chain((!steps.is_empty()).then(|| steps_words(steps.len()))).collect();
            Ok(((), Some(parts.join(", "))))
        })
    }
}

//! Services by hand: `start`, `stop`, `restart`, and what `status` says of them.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::deploying::{by_hand, lock_for_a_command, running, steps_by_hand};
use super::{Cli, ServicesArgs, screen};
use crate::pipeline::draft::Deployed;
use crate::pipeline::held;
use crate::pipeline::services::{self, How, Staying};
use crate::pipeline::site::Site;
use crate::project::recipe::ServiceName;
use crate::project::stage::Stage;
use crate::report::stream::Reporter;
use crate::service::backend::{Look, State};
use crate::service::definition::Instance;
use crate::sys::error::{Error, ExitCode, Kind, Result};
use crate::sys::escape::{output_line, visible};
use crate::sys::process::StepWatcher;
use crate::sys::{clock, size};

/// What was started again by itself and has run for less may end again at once.
const STEADY: SignedDuration = SignedDuration::from_mins(1);

/// What is done with services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// They start.
    Start,
    /// They stop.
    Stop,
    /// They stop, then they start.
    Restart,
}

impl Act {
    fn stops(self) -> bool {
        self != Self::Start
    }

    fn starts(self) -> bool {
        self != Self::Stop
    }
}

/// `start`, `stop`, `restart`.
///
/// # Errors
/// If nothing is deployed, there is no such service, or the lock is held.
pub fn command(cli: &Cli, args: &ServicesArgs, act: Act) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let _lock = lock_for_a_command(&site)?;
    let of = running(&site)?.ok_or_else(|| Error::new(Kind::Refused, "nothing is deployed yet").hint("git push"))?;
    let code = if args.services.is_empty() { all(&site, &of, act)? } else { some(&site, &of, &args.services, act)? };
    let is_meant = |service: &ServiceName| args.services.is_empty() || args.services.contains(service);
    let looks = services_of(&site, Some(&of))?;
    let meant: Vec<ServiceStatus> = looks.into_iter().filter(|one| is_meant(&one.look.instance.service)).collect();
    service_lines(&meant).iter().for_each(screen::line);
    Ok(code)
}

/// Everything of the version: its services and its steps.
fn all(site: &Site, of: &Deployed, act: Act) -> Result<u8> {
    let version = &of.version;
    let steps_of = |stage: Stage| version.recipe.stages.get(&stage).cloned().unwrap_or_default();
    let wanted = [(Stage::Stop, act.stops()), (Stage::Start, act.starts())];
    for (stage, _) in wanted.iter().filter(|(_, wanted)| *wanted) {
        if steps_of(*stage).is_empty() && !services::has_some(version) {
            let name = site.place.name();
            screen::line(format!("{name}: the recipe has no services and no `{}` steps", stage.name()));
        }
    }
    if act.stops() {
        let stop = |telling: &mut Reporter| services::stop(site, telling, &Staying::new(), false).map(|_| ());
        if let Some(code) = by_hand(site, version, "the stop of the services", stop)? {
            return Ok(code);
        }
        if let Some((_, code)) = steps_by_hand(site, version, Stage::Stop, &steps_of(Stage::Stop))? {
            return Ok(code);
        }
    }
    if act.starts() {
        if let Some((_, code)) = steps_by_hand(site, version, Stage::Start, &steps_of(Stage::Start))? {
            return Ok(code);
        }
        let start = |telling: &mut Reporter| services::start(site, telling, Some(of), How::Again, false).map(|_| ());
        if let Some(code) = by_hand(site, version, "the start of the services", start)? {
            return Ok(code);
        }
    }
    Ok(ExitCode::Done as u8)
}

/// These services alone.
fn some(site: &Site, of: &Deployed, names: &[ServiceName], act: Act) -> Result<u8> {
    let definitions = services::definitions(site, of)?;
    let known: Vec<ServiceName> = definitions.into_iter().map(|definition| definition.instance.service).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(no_such_service(site, unknown, &known));
    }
    let backend = services::backend(site);
    let is_meant = |instance: &Instance, _: &str| names.contains(&instance.service);
    // What is started needs its sockets.
    let is_started = |instance: &Instance, digest: &str| held::is_holder(instance) || is_meant(instance, digest);
    let there = backend.look()?;
    if let Some(name) = names.iter().find(|name| !there.iter().any(|look| look.instance.service == **name)) {
        return Err(Error::refused(format!("{name} was not started with the version that serves")).hint(format!(
            "{} start {}",
            site.command(),
            site.place.name()
        )));
    }
    if act.stops() {
        let _paused = held::pause(site);
        backend.stop(&is_meant, &mut Printing)?;
    }
    if act.starts()
        && let Err(failure) = backend.start(&is_started, &mut Printing)?
    {
        screen::error_line(format!("error: {} {}", failure.instance, visible(&failure.reason)));
        return Ok(ExitCode::Failed as u8);
    }
    Ok(ExitCode::Done as u8)
}

/// Says that there is no such service, and which there are.
#[must_use]
pub fn no_such_service(site: &Site, unknown: &ServiceName, known: &[ServiceName]) -> Error {
    let mut shown: Vec<&str> = known.iter().map(ServiceName::as_str).collect();
    shown.dedup();
    let hint = if shown.is_empty() { "it has none".to_string() } else { format!("services: {}", shown.join(", ")) };
    Error::usage(format!("there is no service `{unknown}` in {}", site.place.name())).hint(hint)
}

/// Shows the last lines of a service that failed.
struct Printing;

impl StepWatcher for Printing {
    fn line(&mut self, line: &[u8]) {
        screen::line(output_line(line, 4096));
    }
}

/// What `status` tells of one instance.
#[derive(Debug, Serialize)]
pub struct ServiceStatus {
    /// How it is.
    #[serde(flatten)]
    pub look: Look,
    /// Whether it runs what serves.
    pub version: Runs,
}

/// Which version an instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    /// The one that serves.
    Serving,
    /// It was started by an older deployment, and nothing of it has changed since.
    Unchanged,
    /// Another one.
    Other,
}

impl ServiceStatus {
    /// Whether it does not run although it is to run, or runs another version than what serves.
    #[must_use]
    pub fn ails(&self) -> bool {
        matches!(self.look.state, State::Failed | State::Waiting) || self.runs_another() || self.falters()
    }

    /// Whether it was started again by itself and has not run for long since.
    fn falters(&self) -> bool {
        let look = &self.look;
        let runs = matches!(look.state, State::Starting | State::Running);
        runs && look.restarts > 0 && look.since.is_none_or(|since| clock::now().duration_since(since) < STEADY)
    }

    /// Whether what its check answered at that time is still about the run that there is now.
    #[must_use]
    pub fn ran_at(&self, time: Timestamp) -> bool {
        let runs = matches!(self.look.state, State::Starting | State::Running);
        runs && self.look.since.is_none_or(|since| since <= time)
    }

    fn runs_another(&self) -> bool {
        self.version == Runs::Other && self.look.pid.is_some()
    }

    fn restarts_words(&self) -> String {
        let times = match self.look.restarts {
            1 => "once".to_string(),
            times => format!("{times} times"),
        };
        if !self.falters() {
            return format!("started again {times}");
        }
        let last = self.look.last_end.as_deref().map(|end| format!(", the run before {}", visible(end)));
        format!("STARTED AGAIN {}{}", times.to_uppercase(), last.unwrap_or_default())
    }

    fn words(&self, name: &str, width: usize) -> String {
        let look = &self.look;
        let state = match look.state {
            State::Starting => "starting",
            State::Running => "running",
            State::Waiting => "WAITS to be started again",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Done => "done",
            State::Failed => "FAILED",
        };
        let mut parts = vec![state.to_string()];
        parts.extend(look.detail.as_deref().map(visible));
        parts.extend(look.since.map(|since| since.strftime("since %Y-%m-%d %H:%M UTC").to_string()));
        parts.extend(look.pid.map(|pid| format!("process {pid}")));
        parts.extend(look.memory.map(size::words));
        parts.extend(look.cpu_ms.map(|ms| format!("{}.{} s of processor time", ms / 1000, ms % 1000 / 100)));
        parts.extend((look.restarts > 0).then(|| self.restarts_words()));
        let commit = look.running.commit.as_ref().map_or("another version", |commit| commit.short());
        parts.extend(self.runs_another().then(|| format!("RUNS {commit}, WHICH IS NOT WHAT SERVES")));
        let is_old = self.version == Runs::Unchanged && look.pid.is_some();
        parts.extend(is_old.then(|| format!("started by {commit} and unchanged since")));
        format!("{name:width$}  {}", parts.join(", "))
    }
}

/// The services of a project: what runs or ran last, and what the version that serves has beside them.
///
/// # Errors
/// If they cannot be asked.
pub fn services_of(site: &Site, of: Option<&Deployed>) -> Result<Vec<ServiceStatus>> {
    let definitions = of.map(|of| services::definitions(site, of)).transpose()?.unwrap_or_default();
    let mut all = Vec::new();
    for look in services::backend(site).look()? {
        let definition = definitions.iter().find(|definition| definition.instance == look.instance);
        let version = match definition {
            Some(definition) if definition.running == look.running => Runs::Serving,
            Some(definition) if definition.digest()? == look.digest => Runs::Unchanged,
            _ => Runs::Other,
        };
        all.push(ServiceStatus { look, version });
    }
    Ok(all)
}

/// A line for each instance; its number stands there only where there are several.
#[must_use]
pub fn service_lines(all: &[ServiceStatus]) -> Vec<String> {
    let is_alone =
        |instance: &Instance| all.iter().filter(|one| one.look.instance.service == instance.service).count() == 1;
    let name = |instance: &Instance| {
        if is_alone(instance) { instance.service.to_string() } else { instance.to_string() }
    };
    let names: Vec<String> = all.iter().map(|one| name(&one.look.instance)).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    all.iter().zip(&names).map(|(one, name)| one.words(name, width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::definition::Running;

    fn service(state: State, restarts: u32, seconds_ago: i64) -> ServiceStatus {
        let look = Look {
            instance: Instance { service: "web".parse().unwrap(), number: 1 },
            state,
            detail: None,
            since: Some(clock::now() - SignedDuration::from_secs(seconds_ago)),
            pid: Some(7),
            restarts,
            last_end: Some("ended (exit 1)".into()),
            memory: None,
            cpu_ms: None,
            running: Running::default(),
            digest: String::new(),
        };
        ServiceStatus { look, version: Runs::Serving }
    }

    #[test]
    fn what_was_started_again_a_moment_ago_ails_until_it_has_run_for_a_minute() {
        let loops = service(State::Running, 6, 5);
        assert!(loops.ails());
        let words = loops.words("web", 3);
        assert!(words.ends_with("STARTED AGAIN 6 TIMES, the run before ended (exit 1)"), "{words}");
        let steady = service(State::Running, 6, 61);
        assert!(!steady.ails());
        assert!(steady.words("web", 3).ends_with("started again 6 times"));
        assert!(!service(State::Running, 0, 5).ails());
    }

    #[test]
    fn what_a_check_answered_is_about_the_run_that_was_asked() {
        let asked = clock::now() - SignedDuration::from_secs(30);
        assert!(service(State::Running, 0, 40).ran_at(asked));
        assert!(!service(State::Running, 1, 5).ran_at(asked));
        for state in [State::Stopped, State::Waiting, State::Failed, State::Stopping, State::Done] {
            assert!(!service(state, 0, 40).ran_at(asked), "{state:?}");
        }
    }
}

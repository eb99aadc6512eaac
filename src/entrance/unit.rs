//! A worker as a transient unit of systemd: it outlives the connection that asked for it, has its own cgroup, is seen
//! by `systemctl`, and what systemd runs after it recovers when it died.
//!
//! The order is a durable file that systemd opens as the worker's standard input. It is removed last of all, by the
//! command after the worker's end: as long as it stands there, somebody is still at work on it, or a boot came between.
//!
//! `KillMode=process`: steps die with the worker anyway (each asks for it, and recovery kills what is marked), while a
//! daemon that a `start` step left behind stands in the unit's cgroup and must live on when the worker has ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::pipeline::recover;
use crate::pipeline::site::Site;
use crate::project::ids::{DeploymentId, ProjectName};
use crate::project::request::Request;
use crate::sys::error::{Context, Error, Result};
use crate::sys::process::{self, Captured, StepStatus, run_captured};
use crate::sys::{fs, machine};

/// The hidden command that systemd runs after every worker's end.
pub const AFTER: &str = "after-death";
/// The slice of everything that is ours.
pub const SLICE: &str = "mc_project.slice";

/// How long systemd may take to start or show a unit.
const SYSTEMD: Duration = Duration::from_mins(1);
/// How often systemd is asked, where nothing else tells, whether a unit is there.
const ASK: Duration = Duration::from_secs(10);
/// Whether the workers of this project run as units: on a whole-machine node that is this machine, as root.
#[must_use]
pub fn is_for(site: &Site) -> bool {
    site.node.system.is_some()
        && site.place.node().root() == Path::new("/")
        && rustix::process::geteuid().is_root()
        && machine::runs_systemd()
}

/// The unit of one deployment.
#[must_use]
pub fn name(project: &ProjectName, id: &DeploymentId) -> String {
    format!("mc_project-{project}-{id}.service")
}

/// A worker that runs as a unit, as those who follow it see it.
#[derive(Debug)]
pub struct Unit {
    name: String,
    order: PathBuf,
    asked: Instant,
    is_gone: bool,
}

/// Starts the worker of a request.
///
/// # Errors
/// If systemd does not start it.
pub fn start(site: &Site, request: &Request, work: &str, env: &BTreeMap<String, String>) -> Result<Unit> {
    let order = site.place.request(&request.id);
    let text = serde_json::to_vec(request).context(|| "cannot write the request".to_string())?;
    fs::ensure_dir(&site.place.requests(), 0o700)?;
    fs::write_durable(&order, &text, 0o600)?;
    let name = name(&request.project, &request.id);
    let binary = site.node.program()?;
    let args = arguments(&name, request, &binary, &order, (work, env));
    let ended = systemd("systemd-run", &args)?;
    if ended.status != StepStatus::Ok {
        fs::remove_file(&order)?;
        let why = Error::failed(format!("systemd-run: {} ({})", ended.last_words(), ended.status.words()));
        return Err(Error::failed("cannot start the worker's unit").because(why));
    }
    Ok(Unit { name, order, asked: Instant::now(), is_gone: false })
}

fn arguments(
    unit: &str,
    request: &Request,
    binary: &Path,
    order: &Path,
    (work, env): (&str, &BTreeMap<String, String>),
) -> Vec<OsString> {
    let (project, id, shown) = (&request.project, &request.id, binary.display());
    let mut args: Vec<OsString> = ["--quiet", "--collect"].iter().map(OsString::from).collect();
    args.push(format!("--unit={unit}").into());
    args.push(format!("--slice={SLICE}").into());
    args.push(format!("--description=mc_project works on {project}").into());
    args.extend(env.iter().map(|(name, value)| OsString::from(format!("--setenv={name}={value}"))));
    let mut property = |text: String| args.extend(["-p".into(), OsString::from(text)]);
    property("Type=exec".into());
    property(format!("StandardInput=file:{}", order.display()));
    property(format!("ExecStopPost=\"{shown}\" --root / {AFTER} {project} {id}"));
    property("KillMode=process".into());
    property("Delegate=yes".into());
    // The kernel's choice among processes must not be the one that can bring the others back.
    property("OOMScoreAdjust=-900".into());
    // A step that takes too much memory fails; its worker must live to say so.
    property("OOMPolicy=continue".into());
    property("TimeoutStopSec=15min".into());
    property("SuccessExitStatus=1 2 3 4 5".into());
    args.push("--".into());
    args.push(binary.as_os_str().to_os_string());
    args.extend(["--root", "/", work].iter().map(OsString::from));
    args
}

fn systemd(program: &str, args: &[OsString]) -> Result<Captured> {
    run_captured(program, args, &process::base_environment(Path::new("/")), b"", SYSTEMD)
}

impl Unit {
    /// Whether the worker and what follows it are gone.
    pub fn is_gone(&mut self) -> bool {
        if !self.is_gone && !fs::exists(&self.order) {
            self.is_gone = true;
        }
        // The order stays behind if even the command after the worker's end was killed.
        if !self.is_gone && self.asked.elapsed() >= ASK {
            self.asked = Instant::now();
            self.is_gone = !is_active(&self.name);
        }
        self.is_gone
    }
}

/// Whether a unit is there and not at its end; where systemd does not answer, it counts as there.
fn is_active(unit: &str) -> bool {
    let args = ["show", "--property=ActiveState", "--value", unit].map(OsString::from);
    match systemd("systemctl", &args) {
        Ok(ended) if ended.status == StepStatus::Ok => {
            !matches!(ended.stdout.trim_ascii(), b"inactive" | b"failed" | b"")
        }
        _ => true,
    }
}

/// Whether the machine is being shut down.
fn is_stopping() -> bool {
    let asked = systemd("systemctl", &["is-system-running".into()]);
    asked.is_ok_and(|ended| ended.stdout.trim_ascii() == b"stopping")
}

/// How a unit's main process ended, as systemd tells those that it runs afterwards (systemd.exec(5), `$EXIT_CODE`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    code: String,
    status: String,
}

impl Ended {
    /// What the environment of this process says.
    #[must_use]
    pub fn of_environment() -> Self {
        let get = |name: &str| std::env::var(name).unwrap_or_default();
        Self { code: get("EXIT_CODE"), status: get("EXIT_STATUS") }
    }

    /// Whether the worker died: everything is a death that is none of the documented exit codes.
    #[must_use]
    pub fn is_death(&self) -> bool {
        self.code != "exited" || !matches!(self.status.as_str(), "0" | "1" | "2" | "3" | "4" | "5")
    }

    fn words(&self) -> String {
        let words = format!("{} {}", self.code, self.status);
        if words.trim().is_empty() { "it never ran".to_string() } else { crate::sys::escape::visible(&words) }
    }
}

/// What is done after the end of a worker's unit: recovery, if it died.
///
/// # Errors
/// If the recovery is impossible; the next command tries again.
pub fn after(site: &Site, id: &DeploymentId, ended: &Ended) -> Result<()> {
    if ended.is_death() {
        if is_stopping() {
            // Nothing that could be started now would live; the unit at boot recovers.
            tracing::warn!("the worker of {id} ended with the machine; it is recovered at the next start");
            return Ok(());
        }
        tracing::error!("the worker of {id} ended ({}); recovering", ended.words());
        recover::after_death(site, id)?;
    }
    fs::remove_file(&site.place.request(id))
}

/// Takes away the orders that nobody works on any more, after a boot; tells the ids of those that were never begun.
///
/// # Errors
/// If the state cannot be read.
pub fn drop_orders(site: &Site) -> Result<Vec<DeploymentId>> {
    let mut lost = Vec::new();
    for file in fs::names(&site.place.requests())? {
        let Some(id) = file.strip_suffix(".json").and_then(|id| id.parse::<DeploymentId>().ok()) else { continue };
        if machine::runs_systemd() && is_active(&name(site.place.name(), &id)) {
            continue;
        }
        if !fs::exists(&site.place.journal(&id)) {
            lost.push(id.clone());
        }
        fs::remove_file(&site.place.request(&id))?;
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::request::{Options, Want};

    #[test]
    fn every_end_but_the_documented_exit_codes_is_a_death() {
        let ended = |code: &str, status: &str| Ended { code: code.into(), status: status.into() };
        for status in 0..=5 {
            assert!(!ended("exited", &status.to_string()).is_death(), "{status}");
        }
        for (code, status) in [
            ("exited", "70"),
            ("exited", "101"),
            ("exited", "203"),
            ("exited", ""),
            ("killed", "TERM"),
            ("killed", "KILL"),
            ("killed", "1"),
            ("dumped", "ABRT"),
            ("", ""),
        ] {
            assert!(ended(code, status).is_death(), "{code} {status}");
        }
        assert_eq!(Ended::default().words(), "it never ran");
    }

    #[test]
    fn the_unit_is_named_by_project_and_id_and_nothing_of_the_request_is_on_its_command_line() {
        let id = DeploymentId::new(jiff::Timestamp::UNIX_EPOCH);
        let request = Request {
            project: "shop".parse().unwrap(),
            id: id.clone(),
            want: Want::Rollback { to: Some("canary-1".into()), with_data: false },
            update: None,
            options: Options { reason: Some("canary-2".into()), ..Options::default() },
            pusher: "canary-3".into(),
            key: None,
            push: None,
            wait_seconds: None,
        };
        let unit = name(&request.project, &id);
        let (binary, order) = (Path::new("/usr/local/bin/mc_project"), Path::new("/srv/o.json"));
        let env = BTreeMap::from([("LANG".to_string(), "C.UTF-8".to_string())]);
        let args = arguments(&unit, &request, binary, order, ("work", &env));
        let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        let line = args.join(" ");
        assert!(line.contains(&format!("--unit=mc_project-shop-{id}.service --slice=mc_project.slice")), "{line}");
        assert!(line.contains("--setenv=LANG=C.UTF-8") && line.contains("-p StandardInput=file:/srv/o.json"));
        assert!(
            line.contains(&format!("ExecStopPost=\"/usr/local/bin/mc_project\" --root / after-death shop {id} -p"))
        );
        assert!(line.ends_with("-- /usr/local/bin/mc_project --root / work"), "{line}");
        assert!(!line.contains("canary"), "{line}");
    }
}

//! The services of a project in the care of a real supervisor, without a node around them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mc_project::project::recipe::service::{Kind, Restart, ServiceLimits, StopSignal, Unchanged};
use mc_project::service::backend::{Backend, Failure, LogLine, LogQuery, Look, State};
use mc_project::service::definition::{Definition, Instance, Running};
use mc_project::service::supervisor::{Supervisor, SupervisorPlace};
use mc_project::sys::process::{self, StepWatcher, base_environment};
use mc_project::sys::step_exec::StepOrder;
use tempfile::TempDir;

use super::wait_until;

/// Keeps the lines of what failed.
#[derive(Default)]
pub struct Lines(pub Vec<String>);

impl StepWatcher for Lines {
    fn line(&mut self, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }
}

/// A supervisor's place and its client; everything ends with it.
pub struct Ward {
    dir: TempDir,
    place: SupervisorPlace,
    supervisor: Supervisor,
}

impl Ward {
    /// A place in which nothing runs.
    pub fn new() -> Self {
        Self::at("state/services")
    }

    /// The supervisor's directory is at this path below the private one.
    pub fn at(rel: &str) -> Self {
        process::set_executable(Path::new(env!("CARGO_BIN_EXE_mc_project")));
        let dir = tempfile::Builder::new().prefix("mc-it-").tempdir_in("/var/tmp").unwrap();
        let place = SupervisorPlace {
            project: "shop".parse().unwrap(),
            state: dir.path().join(rel),
            logs: dir.path().join("logs"),
            command: "mc_project".to_string(),
        };
        std::fs::create_dir_all(place.state.parent().unwrap()).unwrap();
        let supervisor = Supervisor::new(place.clone());
        Self { dir, place, supervisor }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> &Path {
        &self.place.state
    }

    pub fn logs(&self) -> &Path {
        &self.place.logs
    }

    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// A service that runs this script in the private directory.
    pub fn service(&self, name: &str, script: &str) -> Definition {
        let argv = ["sh", "-c", script].map(Into::into).to_vec();
        let env = base_environment(self.dir.path()).into_iter().collect();
        Definition {
            instance: Instance { service: name.parse().unwrap(), number: 1 },
            kind: Kind::Simple,
            restart: Restart::Always,
            stop_signal: StopSignal::Term,
            stop_timeout: Duration::from_secs(5),
            start_timeout: Duration::from_secs(20),
            limits: ServiceLimits::default(),
            unchanged: Unchanged::Restart,
            order: StepOrder::new(argv, env, self.dir.path().to_path_buf()),
            running: Running::default(),
            secrets: vec!["hunter2hunter2".to_string()],
        }
    }

    /// Makes these run.
    pub fn converge(&self, wanted: &[Definition]) -> Result<(), (Failure, Vec<String>)> {
        let mut lines = Lines::default();
        self.supervisor.converge(wanted, &mut lines).unwrap().map_err(|failure| (failure, lines.0))
    }

    /// Makes these run, which must succeed.
    #[track_caller]
    pub fn up(&self, wanted: &[Definition]) {
        if let Err((failure, lines)) = self.converge(wanted) {
            panic!("{failure:?} {lines:?}");
        }
    }

    #[track_caller]
    pub fn stop(&self) {
        self.supervisor.stop(&|_, _| true, &mut Lines::default()).unwrap();
    }

    #[track_caller]
    pub fn looks(&self) -> Vec<Look> {
        self.supervisor.look().unwrap()
    }

    /// How the first instance of a service is.
    #[track_caller]
    pub fn look(&self, name: &str) -> Look {
        let looks = self.looks();
        let found = looks.iter().find(|look| look.instance.service.as_str() == name && look.instance.number == 1);
        found.unwrap_or_else(|| panic!("no {name} in {looks:?}")).clone()
    }

    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        let look = self.look(name);
        look.pid.unwrap_or_else(|| panic!("{look:?}")).cast_signed()
    }

    #[track_caller]
    pub fn state_of(&self, name: &str) -> State {
        self.look(name).state
    }

    /// The lines of the logs, own words of the supervisor included.
    pub fn log(&self, query: &LogQuery) -> Vec<LogLine> {
        let mut lines = Vec::new();
        let mut each = |line: &LogLine| {
            lines.push(line.clone());
            true
        };
        self.supervisor.log(query, &mut each).unwrap();
        lines
    }

    /// The texts of the logs of one service.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let query = LogQuery { service: Some(name.parse().unwrap()), ..LogQuery::default() };
        self.log(&query).iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect()
    }

    /// The supervisor's process; `None` if none runs.
    pub fn supervisor_pid(&self) -> Option<i32> {
        self.of_ours("mc_supervisor")
    }

    /// The guard's process.
    pub fn guard_pid(&self) -> Option<i32> {
        self.of_ours("mc_guard")
    }

    /// The process of this name whose complaints go to our file.
    fn of_ours(&self, name: &str) -> Option<i32> {
        let complaints = self.place.state.join("complaints");
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.into_iter().find(|pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let stderr = std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap_or_default();
            comm.trim() == name && stderr == complaints && is_alive(*pid)
        })
    }

    /// Waits until both processes of ours are there; the supervisor and the guard.
    #[track_caller]
    pub fn both(&self) -> (i32, i32) {
        wait_until("supervisor and guard are there", || self.supervisor_pid().is_some() && self.guard_pid().is_some());
        (self.supervisor_pid().unwrap(), self.guard_pid().unwrap())
    }

    /// A file of the private directory as text; empty if there is none.
    pub fn text(&self, rel: &str) -> String {
        std::fs::read_to_string(self.path(rel)).unwrap_or_default()
    }

    pub fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        let _ = self.supervisor.forget(&mut Lines::default());
    }
}

/// Kills a process for good.
pub fn kill_9(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// Whether a process lives; one that only was not waited for does not.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

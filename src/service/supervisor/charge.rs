//! One instance in the supervisor's care: started, watched, started again, ended.
//!
//! It is moved on by three things that happen to it: its first process ends ([`Charge::ended`]), its time passes
//! ([`Charge::tick`]), somebody asks ([`Charge::begin`], [`Charge::stop`]). None of them waits.
//!
//! An end has two parts: the first process ends, then nothing of it is left. What is left of a service that ended by
//! itself is killed at once; what is left of one that was asked to end has until its stop timeout. A service on trial (its
//! start was asked for and is not over) is not started again by itself: that it ended is the answer.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::Signal;

use super::Surroundings;
use super::backoff::Backoff;
use super::memory::{Live, Record};
use super::output::Output;
use crate::project::recipe::service::{Kind, Restart, StopSignal};
use crate::service::backend::{Failure, Look, State};
use crate::service::definition::Definition;
use crate::sys::cgroup::Group;
use crate::sys::clock;
use crate::sys::error::Result;
use crate::sys::escape;
use crate::sys::process::{Beginning, Run, StepStatus};

mod hold;

use hold::Hold;

/// Between two looks at what is left of an instance that ends.
const LOOK: Duration = Duration::from_millis(50);
/// What is to run and does not is started so long after a supervisor has come up: whoever started it may be about to ask
/// for something else.
const SOON: Duration = Duration::from_millis(300);
/// How long whoever asked for a start that failed has to stop it.
const LATER: Duration = Duration::from_secs(5);
/// How long we go on killing before we say that something does not die.
const PERSISTENCE: Duration = Duration::from_secs(10);

/// Why an instance ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// Somebody asked.
    Asked,
    /// It ended, or has to; whether that was well, and how, in words.
    Itself { well: bool, words: String },
}

/// How far an instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Nothing runs, and nothing is waited for.
    Resting(State),
    /// It was started and has to be up by then.
    Starting { until: Instant },
    /// It is up.
    Running,
    /// It is started again then.
    Waiting { until: Instant },
    /// It ends; by then what is left of it is killed, or, if that was done, given up.
    Ending { why: Why, until: Instant, forced: bool },
}

/// One instance.
pub struct Charge {
    definition: Definition,
    digest: String,
    wanted: bool,
    trial: bool,
    phase: Phase,
    live: Option<Live>,
    hold: Option<Hold>,
    output: Output,
    detail: Option<String>,
    since: Timestamp,
    restarts: u32,
    last_end: Option<String>,
    backoff: Backoff,
    /// How long the last run took, by a clock that does not jump.
    ran: Duration,
    /// What does not die.
    stuck: Option<String>,
}

impl Charge {
    /// An instance that does not run.
    ///
    /// # Errors
    /// If its fifo cannot be made.
    pub fn new(definition: Definition, around: &Surroundings) -> Result<Self> {
        let owner = definition.order.run_as.as_ref().map(|user| (user.uid, user.gid));
        let output = Output::open(&around.dir, &around.logs, &definition.instance, owner)?;
        Ok(Self {
            digest: definition.digest()?,
            definition,
            wanted: false,
            trial: false,
            phase: Phase::Resting(State::Stopped),
            live: None,
            hold: None,
            output,
            detail: None,
            since: clock::now(),
            restarts: 0,
            last_end: None,
            backoff: Backoff::default(),
            ran: Duration::ZERO,
            stuck: None,
        })
    }

    /// An instance that another supervisor had in its care; what runs of it goes on. In another boot nothing is started
    /// before somebody asks.
    ///
    /// # Errors
    /// As [`Charge::new`].
    pub fn adopt(record: Record, around: &Surroundings, is_this_boot: bool) -> Result<Self> {
        let mut charge = Self::new(record.definition, around)?;
        charge.wanted = record.wanted && is_this_boot;
        charge.restarts = record.restarts;
        charge.detail = record.detail;
        charge.since = record.since;
        charge.phase = match record.state {
            _ if !is_this_boot => Phase::Resting(State::Stopped),
            State::Done => Phase::Resting(State::Done),
            State::Failed => Phase::Resting(State::Failed),
            _ if !charge.wanted => Phase::Resting(State::Stopped),
            _ => Phase::Waiting { until: Instant::now() + SOON },
        };
        if let Some(live) = record.live.filter(|_| is_this_boot) {
            charge.go_on_with(live);
        }
        Ok(charge)
    }

    fn go_on_with(&mut self, live: Live) {
        let now = Instant::now();
        self.hold = Some(Hold::of_another(&live, &self.definition));
        let up = live.up;
        self.live = Some(live);
        self.phase = match (self.wanted, up) {
            (true, true) => Phase::Running,
            (true, false) => Phase::Starting { until: now + self.definition.start_timeout },
            // It was to end when the supervisor was killed.
            (false, _) => Phase::Ending { why: Why::Asked, until: now + self.definition.stop_timeout, forced: false },
        };
        if !self.wanted {
            self.signal();
        }
    }

    /// The definition.
    #[must_use]
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Takes another definition of the same instance, for the next start.
    ///
    /// # Errors
    /// If it cannot be described.
    pub fn redefine(&mut self, definition: Definition) -> Result<()> {
        self.digest = definition.digest()?;
        self.definition = definition;
        Ok(())
    }

    /// The digest of what runs; that of the definition, if nothing does.
    #[must_use]
    pub fn digest(&self) -> &str {
        self.live.as_ref().map_or(&self.digest, |live| &live.digest)
    }

    /// Whether it runs and is up.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Whether nothing of it runs and nothing is waited for.
    #[must_use]
    pub fn rests(&self) -> bool {
        matches!(self.phase, Phase::Resting(_))
    }

    /// Says whether it is to run, from now on.
    pub fn want(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    /// The trial is over: from now on it is started again by itself.
    pub fn trust(&mut self) {
        self.trial = false;
    }

    /// Its trial, or that of one before it, has failed. Whoever asked has a moment to stop it; then it is started again like
    /// one that ended by itself.
    pub fn try_again_later(&mut self) {
        let is_tried = self.wanted && self.definition.restart != Restart::Never;
        if is_tried && matches!(self.phase, Phase::Resting(State::Failed | State::Stopped)) {
            self.enter(Phase::Waiting { until: Instant::now() + LATER });
        }
    }

    /// What does not die of it.
    #[must_use]
    pub fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    /// How it came to nothing, if it is on trial and did not come up.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        let failed = self.trial && self.phase == Phase::Resting(State::Failed);
        let reason = self.detail.clone().unwrap_or_else(|| "it does not run".to_string());
        failed.then(|| Failure { instance: self.definition.instance.clone(), reason })
    }

    /// The last lines that it wrote.
    pub fn recent(&self) -> impl Iterator<Item = &[u8]> {
        self.output.recent()
    }

    /// Whether it is as far as the next one waits for: its program runs; or it has said that it is up; or has ended well.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match self.definition.kind {
            Kind::Oneshot => self.phase == Phase::Resting(State::Done),
            _ => self.phase == Phase::Running,
        }
    }

    /// Whether it has been up for so long.
    #[must_use]
    pub fn is_settled(&self, time: Duration) -> bool {
        self.is_up() && (self.rests() || self.hold.as_ref().is_some_and(|hold| hold.has_run_for() >= time))
    }

    /// Starts it on trial, because somebody asked. What runs is left alone and is on trial too: whoever asks learns of its
    /// end and does not wait for the next start. False while it ends.
    pub fn begin(&mut self, around: &Surroundings) -> bool {
        if matches!(self.phase, Phase::Ending { .. }) {
            return false;
        }
        self.trial = true;
        if matches!(self.phase, Phase::Resting(_) | Phase::Waiting { .. }) {
            self.restarts = 0;
            self.backoff = Backoff::default();
            self.start(around);
        }
        true
    }

    fn start(&mut self, around: &Surroundings) {
        self.last_end = self.detail.take().filter(|_| self.restarts > 0);
        self.ran = Duration::ZERO;
        self.output.begin();
        let until = Instant::now() + self.definition.start_timeout;
        match self.spawn(around) {
            Ok(()) => self.enter(Phase::Starting { until }),
            Err(error) => {
                self.close();
                self.came_to(false, format!("could not start: {}", error.one_line()), Instant::now());
            }
        }
    }

    fn spawn(&mut self, around: &Surroundings) -> Result<()> {
        let (hold, run) = Hold::begin(&self.definition, around, &mut self.output)?;
        self.live = Some(Live {
            run,
            group: hold.group().map(Group::place),
            since: clock::now(),
            running: self.definition.running.clone(),
            digest: self.digest.clone(),
            up: false,
        });
        self.hold = Some(hold);
        Ok(())
    }

    /// Asks it to end, and not to be started again by itself.
    pub fn stop(&mut self) {
        let until = Instant::now() + self.definition.stop_timeout;
        match &mut self.phase {
            Phase::Resting(State::Stopped) => {}
            Phase::Resting(_) | Phase::Waiting { .. } => self.enter(Phase::Resting(State::Stopped)),
            Phase::Starting { .. } | Phase::Running => {
                self.enter(Phase::Ending { why: Why::Asked, until, forced: false });
                self.signal();
            }
            Phase::Ending { why, .. } => *why = Why::Asked,
        }
        self.trial = false;
        self.stuck = None;
    }

    fn signal(&self) {
        let signal = number_of(self.definition.stop_signal);
        if let Some(live) = &self.live {
            live.run.signal(signal);
            // What is stopped cannot end.
            live.run.signal(Signal::SIGCONT);
        }
    }

    /// Its first process has ended. How is not known of one that is not our child.
    pub fn ended(&mut self, status: Option<StepStatus>) {
        let Some(hold) = self.hold.as_mut().filter(|hold| hold.first_lives()) else { return };
        hold.first_ended();
        self.ran = hold.has_run_for();
        let never = match hold.beginning() {
            Some(Beginning::Never(reason)) => Some(format!("could not start: {reason}")),
            _ => None,
        };
        let was_killed_for_memory = hold.group().is_some_and(|group| group.happened().oom_kills > 0);
        let well = status.as_ref().is_some_and(StepStatus::is_ok) && never.is_none();
        let words = match status {
            _ if never.is_some() => never.unwrap_or_default(),
            Some(StepStatus::Signal(9)) if was_killed_for_memory => self.out_of_memory(),
            Some(StepStatus::Ok) => "exit 0".to_string(),
            Some(status) => status.words(),
            None => "it is not known how: its supervisor was killed before it ended".to_string(),
        };
        if !matches!(self.phase, Phase::Ending { .. }) {
            let why = Why::Itself { well, words: self.words_of(words, well) };
            self.enter(Phase::Ending { why, until: Instant::now() + PERSISTENCE, forced: true });
        }
    }

    fn out_of_memory(&self) -> String {
        StepStatus::OutOfMemory { limit: self.definition.limits.memory }.words()
    }

    /// What an end means for this kind of service, in words.
    fn words_of(&self, words: String, well: bool) -> String {
        if words.starts_with("could not start") {
            return words;
        }
        match self.definition.kind {
            Kind::Oneshot => words,
            _ if self.trial && well => format!("ended after its start ({words}); a service stays in the foreground"),
            _ if self.trial => format!("died after its start ({words})"),
            _ => format!("ended ({words})"),
        }
    }

    /// Whether its first process, which is not our child, is gone.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        let lives = self.hold.as_ref().is_some_and(Hold::first_lives);
        lives && self.live.as_ref().is_some_and(|live| !live.run.first.is_alive())
    }

    /// Its first process.
    #[must_use]
    pub fn first(&self) -> Option<i32> {
        self.hold.as_ref().filter(|hold| hold.first_lives()).and(self.live.as_ref()).map(|live| live.run.first.pid)
    }

    /// Takes what it wrote and said, and does what its time has come for.
    pub fn tick(&mut self, now: Instant, around: &Surroundings) {
        self.output.pump(&around.mask);
        self.listen();
        match self.phase.clone() {
            Phase::Starting { until } => self.tick_starting(now, until),
            Phase::Waiting { until } if until <= now => {
                self.restarts += 1;
                self.start(around);
            }
            Phase::Ending { why, until, forced } => self.tick_ending(now, why, (until, forced), around),
            Phase::Resting(_) | Phase::Running | Phase::Waiting { .. } => {}
        }
    }

    fn listen(&mut self) {
        let uid = self.definition.order.run_as.as_ref().map_or_else(our_uid, |user| user.uid);
        let Some(socket) = self.hold.as_ref().and_then(Hold::notify) else { return };
        let mut ready = false;
        while let Some(notice) = socket.next(uid) {
            ready |= notice.ready;
            if let Some(status) = notice.status {
                self.detail = Some(escape::visible_bounded(status.as_bytes(), 200));
            }
        }
        if ready && matches!(self.phase, Phase::Starting { .. }) {
            self.came_up();
        }
    }

    fn tick_starting(&mut self, now: Instant, until: Instant) {
        match self.hold.as_mut().map(Hold::beginning) {
            // One that was adopted is as far as this, too.
            Some(Some(Beginning::Began) | None) if self.definition.kind == Kind::Simple => self.came_up(),
            // The end of the helper is told by its end.
            _ => {}
        }
        if now >= until && matches!(self.phase, Phase::Starting { .. }) {
            let words = format!("was not up within {} s", self.definition.start_timeout.as_secs());
            let why = Why::Itself { well: false, words };
            self.enter(Phase::Ending { why, until: now + self.definition.stop_timeout, forced: false });
            self.signal();
        }
    }

    fn came_up(&mut self) {
        if let Some(live) = &mut self.live {
            live.up = true;
        }
        if let Some(hold) = &mut self.hold {
            hold.begin_anew();
        }
        self.enter(Phase::Running);
    }

    fn tick_ending(&mut self, now: Instant, why: Why, (until, forced): (Instant, bool), around: &Surroundings) {
        let lives = self.hold.as_ref().is_some_and(Hold::first_lives);
        if !forced && now >= until {
            self.output.say(&format!("was not gone within {} s and is killed", self.definition.stop_timeout.as_secs()));
            self.phase = Phase::Ending { why, until: now + PERSISTENCE, forced: true };
            self.kill();
            return;
        }
        // Looking through all processes is not free: while the first one lives, nothing else has to be known.
        let left = if forced { self.kill() } else { lives || self.is_something_left() };
        if !left && !lives {
            self.output.finish(&around.mask);
            self.close();
            match why {
                Why::Asked => self.enter(Phase::Resting(State::Stopped)),
                Why::Itself { well, words } => self.came_to(well, words, now),
            }
        } else if forced && now >= until {
            let pids: Vec<String> = self.members().iter().map(|member| member.pid.to_string()).collect();
            self.stuck = Some(format!("processes of {} do not die: {}", self.definition.instance, pids.join(", ")));
            self.phase = Phase::Ending { why, until: now + PERSISTENCE, forced };
        }
    }

    fn members(&self) -> Vec<crate::sys::process::Member> {
        self.live.as_ref().and_then(|live| live.run.members().ok()).unwrap_or_default()
    }

    fn is_something_left(&self) -> bool {
        let group = self.hold.as_ref().and_then(Hold::group);
        group.is_some_and(|group| group.members().is_ok_and(|found| !found.is_empty())) || !self.members().is_empty()
    }

    /// Kills all of it; tells whether there was something to kill.
    fn kill(&self) -> bool {
        let group = self.hold.as_ref().and_then(Hold::group);
        let of_group = group.is_some_and(|group| group.kill_once().is_ok_and(|found| !found.is_empty()));
        let members = self.members();
        Run::kill(&members);
        of_group || !members.is_empty()
    }

    fn close(&mut self) {
        self.hold = None;
        self.live = None;
        self.stuck = None;
    }

    /// It has ended by itself and nothing of it is left.
    fn came_to(&mut self, well: bool, words: String, now: Instant) {
        let again = match self.definition.restart {
            _ if !self.wanted || self.trial => false,
            Restart::Always => true,
            Restart::OnFailure => !well,
            Restart::Never => false,
        };
        let is_done = well && !again && (!self.trial || self.definition.kind == Kind::Oneshot);
        if again {
            let pause = self.backoff.next(self.ran);
            self.output.say(&format!("{words}; starts again in {} s", pause.as_secs()));
            self.enter(Phase::Waiting { until: now + pause });
        } else {
            self.output.say(&words);
            self.enter(Phase::Resting(if is_done { State::Done } else { State::Failed }));
        }
        self.detail = Some(words);
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = clock::now();
    }

    /// When its time comes.
    #[must_use]
    pub fn wakes_at(&self, now: Instant) -> Option<Instant> {
        match &self.phase {
            Phase::Resting(_) | Phase::Running => None,
            Phase::Starting { until } | Phase::Waiting { until } => Some(*until),
            Phase::Ending { until, forced, .. } => {
                let lives = self.hold.as_ref().is_some_and(Hold::first_lives);
                let pause = if self.stuck.is_some() { LOOK * 20 } else { LOOK };
                Some(if lives && !forced { *until } else { now + pause })
            }
        }
    }

    /// What is to be polled for it.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let is_starting = matches!(self.phase, Phase::Starting { .. });
        let of_hold = self.hold.iter().flat_map(move |hold| hold.descriptors(is_starting));
        of_hold.chain([self.output.as_fd()])
    }

    fn state(&self) -> State {
        match &self.phase {
            Phase::Resting(state) => *state,
            Phase::Starting { .. } => State::Starting,
            Phase::Running => State::Running,
            Phase::Waiting { .. } => State::Waiting,
            Phase::Ending { .. } => State::Stopping,
        }
    }

    /// How it is.
    #[must_use]
    pub fn look(&self) -> Look {
        let live = self.live.as_ref();
        let group = self.hold.as_ref().and_then(Hold::group);
        let usage = live.map(|live| live.run.usage());
        Look {
            instance: self.definition.instance.clone(),
            state: self.state(),
            detail: self.stuck.clone().or_else(|| self.detail.clone()),
            since: Some(self.since),
            pid: live.map(|live| live.run.first.pid.unsigned_abs()),
            restarts: self.restarts,
            last_end: self.last_end.clone(),
            memory: group.and_then(Group::memory).or(usage.map(|usage| usage.memory)),
            cpu_ms: group.and_then(Group::cpu_ms).or(usage.map(|usage| usage.cpu_ms)),
            running: live.map_or_else(|| self.definition.running.clone(), |live| live.running.clone()),
            digest: self.digest().to_string(),
        }
    }

    /// Differs whenever something is to be written down.
    #[must_use]
    pub fn stamp(&self) -> (State, Timestamp, u32) {
        (self.state(), self.since, self.restarts)
    }

    /// What is written down of it.
    #[must_use]
    pub fn record(&self) -> Record {
        Record {
            definition: self.definition.clone(),
            wanted: self.wanted,
            live: self.live.clone(),
            state: self.state(),
            detail: self.detail.clone(),
            since: self.since,
            restarts: self.restarts,
        }
    }
}

fn our_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn number_of(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::SIGTERM,
        StopSignal::Int => Signal::SIGINT,
        StopSignal::Quit => Signal::SIGQUIT,
        StopSignal::Hup => Signal::SIGHUP,
        StopSignal::Usr1 => Signal::SIGUSR1,
        StopSignal::Usr2 => Signal::SIGUSR2,
        StopSignal::Winch => Signal::SIGWINCH,
    }
}

//! Asking the supervisor: finding it, starting it where none runs, asking again where it was killed meanwhile.

use std::time::{Duration, Instant};

use super::memory::Memory;
use super::protocol::{Ask, Greeting, LINE, Say};
use super::{LOCK, SOCKET, SupervisorPlace, guard};
use crate::service::backend::Failure;
use crate::service::backend::Look;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::process::{StepWatcher, TICK, Tick};
use crate::sys::socket::{Channel, Received, short_path};
use crate::sys::{fs, lock};

/// How long a supervisor may take to come up, or to say who it is.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a supervisor that works may say nothing: it is stopped then, or waits for a disk that does not answer.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a question is asked again, of a supervisor that was killed over it.
const TIMES: usize = 5;

/// How a question ended.
pub enum Answer {
    /// It is done.
    Done,
    /// A service did not come up.
    Failed(Failure),
    /// How they are.
    Looks(Vec<Look>),
}

/// Asks, and waits for the answer; starts a supervisor if none runs.
///
/// # Errors
/// If none can be started, or it cannot do what is asked.
pub fn ask(place: &SupervisorPlace, ask: &Ask, on: &mut dyn StepWatcher) -> Result<Answer> {
    for _ in 0..TIMES {
        let channel = reach(place)?;
        if let Some(answer) = ask_at(place, channel, ask, on)? {
            return Ok(answer);
        }
    }
    Err(Error::failed(format!("the supervisor of {} was killed {TIMES} times while it worked", place.project)))
}

/// Asks a supervisor if one runs; `None` if none does. One of another version hands over first.
///
/// # Errors
/// If it does not answer.
pub fn ask_if_there(place: &SupervisorPlace, ask: &Ask, on: &mut dyn StepWatcher) -> Result<Option<Answer>> {
    if connect(place)?.is_none() {
        return Ok(None);
    }
    ask_at(place, reach(place)?, ask, on)
}

/// A supervisor of our version that answers.
///
/// # Errors
/// If there is none and none can be started.
pub fn reach(place: &SupervisorPlace) -> Result<Channel> {
    let deadline = Instant::now() + PATIENCE;
    fs::ensure_dir(&place.state, 0o700)?;
    let mut started: Option<Instant> = None;
    loop {
        if let Some(channel) = connect(place)? {
            match greet(place, channel)? {
                Some(channel) => return Ok(channel),
                None => started = None,
            }
        } else if started.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
            // It may be one that a guard has just started; of two, one goes.
            guard::start(place)?;
            started = Some(Instant::now());
        }
        if Instant::now() > deadline {
            return Err(Error::failed(format!("the supervisor of {} does not come up", place.project))
                .hint(format!("see {}", place.state.join("complaints").display())));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The channel, if the supervisor there is of our version. One of another version is asked to hand over.
fn greet(place: &SupervisorPlace, mut channel: Channel) -> Result<Option<Channel>> {
    let Some(theirs) = hello(place, &mut channel)? else { return Ok(None) };
    if theirs.fits(&Greeting::ours()) {
        return Ok(Some(channel));
    }
    send(&mut channel, &Ask::HandOver)?;
    let deadline = Instant::now() + PATIENCE;
    while lock::holder(&place.state.join(LOCK))?.is_some_and(|holder| holder.pid == theirs.pid) {
        if Instant::now() > deadline {
            let message =
                format!("the supervisor of {} (version {}) does not hand over", place.project, theirs.version);
            return Err(Error::failed(message).hint(format!("kill -9 {}", theirs.pid)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

/// Who is there; `None` if nobody is any more.
fn hello(place: &SupervisorPlace, channel: &mut Channel) -> Result<Option<Greeting>> {
    if send(channel, &Ask::Hello).is_err() {
        return Ok(None);
    }
    match channel.receive(PATIENCE)? {
        Received::End => Ok(None),
        Received::Line(line) => match serde_json::from_slice(&line) {
            Ok(Say::Hello(greeting)) => Ok(Some(greeting)),
            _ => Err(Error::failed(format!("the supervisor of {} does not say who it is", place.project))),
        },
        Received::Nothing => Err(no_answer(place, channel)),
    }
}

fn no_answer(place: &SupervisorPlace, channel: &Channel) -> Error {
    let pid = channel.peer().map(|peer| peer.pid).unwrap_or_default();
    Error::failed(format!("the supervisor of {} (process {pid}) does not answer", place.project))
        .hint(format!("the services go on without it: kill -9 {pid}; {} start {}", place.command, place.project))
}

/// A connection to the supervisor that listens; `None` if none does.
fn connect(place: &SupervisorPlace) -> Result<Option<Channel>> {
    if !fs::exists(&place.state) {
        return Ok(None);
    }
    let dir = Dir::open_real(&place.state)?;
    // Nobody listens, or the socket is not there: both are an end of what was there before.
    Ok(Channel::connect(&short_path(&dir, SOCKET), LINE).ok())
}

fn send(channel: &mut Channel, ask: &Ask) -> Result<()> {
    let text = serde_json::to_vec(ask).context(|| "cannot ask the supervisor".to_string())?;
    channel.send(&text, PATIENCE)
}

/// Asks at a connection; `None` if the supervisor died over it.
fn ask_at(
    place: &SupervisorPlace,
    mut channel: Channel,
    ask: &Ask,
    on: &mut dyn StepWatcher,
) -> Result<Option<Answer>> {
    if send(&mut channel, ask).is_err() {
        return Ok(None);
    }
    let mut ticked = Instant::now();
    let mut heard = Instant::now();
    loop {
        match channel.receive(Duration::from_secs(1))? {
            Received::End => return Ok(None),
            Received::Nothing if heard.elapsed() > SILENCE => return Err(no_answer(place, &channel)),
            Received::Nothing => {}
            Received::Line(line) => {
                heard = Instant::now();
                let said: Say = serde_json::from_slice(&line)
                    .context(|| format!("cannot understand the supervisor of {}", place.project))?;
                match said {
                    Say::Done => return Ok(Some(Answer::Done)),
                    Say::Looks(looks) => return Ok(Some(Answer::Looks(looks))),
                    Say::Failed(failed) => return Ok(Some(Answer::Failed(failed.into()))),
                    Say::Error(message) => return Err(Error::failed(message)),
                    Say::Line(line) => on.line(line.as_bytes()),
                    Say::Busy | Say::Hello(_) => {}
                }
            }
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            if on.tick() == Tick::Cancel && matches!(ask, Ask::Converge { .. } | Ask::Start { .. }) {
                return Err(Error::failed("cancelled while services were started"));
            }
        }
    }
}

/// How the services are by what the last supervisor wrote down.
///
/// # Errors
/// If that cannot be read.
pub fn remembered(place: &SupervisorPlace) -> Result<Vec<Look>> {
    Ok(Memory::read(&place.state)?.map(|memory| memory.looks()).unwrap_or_default())
}

/// Starts a supervisor if services are to run that none watches; tells whether it did.
///
/// # Errors
/// If it cannot be started.
pub fn heal(place: &SupervisorPlace) -> Result<bool> {
    if connect(place)?.is_some() || !Memory::read(&place.state)?.is_some_and(|memory| memory.needs_a_supervisor()) {
        return Ok(false);
    }
    reach(place).map(|_| true)
}

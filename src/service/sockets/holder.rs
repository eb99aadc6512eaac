//! The holder: one process that holds the sockets of a project, and does nothing else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{AbortHandle, LocalSet};
use tokio::time::{sleep, timeout};

use super::forward::{Front, Gate, Ports};
use super::{Ask, Held, LINE, PATIENCE, SOCKET, Wanted, complain};
use crate::project::recipe::ServiceName;
use crate::project::recipe::service::listen::Listen;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, ExitCode, Result};
use crate::sys::socket::pass::{listen_tcp, listen_unix, send_descriptors};
use crate::sys::socket::{Listener, notify, short_path};
use crate::sys::{fs, process};

/// The name of the hidden subcommand.
pub const SUBCOMMAND: &str = "hold-sockets";
/// How often what is wanted is looked at without a question.
const LOOK: Duration = Duration::from_millis(500);
/// After so many looks what could not be held is tried again.
const SELDOM: u64 = 20;

/// The words that start the holder.
#[must_use]
pub fn command(program: &Path, dir: &Path) -> Vec<OsString> {
    vec![program.into(), SUBCOMMAND.into(), dir.into()]
}

/// The body of the hidden subcommand.
#[must_use]
pub fn main(args: &[OsString]) -> u8 {
    let held = match args {
        [dir] => hold(&PathBuf::from(dir)),
        _ => Err(Error::usage(format!("{SUBCOMMAND} takes a directory"))),
    };
    match held {
        Ok(()) => ExitCode::Done as u8,
        Err(error) => {
            complain(&error);
            ExitCode::Failed as u8
        }
    }
}

fn hold(path: &Path) -> Result<()> {
    process::name_self("mc_sockets")?;
    let dir = Dir::open_real(path)?;
    let listener = Listener::bind(&short_path(&dir, SOCKET), rustix::process::getegid().as_raw())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "cannot start the runtime".to_string())?;
    LocalSet::new().block_on(&runtime, async {
        let doing = || "cannot watch a socket".to_string();
        let listener = listener.into_std();
        listener.set_nonblocking(true).context(doing)?;
        let asked = UnixListener::from_std(listener).context(doing)?;
        let holding = Rc::new(Holding::new(path));
        // What cannot be held is told to whoever asks for it.
        holding.converge(true);
        notify::say_ready();
        tokio::task::spawn_local(Rc::clone(&holding).look_again());
        let mut ends = signal(SignalKind::terminate()).context(doing)?;
        loop {
            tokio::select! {
                _ = ends.recv() => {
                    holding.sockets.borrow_mut().clear();
                    return Ok(());
                }
                connected = asked.accept() => match connected {
                    Ok((stream, _)) => drop(tokio::task::spawn_local(answer(stream, Rc::clone(&holding)))),
                    Err(_) => sleep(LOOK).await,
                },
            }
        }
    })
}

/// One socket.
struct Socket {
    held: Held,
    /// Ours, for those who take it.
    descriptor: OwnedFd,
    /// Which file it is, of a unix socket.
    file: Option<FileId>,
    /// Passes connections on, to these ports.
    front: Option<(AbortHandle, Rc<Ports>)>,
}

/// A file's device and inode.
type FileId = (u64, u64);

fn file_at(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    fs::examine(path).ok().flatten().map(|meta| (meta.dev(), meta.ino()))
}

impl Socket {
    /// Whether whoever connects still comes here: data that were brought back have another file there, or none.
    fn is_reached(&self) -> bool {
        self.held.path.as_ref().is_none_or(|path| file_at(path) == self.file)
    }

    /// Passes connections on to the ports, or leaves them to whoever takes the socket.
    fn front(&mut self, gate: &Rc<Gate>) -> Result<()> {
        let ports = &self.held.ports;
        match (&self.front, ports.is_empty()) {
            (Some((task, _)), true) => {
                task.abort();
                self.front = None;
            }
            (Some((_, known)), false) => known.set(ports),
            (None, true) => {}
            (None, false) => {
                let copy = self.descriptor.try_clone().context(|| "cannot watch a socket".to_string())?;
                let known = Rc::new(Ports::default());
                known.set(ports);
                let serving = Front::new(copy, self.held.path.is_some())?.serve(Rc::clone(&known), Rc::clone(gate));
                self.front = Some((tokio::task::spawn_local(serving).abort_handle(), known));
            }
        }
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some((task, _)) = &self.front {
            task.abort();
        }
        if let Some(path) = self.held.path.as_ref().filter(|_| self.is_reached()) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What is held now.
struct Holding {
    path: PathBuf,
    sockets: RefCell<BTreeMap<String, Socket>>,
    /// What cannot be held, and why.
    troubles: RefCell<BTreeMap<String, (ServiceName, String)>>,
    gate: Rc<Gate>,
}

impl Holding {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            sockets: RefCell::default(),
            troubles: RefCell::default(),
            gate: Rc::default(),
        }
    }

    /// Looks from time to time; what could not be held is tried again seldom, because a living service has it.
    async fn look_again(self: Rc<Self>) {
        for turn in 0_u64.. {
            sleep(LOOK).await;
            self.converge(turn % SELDOM == 0);
        }
    }

    /// Holds exactly what is wanted, as far as it can be had.
    fn converge(&self, tries_again: bool) {
        // What cannot be read changes nothing.
        let Ok(wanted) = Wanted::read(&self.path) else { return };
        let mut sockets = self.sockets.borrow_mut();
        let before = self.troubles.take();
        let mut troubles = BTreeMap::new();
        let is_wanted =
            |key: &str, socket: &Socket| socket.is_reached() && wanted.sockets.iter().any(|held| held.listen == key);
        sockets.retain(|key, socket| is_wanted(key, socket));
        for held in &wanted.sockets {
            let known = before.get(&held.listen).filter(|_| !tries_again);
            let done = match (sockets.get_mut(&held.listen), known) {
                (Some(socket), _) => {
                    socket.held = held.clone();
                    socket.front(&self.gate)
                }
                (None, Some((_, why))) => Err(Error::failed(why.clone())),
                (None, None) => self.begin(held).map(|socket| drop(sockets.insert(held.listen.clone(), socket))),
            };
            if let Err(error) = done {
                troubles.insert(held.listen.clone(), (held.service.clone(), error.one_line()));
            }
        }
        *self.troubles.borrow_mut() = troubles;
    }

    fn begin(&self, held: &Held) -> Result<Socket> {
        let descriptor = match (held.address()?, &held.path) {
            (Listen::Tcp(address), _) => listen_tcp(address)?,
            (Listen::Unix(_), Some(path)) => listen_unix(path)?,
            (Listen::Unix(_), None) => return Err(Error::bug("a unix socket without a path")),
        };
        let file = held.path.as_deref().and_then(file_at);
        let mut socket = Socket { held: held.clone(), descriptor, file, front: None };
        socket.front(&self.gate)?;
        Ok(socket)
    }

    /// Why something of a service, or of any, cannot be held.
    fn trouble(&self, service: Option<&ServiceName>) -> Option<String> {
        let troubles = self.troubles.borrow();
        troubles.values().find(|(of, _)| service.is_none_or(|service| service == of)).map(|(_, why)| why.clone())
    }
}

async fn answer(stream: UnixStream, holding: Rc<Holding>) {
    let mut reader = BufReader::new(stream).take(LINE as u64);
    let mut line = String::new();
    let read = timeout(PATIENCE, reader.read_line(&mut line)).await;
    let stream = reader.into_inner().into_inner();
    let Ok(Ok(_)) = read else { return };
    let Ok(ask) = serde_json::from_str::<Ask>(&line) else {
        return say(&stream, Some("it is not understood".to_string()));
    };
    holding.converge(true);
    match ask {
        Ask::Take(service) => hand_over(&stream, &holding, &service),
        Ask::Check => say(&stream, holding.trouble(None)),
        Ask::Pause(ms) => pause(stream, &holding, Duration::from_millis(ms)).await,
    }
}

fn say(stream: &UnixStream, trouble: Option<String>) {
    let text = trouble.map_or_else(|| "+".to_string(), |why| format!("!{why}"));
    let _ = send_descriptors(stream.as_fd(), text.as_bytes(), &[]);
}

fn hand_over(stream: &UnixStream, holding: &Holding, service: &ServiceName) {
    if let Some(why) = holding.trouble(Some(service)) {
        return say(stream, Some(why));
    }
    let sockets = holding.sockets.borrow();
    // In the order of the recipe, which is that of the file.
    let Ok(wanted) = Wanted::read(&holding.path) else { return };
    let of_service = wanted.sockets.iter().filter(|held| held.service == *service && held.ports.is_empty());
    let found: Vec<BorrowedFd<'_>> =
        of_service.filter_map(|held| sockets.get(&held.listen)).map(|socket| socket.descriptor.as_fd()).collect();
    if found.is_empty() {
        return say(stream, Some(format!("no socket is held for {service}")));
    }
    let _ = send_descriptors(stream.as_fd(), b"+", &found);
}

/// Keeps the gate closed until the other side ends the connection.
async fn pause(mut stream: UnixStream, holding: &Holding, at_most: Duration) {
    struct Closed<'a>(&'a Gate);
    impl Drop for Closed<'_> {
        fn drop(&mut self) {
            self.0.open();
        }
    }
    holding.gate.close();
    let _closed = Closed(&holding.gate);
    let _ = timeout(at_most, holding.gate.drained()).await;
    say(&stream, None);
    let mut rest = [0_u8; 16];
    while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
}

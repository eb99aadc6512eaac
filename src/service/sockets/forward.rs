//! Passing connections on to a service that listens by itself: they wait while it does not run.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::sys::error::{Context, Result};

/// The most connections at the same time; further ones wait in the kernel.
const MOST: usize = 4096;
/// So many bytes are copied at once.
const PIECE: usize = 16 * 1024;
/// Between two attempts to reach the service.
const AGAIN: Duration = Duration::from_millis(15);
/// How long a connection waits for the service.
const PATIENCE: Duration = Duration::from_mins(2);
/// After an accept that failed: no descriptor is left.
const BREATH: Duration = Duration::from_millis(50);

/// So long after its last byte an answer is taken to be whole.
const QUIET: Duration = Duration::from_millis(100);
/// How long a client is heard to whom the service has said all.
const LINGER: Duration = Duration::from_secs(30);
/// Between two looks whether everything is quiet.
const LOOK: Duration = Duration::from_millis(10);

/// Whether connections are passed on, and which are.
#[derive(Debug, Default)]
pub struct Gate {
    pauses: Cell<usize>,
    opened: Notify,
    passed_on: RefCell<Vec<Rc<Flow>>>,
}

impl Gate {
    /// Closes the gate once more; it opens when every pause is over.
    pub fn close(&self) {
        self.pauses.set(self.pauses.get() + 1);
    }

    /// One pause is over.
    pub fn open(&self) {
        self.pauses.set(self.pauses.get().saturating_sub(1));
        self.opened.notify_waiters();
    }

    /// Waits until no connection that is passed on waits for an answer. One that is kept open for further questions does not.
    pub async fn drained(&self) {
        while self.passed_on.borrow().iter().any(|flow| flow.is_busy()) {
            sleep(LOOK).await;
        }
    }

    async fn until_open(&self) {
        loop {
            let opened = self.opened.notified();
            if self.pauses.get() == 0 {
                return;
            }
            opened.await;
        }
    }
}

/// What happens on a connection that is passed on.
#[derive(Debug)]
struct Flow {
    /// Whether the service has to answer: the last bytes were the client's.
    is_asked: Cell<bool>,
    moved: Cell<Instant>,
}

impl Flow {
    fn moved(&self, is_question: bool) {
        self.is_asked.set(is_question);
        self.moved.set(Instant::now());
    }

    fn is_busy(&self) -> bool {
        self.is_asked.get() || self.moved.get().elapsed() < QUIET
    }
}

/// A connection that is passed on, counted as long as it is.
struct PassedOn<'a> {
    gate: &'a Gate,
    flow: Rc<Flow>,
}

impl<'a> PassedOn<'a> {
    fn begin(gate: &'a Gate) -> Self {
        // Whoever connects early and asks nothing yet, as browsers do, keeps nobody waiting for long.
        let flow = Rc::new(Flow { is_asked: Cell::new(false), moved: Cell::new(Instant::now()) });
        gate.passed_on.borrow_mut().push(Rc::clone(&flow));
        Self { gate, flow }
    }
}

impl Drop for PassedOn<'_> {
    fn drop(&mut self) {
        self.gate.passed_on.borrow_mut().retain(|flow| !Rc::ptr_eq(flow, &self.flow));
    }
}

/// The ports of a service, asked in turn.
#[derive(Debug, Default)]
pub struct Ports {
    all: RefCell<Vec<u16>>,
    next: Cell<usize>,
}

impl Ports {
    /// These from now on.
    pub fn set(&self, ports: &[u16]) {
        ports.clone_into(&mut self.all.borrow_mut());
    }

    fn next(&self) -> Option<u16> {
        let all = self.all.borrow();
        let next = self.next.get();
        self.next.set(next.wrapping_add(1));
        (!all.is_empty()).then(|| all[next % all.len()])
    }
}

/// A socket whose connections are passed on.
pub enum Front {
    /// By TCP.
    Tcp(TcpListener),
    /// By a unix socket.
    Unix(UnixListener),
}

impl Front {
    /// Takes a listening socket.
    ///
    /// # Errors
    /// If the runtime cannot watch it.
    pub fn new(socket: OwnedFd, is_unix: bool) -> Result<Self> {
        let doing = || "cannot watch a socket".to_string();
        Ok(if is_unix {
            Self::Unix(UnixListener::from_std(socket.into()).context(doing)?)
        } else {
            Self::Tcp(TcpListener::from_std(socket.into()).context(doing)?)
        })
    }

    /// Accepts for ever.
    pub async fn serve(self, ports: Rc<Ports>, gate: Rc<Gate>) {
        let room = Arc::new(Semaphore::new(MOST));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            let way = (Rc::clone(&ports), Rc::clone(&gate), place);
            let accepted = match &self {
                Self::Tcp(listener) => listener.accept().await.map(|(client, _)| {
                    let _ = client.set_nodelay(true);
                    begin(client, way);
                }),
                Self::Unix(listener) => listener.accept().await.map(|(client, _)| begin(client, way)),
            };
            if accepted.is_err() {
                sleep(BREATH).await;
            }
        }
    }
}

/// Passes a connection on beside all others; its place is free again when it ends.
fn begin(
    client: impl AsyncRead + AsyncWrite + 'static,
    (ports, gate, place): (Rc<Ports>, Rc<Gate>, OwnedSemaphorePermit),
) {
    tokio::task::spawn_local(async move {
        pass_on(client, &ports, &gate).await;
        drop(place);
    });
}

/// Reaches the service as soon as it can be reached, and copies until both sides are at their end.
async fn pass_on(client: impl AsyncRead + AsyncWrite, ports: &Ports, gate: &Gate) {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        gate.until_open().await;
        // Counted before the attempt: whoever waits for the end must not miss one that is just beginning.
        let passed_on = PassedOn::begin(gate);
        if let Some(port) = ports.next()
            && let Ok(service) = TcpStream::connect(("127.0.0.1", port)).await
        {
            let _ = service.set_nodelay(true);
            let ((from_client, to_client), (from_service, to_service)) = (split(client), split(service));
            let questions = copy(from_client, to_service, &passed_on.flow, true);
            let answers = copy(from_service, to_client, &passed_on.flow, false);
            until_both_end(questions, answers).await;
            return;
        }
        drop(passed_on);
        sleep(AGAIN).await;
    }
}

/// Until both directions are at their end, or one breaks. A client whose service has said all may be silent for [`LINGER`].
async fn until_both_end(
    questions: impl Future<Output = std::io::Result<()>>,
    answers: impl Future<Output = std::io::Result<()>>,
) {
    let (mut questions, mut answers) = (pin!(questions), pin!(answers));
    tokio::select! {
        ended = &mut answers => if ended.is_ok() {
            let _ = timeout(LINGER, questions).await;
        },
        ended = &mut questions => if ended.is_ok() {
            let _ = answers.await;
        },
    }
}

/// Copies one direction to its end.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    flow: &Flow,
    is_question: bool,
) -> std::io::Result<()> {
    let mut piece = vec![0_u8; PIECE];
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        flow.moved(is_question);
        to.write_all(&piece[..n]).await?;
    }
}

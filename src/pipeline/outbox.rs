//! Sending what [`super::tell`] wrote: at once after a deployment, and again later without waiting for another one.
//!
//! What could not be sent is left to the postman, a process that ends when nothing waits any more: a transient unit where
//! systemd runs a whole-machine node, else a detached process. Who sends holds `state/spool/.door`, so that
//! nothing is sent twice. Each attempt is a line in `mail.log` beside the project's logs.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::site::{Node, Site};
use crate::project::mail::{MailTransport, SmtpTls};
use crate::project::node::{Password, Tls, Transport};
use crate::report::notice::Notice;
use crate::report::post;
use crate::report::spool::{self, Round, Waiting};
use crate::report::webhook::{Secret, Target};
use crate::sys::error::{Error, Result};
use crate::sys::lock::Lock;
use crate::sys::process::{self, DetachedOrder, StepStatus, base_environment, run_captured, spawn_detached};
use crate::sys::{clock, escape, fs, machine, pipe};

/// The hidden command of the postman.
pub const POSTMAN: &str = "postman";

/// The hidden command that sends one mail.
pub const SEND_ONE: &str = "send-one";

/// How long a process may take to begin.
const STARTING: Duration = Duration::from_secs(5);
/// The most memory that sending a mail may take.
pub const SENDER_MEMORY: u64 = 1 << 30;
/// How long one worker tries to send after its deployment.
const BUDGET: Duration = Duration::from_secs(30);
/// How long a person's own attempt may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// How long systemd may take.
const SYSTEMD: Duration = Duration::from_mins(1);
/// How often the postman looks whether something new came or the project is gone.
const LOOK: Duration = Duration::from_secs(2);
/// A log that is longer begins anew; the one before is kept as `mail.log.1`.
const LOG_LIMIT: u64 = 1 << 20;

/// The way out as the sender of mail knows it.
#[must_use]
pub fn transport(node: &Node) -> MailTransport {
    match &node.config.mail.transport {
        Transport::None => MailTransport::None,
        Transport::Maildir(path) => {
            MailTransport::Maildir { path: path.clone().unwrap_or_else(|| node.place.maildir()) }
        }
        Transport::Sendmail(program) => MailTransport::Sendmail { program: program.clone() },
        Transport::Smtp(smtp) => MailTransport::Smtp {
            host: smtp.host.clone(),
            port: smtp.port,
            tls: match smtp.tls {
                Tls::None => SmtpTls::None,
                Tls::Starttls => SmtpTls::Starttls,
                Tls::Tls => SmtpTls::Tls,
            },
            login: smtp.login.clone(),
            ca_file: smtp.ca_file.clone(),
            timeout: smtp.timeout,
        },
    }
}

/// The node's own webhook, with its secret.
///
/// # Errors
/// If there is none, or its secret cannot be read.
pub fn node_target(node: &Node) -> Result<Target> {
    let webhook = node.config.webhook.as_ref().ok_or_else(|| {
        Error::usage("this node has no webhook").hint("node.yaml: webhook: {url: https://…, secret_file: /…}")
    })?;
    let secret = match &webhook.secret {
        None => None,
        Some(Password::Text(text)) => Some(Secret(text.clone())),
        Some(Password::File(file)) => Some(Secret(post::password(file)?)),
    };
    Ok(Target { url: webhook.hook.url.clone(), secret, ca_file: webhook.ca_file.clone() })
}

/// Sends what is due. The caller holds no lock of the project.
///
/// # Errors
/// If the spool cannot be read; that something cannot be sent is no error.
pub fn send_due(site: &Site) -> Result<Round> {
    send(site, BUDGET)
}

/// Sends everything that waits or was given up, whether it is due or not.
///
/// # Errors
/// As [`send_due`].
pub fn flush(site: &Site) -> Result<Round> {
    fs::ensure_dir(&site.place.spool(), 0o700)?;
    {
        let _door = door(site, PATIENCE)?;
        spool::make_due(&site.place, clock::now())?;
    }
    send(site, PATIENCE)
}

fn door(site: &Site, at_most: Duration) -> Result<Lock> {
    Lock::take(&site.place.spool().join(".door"), Some(Instant::now() + at_most), |_| Ok(()))
}

fn send(site: &Site, budget: Duration) -> Result<Round> {
    if spool::list(&site.place)?.is_empty() {
        return Ok(Round::default());
    }
    let _one_at_a_time = door(site, budget)?;
    let way = transport(&site.node);
    let round = spool::retry(&site.place, clock::now(), budget, &mut |waiting| {
        let sent = match (&waiting.notice, &way) {
            (Notice::Mail(_), MailTransport::Smtp { timeout, .. }) => send_apart(site, waiting, *timeout),
            _ => waiting.notice.send(&way),
        };
        let about = format!("the {} about {}", waiting.notice.shown(), waiting.deployment);
        match &sent {
            Ok(said) => log(site, &format!("sent {about}: {said}")),
            Err(error) => {
                let attempt = waiting.attempts + 1;
                log(site, &format!("could not send {about} (attempt {attempt}): {}", error.one_line()));
            }
        }
        sent.map(|_| ())
    })?;
    round.given_up.iter().for_each(|waiting| log_given_up(site, waiting));
    Ok(round)
}

/// Sends a mail in a process of its own, which is killed when its time is over: a server may talk for ever, and neither its
/// words nor a thread that listens to them stay with us.
fn send_apart(site: &Site, waiting: &Waiting, timeout: Duration) -> Result<String> {
    let (root, name, file) = (site.place.node().root(), site.place.name(), waiting.file_name());
    let args = ["--root".as_ref(), root.as_os_str(), SEND_ONE.as_ref(), name.as_str().as_ref(), file.as_ref()];
    let ended = pipe::run(process::self_exe(), &args, b"", timeout * post::DELIVERY_FACTOR + STARTING)?;
    let said = String::from_utf8_lossy(&ended.output).trim().to_string();
    match ended.code {
        Some(0) => Ok(said),
        Some(_) if !said.is_empty() => Err(Error::failed(said)),
        _ => Err(Error::failed("the mail server did not take the mail: what it said took too much memory")),
    }
}

/// What that process does: sends the one that waits in this file, and tells what the server said.
///
/// # Errors
/// If it was not taken.
pub fn send_one(site: &Site, file_name: &str) -> Result<String> {
    process::limit_memory(SENDER_MEMORY)?;
    let waiting = spool::one(&site.place, file_name)?;
    waiting.ok_or_else(|| Error::failed("it does not wait any more"))?.notice.send(&transport(&site.node))
}

/// Says that something will not be tried again.
pub fn log_given_up(site: &Site, waiting: &Waiting) {
    let text = format!("gave up the {} about {}: {}", waiting.notice.shown(), waiting.deployment, waiting.error);
    tracing::error!("{}: {text}", site.place.name());
    log(site, &text);
}

/// One line in the log of what was sent. That it cannot be written keeps nothing back.
fn log(site: &Site, text: &str) {
    let path = site.place.mail_log();
    if fs::size_of(&path).is_ok_and(|size| size > LOG_LIMIT) {
        let _ = fs::rename_durable(&path, &path.with_extension("log.1"));
    }
    let line = format!("{} {}\n", clock::now().strftime("%Y-%m-%d %H:%M:%S UTC"), escape::visible(text));
    let _ = fs::open_append(&path, 0o640).and_then(|mut file| {
        file.write_all(line.as_bytes()).map_err(|error| Error::failed("cannot write the log").because(error))
    });
}

/// Sends after a deployment, and sees to it that what could not be sent is tried again.
///
/// # Errors
/// If the spool cannot be read or the postman not be started.
pub fn send_after_deployment(site: &Site) -> Result<()> {
    let sent = send_due(site);
    ensure_postman(site)?;
    sent.map(|_| ())
}

/// Starts the postman if something waits.
///
/// # Errors
/// If it cannot be started.
pub fn ensure_postman(site: &Site) -> Result<()> {
    if spool::list(&site.place)?.is_empty() {
        return Ok(());
    }
    let (root, name) = (site.place.node().root(), site.place.name());
    let args = [OsString::from("--root"), root.into(), POSTMAN.into(), name.as_str().into()];
    let mut env = base_environment(Path::new("/"));
    env.extend(std::env::var("SSL_CERT_FILE").ok().map(|file| ("SSL_CERT_FILE".to_string(), file)));
    let by_systemd = site.node.system.is_some() && root == Path::new("/") && machine::runs_systemd();
    if !by_systemd {
        spawn_detached(&DetachedOrder { args: args.to_vec(), env, ..DetachedOrder::default() })?;
        return Ok(());
    }
    let unit = format!("mc_project-postman-{name}.service");
    let mut words: Vec<OsString> =
        ["--quiet", "--collect", "--no-block", "-p", "Restart=on-failure", "-p", "RestartSec=30"]
            .map(OsString::from)
            .into();
    words.push(format!("--unit={unit}").into());
    words.push("--slice=mc_project.slice".into());
    words.push(format!("--description=mc_project sends what waits of {name}").into());
    words.extend(["--".into(), site.node.program()?.into_os_string()]);
    words.extend(args);
    let ended = run_captured("systemd-run", &words, &env, b"", SYSTEMD)?;
    // One that is there already sees what is new.
    if ended.status == StepStatus::Ok || ended.last_words().contains("already") {
        return Ok(());
    }
    Err(Error::failed(format!("cannot start {unit}: {}", ended.last_words())))
}

/// The postman: sends what is due until nothing waits. A second one leaves at once.
///
/// # Errors
/// If the spool cannot be read.
pub fn be_postman(node: &Node, site: &Site) -> Result<()> {
    let lock = site.place.spool().join(".postman");
    // One that is about to end lets us in within this time; one that stays sees what is new.
    let Ok(_only_one) = Lock::take(&lock, Some(Instant::now() + 2 * LOOK), |_| Ok(())) else { return Ok(()) };
    let mut configured = node.config.clone();
    while let Some(due) = spool::next_due(&site.place, clock::now())? {
        if due > clock::now() {
            std::thread::sleep(LOOK);
            continue;
        }
        // What was wrong may have been mended in node.yaml meanwhile.
        if let Ok(now) = Node::open(node.place.root()) {
            configured = now.config;
        }
        let mut site = site.clone();
        site.node.config = configured.clone();
        if let Err(error) = send_due(&site) {
            log(&site, &error.one_line());
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

//! `mail`: a test that says what the server said, and what waits to be told.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Cli, OneName, screen};
use crate::pipeline::outbox;
use crate::pipeline::site::{Node, Site};
use crate::project::ids::ProjectName;
use crate::project::node::Transport;
use crate::project::recipe::notify::Who;
use crate::report::mail::{self, Mail};
use crate::report::notice::Notice;
use crate::report::spool::{self, Waiting};
use crate::report::{history, webhook};
use crate::sys::error::{Error, ExitCode, Result};
use crate::sys::{clock, machine, process};

/// What is to be done about mail.
#[derive(Debug, Subcommand)]
pub enum MailCommand {
    /// Send a mail now, and to the node's webhook too, and print what the servers said
    Test(TestArgs),
    /// List what waits to be sent, and what was given up
    List(ListArgs),
    /// Send now what waits and what was given up
    Flush(FlushArgs),
    /// Forget what was given up
    Forget(OneName),
}

/// `mail test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The project whose last deployment the mail tells of; without it the mail only says that it came
    pub name: Option<ProjectName>,
    /// To whom; the node's own receivers if not given
    #[arg(long, value_name = "ADDRESS")]
    pub to: Vec<String>,
}

/// `mail list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The project; all of them if not given
    pub name: Option<ProjectName>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `mail flush`.
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// The project; all of them if not given
    pub name: Option<ProjectName>,
    /// Only what is due by now, as the machine's timer does
    #[arg(long)]
    pub due: bool,
}

/// `mail …`.
///
/// # Errors
/// If the node or a spool cannot be read.
pub fn mail(cli: &Cli, command: &MailCommand) -> Result<u8> {
    match command {
        MailCommand::Test(args) => test(cli, args),
        MailCommand::List(args) => list(cli, args),
        MailCommand::Flush(args) => flush(cli, args),
        MailCommand::Forget(args) => {
            let count = spool::forget(&cli.site(&args.name)?.place)?;
            screen::line(format!("{}: {count} forgotten", args.name));
            Ok(0)
        }
    }
}

/// The process that sends what waits (for the program itself).
///
/// # Errors
/// If the spool cannot be read.
pub fn postman(cli: &Cli, name: &ProjectName) -> Result<u8> {
    let node = cli.node()?;
    let site = Site::open(&node, name)?;
    outbox::be_postman(&node, &site)?;
    Ok(0)
}

/// `send-one`.
#[derive(Debug, Args)]
pub struct OneFile {
    /// The project
    pub name: ProjectName,
    /// The file of its spool
    pub file: String,
}

/// Sends one mail and says in one line what became of it (for the program itself).
///
/// # Errors
/// If the project cannot be opened.
pub fn send_one(cli: &Cli, args: &OneFile) -> Result<u8> {
    let (line, code) = match outbox::send_one(&cli.site(&args.name)?, &args.file) {
        Ok(said) => (said, ExitCode::Done),
        Err(error) => (error.one_line(), ExitCode::Failed),
    };
    screen::line(line);
    Ok(code as u8)
}

fn sites(cli: &Cli, name: Option<&ProjectName>) -> Result<Vec<Site>> {
    let node = cli.node()?;
    let names = name.map_or_else(|| node.projects(), |name| Ok(vec![name.clone()]))?;
    names.iter().map(|name| Site::open(&node, name)).collect()
}

fn test(cli: &Cli, args: &TestArgs) -> Result<u8> {
    let node = cli.node()?;
    if node.config.mail.transport == Transport::None && node.config.webhook.is_none() {
        return Err(Error::usage("this node sends no mail: transport is none").hint("look at `mail:` in node.yaml"));
    }
    let mut notices: Vec<Notice> = Vec::new();
    for to in receivers(&node, &args.to) {
        notices.push(Notice::Mail(test_mail(&node, args.name.as_ref(), &to)?));
    }
    if node.config.webhook.is_some() && args.to.is_empty() {
        let delivery = format!("test.{}", clock::now().as_millisecond());
        let name = machine::host_name().unwrap_or_default();
        notices.push(Notice::Hook(webhook::ping(&name, delivery, &outbox::node_target(&node)?)));
    }
    // A server may talk for ever.
    process::limit_memory(outbox::SENDER_MEMORY)?;
    let way = outbox::transport(&node);
    let mut code = ExitCode::Done;
    for notice in notices {
        match notice.send(&way) {
            Ok(said) => screen::line(format!("{}: sent; {said}", notice.shown())),
            Err(error) => {
                code = ExitCode::Failed;
                screen::error_line(format!("{}: not sent", notice.shown()));
                screen::error(&error);
            }
        }
    }
    Ok(code as u8)
}

fn receivers(node: &Node, to: &[String]) -> Vec<String> {
    if !to.is_empty() {
        return to.to_vec();
    }
    let named = node.config.mail.to.iter().filter_map(|receiver| match &receiver.who {
        Who::Address(address) => Some(address.clone()),
        Who::Authors => None,
    });
    let mut named: Vec<String> = named.collect();
    if named.is_empty() {
        named.push(node.config.mail.from.clone());
    }
    named.dedup();
    named
}

fn test_mail(node: &Node, name: Option<&ProjectName>, to: &str) -> Result<Mail> {
    let host = machine::host_name().unwrap_or_default();
    let now = clock::now();
    let message_id = format!("test.{}.{}@{}", now.as_millisecond(), std::process::id(), mail::host(&host));
    if let Some(name) = name {
        let site = Site::open(node, name)?;
        let entries = history::read(&site.place, None)?;
        let entry = entries.last().ok_or_else(|| Error::refused(format!("{name} has no deployment to tell of")))?;
        let mail = crate::pipeline::tell::mail_again(&site, entry, to)?;
        return Ok(Mail { subject: format!("test: {}", mail.subject), message_id, ..mail });
    }
    Ok(Mail {
        from: node.config.mail.from.clone(),
        to: to.to_string(),
        subject: format!("test: mc_project on {host}"),
        text: format!("This is a test of mc_project on {host}. Mails about deployments come this way.\n"),
        html: None,
        date: now,
        message_id,
        thread: None,
        project: None,
    })
}

/// What `mail list` tells of one notice.
#[derive(Serialize)]
struct Line {
    project: String,
    deployment: String,
    notice: String,
    given_up: bool,
    attempts: u32,
    since: jiff::Timestamp,
    error: String,
}

fn list(cli: &Cli, args: &ListArgs) -> Result<u8> {
    let mut lines = Vec::new();
    for site in sites(cli, args.name.as_ref())? {
        let line = |waiting: Waiting, given_up| Line {
            project: site.place.name().to_string(),
            deployment: waiting.deployment.to_string(),
            notice: waiting.notice.shown(),
            given_up,
            attempts: waiting.attempts,
            since: waiting.first,
            error: crate::sys::escape::visible(&waiting.error),
        };
        lines.extend(spool::list(&site.place)?.into_iter().map(|waiting| line(waiting, false)));
        lines.extend(spool::given_up(&site.place)?.into_iter().map(|waiting| line(waiting, true)));
    }
    if args.json {
        screen::json(&lines)?;
        return Ok(0);
    }
    for line in &lines {
        let how = if line.given_up { "given up" } else { "waits" };
        let since = line.since.strftime("%Y-%m-%d %H:%M UTC");
        screen::line(format!("{}: {} about {}", line.project, line.notice, line.deployment));
        screen::line(format!("  {how}, tried {} times since {since}: {}", line.attempts, line.error));
    }
    if lines.is_empty() {
        screen::line("nothing waits to be sent");
    }
    Ok(0)
}

fn flush(cli: &Cli, args: &FlushArgs) -> Result<u8> {
    let mut code = ExitCode::Done;
    for site in sites(cli, args.name.as_ref())? {
        let round = if args.due { outbox::send_due(&site)? } else { outbox::flush(&site)? };
        if !args.due || round.sent > 0 {
            let waiting = round.waiting + round.given_up.len();
            screen::line(format!("{}: {} sent, {waiting} not sent", site.place.name(), round.sent));
        }
        if !args.due && round.waiting > 0 {
            code = ExitCode::Failed;
            outbox::ensure_postman(&site)?;
        }
    }
    Ok(code as u8)
}

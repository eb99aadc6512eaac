//! The command line: what was typed, and which command it means.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::entrance::call::{Call, HookName};
use crate::entrance::hook::{HookIo, run as run_hook, tell_error};
use crate::entrance::relay::{Pace, stderr_screen};
use crate::entrance::remote::desk_of;
use crate::pipeline::site::{Node, Site};
use crate::project::ids::ProjectName;
use crate::report::event::Record;
use crate::report::terminal::{self, Style};
use crate::service::sockets::{holder, take};
use crate::sys::error::{Error, ExitCode, Result};

pub mod access;
pub mod args;
pub mod config;
pub mod deploying;
pub mod disk;
pub mod doctor;
pub mod far;
pub mod follow;
pub mod keeping;
pub mod logs;
pub mod mail;
pub mod making;
pub mod node;
pub mod reading;
pub mod screen;
pub mod secrets;
pub mod services;
pub mod serving;
pub mod signing;
pub mod status;

use services::Act;

pub use args::{
    AfterArgs, DemoArgs, DeployArgs, DestroyArgs, DiffArgs, FollowArgs, Format, HistoryArgs, InitArgs, JsonArgs,
    KeysCommand, LogsArgs, NameArgs, OneName, PickArgs, PlanArgs, PushArgs, RecoverArgs, ReleaseCommand, RollbackArgs,
    RunArgs, ServicesArgs, SetupArgs, ShowArgs, Since, StatusArgs, TaskArgs, VerifyArgs, With,
};

/// Deploy to servers you own with git push.
#[derive(Debug, Parser)]
#[command(name = "mc_project", version, max_term_width = 100, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// The node's root: a directory that holds a whole node
    #[arg(long, value_name = "DIR", env = "MC_ROOT", default_value = "/", global = true, hide_env_values = true,
        value_parser = OsStringValueParser::new().try_map(root_of))]
    pub root: PathBuf,
    /// Run the command on this node instead, over ssh: a name of ~/.config/mc_project/nodes.yaml, a remote of this
    /// repository, or user@host
    #[arg(long, value_name = "NODE", global = true)]
    pub node: Option<String>,
    /// The command
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "Exit codes: 0 done or nothing to do, 1 failed and the node is as before or rolled back, 2 usage, \
3 recipe or pillar invalid, 4 busy, 5 a person is needed, 70 a bug.";

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make this machine a node, as root: accounts, directories, socket; says what it changes, may be repeated
    Setup(SetupArgs),
    /// Make a project on this node, or repair it; prints the URLs to push to
    Init(InitArgs),
    /// Deploy by hand: the deploy branch's commit, or another one
    Deploy(DeployArgs),
    /// Show what a deployment would do, and do nothing
    Plan(PlanArgs),
    /// Make a kept release live again
    Rollback(RollbackArgs),
    /// List past deployments
    History(HistoryArgs),
    /// Say what serves now and whether anything needs attention
    Status(StatusArgs),
    /// Show one deployment: stages, reasons, what was kept
    Show(ShowArgs),
    /// List the files in which two releases differ
    Diff(DiffArgs),
    /// List what was changed by hand in run since its release
    Drift(NameArgs),
    /// Check that everything on the disk fits together
    Verify(VerifyArgs),
    /// Print what deployments and services wrote, or the log of one deployment
    Logs(LogsArgs),
    /// Show a deployment as its push does, to its end
    Follow(FollowArgs),
    /// End the deployment that runs, and take back what it did; shows it to its end
    Cancel(FollowArgs),
    /// Start what serves: its start steps, then its services; or some services alone
    Start(ServicesArgs),
    /// Stop what serves: its services, then its stop steps; or some services alone. They stay stopped
    Stop(ServicesArgs),
    /// Stop, then start
    Restart(ServicesArgs),
    /// Run a command in the environment of the live version
    Run(RunArgs),
    /// Run a task of the recipe; without a task, list them
    Task(TaskArgs),
    /// Finish an interrupted deployment, or decide what a person must decide
    Recover(RecoverArgs),
    /// Work with deliverables and kept releases
    #[command(subcommand)]
    Release(ReleaseCommand),
    /// Say who may push over ssh and what they may do; show or trust the keys that sign deliverables
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print the merged configuration of a project, and where each value comes from
    Config(config::ConfigArgs),
    /// Keep secrets for a project or for the whole node, and tell which the live version was given
    #[command(subcommand)]
    Secret(secrets::SecretCommand),
    /// Print the directories of a project and what each is for
    Layout(NameArgs),
    /// Link a project into the trees below srv/salt and srv/pillar again
    Link(NameArgs),
    /// Take those links away; they stay away
    Unlink(NameArgs),
    /// List the projects of this node
    List(JsonArgs),
    /// Examine the node and its projects, and say what to do
    Doctor(JsonArgs),
    /// Test how mail goes out; list, send or forget what waits
    #[command(subcommand)]
    Mail(mail::MailCommand),
    /// In editable mode: run again what a saved file concerns, until it is ended
    #[command(name = "watch")]
    WatchFiles(OneName),
    /// Push this repository to its node, the pillar first, and show the deployment live
    Push(PushArgs),
    /// Remove a project; its data are moved aside unless told otherwise
    Destroy(DestroyArgs),
    /// Show it all: a node in a directory, a push, a broken push, a rollback, the mail
    Demo(DemoArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Does what somebody asks for over ssh: the forced command of their key (for sshd)
    #[command(hide = true)]
    Shell(access::ShellArgs),
    /// Says which program this is (for the program itself, on another machine)
    #[command(name = crate::entrance::hello::COMMAND, hide = true)]
    Hello,
    /// Answer hooks and people of a whole-machine node that no systemd runs; stays in the foreground
    Serve,
    /// Answers the one question of a connection (for the program itself)
    #[command(name = crate::entrance::listen::CONNECTION, hide = true)]
    ServeConnection,
    /// Recovers after a worker's unit has died (for the program itself)
    #[command(name = crate::entrance::unit::AFTER, hide = true)]
    After(AfterArgs),
    /// Sends what waits in the spool, until nothing does (for the program itself)
    #[command(name = crate::pipeline::outbox::POSTMAN, hide = true)]
    Postman(OneName),
    /// Sends one mail of the spool (for the program itself)
    #[command(name = crate::pipeline::outbox::SEND_ONE, hide = true)]
    SendOne(mail::OneFile),
    /// Does the work of one deployment (for the program itself)
    #[command(name = crate::entrance::launch::WORK, hide = true)]
    Work,
}

/// An empty root is a variable that somebody forgot, and not the root of the machine.
fn root_of(word: OsString) -> std::result::Result<PathBuf, &'static str> {
    if word.is_empty() { Err("it is empty: unset MC_ROOT, or say where the node is") } else { Ok(word.into()) }
}

impl Cli {
    /// The node of this command.
    ///
    /// # Errors
    /// If its root does not exist or `node.yaml` is invalid.
    pub fn node(&self) -> Result<Node> {
        let root = self.absolute_root()?;
        if !crate::sys::fs::exists(&root) {
            return Err(Error::usage(format!("there is no node at {}", root.display()))
                .hint("MC_ROOT or --root says where it is; to make one there: mc_project --root DIR init NAME"));
        }
        Node::open(&root)
    }

    /// The node of this command, for what only a node that was made can tell.
    ///
    /// # Errors
    /// As [`Self::node`], and if the machine itself is meant and is no node.
    pub fn made_node(&self) -> Result<Node> {
        let node = self.node()?;
        if node.place.root() == Path::new("/") && !node.is_made() {
            return Err(Error::usage("this machine is no node; is MC_ROOT unset?").hint(
                "a node in a directory: export MC_ROOT=DIR, or --root DIR\nto make this machine one: sudo mc_project setup",
            ));
        }
        Ok(node)
    }

    /// The root as an absolute path, whether it exists or not.
    ///
    /// # Errors
    /// If the current directory is gone.
    pub fn absolute_root(&self) -> Result<PathBuf> {
        crate::sys::fs::absolute(&self.root)
    }

    /// The project of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn site(&self, name: &ProjectName) -> Result<Site> {
        Site::open(&self.made_node()?, name)
    }

    /// Does what was typed; the result is the process's exit code.
    ///
    /// # Errors
    /// What could not be done.
    pub fn run(&self) -> Result<u8> {
        match &self.command {
            Command::Setup(args) => node::setup(self, args),
            Command::Serve => serving::listen(self),
            Command::ServeConnection => serving::connection(self),
            Command::After(args) => serving::after(self, args),
            Command::Init(args) => making::init(self, args),
            Command::Destroy(args) => making::destroy(self, args),
            Command::Link(args) => making::link(self, args),
            Command::Unlink(args) => making::unlink(self, args),
            Command::Doctor(args) => doctor::doctor(self, args),
            Command::Layout(args) => making::layout(self, args),
            Command::List(args) => making::list(self, args),
            Command::Keys(command) => access::keys(self, command),
            Command::Shell(args) => access::shell(self, args),
            Command::Demo(args) => crate::demo::run(args.dir.as_deref()),
            Command::Completions { shell } => {
                screen::completions(*shell);
                Ok(0)
            }
            Command::Deploy(args) => deploying::deploy(self, args),
            Command::Plan(args) => deploying::plan(self, args),
            Command::Rollback(args) => deploying::rollback(self, args),
            Command::Recover(args) => deploying::recover(self, args),
            Command::Start(args) => services::command(self, args, Act::Start),
            Command::Stop(args) => services::command(self, args, Act::Stop),
            Command::Restart(args) => services::command(self, args, Act::Restart),
            Command::Run(args) => deploying::run(self, args),
            Command::Task(args) => deploying::task(self, args),
            Command::WatchFiles(args) => deploying::watch_files(self, &args.name),
            Command::Mail(command) => mail::mail(self, command),
            Command::Postman(args) => mail::postman(self, &args.name),
            Command::SendOne(args) => mail::send_one(self, args),
            Command::Work => deploying::work(&self.absolute_root()?),
            Command::History(args) => reading::history(self, args),
            Command::Status(args) => status::status(self, args),
            Command::Show(args) => reading::show(self, args),
            Command::Diff(args) => reading::diff(self, args),
            Command::Drift(args) => reading::drift(self, args),
            Command::Verify(args) => reading::verify(self, args),
            Command::Logs(args) => logs::logs(self, args),
            Command::Follow(args) => follow::follow(self, args),
            Command::Cancel(args) => follow::cancel(self, args),
            Command::Hello => far::hello(),
            Command::Push(args) => far::push(args.to.as_deref(), args),
            Command::Config(args) => config::config(self, args),
            Command::Secret(command) => secrets::secret(self, command),
            Command::Release(command) => keeping::release(self, command),
        }
    }
}

/// Does what this process was called for; the result is its exit code.
#[must_use]
pub fn entry() -> u8 {
    let args: Vec<OsString> = std::env::args_os().collect();
    crate::sys::step_exec::forbid_core_dumps();
    if args.get(1).is_some_and(|word| word == crate::sys::step_exec::SUBCOMMAND) {
        return crate::sys::step_exec::main();
    }
    if args.get(1).is_some_and(|word| word == take::SUBCOMMAND) {
        return take::main(&args[2..]);
    }
    if args.get(1).is_some_and(|word| word == holder::SUBCOMMAND) {
        return holder::main(&args[2..]);
    }
    if args.get(1).is_some_and(|word| word == crate::pipeline::configuration::SCHEMA_CHECK) {
        return ended(std::panic::catch_unwind(crate::pipeline::configuration::schema_check));
    }
    if let [_, option, root, word] = args.as_slice()
        && option == "--root"
        && word == crate::entrance::launch::WATCH
    {
        // Before anything else is done in this process, and without the table of commands: a push waits for it.
        return ended(std::panic::catch_unwind(|| crate::entrance::launch::watched(Path::new(root))));
    }
    let is_supervisor = args.get(1).is_some_and(|word| word == crate::service::supervisor::guard::SUBCOMMAND);
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .log_internal_errors(false);
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_string());
    let _ = log.with_env_filter(tracing_subscriber::EnvFilter::new(level)).try_init();
    if is_supervisor {
        // Not through the table of commands: what stays for long stays small.
        return crate::service::supervisor::guard::main();
    }
    if let Some(hook) = args.first().and_then(|name| HookName::of_program(name)) {
        return hook_entry(hook);
    }
    let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match far::split(&args)? {
        Some((node, words)) => far::run(&node, words),
        None => match Cli::try_parse_from(&args) {
            Err(error) if error.kind() == ErrorKind::MissingSubcommand => Ok(screen::help_for(&args)),
            Err(error) => error.exit(),
            Ok(cli) => cli.run(),
        },
    }));
    ended(worked)
}

/// The exit code of what was done.
fn ended(worked: std::thread::Result<Result<u8>>) -> u8 {
    match worked {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            screen::error(&error);
            error.kind().exit_code() as u8
        }
        Err(_) => {
            screen::error_line(
                "error: this is a bug in mc_project; what it did is in the journal, and the next command recovers",
            );
            ExitCode::Bug as u8
        }
    }
}

fn hook_entry(hook: HookName) -> u8 {
    let stderr = std::io::stderr();
    let mut tell = stderr_screen(&stderr);
    let call = Call::of_process(hook).and_then(|call| desk_of(&call).map(|desk| (call, desk)));
    let (call, desk) = match call {
        Ok(found) => found,
        Err(error) => {
            tell_error(&mut tell, &error);
            return error.kind().exit_code() as u8;
        }
    };
    let style = Style { colour: false, ..Style::default() };
    let render = |record: &Record| terminal::lines(record, &style);
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let io = HookIo { input: &mut input, output: &mut output, tell: &mut tell, render: &render, pace: Pace::default() };
    // What root pushed is the receiver's before the deployment writes its record beside it, and what git does afterwards
    // (refs that are only stored) too. During pre-receive the objects are in quarantine still.
    let give_back = || {
        if hook != HookName::PreReceive
            && let Err(error) = desk.give_back()
        {
            tracing::warn!("{}", error.one_line());
        }
    };
    give_back();
    let code = run_hook(&call, desk.as_ref(), io);
    give_back();
    code as u8
}

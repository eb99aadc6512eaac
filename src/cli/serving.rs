//! Commands of the node's service: answering the receiver of pushes, and what follows a worker's end.

use clap::Parser;

use super::screen;
use super::{AfterArgs, Cli, Command, ReleaseCommand};
use crate::entrance::serve::{Need, Permitted, serve};
use crate::entrance::{door, listen, unit};
use crate::pipeline::site::Node;
use crate::project::ids::ProjectName;
use crate::sys::error::{Error, Result};
use crate::sys::process;
use crate::sys::socket::Channel;

/// `serve`.
///
/// # Errors
/// If it cannot listen.
pub fn listen(cli: &Cli) -> Result<u8> {
    let node = cli.node()?;
    let listener = listen::open(&node)?;
    screen::line(format!("serves {} at {}", node.place.root().display(), node.place.socket().display()));
    listen::serve(&node, &listener)?;
    Ok(0)
}

/// The hidden `serve-connection`.
///
/// # Errors
/// If standard input is no connection, or who asked does not take the answer.
pub fn connection(cli: &Cli) -> Result<u8> {
    process::name_self("mc_serve")?;
    let mut channel = Channel::of_stdin(door::QUESTION_LIMIT)?;
    serve(&cli.node()?, &mut channel, &judge)?;
    Ok(0)
}

/// The hidden `after-death`.
///
/// # Errors
/// If the recovery is impossible.
pub fn after(cli: &Cli, args: &AfterArgs) -> Result<u8> {
    process::name_self("mc_after")?;
    unit::after(&cli.site(&args.name)?, &args.id, &unit::Ended::of_environment())?;
    Ok(0)
}

/// What the words of a command from afar mean; only what is listed here can be run so.
fn judge(node: &Node, words: &[String]) -> Result<Permitted> {
    let root = node.place.root().as_os_str();
    let typed = ["mc_project".as_ref(), "--root".as_ref(), root].into_iter();
    let cli = Cli::try_parse_from(typed.chain(words.iter().map(AsRef::as_ref))).map_err(|error| {
        let text = error.to_string();
        Error::usage(text.trim().trim_start_matches("error: ").to_string())
    })?;
    if cli.root != node.place.root() {
        return Err(Error::usage("a command from afar is about this node: leave --root out"));
    }
    let (project, need, changes) = match &cli.command {
        Command::History(args) => (Some(&args.name), Need::Read, false),
        Command::Status(args) => (args.name.as_ref(), Need::Read, false),
        Command::Show(args) => (Some(&args.name), Need::Read, false),
        Command::Diff(args) => (Some(&args.name), Need::Read, false),
        Command::Drift(args) | Command::Layout(args) => (Some(&args.name), Need::Read, false),
        Command::Verify(args) => (args.name.as_ref(), Need::Read, false),
        Command::Logs(args) => (Some(&args.name), Need::Read, false),
        Command::Release(ReleaseCommand::List(args)) => (Some(&args.name), Need::Read, false),
        Command::Release(ReleaseCommand::Verify(args)) => (Some(&args.name), Need::Read, false),
        Command::Plan(args) => (Some(&args.name), Need::Read, false),
        // What the pillar says is for those who may write it.
        Command::Config(args) => (Some(&args.name), Need::Deploy, false),
        Command::Deploy(args) => (Some(&args.name), Need::Deploy, true),
        Command::Start(args) | Command::Stop(args) | Command::Restart(args) => (Some(&args.name), Need::Deploy, true),
        Command::Task(args) => (Some(&args.name), Need::Deploy, true),
        Command::Rollback(args) => (Some(&args.name), Need::Admin, true),
        Command::Recover(args) => (args.name.as_ref(), Need::Admin, true),
        _ => {
            return Err(Error::refused("this command is root's, on the node itself").hint(
                "from afar: history status show diff drift verify logs layout release plan config deploy start stop \
                 restart task rollback recover",
            ));
        }
    };
    let project: ProjectName = project.cloned().ok_or_else(|| Error::usage("a command from afar names its project"))?;
    Ok(Permitted { project, need, changes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, Node) {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(dir.path()).unwrap();
        (dir, node)
    }

    fn judged(words: &str) -> Result<(Need, bool)> {
        let (_dir, node) = node();
        let words: Vec<String> = words.split(' ').map(str::to_string).collect();
        let permitted = judge(&node, &words)?;
        assert_eq!(permitted.project.as_str(), "shop");
        Ok((permitted.need, permitted.changes))
    }

    #[test]
    fn what_may_be_run_from_afar_needs_the_role_that_fits_it() {
        for (words, need, changes) in [
            ("status shop --json", Need::Read, false),
            ("logs shop -f", Need::Read, false),
            ("show shop #3", Need::Read, false),
            ("release list shop", Need::Read, false),
            ("plan shop --commit main", Need::Read, false),
            ("config shop", Need::Deploy, false),
            ("deploy shop -o reason=x --wait 5", Need::Deploy, true),
            ("restart shop", Need::Deploy, true),
            ("task shop migrate", Need::Deploy, true),
            ("rollback shop --to -1", Need::Admin, true),
            ("recover shop --back --with data", Need::Admin, true),
        ] {
            assert_eq!(judged(words).unwrap(), (need, changes), "{words}");
        }
    }

    #[test]
    fn everything_else_is_root_s() {
        for words in [
            "status",
            "verify --all",
            "recover --all",
            "init shop",
            "setup",
            "destroy shop --yes",
            "doctor",
            "list",
            "keys show",
            "keys trust x",
            "run shop -- sh",
            "release checkout shop x /tmp/x",
            "release pack shop",
            "demo",
            "serve",
            "serve-connection",
            "work",
            "watch-worker",
            "after-death shop 19700101T000000Z-00000000-0000-7000-8000-000000000000",
            "status shop --root /",
            "--root / status shop",
            "status ../shop",
            "status shop; id",
            "--help",
            "--version",
            "step-exec",
            "",
        ] {
            assert!(judged(words).is_err(), "{words}");
        }
    }
}

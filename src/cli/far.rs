//! The developer's side of the command line: `push`, and `--node NODE` before any other command.
//!
//! With `--node` the words go to the node as they were typed, where its own copy of the program understands them: a newer
//! node's commands work from here. Read here is only what this side must know: whether the project was left out, and the
//! commands that have something to do with files of this machine.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

use super::{Cli, Command, KeysCommand, PushArgs, SetupArgs, StatusArgs, VerifyArgs, screen};
use crate::entrance::far::checkout::Checkout;
use crate::entrance::far::install::{self, Machine};
use crate::entrance::far::{Errand, Far, Met, find};
use crate::entrance::hello::{Behind, Hello};
use crate::entrance::push::{self, Wanted};
use crate::project::access::key::FILE_LIMIT;
use crate::sys::error::{Context, Error, ExitCode, Kind, Result};
use crate::sys::escape::{hint_lines, visible};
use crate::sys::fs;
use crate::sys::process::Input;

/// `hello`.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn hello() -> Result<u8> {
    let text = serde_json::to_string(&Hello::ours(Behind::Shell)).context(|| "cannot say hello".to_string())?;
    screen::line(text);
    Ok(0)
}

/// The node that the arguments name, and the words without it; `None` if they name none. What stands behind `--` is
/// somebody else's.
///
/// # Errors
/// If a node is named twice, or no name follows.
pub fn split(args: &[OsString]) -> Result<Option<(String, Vec<OsString>)>> {
    let (mut node, mut words): (Option<OsString>, Vec<OsString>) = (None, Vec::new());
    let mut rest = args.iter().skip(1);
    while let Some(word) = rest.next() {
        let named = match word.to_str() {
            Some("--") => {
                words.push(word.clone());
                words.extend(rest.by_ref().cloned());
                break;
            }
            Some("--node") => rest.next().cloned().ok_or_else(|| Error::usage("--node needs the name of a node"))?,
            Some(text) if text.starts_with("--node=") => text["--node=".len()..].into(),
            _ => {
                words.push(word.clone());
                continue;
            }
        };
        if node.replace(named).is_some() {
            return Err(Error::usage("--node is given twice"));
        }
    }
    let Some(node) = node else { return Ok(None) };
    let node = node.into_string().map_err(|_| Error::usage("the name of the node is no text"))?;
    Ok(Some((node, words)))
}

/// Does what was typed with `--node`.
///
/// # Errors
/// What could not be done.
pub fn run(node: &str, words: Vec<OsString>) -> Result<u8> {
    let here = here()?;
    // Without git on this machine the list and addresses still name nodes.
    let checkout = Checkout::around(&here).unwrap_or_else(|_| Checkout::nowhere(&here));
    let far = find::node(&checkout, node)?;
    let (words, parsed) = understood(&far, words)?;
    match parsed.as_ref().map(|cli| &cli.command) {
        Some(Command::Push(args)) => push_to(&checkout, &far, args),
        Some(Command::Setup(args)) => setup(&far, args),
        Some(Command::Doctor(args)) => doctor(&far, args.json),
        Some(
            Command::Demo(_)
            | Command::Completions { .. }
            | Command::Shell(_)
            | Command::Serve
            | Command::ServeConnection
            | Command::After(_)
            | Command::Postman(_)
            | Command::SendOne(_)
            | Command::Work,
        ) => Err(Error::usage("this command is not for another machine").hint("leave --node out")),
        Some(Command::Keys(KeysCommand::Add(args))) if args.key.as_deref().is_some_and(|key| key != Path::new("-")) => {
            let (words, key) = with_key_of_ours(words, args.key.as_deref().unwrap_or(Path::new("")))?;
            far.run(Errand { input: Input::Bytes(key), ..Errand::new(words) })
        }
        Some(Command::Keys(KeysCommand::Add(args))) if args.key.is_some() => {
            far.run(Errand { input: Input::Ours, ..Errand::new(words) })
        }
        Some(Command::Run(_)) => far.run(Errand { input: Input::Ours, terminal: at_terminal(), ..Errand::new(words) }),
        _ => {
            let terminal = at_terminal();
            let input = if terminal { Input::Ours } else { Input::None };
            far.run(Errand { input, terminal, ..Errand::new(words) })
        }
    }
}

/// Whether a person is at the keyboard and reads what is printed.
fn at_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

fn here() -> Result<PathBuf> {
    std::env::current_dir().context(|| "cannot find the current directory".to_string())
}

/// The words as this version understands them, with the node's own project where none was named; `None` where only the node
/// can tell what they mean.
fn understood(far: &Far, words: Vec<OsString>) -> Result<(Vec<OsString>, Option<Cli>)> {
    if words
        .iter()
        .take_while(|word| *word != "--")
        .any(|word| word == "--root" || word.as_encoded_bytes().starts_with(b"--root="))
    {
        return Err(Error::usage("--root and --node contradict each other").hint("--node user@host:/its/root"));
    }
    let parse =
        |words: &[OsString]| Cli::try_parse_from(std::iter::once("mc_project".into()).chain(words.iter().cloned()));
    let parsed = parse(&words);
    let lacks_project = match &parsed {
        Ok(cli) => matches!(
            &cli.command,
            Command::Status(StatusArgs { name: None, .. }) | Command::Verify(VerifyArgs { name: None, all: false, .. })
        ),
        Err(error) => matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::ValueValidation),
    };
    if lacks_project
        && let Some(with) = with_project(far, &words)
        && let Ok(cli) = parse(&with)
    {
        return Ok((with, Some(cli)));
    }
    match parsed {
        Ok(cli) => Ok((words, Some(cli))),
        // What a newer node may know.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand | ErrorKind::InvalidValue
            ) =>
        {
            Ok((words, None))
        }
        Err(error) => error.exit(),
    }
}

/// The same words with the node's own project behind the command.
fn with_project(far: &Far, words: &[OsString]) -> Option<Vec<OsString>> {
    let project = far.project.as_ref()?;
    let command = words.first()?.to_str().filter(|word| !word.starts_with('-'))?;
    let at = if matches!(command, "release" | "mail") { 2 } else { 1 };
    let mut words = words.to_vec();
    words.insert(at.min(words.len()), project.as_str().into());
    Some(words)
}

/// `--key FILE` is a file of this machine: it goes over as standard input.
fn with_key_of_ours(words: Vec<OsString>, file: &Path) -> Result<(Vec<OsString>, Vec<u8>)> {
    let found = fs::canonical(file).and_then(|path| fs::read_bounded(&path, FILE_LIMIT))?;
    let mut is_value = false;
    let words = words
        .into_iter()
        .map(|word| {
            let is_file = std::mem::replace(&mut is_value, word == "--key");
            match word.to_str() {
                _ if is_file => "-".into(),
                Some(text) if text.starts_with("--key=") => "--key=-".into(),
                _ => word,
            }
        })
        .collect();
    Ok((words, found.unwrap_or_default()))
}

/// `push`.
///
/// # Errors
/// If nothing can be pushed, or what became of it cannot be learned.
pub fn push(to: Option<&str>, args: &PushArgs) -> Result<u8> {
    let checkout = Checkout::around(&here()?)?;
    let far = match to {
        Some(to) => find::node(&checkout, to)?,
        None => find::the_node(&checkout)?,
    };
    push_with(&checkout, &far, args, args.refs.clone())
}

/// `--node NODE push [REF]…`: what stands first is no node any more.
fn push_to(checkout: &Checkout, far: &Far, args: &PushArgs) -> Result<u8> {
    let refs = args.to.iter().chain(&args.refs).cloned().collect();
    push_with(checkout, far, args, refs)
}

fn push_with(checkout: &Checkout, far: &Far, args: &PushArgs, refs: Vec<String>) -> Result<u8> {
    let wanted = Wanted { refs, options: args.options.clone(), force: args.force, without_pillar: args.no_pillar };
    if let (false, Some(to)) = (args.json, &far.repository) {
        let (name, url) = (visible(&far.name), visible(&to.url()));
        screen::line(if name == url { format!("to {url}") } else { format!("to {name}: {url}") });
    }
    let mut show = super::follow::shower(args.json);
    push::push(checkout, far, &wanted, show.as_mut())
}

fn setup(far: &Far, args: &SetupArgs) -> Result<u8> {
    let mut words = Vec::new();
    if let Some(receiver) = &args.receiver {
        words.extend(["--receiver".to_string(), receiver.clone()]);
    }
    if let Some(environment) = args.environment {
        words.extend(["--environment".to_string(), environment.name().to_string()]);
    }
    if args.salt {
        words.push("--salt".to_string());
    }
    let wanted = install::Wanted {
        plan: args.plan,
        packages: args.packages,
        binary: args.binary.clone(),
        words,
        terminal: at_terminal(),
    };
    // Who administers the machine stands last: the keys of projects can set nothing up.
    let way = far.ways.last().ok_or_else(|| Error::bug("a node without a way to it"))?;
    // The node's own words, as they are typed from here.
    let next = far.typed("init NAME");
    Machine::of(way)?.setup(&wanted, &mut |line| screen::line(line.replace(super::node::NEXT, &next)))?;
    Ok(0)
}

/// `doctor`: first whether the node can be reached at all, and what is missing where the program is; then its own.
fn doctor(far: &Far, json: bool) -> Result<u8> {
    let mut good = true;
    for way in &far.ways {
        let (mark, text, hint) = match way.meet() {
            Ok(Met::Program(hello)) => {
                ("✓", format!("mc_project {} answers{}", hello.version(), behind(hello.behind)), None)
            }
            Ok(Met::Older(kind)) => (
                "✓",
                format!("an mc_project older than {} answers{}", env!("CARGO_PKG_VERSION"), behind(kind)),
                Some(far.typed("setup")),
            ),
            Ok(Met::Nothing) => {
                good = false;
                ("✗", "mc_project is not installed there".to_string(), Some(far.typed("setup")))
            }
            Err(error) => {
                good = false;
                ("✗", error.one_line(), error.hint_text().map(str::to_string))
            }
        };
        if json && good {
            continue;
        }
        screen::error_line(format!("{mark} {}: {text}", way.shown()));
        hint.iter().flat_map(|hint| hint_lines(hint)).for_each(|line| screen::error_line(format!("    {line}")));
    }
    if !good {
        if let Some(found) = far.ways.last().and_then(|way| Machine::of(way).ok()?.look().ok()) {
            screen::error_line(format!("· the machine: {}", found.words()));
            let missing = found.missing_packages();
            if !missing.is_empty() {
                screen::error_line(format!("✗ missing there: {}", missing.join(", ")));
                screen::error_line(format!("    hint: {}", far.typed("setup --packages")));
            }
        }
        return Ok(ExitCode::Failed as u8);
    }
    let words: &[&str] = if json { &["doctor", "--json"] } else { &["doctor"] };
    match far.run(Errand { terminal: at_terminal(), input: Input::None, ..Errand::new(words) }) {
        Err(error) if error.kind() == Kind::Refused => {
            screen::error_line("· the machine itself is examined by who administers it: say `admin:` in nodes.yaml");
            Ok(0)
        }
        other => other,
    }
}

fn behind(behind: Behind) -> &'static str {
    match behind {
        Behind::ForcedCommand => " to the keys of projects",
        Behind::Shell => "",
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_node_may_stand_anywhere_but_behind_the_dashes() {
        let split_text = |text: &str| {
            split(&words(text)).map(|found| found.map(|(node, words)| (node, words.join(OsStr::new(" ")))))
        };
        let want = Some(("prod".to_string(), OsString::from("status shop")));
        for text in ["mc --node prod status shop", "mc --node=prod status shop", "mc status shop --node prod"] {
            assert_eq!(split_text(text).unwrap(), want, "{text}");
        }
        assert_eq!(split_text("mc run shop -- x --node y").unwrap(), None);
        let both = split_text("mc --node a run shop -- x --node y").unwrap().unwrap();
        assert_eq!(both, ("a".to_string(), OsString::from("run shop -- x --node y")));
        assert!(split_text("mc --node").is_err() && split_text("mc --node a --node b").is_err());
    }

    #[test]
    fn a_key_of_this_machine_goes_over_as_standard_input() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k.pub");
        std::fs::write(&file, "ssh-ed25519 AAAA").unwrap();
        for form in ["--key FILE", "--key=FILE"] {
            let typed =
                words(&format!("keys add alice --project shop {}", form.replace("FILE", file.to_str().unwrap())));
            let (sent, key) = with_key_of_ours(typed, &file).unwrap();
            assert_eq!(key, b"ssh-ed25519 AAAA");
            let sent = sent.join(OsStr::new(" "));
            assert_eq!(sent, *format!("keys add alice --project shop {}", form.replace("FILE", "-")), "{form}");
        }
    }
}

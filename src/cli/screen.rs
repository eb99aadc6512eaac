//! What commands print. Output that nobody reads any more (a closed pipe) is no error.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use clap::CommandFactory;
use serde::Serialize;

use crate::report::terminal::Style;
use crate::sys::error::{Context, Error, ExitCode, Result};

/// Prints one line to standard output.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// Prints one line to standard error.
pub fn error_line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Prints a value as JSON.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value).context(|| "cannot write JSON".to_string())?);
    Ok(())
}

/// Tells an error as every command does: `error: …`, then `hint: …`.
pub fn error(error: &Error) {
    error_line(format!("error: {}", crate::sys::escape::visible_lines(&error.one_line())));
    for hint in error.hint_text().unwrap_or_default().lines() {
        error_line(format!("hint: {hint}"));
    }
}

/// How to print on this standard output: colour only on a terminal and without `NO_COLOR`; as wide as the terminal.
#[must_use]
pub fn style() -> Style {
    let is_terminal = std::io::stdout().is_terminal();
    let colour = is_terminal && std::env::var_os("NO_COLOR").is_none();
    let columns = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    Style { colour, width: columns.filter(|columns| is_terminal && *columns > 0), ..Style::default() }
}

/// The columns of the terminal on standard output.
#[must_use]
pub fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Asks a question that only the given answer confirms.
///
/// # Errors
/// If there is nobody to answer.
pub fn confirm(question: &str, answer: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::usage("this needs an answer, and nobody is at the keyboard").hint("add --yes"));
    }
    let _ = write!(std::io::stderr().lock(), "{question} ");
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed).context(|| "cannot read the answer".to_string())?;
    Ok(typed.trim() == answer)
}

/// Prints bytes as they are.
///
/// # Errors
/// If nobody takes them.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context(|| "cannot print".to_string())
}

/// Asks for a line that is not shown while it is typed (termios(3)).
///
/// # Errors
/// If the terminal cannot be asked, or nothing was typed.
pub fn ask_hidden(question: &str) -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let doing = || "cannot read from the terminal".to_string();
    let before = tcgetattr(&stdin).context(doing)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    let _ = write!(std::io::stderr().lock(), "{question}");
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).context(doing)?;
    let mut typed = String::new();
    let read = stdin.read_line(&mut typed);
    tcsetattr(&stdin, OptionalActions::Flush, &before).context(doing)?;
    let _ = writeln!(std::io::stderr().lock());
    read.context(doing)?;
    let typed = typed.trim_end_matches(['\n', '\r']);
    if typed.is_empty() { Err(Error::usage("nothing was typed")) } else { Ok(typed.to_string()) }
}

/// Prints the help of the command that was begun and not said to its end; the exit code is that of wrong usage. Where
/// `MC_ROOT` is set, clap takes something for said, and lists all commands in one line instead.
#[must_use]
pub fn help_for(args: &[OsString]) -> u8 {
    let mut command = super::Cli::command();
    command.build();
    for word in args.iter().skip(1) {
        if let Some(found) = command.find_subcommand(word).cloned() {
            command = found;
        }
    }
    error_line(command.render_help().to_string().trim_end());
    ExitCode::Usage as u8
}

/// Prints the completion script of a shell.
pub fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::Cli::command(), "mc_project", &mut script);
    let _ = std::io::stdout().lock().write_all(&script);
}

//! Commands of the node's service: answering the receiver of pushes, and what follows a worker's end.

use super::screen;
use super::{AfterArgs, Cli};
use crate::entrance::serve::{self, serve};
use crate::entrance::{door, listen, unit};
use crate::sys::error::Result;
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
    match cli.node() {
        Ok(node) => serve(&node, &mut channel)?,
        Err(error) => {
            serve::cannot(&mut channel, &error)?;
            return Err(error);
        }
    }
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

//! The thin binary: it knows its job from the name and the words that it is called by.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(mc_project::cli::entry())
}

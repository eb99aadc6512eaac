//! The thin binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == mc_project::sys::step_exec::SUBCOMMAND) {
        return ExitCode::from(mc_project::sys::step_exec::main());
    }
    ExitCode::SUCCESS
}

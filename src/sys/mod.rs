//! The only doors to the outside: files, processes, git, locks, mounts, time.

pub mod clock;
pub mod dir;
pub mod error;
pub mod escape;
pub mod fault;
pub mod fs;
pub mod git;
pub mod lock;
pub mod path;

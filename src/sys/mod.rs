//! The only doors to the outside: files, processes, git, locks, mounts, time.

#![allow(clippy::disallowed_methods, reason = "these modules are the doors")]

pub mod accounts;
pub mod acl;
pub mod cgroup;
pub mod clock;
pub mod dir;
pub mod error;
pub mod escape;
pub mod fault;
pub mod fifo;
pub mod fs;
pub mod git;
pub mod http;
pub mod keys;
pub mod lines;
pub mod lock;
pub mod machine;
pub mod mask;
pub mod mount;
pub mod names;
pub mod path;
pub mod pipe;
pub mod process;
pub mod seal;
pub mod size;
pub mod socket;
pub mod ssh_identity;
pub mod step_exec;
pub mod sync;
pub mod tcp;
pub mod threads;
pub mod trust;
pub mod usage;
pub mod watch;

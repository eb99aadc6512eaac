//! The one integration test binary: the real program, real git, real sshd, real mail server, in private directories.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test stands outside the program and looks at it with its own eyes")]
#![allow(clippy::print_stderr, reason = "a test that cannot run here says so")]

mod access;
mod applications;
mod attacks;
mod bad_pushes;
mod boxes;
mod concurrent;
mod crash;
mod deliverables;
mod destroy;
mod detached;
mod docs;
mod door;
mod editable;
mod editable_crash;
mod examples;
mod features;
mod final_mode;
mod harness;
mod hostile_trees;
mod imports;
mod in_place;
mod machine;
mod machine_boot;
mod machine_boxes;
mod machine_editable;
mod machine_hostile;
mod machine_isolation;
mod machine_reboot;
mod machine_services;
mod machine_setup;
mod machine_story;
mod mail;
mod model;
mod options;
mod process;
mod push;
mod recipe;
mod rollback;
mod sha256;
mod space;
mod ssh;
mod story;
mod supervisor;
mod supervisor_killed;
mod support;
mod trees;
mod watch;
mod world;

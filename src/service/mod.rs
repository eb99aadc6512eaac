//! Services of the machine that a project depends on.

pub mod systemd;

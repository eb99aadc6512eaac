//! Services: what keeps the project's programs running, and the door to systemd.
//!
//! [`definition`] is what is to run, [`backend`] what every back end can do.

pub mod backend;
pub mod definition;
pub mod journal;
pub mod logs;
pub mod probe;
pub mod sockets;
pub mod supervisor;
pub mod systemd;

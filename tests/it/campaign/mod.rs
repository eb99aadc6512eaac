//! Crash safety, proven: a fault at every system call of eight pipelines, inside recovery too, on full disks, on file systems
//! that are shut down, and at power loss; after each, one checker of everything that is promised.
//!
//! A normal run takes a sample that moves with the day; `tests/run --full` takes every place. What came of it stands in
//! `target/reliability.json`, each class with its denominator.
#![cfg(feature = "failpoints")]

mod calls;
pub mod check;
mod class;
mod disk;
mod faults;
mod full;
mod ground;
mod litter;
mod power;
mod shutdown;
pub mod stage;

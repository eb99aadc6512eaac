//! Tests of the library together with the built binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod detached;
mod process;
mod world;

//! Trees of files on disk.

pub mod layout;

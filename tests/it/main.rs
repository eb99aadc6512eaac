//! The integration tests: one binary.

mod trees;

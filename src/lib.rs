//! mc_project deploys to servers you own with `git push`.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "unit tests look at the disk with their own eyes"))]

pub mod entrance;
pub mod project;
pub mod report;
pub mod sys;
pub mod tree;

//! mc_project deploys to servers you own with `git push`.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod cli;
pub mod demo;
pub mod entrance;
pub mod pipeline;
pub mod project;
pub mod report;
pub mod sys;
pub mod tree;

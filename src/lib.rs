//! mc_project deploys to servers you own with `git push`.

pub mod project;
pub mod report;
pub mod sys;
pub mod tree;

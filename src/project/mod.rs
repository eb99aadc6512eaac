//! The words: plain data with pure parsing. Nothing here touches the disk.

pub mod ids;
pub mod mail;
pub mod mode;
pub mod outcome;
pub mod place;
pub mod request;
pub mod stage;

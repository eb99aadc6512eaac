//! The words: plain data with pure parsing. Nothing here touches the disk.

pub mod access;
pub mod address;
pub mod ids;
pub mod layout;
pub mod limits;
pub mod mail;
pub mod mode;
pub mod node;
pub mod nodes;
pub mod outcome;
pub mod pillar;
pub mod place;
pub mod recipe;
pub mod request;
pub mod secrets;
pub mod service_limits;
pub mod stage;
pub mod system;
pub mod unit;
pub mod wanted;
pub mod yaml;

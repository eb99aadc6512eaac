//! Telling: events and their readers.

pub mod event;
pub mod journal;
pub mod ledger;
#[cfg(test)]
pub mod samples;
pub mod terminal;

//! Telling: events and their readers.

pub mod event;
pub mod history;
pub mod journal;
pub mod ledger;
pub mod listing;
pub mod mask;
#[cfg(test)]
pub mod samples;
pub mod stream;
pub mod terminal;

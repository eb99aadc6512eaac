//! Telling: events and their readers.

pub mod columns;
pub mod detail;
pub mod event;
pub mod history;
pub mod journal;
pub mod ledger;
pub mod listing;
pub mod mail;
pub mod mask;
pub mod notes;
pub mod notice;
pub mod post;
pub mod progress;
#[cfg(test)]
pub mod samples;
pub mod spool;
pub mod stream;
pub mod terminal;
pub mod webhook;

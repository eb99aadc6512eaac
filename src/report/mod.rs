//! Telling: events and their readers.

pub mod event;

pub mod ledger;

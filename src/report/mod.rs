//! Telling: events and their readers.

pub mod event;

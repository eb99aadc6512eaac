//! The pipelines: the only place that puts two acts in a row.
//!
//! [`worker`] takes the lock and closes what it opened; [`deploy`] is the main loop; [`prepare`], [`activate`], [`undo`]
//! and [`settle`] are its parts; [`recover`] finishes what was interrupted.

pub mod activate;
pub mod ballast;
pub mod binding;
pub mod boxes;
pub mod cancel;
pub mod checkout;
pub mod checks;
pub mod clone;
pub mod configuration;
pub mod data;
pub mod deploy;
pub mod detail;
pub mod disk;
pub mod download;
pub mod draft;
pub mod editable;
pub mod enlarge;
pub mod environment;
pub mod fetch;
pub mod halt;
pub mod held;
pub mod init;
pub mod links;
pub mod listing;
pub mod made;
pub mod outbox;
pub mod parking;
pub mod people;
pub mod plan;
pub mod preflight;
pub mod prepare;
pub mod proof;
pub mod queue;
pub mod recover;
pub mod rights;
pub mod salt;
pub mod secret_store;
pub mod secrets;
pub mod services;
pub mod settle;
pub mod setup;
pub mod site;
pub mod steps;
pub mod tell;
pub mod templates;
pub mod tidy;
pub mod trial;
pub mod undo;
pub mod units;
pub mod verify;
pub mod worker;

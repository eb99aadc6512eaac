//! Trees: what they consist of, how one becomes another, and where contents are kept.

pub mod archive;
pub mod cost;
pub mod deliverable;
pub mod drift;
pub mod hash;
pub mod incoming;
pub mod layout;
pub mod manifest;
pub mod ordered;
pub mod release;
pub mod scan;
pub mod snapshot;
pub mod store;
pub mod switch;
pub mod sync;
pub mod watched;
pub mod witness;

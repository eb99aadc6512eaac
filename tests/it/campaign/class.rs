//! What a class of faults came to.

use super::check::{Broken, Finding, count};
use crate::support::{Record, record};

/// What a class came to, and what was found.
pub struct Class {
    name: String,
    pub record: Record,
    found: Vec<String>,
}

impl Class {
    /// Of so many places.
    pub fn new(name: String, points: usize, of: usize) -> Self {
        Self { name, record: Record { points, of, ..Record::default() }, found: Vec::new() }
    }

    /// Adds what was found after one fault.
    pub fn add(&mut self, what: &str, is_hit: bool, findings: &[Finding]) {
        self.record.hit += usize::from(is_hit);
        count(&mut self.record, findings);
        for finding in findings {
            let text = format!("{what}: {:?}: {}", finding.broken, finding.text);
            eprintln!("{text}");
            if finding.broken != Broken::NeedsPerson {
                self.found.push(text);
            }
        }
    }

    /// Writes the record; the texts of what was found.
    pub fn end(self) -> Vec<String> {
        record(&self.name, &self.record);
        self.found
    }
}

/// Whether all promises were kept; `found` are the texts of what was broken.
#[track_caller]
pub fn assert_kept(found: &[String]) {
    assert!(found.is_empty(), "{} broken promises:\n{}", found.len(), found.join("\n"));
}

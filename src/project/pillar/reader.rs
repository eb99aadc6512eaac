//! Reads the files of a pillar: the first one and what it includes.

use std::sync::Arc;

use serde_json::Value;

use super::Inputs;
use super::document::Document;
use crate::sys::error::Result;
use crate::sys::escape::visible_bounded;

/// The most files that one pillar may consist of.
const MOST_FILES: usize = 100;

/// What was read so far. An included file comes before the one that includes it, which may say something else (Salt's
/// `render_pstate`).
pub struct Reader<'a> {
    inputs: &'a Inputs<'a>,
    before: &'a str,
    known: &'a Value,
    documents: Vec<(String, Arc<Document>)>,
    open: Vec<String>,
}

impl<'a> Reader<'a> {
    /// A reader; `before` stands before each path in messages, `known` is what templates find as `pillar`.
    #[must_use]
    pub fn new(inputs: &'a Inputs<'a>, before: &'a str, known: &'a Value) -> Self {
        Self { inputs, before, known, documents: Vec::new(), open: Vec::new() }
    }

    /// Reads a file, if it is there, and everything that it includes.
    ///
    /// # Errors
    /// Of kind Invalid: what is included is not there, includes itself, or is invalid.
    pub fn read_all(mut self, path: &str) -> Result<Vec<Arc<Document>>> {
        if let Some(bytes) = (self.inputs.files)(path)? {
            self.read(path, &bytes)?;
        }
        Ok(self.documents.into_iter().map(|(_, document)| document).collect())
    }

    fn read(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let document = Document::read(&format!("{}{path}", self.before), bytes, self.inputs.facts, self.known)?;
        self.open.push(path.to_string());
        for name in document.includes()? {
            let wrong = |message: String| document.error_at(&["include"], &message);
            let shown = visible_bounded(name.as_bytes(), 80);
            let paths =
                self.paths_of(&name).ok_or_else(|| wrong(format!("`{shown}` is no name of a file of the pillar")))?;
            let mut found = None;
            for path in paths {
                if found.is_none() {
                    found = (self.inputs.files)(&path)?.map(|bytes| (path, bytes));
                }
            }
            let (path, bytes) = found.ok_or_else(|| wrong(format!("the pillar has no file for `{shown}`")))?;
            if self.open.contains(&path) {
                return Err(wrong(format!("{path} includes itself")));
            }
            if self.documents.len() + self.open.len() >= MOST_FILES {
                return Err(wrong(format!("a pillar may consist of {MOST_FILES} files")));
            }
            if !self.documents.iter().any(|(known, _)| *known == path) {
                self.read(&path, &bytes)?;
            }
        }
        self.open.pop();
        self.documents.push((path.to_string(), Arc::new(document)));
        Ok(())
    }

    /// Where `folder.name` may stand: a file, or the init.sls of a folder. The prefix that makina-states gives the pillar of a
    /// project is understood, and a dot in front, which for Salt means "beside this file", too.
    fn paths_of(&self, name: &str) -> Option<[String; 2]> {
        let prefix = format!("makina-projects.{}.", self.inputs.project);
        let inner = name.strip_prefix(&prefix).unwrap_or(name).trim_start_matches('.');
        let is_good = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if inner.len() > 200 || !inner.split('.').all(is_good) {
            return None;
        }
        let path = inner.replace('.', "/");
        Some([format!("{path}.sls"), format!("{path}/init.sls")])
    }
}

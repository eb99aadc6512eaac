//! The text of a manifest, of a list of changes, and what closes both: count and digest.

use std::fmt::Write as _;

use super::entry::{Entry, Style};
use super::index::Indexer;
use super::{Manifest, compared};
use crate::project::ids::DeploymentId;
use crate::sys::error::{Error, Result};
use crate::sys::path::TreePath;
use crate::tree::hash::Hash;

const FIRST_LINE: &str = "mc_project manifest 1";
const FIRST_WORDS_OF_CHANGES: &str = "mc_project changes 1 ";

/// A text with the index of its chunks.
#[derive(Debug)]
pub struct Indexed {
    /// The text.
    pub text: String,
    /// Its index.
    pub index: String,
}

/// What a list of changes says.
#[derive(Debug, Default)]
pub struct Changes {
    /// Entries that are new or other than before.
    pub put: Vec<Entry>,
    /// Paths that are gone.
    pub dropped: Vec<TreePath>,
}

impl Manifest {
    /// The manifest as its file format.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.to_indexed(FIRST_LINE, Style::Plain).text
    }

    /// The manifest as its file format, with the index of that.
    #[must_use]
    pub fn to_manifest(&self) -> Indexed {
        self.to_indexed(FIRST_LINE, Style::Plain)
    }

    /// All entries as lines of this style below a first line, with the index of that.
    #[must_use]
    pub fn to_indexed(&self, first_line: &str, style: Style) -> Indexed {
        let mut text = String::with_capacity(self.len() * 176 + 256);
        text.push_str(first_line);
        text.push('\n');
        let mut indexer = Indexer::default();
        for chunk in self.chunks() {
            indexer.add(&mut text, chunk, style);
        }
        close(&mut text, self.len());
        Indexed { index: indexer.finish(&text), text }
    }

    /// Reads the file format.
    ///
    /// # Errors
    /// If the text is damaged, cut short, or of a newer format.
    pub fn from_text(text: &str) -> Result<Self> {
        let (first, manifest) = Self::from_lines(text, Style::Plain)?;
        if first == FIRST_LINE {
            Ok(manifest)
        } else {
            Err(Error::failed("this is no manifest of a format that this version knows"))
        }
    }

    /// Reads what [`Manifest::to_indexed`] wrote; returns the first line and the entries.
    ///
    /// # Errors
    /// If the text is damaged or cut short.
    pub fn from_lines(text: &str, style: Style) -> Result<(&str, Self)> {
        let mut lines = opened(text)?.lines();
        let first = lines.next().unwrap_or_default();
        let mut entries = Vec::new();
        for (number, line) in lines.enumerate() {
            entries.push(Entry::parse(line, style).ok_or_else(|| bad_line(number + 2))?);
        }
        Ok((first, Self::new(entries)?))
    }

    /// What leads from `before` to this manifest, as its file format.
    #[must_use]
    pub fn to_changes(&self, before: &Self, against: &DeploymentId) -> String {
        self.changes_below(&format!("{FIRST_WORDS_OF_CHANGES}{against}"), before, Style::Plain)
    }

    /// What leads from `before` to this manifest, as lines below a first line.
    #[must_use]
    pub fn changes_below(&self, first_line: &str, before: &Self, style: Style) -> String {
        let mut text = format!("{first_line}\n");
        let mut count = 0;
        for (old, new) in compared(before, self, style) {
            count += 1;
            match (old, new) {
                (_, Some(new)) => {
                    text.push('+');
                    new.write(&mut text, style);
                    text.push('\n');
                }
                (Some(old), None) => {
                    let _ = writeln!(text, "-{}", old.path.escaped());
                }
                (None, None) => {}
            }
        }
        close(&mut text, count);
        text
    }

    /// If the text is a list of changes, the release that it stands against.
    ///
    /// # Errors
    /// If that id is damaged.
    pub fn changes_against(text: &str) -> Result<Option<DeploymentId>> {
        match text.lines().next().and_then(|line| line.strip_prefix(FIRST_WORDS_OF_CHANGES)) {
            Some(id) => id.parse().map(Some),
            None => Ok(None),
        }
    }

    /// Applies a list of changes to this manifest.
    ///
    /// # Errors
    /// If the text is damaged or does not fit.
    pub fn with_changes(&self, text: &str) -> Result<Self> {
        let (_, changes) = Changes::read(text, Style::Plain)?;
        self.with(changes.put, &changes.dropped)
    }
}

impl Changes {
    /// Reads a list of changes; returns its first line too.
    ///
    /// # Errors
    /// If the text is damaged.
    pub fn read(text: &str, style: Style) -> Result<(&str, Self)> {
        let mut lines = opened(text)?.lines();
        let first = lines.next().unwrap_or_default();
        let mut changes = Self::default();
        for (number, line) in lines.enumerate() {
            if let Some(line) = line.strip_prefix('+') {
                changes.put.push(Entry::parse(line, style).ok_or_else(|| bad_line(number + 2))?);
            } else if let Some(path) = line.strip_prefix('-') {
                changes.dropped.push(TreePath::from_escaped(path)?);
            } else {
                return Err(bad_line(number + 2));
            }
        }
        Ok((first, changes))
    }
}

fn bad_line(number: usize) -> Error {
    Error::failed(format!("line {number} of the manifest is damaged"))
}

/// Adds the last line.
pub fn close(text: &mut String, count: usize) {
    let digest = Hash::of(text.as_bytes());
    let _ = writeln!(text, "end {count} {digest}");
}

/// Checks the last line and returns everything before it.
///
/// # Errors
/// If the text is cut short or damaged.
pub fn opened(text: &str) -> Result<&str> {
    let cut = || Error::failed("the manifest is cut short or damaged");
    let without_newline = text.strip_suffix('\n').ok_or_else(cut)?;
    let start = without_newline.rfind('\n').ok_or_else(cut)? + 1;
    let (body, last) = (&text[..start], &without_newline[start..]);
    let mut words = last.split(' ');
    let (end, count, digest) = (words.next(), words.next(), words.next());
    let counted = memchr::memchr_iter(b'\n', body.as_bytes()).count().saturating_sub(1);
    let fits = end == Some("end")
        && count.and_then(|c| c.parse().ok()) == Some(counted)
        && digest == Some(Hash::of(body.as_bytes()).hex().as_str())
        && words.next().is_none();
    if fits { Ok(body) } else { Err(cut()) }
}

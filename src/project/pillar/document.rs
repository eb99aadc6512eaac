//! One file of a pillar: rendered, checked, read by the rule that holds, and what it includes.

use serde_json::{Map, Value};

use super::scalars::{self, Difference};
use super::template::{self, Facts};
use crate::project::yaml::Source;
use crate::project::yaml::locate::Step as Way;
use crate::sys::error::{Error, Result};

/// What YAML the words of a pillar are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// YAML 1.2: `yes` and `0755` are texts.
    New,
    /// YAML 1.1 as Salt reads it: `yes` is true, `0755` is a number.
    Salt,
}

/// A file of a pillar. Its text is full of secrets: there is no `Debug` of it.
#[derive(Clone, PartialEq)]
pub struct Document {
    file: String,
    text: String,
    is_rendered: bool,
    by_new: Map<String, Value>,
    by_salt: Option<(Map<String, Value>, Vec<Difference>)>,
    /// Passwords that were made up for it.
    pub made: Vec<String>,
}

impl Document {
    /// Reads a file. One that is blank, or of comments only, has no keys: Salt takes it so, and `init` writes one.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and column and without any value.
    pub fn read(file: &str, bytes: &[u8], facts: &Facts, known: &Value) -> Result<Self> {
        let (text, is_rendered, made) = match std::str::from_utf8(bytes) {
            Ok(text) if template::is_rendered(file, text)? => {
                let (text, made) = template::render(file, text, facts, known)?;
                (text, true, made)
            }
            Ok(text) => (text.to_string(), false, Vec::new()),
            Err(_) => {
                // Says where it is no text.
                Source::new_secret(file, bytes)?;
                return Err(Error::invalid(format!("{file}: the file is not UTF-8")));
            }
        };
        let mut document = Self {
            file: file.to_string(),
            text,
            is_rendered,
            by_new: Map::new(),
            by_salt: Some((Map::new(), Vec::new())),
            made,
        };
        if document.text.lines().all(|line| matches!(line.trim_start().chars().next(), None | Some('#'))) {
            return Ok(document);
        }
        match document.fill() {
            Ok(()) => Ok(document),
            Err(error) => Err(document.without_made(&error)),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let source = self.source()?;
        let Value::Object(by_new) = source.read()? else { return Err(source.error_at(&[], "expected a mapping")) };
        if self.made.iter().any(|made| has_key(&by_new, made)) {
            return Err(source.error_at(&[], "a password that is made up stands in a key"));
        }
        let by_salt = match scalars::read(&self.text) {
            Some((Value::Object(map), differences)) => Some((map, differences)),
            _ => None,
        };
        (self.by_new, self.by_salt) = (by_new, by_salt);
        Ok(())
    }

    /// The error without passwords that were made up: keys are told, and one may stand in a key.
    fn without_made(&self, error: &Error) -> Error {
        let hide = |text: &str| self.made.iter().fold(text.to_string(), |text, made| text.replace(made, "********"));
        let hidden = Error::new(error.kind(), hide(error.message()));
        match error.hint_text() {
            Some(hint) => hidden.hint(hide(hint)),
            None => hidden,
        }
    }

    /// What stands in it.
    ///
    /// # Errors
    /// If it cannot be read as Salt reads it.
    pub fn keys(&self, words: Words) -> Result<&Map<String, Value>> {
        match (words, &self.by_salt) {
            (Words::New, _) => Ok(&self.by_new),
            (Words::Salt, Some((map, _))) => Ok(map),
            (Words::Salt, None) => Err(Error::invalid(format!("{}: the file cannot be read as YAML 1.1", self.file()))
                .hint("`config: {merge: plain}` in mc_project.yaml reads it as YAML 1.2")),
        }
    }

    /// The words that the two rules read differently, each as a sentence with its place and without its value.
    pub fn warnings(&self, words: Words) -> impl Iterator<Item = String> + '_ {
        let differences = self.by_salt.iter().flat_map(|(_, differences)| differences);
        differences.map(move |Difference { place: (line, column), new, old }| {
            let (is, other, whose) = match words {
                Words::New => (new, old, "Salt and other readers of YAML 1.1"),
                Words::Salt => (old, new, "readers of YAML 1.2"),
            };
            format!(
                "{}:{line}:{column}: this word is read as {is}, {whose} read {other}; put a text in quotes, write true, false or a plain number",
                self.file()
            )
        })
    }

    /// Whether it has templates.
    #[must_use]
    pub fn is_rendered(&self) -> bool {
        self.is_rendered
    }

    /// The name of the file for messages.
    #[must_use]
    pub fn file(&self) -> String {
        if self.is_rendered { format!("{} (rendered)", self.file) } else { self.file.clone() }
    }

    /// Where a key stands: `file:line`.
    #[must_use]
    pub fn place_of(&self, way: &[String]) -> String {
        let ways: Vec<Way<'_>> = way.iter().map(|key| Way::Key(key)).collect();
        let line = self.source().map_or(1, |source| source.place_of(&ways).0);
        format!("{}:{line}", self.file())
    }

    /// An error at a key of this file.
    #[must_use]
    pub fn error_at(&self, way: &[&str], message: &str) -> Error {
        let ways: Vec<Way<'_>> = way.iter().map(|key| Way::Key(key)).collect();
        match self.source() {
            Ok(source) => source.error_at(&ways, message),
            Err(_) => Error::invalid(format!("{}:1:1: {message}", self.file)),
        }
    }

    /// The files that it includes, by Salt's names, and in the order in which they stand there.
    ///
    /// # Errors
    /// If the list is none of names.
    pub fn includes(&self) -> Result<Vec<String>> {
        let wrong = || self.error_at(&["include"], "`include` must be a list of names: - other, - folder.other");
        match self.by_new.get("include") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(names)) => {
                names.iter().map(|name| name.as_str().map(ToString::to_string).ok_or_else(wrong)).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    fn source(&self) -> Result<Source<'_>> {
        Source::new_secret(&self.file, self.text.as_bytes())
    }
}

/// Whether a key anywhere in it holds the text.
fn has_key(map: &Map<String, Value>, text: &str) -> bool {
    fn below(value: &Value, text: &str) -> bool {
        match value {
            Value::Object(map) => has_key(map, text),
            Value::Array(items) => items.iter().any(|item| below(item, text)),
            _ => false,
        }
    }
    map.iter().any(|(key, value)| key.contains(text) || below(value, text))
}

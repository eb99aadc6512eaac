//! The words in which one node asks another for a deliverable, and the line that the answer begins with.
//!
//! `release send NAME COMMIT PART --offset N` is answered with one line, `mc_project release 1 SIZE`, and then the bytes of
//! the part from the offset to its end, nothing more; or with `mc_project release 1 none`. Both sides are strict: what has
//! another form is no question and no answer.

use super::ids::{ObjectId, ProjectName};
use crate::sys::error::{Error, Result};

/// The longest first line of an answer, its line feed included.
pub const HEADER_LIMIT: usize = 64;

const HEADER: &str = "mc_project release 1 ";

/// One file of a deliverable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// What is signed: digests, sizes, provenance.
    Statement,
    /// The signature.
    Signature,
    /// The manifest.
    Manifest,
    /// The archive.
    Archive,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Statement, Self::Signature, Self::Manifest, Self::Archive];

    /// How the file's name ends.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Self::Statement => "json",
            Self::Signature => "sig",
            Self::Manifest => "manifest",
            Self::Archive => "tar.zst",
        }
    }
}

/// A part of a deliverable, from an offset on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The project.
    pub project: ProjectName,
    /// The commit, whole.
    pub commit: ObjectId,
    /// The file.
    pub part: Part,
    /// How much of it the other side has already.
    pub offset: u64,
}

impl Wanted {
    /// The words of the question.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let Self { project, commit, part, offset } = self;
        let words = ["release", "send", project.as_str(), commit.as_str(), part.ending(), "--offset"];
        words.iter().map(ToString::to_string).chain([offset.to_string()]).collect()
    }

    /// Whether these words begin as such a question does.
    #[must_use]
    pub fn is_meant(words: &[&str]) -> bool {
        matches!(words, ["release", "send", ..])
    }

    /// Reads the words of a question.
    ///
    /// # Errors
    /// Of kind `Usage`, if they have another form.
    pub fn parse(words: &[&str]) -> Result<Self> {
        let bad =
            || Error::usage("no such question").hint("release send NAME COMMIT json|sig|manifest|tar.zst --offset N");
        let (["release", "send", project, commit, part], offset) = (match words {
            [question @ .., "--offset", offset] => (question, *offset),
            question => (question, "0"),
        }) else {
            return Err(bad());
        };
        let part = Part::ALL.into_iter().find(|known| known.ending() == *part).ok_or_else(bad)?;
        // Exactly as it is written: no sign, no blank, no second spelling of a number.
        let offset = offset.parse::<u64>().ok().filter(|n| n.to_string() == offset).ok_or_else(bad)?;
        Ok(Self { project: project.parse()?, commit: commit.parse()?, part, offset })
    }
}

/// The first line of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// There is no such deliverable.
    Missing,
    /// The size of the whole part; its bytes from the wanted offset on follow.
    Bytes(u64),
}

impl Head {
    /// The line, with its line feed.
    #[must_use]
    pub fn line(self) -> String {
        match self {
            Self::Missing => format!("{HEADER}none\n"),
            Self::Bytes(size) => format!("{HEADER}{size}\n"),
        }
    }

    /// Reads the line, without its line feed; `None` if it is none.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let rest = std::str::from_utf8(line).ok()?.strip_prefix(HEADER)?;
        if rest == "none" {
            return Some(Self::Missing);
        }
        rest.parse::<u64>().ok().filter(|size| size.to_string() == rest).map(Self::Bytes)
    }
}

impl From<Option<u64>> for Head {
    fn from(size: Option<u64>) -> Self {
        size.map_or(Self::Missing, Self::Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "1a2b3c4d5e000000000000000000000000000000";

    #[test]
    fn questions_are_read_as_they_are_written() {
        for part in Part::ALL {
            let wanted =
                Wanted { project: "shop".parse().unwrap(), commit: COMMIT.parse().unwrap(), part, offset: 1 << 40 };
            let words = wanted.words();
            let texts: Vec<&str> = words.iter().map(String::as_str).collect();
            assert!(Wanted::is_meant(&texts));
            assert_eq!(Wanted::parse(&texts).unwrap(), wanted);
        }
        let without = ["release", "send", "shop", COMMIT, "json"];
        assert_eq!(Wanted::parse(&without).unwrap().offset, 0);
    }

    #[test]
    fn everything_else_is_no_question() {
        for text in [
            "release send",
            "release send shop",
            "release send shop 1a2b3c4d5e json",
            "release send ../shop COMMIT json",
            "release send shop ../../etc/passwd json",
            "release send shop COMMIT ../json",
            "release send shop COMMIT key",
            "release send shop COMMIT json --offset",
            "release send shop COMMIT json --offset -1",
            "release send shop COMMIT json --offset +1",
            "release send shop COMMIT json --offset 01",
            "release send shop COMMIT json --offset 99999999999999999999",
            "release send shop COMMIT json --offset 1 x",
            "release send --offset 1 shop COMMIT json",
            "release list shop COMMIT json",
        ] {
            let text = text.replace("COMMIT", COMMIT);
            let words: Vec<&str> = text.split(' ').collect();
            assert!(Wanted::parse(&words).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_line_of_an_answer_says_the_size_or_that_there_is_none() {
        for head in [Head::Missing, Head::Bytes(0), Head::Bytes(u64::MAX)] {
            let line = head.line();
            assert!(line.len() <= HEADER_LIMIT);
            assert_eq!(Head::parse(line.trim_end().as_bytes()), Some(head));
        }
        for bad in
            ["", "none", "mc_project release 1 ", "mc_project release 1 -1", "mc_project release 1 07", "Welcome!"]
        {
            assert_eq!(Head::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}

//! Why a pipeline stops before its end: a failed step, a refusal, or an error of ours.

use crate::project::outcome::Verdict;
use crate::project::stage::Stage;
use crate::sys::error::{Error, Kind};

/// The reason to stop.
#[derive(Debug, Clone)]
pub struct Halt {
    /// Refused (nothing was tried) or failed.
    pub refused: bool,
    /// The stage, once known.
    pub stage: Option<Stage>,
    /// Why, in one line.
    pub reason: String,
    /// The last lines of the step's output.
    pub tail: Vec<String>,
    /// What to do next.
    pub hints: Vec<String>,
    /// The exit code, where it says more than the verdict.
    pub exit: Option<u8>,
}

impl Halt {
    /// A failed step or act.
    #[must_use]
    pub fn failed(reason: impl Into<String>) -> Self {
        Self { refused: false, stage: None, reason: reason.into(), tail: Vec::new(), hints: Vec::new(), exit: None }
    }

    /// A refusal: the request cannot be done, nothing was tried.
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { refused: true, ..Self::failed(reason) }
    }

    /// Adds what to do next; each line is a hint of its own, as everything that is told is told by lines.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.extend(hint.into().lines().map(str::to_string));
        self
    }

    /// Adds the last lines of output.
    #[must_use]
    pub fn tail(mut self, tail: Vec<String>) -> Self {
        self.tail = tail;
        self
    }

    /// The verdict where nothing was changed by then.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.refused { Verdict::Refused } else { Verdict::Failed }
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            Kind::Refused | Kind::Failed => None,
            other => Some(other.exit_code() as u8),
        };
        Self {
            refused: matches!(
                error.kind(),
                Kind::Usage | Kind::Invalid | Kind::Busy | Kind::NeedsPerson | Kind::Refused
            ),
            stage: None,
            reason: error.one_line(),
            tail: Vec::new(),
            hints: error.hint_text().unwrap_or_default().lines().map(str::to_string).collect(),
            exit,
        }
    }
}

/// The result of a part of a pipeline: done, or a reason to stop.
pub type Step<T = ()> = std::result::Result<T, Halt>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_of_several_lines_becomes_several_hints() {
        let halt = Halt::from(Error::invalid("x").hint("allowed: a, b\n  13 | bad\n     | ^"));
        assert_eq!(halt.hints, ["allowed: a, b", "  13 | bad", "     | ^"]);
        assert_eq!(Halt::failed("x").hint("one\ntwo").hints, ["one", "two"]);
    }
}

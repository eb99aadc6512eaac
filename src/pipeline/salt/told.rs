//! What the runner of the states tells: lines with a mark that is another one each time, so that no output of a state is
//! taken for them by chance. The states themselves could find it out; they may do all that the step may do anyway.

use serde::Deserialize;

use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::sys::escape::{in_sentence, visible};

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// How a file of states began.
#[derive(Deserialize)]
struct Begin {
    sls: String,
}

/// How a file of states ended.
#[derive(Debug, Clone, Deserialize)]
pub struct End {
    /// Its name.
    pub sls: String,
    /// Whether its failure is none.
    pub lenient: bool,
    /// Why it failed.
    pub reason: Option<String>,
    /// What to do about it.
    pub hints: Vec<String>,
    states: usize,
    changed: usize,
    ms: u64,
}

impl End {
    /// Its failure, if it is one.
    pub fn failure(&self) -> Option<(&Self, &str)> {
        self.reason.as_deref().filter(|_| !self.lenient).map(|reason| (self, reason))
    }
}

/// What a line is.
#[derive(Debug)]
pub enum Heard {
    /// Output of a state.
    Output,
    /// Something that is to be told.
    Tell(Event),
    /// Nothing that anybody wants to read.
    Nothing,
}

/// What was told so far.
#[derive(Debug)]
pub struct Told {
    mark: String,
    stage: Stage,
    /// Whether each file of states is a step of its own.
    is_apart: bool,
    /// What has ended.
    pub ends: Vec<End>,
    is_done: bool,
}

impl Told {
    /// Nothing yet.
    #[must_use]
    pub fn new(mark: &str, stage: Stage, is_apart: bool) -> Self {
        Self { mark: mark.to_string(), stage, is_apart, ends: Vec::new(), is_done: false }
    }

    /// Hears a line.
    pub fn hear(&mut self, line: &[u8]) -> Heard {
        let Some(said) = line.strip_prefix(self.mark.as_bytes()) else {
            // After its end Salt prints what the runner returned.
            return if self.is_done { Heard::Nothing } else { Heard::Output };
        };
        let space = said.iter().position(|byte| *byte == b' ').unwrap_or(said.len());
        let (word, fields) = (&said[..space], said.get(space + 1..).unwrap_or_default());
        let event = match word {
            b"begin" => {
                let begin = serde_json::from_slice::<Begin>(fields).ok().filter(|_| self.is_apart);
                begin.map(|begin| Event::Step { stage: self.stage, title: format!("salt:{}", visible(&begin.sls)) })
            }
            b"end" => serde_json::from_slice(fields).ok().map(|end| self.ended(end)),
            _ => {
                self.is_done = true;
                None
            }
        };
        event.map_or(Heard::Nothing, Heard::Tell)
    }

    fn ended(&mut self, mut end: End) -> Event {
        let short = |text: &str| in_sentence(&visible(text).chars().take(MAX_REASON).collect::<String>());
        end.reason = end.reason.as_deref().map(short);
        end.hints = end.hints.iter().map(|hint| short(hint)).collect();
        let status = if end.reason.is_some() { "failed".to_string() } else { "ok".to_string() };
        let event = Event::StepDone { stage: self.stage, status, ms: end.ms };
        self.ends.push(end);
        event
    }

    /// Whether the last thing that began has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.is_done && !self.ends.is_empty()
    }

    /// Whether the runner came to its end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// `12 states, 4 changed something`.
    #[must_use]
    pub fn words(&self) -> String {
        let states: usize = self.ends.iter().map(|end| end.states).sum();
        let changed: usize = self.ends.iter().map(|end| end.changed).sum();
        let word = if states == 1 { "1 state".to_string() } else { format!("{states} states") };
        format!("{word}, {changed} changed something")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(told: &mut Told, line: &str) -> Heard {
        told.hear(line.as_bytes())
    }

    fn is_nothing(heard: &Heard) -> bool {
        matches!(heard, Heard::Nothing)
    }

    #[test]
    fn only_what_has_the_mark_is_the_runners() {
        let mut told = Told::new("@x:", Stage::PostInstall, true);
        let forged = r#"@y:end {"sls":"a","lenient":false,"reason":null,"hints":[],"states":1,"changed":1,"ms":1}"#;
        assert!(matches!(hear(&mut told, forged), Heard::Output));
        assert!(told.ends.is_empty() && !told.has_ended());
        let begun = hear(&mut told, r#"@x:begin {"sls":"100_app","lenient":false}"#);
        assert!(matches!(&begun, Heard::Tell(Event::Step { title, .. }) if title == "salt:100_app"));
        let end =
            r#"@x:end {"sls":"100_app","lenient":false,"reason":"a\nb","hints":[],"states":3,"changed":1,"ms":7}"#;
        assert!(
            matches!(&hear(&mut told, end), Heard::Tell(Event::StepDone { status, ms: 7, .. }) if status == "failed")
        );
        assert!(!told.has_ended());
        assert!(is_nothing(&hear(&mut told, "@x:done")) && told.is_done());
        assert!(is_nothing(&hear(&mut told, "local: True")));
        assert_eq!(told.words(), "3 states, 1 changed something");
        let (_, reason) = told.ends[0].failure().unwrap();
        assert!(!reason.contains('\n'), "{reason}");
    }

    #[test]
    fn what_cannot_be_understood_is_no_end() {
        let mut told = Told::new("@x:", Stage::Backup, false);
        assert!(is_nothing(&hear(&mut told, "@x:end {")) && is_nothing(&hear(&mut told, "@x:begin")));
        assert!(told.ends.is_empty());
    }
}

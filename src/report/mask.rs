//! Secrets by value: what a step prints must not carry them into logs, mails or history.

use super::event::{Begin, Event};
use crate::project::outcome::Outcome;
use crate::sys::escape;

/// Shorter values are not masked: they would turn up in innocent words.
const MIN: usize = 8;

const MASK: &str = "[secret]";

/// Replaces the values of secrets in text.
#[derive(Clone, Default)]
pub struct Mask {
    /// Longest first, so that a secret that holds another one goes as a whole.
    values: Vec<String>,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} values)", self.values.len())
    }
}

impl Mask {
    /// A mask for these values. A value of several lines (a private key) is known by each of them, because output
    /// comes line by line; each is known raw and in the escaped form in which lines are shown.
    #[must_use]
    pub fn new(secrets: &[String]) -> Self {
        let mut values: Vec<String> = secrets
            .iter()
            .flat_map(|secret| secret.lines().chain([secret.as_str()]))
            .map(str::trim)
            .flat_map(|value| {
                [value.to_string(), escape::visible(value), escape::output_line(value.as_bytes(), usize::MAX)]
            })
            .filter(|value| value.len() >= MIN)
            .collect();
        values.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        values.dedup();
        Self { values }
    }

    /// The text without the secrets.
    #[must_use]
    pub fn text(&self, text: String) -> String {
        self.values.iter().fold(text, |text, value| {
            if memchr::memmem::find(text.as_bytes(), value.as_bytes()).is_some() {
                text.replace(value, MASK)
            } else {
                text
            }
        })
    }

    fn option(&self, text: Option<String>) -> Option<String> {
        text.map(|text| self.text(text))
    }

    fn all(&self, texts: Vec<String>) -> Vec<String> {
        texts.into_iter().map(|text| self.text(text)).collect()
    }

    /// The event with every text in it masked.
    #[must_use]
    pub fn event(&self, event: Event) -> Event {
        if self.values.is_empty() {
            return event;
        }
        match event {
            Event::Begin(begin) => Event::Begin(Box::new(self.begin(*begin))),
            Event::Waiting { holder } => Event::Waiting { holder: self.text(holder) },
            Event::StageDone { stage, ms, note } => Event::StageDone { stage, ms, note: self.option(note) },
            Event::StageFailed { stage, ms, reason, tail } => {
                Event::StageFailed { stage, ms, reason: self.text(reason), tail: self.all(tail) }
            }
            Event::Step { stage, title } => Event::Step { stage, title: self.text(title) },
            Event::StepDone { stage, status, ms } => Event::StepDone { stage, status: self.text(status), ms },
            Event::Output { line } => Event::Output { line: self.text(line) },
            Event::Note { text } => Event::Note { text: self.text(text) },
            Event::Warning { text } => Event::Warning { text: self.text(text) },
            Event::RollingBack { reason, stage, data } => Event::RollingBack { reason: self.text(reason), stage, data },
            Event::End { outcome } => Event::End {
                outcome: Outcome { reason: self.option(outcome.reason), hints: self.all(outcome.hints), ..outcome },
            },
            Event::Still { text } => Event::Still { text: self.text(text) },
            // These carry no text of strangers; the paths of `RestoringData` are what a recovery goes by.
            other @ (Event::Stage { .. }
            | Event::Ordered { .. }
            | Event::Prepared
            | Event::Stopping
            | Event::BackedUp
            | Event::Switching { .. }
            | Event::Switched { .. }
            | Event::Touched
            | Event::CheckingOut { .. }
            | Event::CheckedOut
            | Event::Heartbeat { .. }
            | Event::Commit { .. }
            | Event::RestoringData { .. }
            | Event::RolledBack
            | Event::DataRestored
            | Event::Closed) => other,
        }
    }

    fn begin(&self, begin: Begin) -> Begin {
        Begin {
            subject: self.text(begin.subject),
            author: self.text(begin.author),
            pusher: self.text(begin.pusher),
            reason: self.option(begin.reason),
            ..begin
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::outcome::Verdict;
    use crate::project::stage::Stage;
    use crate::report::samples;

    #[test]
    fn values_are_masked_raw_and_escaped_by_line_and_short_ones_stay() {
        let key = "-----BEGIN KEY-----\nMIIEvgIBADANBgkqhkiG\n-----END KEY-----\n";
        let mask = Mask::new(&[
            "hunter2hunter2".into(),
            "hunter2h".into(),
            "abc".into(),
            "p\u{202e}ssword".into(),
            key.into(),
        ]);
        assert_eq!(mask.text("a hunter2hunter2 b abc hunter2h".into()), "a [secret] b abc [secret]");
        assert_eq!(mask.text(escape::visible("x=p\u{202e}ssword;")), "x=[secret];");
        assert_eq!(mask.text("MIIEvgIBADANBgkqhkiG".into()), "[secret]");
        assert!(!format!("{mask:?}").contains("hunter2"));
    }

    #[test]
    fn no_text_of_any_event_keeps_a_secret() {
        let secret = "tr0ub4dor&3";
        let text = || format!("x {secret} y");
        let mut facts = samples::begin_facts(1);
        (facts.subject, facts.author, facts.pusher, facts.reason) = (text(), text(), text(), Some(text()));
        let mut end = samples::end(Verdict::Failed, Some(Stage::Build), Some(&text()), None);
        if let Event::End { outcome } = &mut end {
            outcome.hints = vec![text()];
        }
        let stage = Stage::Build;
        let events = [
            Event::Begin(Box::new(facts)),
            Event::Waiting { holder: text() },
            Event::StageDone { stage, ms: 1, note: Some(text()) },
            Event::StageFailed { stage, ms: 1, reason: text(), tail: vec![text()] },
            Event::Step { stage, title: text() },
            Event::StepDone { stage, status: text(), ms: 1 },
            Event::Output { line: text() },
            Event::Note { text: text() },
            Event::Warning { text: text() },
            Event::RollingBack { reason: text(), stage, data: false },
            end,
        ];
        let mask = Mask::new(&[secret.to_string()]);
        for event in events {
            let json = serde_json::to_string(&mask.event(event)).unwrap();
            assert!(!json.contains(secret) && json.contains("x [secret] y"), "{json}");
        }
    }
}

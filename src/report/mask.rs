//! What a step prints must not carry secrets into logs, mails or history: every text of every event is masked.

use super::event::{Begin, Event};
use crate::project::outcome::Outcome;

pub use crate::sys::mask::Mask;

impl Mask {
    fn option(&self, text: Option<String>) -> Option<String> {
        text.map(|text| self.text(text))
    }

    fn all(&self, texts: Vec<String>) -> Vec<String> {
        texts.into_iter().map(|text| self.text(text)).collect()
    }

    /// The event with every text in it masked.
    #[must_use]
    pub fn event(&self, event: Event) -> Event {
        if self.is_empty() {
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
            | Event::Looking { .. }
            | Event::LetGo
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

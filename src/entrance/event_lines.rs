//! What a hook says to a program instead of a person (`git push -o events=1`): each line is one event as JSON.
//!
//! git hands the lines on behind its `remote: `. The first event of a deployment is [`Event::Ordered`], by whose id a program
//! whose connection is lost attaches again; then come the worker's own events, without the output of steps; the last word is
//! [`Event::End`], also where a push is refused before there is a deployment. What else a hook says is a [`Event::Note`].

use crate::entrance::relay::Tell;
use crate::project::outcome::{Outcome, Verdict};
use crate::project::request::Request;
use crate::report::event::{Event, Record};
use crate::sys::clock;
use crate::sys::error::Error;

/// The pusher, as a program or as a person.
pub struct EventLines<'a> {
    to: &'a mut dyn Tell,
    is_on: bool,
}

impl<'a> EventLines<'a> {
    /// Says events if `is_on`, else everything as it comes.
    pub fn new(to: &'a mut dyn Tell, is_on: bool) -> Self {
        Self { to, is_on }
    }

    fn event(&mut self, event: Event) {
        self.write(&Record { at: clock::now(), event });
    }

    fn write(&mut self, record: &Record) {
        // What cannot be written as JSON does not exist: these are plain data.
        if let Ok(line) = record.ascii_line() {
            self.to.line(&line);
        }
    }
}

impl Tell for EventLines<'_> {
    fn line(&mut self, text: &str) {
        if self.is_on {
            self.event(Event::Note { text: text.to_string() });
        } else {
            self.to.line(text);
        }
    }

    fn record(&mut self, record: &Record, render: &dyn Fn(&Record) -> Vec<String>) {
        match &record.event {
            _ if !self.is_on => self.to.record(record, render),
            Event::Output { .. } => {}
            _ => self.write(record),
        }
    }

    fn still(&mut self, text: &str) {
        if self.is_on {
            self.event(Event::Still { text: text.to_string() });
        } else {
            self.to.still(text);
        }
    }

    fn ordered(&mut self, request: &Request) {
        if self.is_on {
            self.event(Event::Ordered { project: request.project.to_string(), id: request.id.clone() });
        }
    }

    fn refusal(&mut self, error: &Error) {
        if !self.is_on {
            return self.to.refusal(error);
        }
        let outcome = Outcome {
            verdict: Verdict::Refused,
            stage: None,
            reason: Some(error.one_line()),
            serves: None,
            hints: error.hint_text().map(str::to_string).into_iter().collect(),
            exit: Some(error.kind().exit_code() as u8),
        };
        self.event(Event::End { outcome });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(is_on: bool) -> Vec<String> {
        let mut heard: Vec<String> = Vec::new();
        let mut tell = EventLines::new(&mut heard, is_on);
        tell.line("stored\u{202e}");
        tell.still("build still running");
        let output = Record { at: clock::now(), event: Event::Output { line: "x".into() } };
        tell.record(&output, &|_| Vec::new());
        tell.refusal(&Error::usage("no such mode").hint("cooking, final"));
        heard
    }

    #[test]
    fn a_program_hears_events_and_a_person_the_same_in_words() {
        let events: Vec<Event> =
            said(true).iter().map(|line| serde_json::from_str::<Record>(line).unwrap().event).collect();
        assert!(matches!(&events[0], Event::Note { text } if text == "stored\u{202e}"), "{events:?}");
        assert!(matches!(&events[1], Event::Still { .. }), "{events:?}");
        assert!(matches!(&events[2], Event::End { outcome } if outcome.exit_code() == 2), "{events:?}");
        assert_eq!(events.len(), 3);
        assert_eq!(said(false), ["stored\u{202e}", "build still running", "hint: cooking, final"]);
    }
}

//! The subject: project, environment, verdict and commit within what a phone's list shows, then stage and message.

use super::MailFacts;
use crate::project::outcome::Verdict;
use crate::project::recipe::NotifyOn;
use crate::report::event::Work;
use crate::report::history::Entry;
use crate::report::terminal::cut;
use crate::sys::escape::visible;

/// Longer subjects are cut.
pub const MAX: usize = 120;

/// `✗ shop prod: rolled back 1a2b3c4d5e at upgrade: cart: no empty orders`.
#[must_use]
pub fn of(entry: &Entry, facts: &MailFacts) -> String {
    let at = match (entry.verdict, entry.stage) {
        (Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared, _) | (_, None) => String::new(),
        (_, Some(stage)) => format!(" at {}", stage.name()),
    };
    let line = format!(
        "{} {} {}: {} {}{at}: {}",
        mark(entry.verdict),
        facts.project,
        entry.environment.name(),
        verdict(entry, facts.occasion),
        entry.commit.short(),
        entry.subject
    );
    cut(&visible(line.trim_end().trim_end_matches(':')), Some(MAX))
}

/// One sign, for the eye that runs down a list.
#[must_use]
pub fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared => "✓",
        Verdict::NeedsPerson => "‼",
        _ => "✗",
    }
}

/// The verdict in words that a commit may follow.
#[must_use]
pub fn verdict(entry: &Entry, occasion: NotifyOn) -> String {
    let data = if entry.with_data { " with data" } else { "" };
    match (entry.work, entry.verdict) {
        (Work::Rollback, Verdict::Deployed) => format!("went back{data} to"),
        (Work::Rollback, verdict) => format!("rollback{data} {}", verdict.words()),
        (Work::Deploy, Verdict::Deployed) if occasion == NotifyOn::Recovered => "recovered with".to_string(),
        (Work::Deploy, Verdict::NeedsPerson) => "needs a person,".to_string(),
        (Work::Deploy, verdict) => verdict.words().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::stage::Stage;
    use crate::report::samples;

    #[test]
    fn a_phone_shows_project_environment_verdict_and_commit() {
        let facts = samples::mail_facts();
        let entry = samples::rolled_back_entry();
        let subject = of(&entry, &facts);
        assert_eq!(subject, "✗ shop staging: rolled back 1a2b3c4d5e at upgrade: cart: no empty orders");
        let seen: String = subject.chars().take(40).collect();
        for part in ["shop", "staging", "rolled back", "1a2b3c4d5e"] {
            assert!(seen.contains(part), "{seen}");
        }
        let with = |change: &dyn Fn(&mut Entry, &mut MailFacts)| {
            let (mut entry, mut facts) = (entry.clone(), facts.clone());
            entry.subject.clear();
            change(&mut entry, &mut facts);
            of(&entry, &facts)
        };
        let deployed = |entry: &mut Entry| (entry.verdict, entry.stage) = (Verdict::Deployed, Some(Stage::Commit));
        assert_eq!(with(&|e, _| deployed(e)), "✓ shop staging: deployed 1a2b3c4d5e");
        let recovered = with(&|e, f| {
            deployed(e);
            f.occasion = NotifyOn::Recovered;
        });
        assert_eq!(recovered, "✓ shop staging: recovered with 1a2b3c4d5e");
        let back = with(&|e, _| {
            deployed(e);
            (e.work, e.with_data) = (Work::Rollback, true);
        });
        assert_eq!(back, "✓ shop staging: went back with data to 1a2b3c4d5e");
        let person = with(&|e, _| e.verdict = Verdict::NeedsPerson);
        assert_eq!(person, "‼ shop staging: needs a person, 1a2b3c4d5e at upgrade");
    }
}

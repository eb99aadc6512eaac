//! What a deployment leaves in the repository: the line of `refs/notes/deploys` and the refs below `refs/deploys/`.

use super::event::Work;
use super::history::Entry;
use super::terminal;
use crate::project::ids::ObjectId;
use crate::project::outcome::Verdict;
use crate::sys::escape;

/// The commit that serves.
pub const CURRENT: &str = "refs/deploys/current";

/// The commit of the last deployment that ended well.
pub const LAST_GOOD: &str = "refs/deploys/last-good";

/// The commit of the last deployment that did not.
pub const LAST_FAILED: &str = "refs/deploys/last-failed";

/// One line about a deployment, for the note of its commit:
/// `2026-11-20T15:04:05Z #12 deployed staging by alice (3.2 s)`.
#[must_use]
pub fn line(entry: &Entry) -> String {
    let time = entry.ended().strftime("%Y-%m-%dT%H:%M:%SZ");
    let verdict = match (entry.verdict, entry.stage, entry.work) {
        (Verdict::Deployed, _, Work::Rollback) => "deployed (rollback)".to_string(),
        (Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared, _, _) | (_, None, _) => {
            entry.verdict.words().to_string()
        }
        (verdict, Some(stage), _) => format!("{} at {}", verdict.words(), stage.name()),
    };
    let who = terminal::cut(&escape::visible(&entry.pusher), Some(100));
    let took = terminal::duration(entry.duration_ms);
    format!("{time} #{} {verdict} {} by {who} ({took})", entry.seq, entry.environment.name())
}

/// The refs to set after a deployment, and the commit that each becomes. What was refused, or only prepared, sets none
/// but what is true anyway.
#[must_use]
pub fn refs(entry: &Entry) -> Vec<(&'static str, ObjectId)> {
    let mut refs = Vec::new();
    if let Some(serves) = &entry.serves {
        refs.push((CURRENT, serves.commit.clone()));
        if matches!(entry.verdict, Verdict::Deployed | Verdict::Unchanged) {
            refs.push((LAST_GOOD, serves.commit.clone()));
        }
    }
    let failed = match entry.verdict {
        Verdict::Failed | Verdict::RolledBack | Verdict::LeftAsItIs | Verdict::Interrupted | Verdict::NeedsPerson => {
            true
        }
        Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared | Verdict::Refused => false,
    };
    if failed {
        refs.push((LAST_FAILED, entry.commit.clone()));
    }
    refs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn a_note_is_one_line_whatever_the_pusher_is_called() {
        let mut entry = samples::rolled_back_entry();
        assert_eq!(line(&entry), "2026-11-20T15:04:08Z #12 rolled back at upgrade staging by alice (3.0 s)");
        (entry.verdict, entry.stage, entry.duration_ms) = (Verdict::Deployed, None, 3_200);
        assert_eq!(line(&entry), "2026-11-20T15:04:08Z #12 deployed staging by alice (3.2 s)");
        entry.work = Work::Rollback;
        entry.pusher = "a\nb\u{1b}".into();
        assert_eq!(line(&entry), "2026-11-20T15:04:08Z #12 deployed (rollback) staging by a\\u{a}b\\u{1b} (3.2 s)");
    }

    #[test]
    fn the_refs_say_what_serves_what_was_good_and_what_failed() {
        let mut entry = samples::rolled_back_entry();
        let (pushed, old) = (samples::commit("1a2b3c4d5e"), samples::commit("9f8e7d6c5b"));
        for verdict in [Verdict::RolledBack, Verdict::Failed, Verdict::Interrupted, Verdict::NeedsPerson] {
            entry.verdict = verdict;
            assert_eq!(refs(&entry), [(CURRENT, old.clone()), (LAST_FAILED, pushed.clone())], "{verdict:?}");
        }
        for verdict in [Verdict::Refused, Verdict::Prepared] {
            entry.verdict = verdict;
            assert_eq!(refs(&entry), [(CURRENT, old.clone())], "{verdict:?}");
        }
        entry.verdict = Verdict::Failed;
        entry.serves = None;
        assert_eq!(refs(&entry), [(LAST_FAILED, pushed.clone())]);
        entry.verdict = Verdict::Deployed;
        entry.serves = Some(crate::project::outcome::Serving { id: entry.id.clone(), commit: pushed.clone() });
        assert_eq!(refs(&entry), [(CURRENT, pushed.clone()), (LAST_GOOD, pushed)]);
    }
}

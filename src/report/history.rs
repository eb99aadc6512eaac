//! `state/history.jsonl`: one line per finished deployment, newest last, made from its journal.
//!
//! A deployment that a person decided later has a second line; the last line of an id is what counts.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::event::{Event, Record, Work};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::{Environment, Mode};
use crate::project::outcome::{Outcome, Serving, Verdict};
use crate::project::place::Place;
use crate::project::stage::Stage;
use crate::sys::error::{Error, Result};
use crate::sys::lines::{self, LineFile};
use crate::sys::{escape, seal};

/// How one stage of a deployment went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTime {
    /// Which one.
    pub stage: Stage,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// Whether it ended well.
    pub ok: bool,
    /// What it did, or why it failed.
    pub note: Option<String>,
}

/// A finished deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the order of this project's deployments.
    pub seq: u64,
    /// The deployment.
    pub id: DeploymentId,
    /// Deploy or rollback.
    pub work: Work,
    /// How it ended.
    pub verdict: Verdict,
    /// The stage that decided it.
    pub stage: Option<Stage>,
    /// Why it ended so, in one line.
    pub reason: Option<String>,
    /// What to do or look at next.
    #[serde(default)]
    pub hints: Vec<String>,
    /// The commit.
    pub commit: ObjectId,
    /// First line of the commit's message, unescaped.
    pub subject: String,
    /// The commit's author, unescaped.
    pub author: String,
    /// Who pushed or ran the command.
    pub pusher: String,
    /// The fingerprint of the ssh key that they came with, where it is known.
    #[serde(default)]
    pub key: Option<String>,
    /// Why it was made, in the words of who made it (`-o reason=…`).
    pub why: Option<String>,
    /// The branch that was pushed, if one was.
    pub branch: Option<String>,
    /// The mode.
    pub mode: Mode,
    /// The environment.
    pub environment: Environment,
    /// When it began; a label.
    pub started: jiff::Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// What served before it.
    pub before: Option<Serving>,
    /// What serves after it.
    pub serves: Option<Serving>,
    /// For a rollback, the deployment whose release was made live again.
    pub target: Option<DeploymentId>,
    /// Whether data went back too, as asked.
    pub with_data: bool,
    /// Identifies the receive-pack process that the push came through.
    pub push: Option<String>,
    /// The pillar's commit, if the pillar had one.
    pub pillar: Option<ObjectId>,
    /// Its stages in order.
    pub stages: Vec<StageTime>,
    /// Whether the restore point of what was before it was completed.
    pub restore_point: bool,
    /// Whether it became live.
    pub was_live: bool,
}

impl Entry {
    /// How it ended, as it was told.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome {
            verdict: self.verdict,
            stage: self.stage,
            reason: self.reason.clone(),
            serves: self.serves.clone(),
            hints: self.hints.clone(),
            exit: None,
        }
    }

    /// Who made it, with their key where it is known: `alice (SHA256:…) from 192.0.2.7`; not escaped.
    #[must_use]
    pub fn by(&self) -> String {
        match (&self.key, self.pusher.rsplit_once(" from ")) {
            (None, _) => self.pusher.clone(),
            (Some(key), None) => format!("{} ({key})", self.pusher),
            (Some(key), Some((name, address))) => format!("{name} ({key}) from {address}"),
        }
    }

    /// When it ended; a label.
    #[must_use]
    pub fn ended(&self) -> jiff::Timestamp {
        let took = jiff::SignedDuration::from_millis(i64::try_from(self.duration_ms).unwrap_or(i64::MAX));
        self.started.checked_add(took).unwrap_or(self.started)
    }

    /// A few words for lists: `#12 (1a2b3c4d5e cart: no empty orders)`.
    #[must_use]
    pub fn label(&self) -> String {
        let subject: String = escape::visible(&self.subject).chars().take(40).collect();
        format!("#{} ({} {})", self.seq, self.commit.short(), subject.trim_end())
    }
}

/// The entry of a deployment that has ended, from its journal.
///
/// # Errors
/// If the journal has no beginning or no end.
pub fn summarise(records: &[Record]) -> Result<Entry> {
    let beginning = records.iter().find_map(|r| match &r.event {
        Event::Begin(begin) => Some((r.at, begin)),
        _ => None,
    });
    let (started, begin) =
        beginning.ok_or_else(|| Error::failed("the journal does not tell how the deployment began"))?;
    let ended = records.iter().rev().find_map(|r| match &r.event {
        Event::End { outcome } => Some((r.at, outcome)),
        _ => None,
    });
    let (end, outcome) = ended.ok_or_else(|| {
        Error::failed(format!("deployment {} has not ended", begin.id))
            .hint(format!("mc_project status {}", begin.project))
    })?;
    let happened = |wanted: fn(&Event) -> bool| records.iter().any(|r| wanted(&r.event));
    Ok(Entry {
        seq: begin.seq,
        id: begin.id.clone(),
        work: begin.work,
        verdict: outcome.verdict,
        stage: outcome.stage,
        reason: outcome.reason.clone(),
        hints: outcome.hints.clone(),
        commit: begin.commit.clone(),
        subject: begin.subject.clone(),
        author: begin.author.clone(),
        pusher: begin.pusher.clone(),
        key: begin.key.clone(),
        why: begin.reason.clone(),
        branch: begin.refname.as_ref().and_then(|name| name.branch()).map(str::to_string),
        mode: begin.mode,
        environment: begin.environment,
        started,
        // The wall clock may have been set back meanwhile.
        duration_ms: u64::try_from(end.duration_since(started).as_millis()).unwrap_or(0),
        before: begin.serves.clone(),
        serves: outcome.serves.clone(),
        target: begin.target.clone(),
        with_data: begin.with_data,
        push: begin.push.clone(),
        pillar: begin.pillar.clone(),
        stages: records.iter().filter_map(|r| stage_time(&r.event)).collect(),
        restore_point: happened(|e| matches!(e, Event::BackedUp)),
        was_live: happened(|e| matches!(e, Event::Commit { .. })),
    })
}

fn stage_time(event: &Event) -> Option<StageTime> {
    match event {
        Event::StageDone { stage, ms, note } => {
            Some(StageTime { stage: *stage, ms: *ms, ok: true, note: note.clone() })
        }
        Event::StageFailed { stage, ms, reason, .. } => {
            Some(StageTime { stage: *stage, ms: *ms, ok: false, note: Some(reason.clone()) })
        }
        _ => None,
    }
}

/// So far back an entry may stand that is to be added again: deployments end one after the other.
const LOOKED_BACK: usize = 8;

/// Adds an entry. One that stands there already is not added again; one whose deployment has ended anew (a person decided)
/// is. A power cut may take it until [`secure`] has made it durable.
///
/// # Errors
/// If the history cannot be read or written.
pub fn append(place: &Place, entry: &Entry) -> Result<()> {
    let mut line = seal::line(entry, "the history")?;
    // Compared as bytes: a damaged line somewhere must not keep new ones out.
    if lines::last_lines(&place.history(), LOOKED_BACK)?.unwrap_or_default().contains(&line) {
        return Ok(());
    }
    line.push(b'\n');
    let mut file = LineFile::open_unsynced(&place.history(), 0o600)?;
    file.cut_torn_tail()?;
    file.append(&line)
}

/// Makes the history durable.
///
/// # Errors
/// If it cannot be synced.
pub fn secure(place: &Place) -> Result<()> {
    LineFile::open(&place.history(), 0o600)?.sync_with(&[place.state()])
}

/// The newest `limit` entries (`None`: all), newest last; only as much of the file is read as is needed. A last line
/// that a crash tore is left out.
///
/// # Errors
/// If the history cannot be read; a damaged line is named.
pub fn read(place: &Place, limit: Option<usize>) -> Result<Vec<Entry>> {
    let path = place.history();
    let lines = lines::last_lines(&path, limit.unwrap_or(usize::MAX))?.unwrap_or_default();
    let count = lines.len();
    let mut seen = HashSet::new();
    let mut entries = Vec::with_capacity(count);
    for (index, line) in lines.iter().enumerate().rev() {
        let entry: Entry = seal::understood(line).map_err(|error| {
            let file = path.display();
            let from_end = count - index;
            let error = Error::failed(format!("line {from_end} from the end of {file} is damaged")).because(error);
            error.hint(format!(
                "the deployment's own journal is in {}; without that line the history can be read again",
                place.journals().display()
            ))
        })?;
        if seen.insert(entry.id.clone()) {
            entries.push(entry);
        }
    }
    entries.reverse();
    Ok(entries)
}

/// The live entry: the one whose deployment serves since the newest one ended.
#[must_use]
pub fn live(entries: &[Entry]) -> Option<&Entry> {
    let serves = &entries.last()?.serves.as_ref()?.id;
    entries.iter().find(|entry| entry.id == *serves)
}

/// The entry that a person means by `spec`: a whole id, `#42`, `-1` (the good one before the live one), a prefix of an id
/// or of its last twelve digits, or a commit (at least seven digits; the newest deployment that became live with it).
///
/// # Errors
/// Of kind [`crate::sys::error::Kind::Usage`], if none fits or several do: these are named.
pub fn find<'e>(entries: &'e [Entry], spec: &str) -> Result<&'e Entry> {
    find_from(entries, live(entries), spec)
}

/// As [`find`], where what serves is known from elsewhere: the end of editable mode is no deployment, and makes an older
/// one live again.
///
/// # Errors
/// As [`find`].
pub fn find_serving<'e>(entries: &'e [Entry], serves: Option<&Serving>, spec: &str) -> Result<&'e Entry> {
    find_from(entries, serves.and_then(|serves| entries.iter().find(|entry| entry.id == serves.id)), spec)
}

fn find_from<'e>(entries: &'e [Entry], live: Option<&'e Entry>, spec: &str) -> Result<&'e Entry> {
    let spec = spec.trim();
    if let Some(steps) = spec.strip_prefix('-').and_then(|digits| digits.parse::<usize>().ok()).filter(|n| *n > 0) {
        return before_live(entries, live, steps);
    }
    let seq = spec.strip_prefix('#').and_then(|digits| digits.parse::<u64>().ok());
    if let Some(found) = entries.iter().find(|entry| Some(entry.seq) == seq || entry.id.as_str() == spec) {
        return Ok(found);
    }
    let mut found: Vec<&Entry> = Vec::new();
    if seq.is_none() && spec.len() >= 4 {
        found.extend(entries.iter().filter(|e| e.id.as_str().starts_with(spec) || e.id.short().starts_with(spec)));
        let by_commit = newest_of_each_commit(entries, &spec.to_ascii_lowercase());
        found.extend(by_commit.into_iter().filter(|e| !found.iter().any(|f| f.id == e.id)).collect::<Vec<_>>());
    }
    match found[..] {
        [one] => Ok(one),
        [] => Err(unknown(entries, spec)),
        _ => Err(ambiguous(&found, spec)),
    }
}

fn newest_of_each_commit<'e>(entries: &'e [Entry], prefix: &str) -> Vec<&'e Entry> {
    if prefix.len() < 7 {
        return Vec::new();
    }
    let mut seen = HashSet::new();
    let live = entries.iter().rev().filter(|e| e.was_live && e.commit.as_str().starts_with(prefix));
    let mut found: Vec<&Entry> = live.filter(|e| seen.insert(&e.commit)).collect();
    found.reverse();
    found
}

fn before_live<'e>(entries: &'e [Entry], live: Option<&'e Entry>, steps: usize) -> Result<&'e Entry> {
    let live =
        live.ok_or_else(|| Error::usage(format!("nothing is live, so there is nothing before it (-{steps})")))?;
    // What was deployed in editable mode is nothing to go back to: its files were those of a clone.
    let before = |e: &&Entry| e.was_live && e.seq < live.seq && e.mode != Mode::Editable;
    entries.iter().rev().filter(before).nth(steps - 1).ok_or_else(|| {
        let there = match steps {
            1 => "there is no good deployment".to_string(),
            _ => format!("there are fewer than {steps} good deployments"),
        };
        Error::usage(format!("{there} before the live one, {}", live.label()))
            .hint("mc_project history NAME lists them")
    })
}

fn unknown(entries: &[Entry], spec: &str) -> Error {
    let shown = escape::visible(&spec.chars().take(80).collect::<String>());
    let error = Error::usage(format!("no deployment `{shown}`"));
    if let Some(entry) = spec.parse::<u64>().ok().and_then(|seq| entries.iter().find(|e| e.seq == seq)) {
        return error.hint(format!("did you mean {}? write '#{spec}' in quotes", entry.label()));
    }
    let commit = spec.to_ascii_lowercase();
    let failed = entries.iter().rev().find(|e| commit.len() >= 7 && e.commit.as_str().starts_with(&commit));
    if let Some(entry) = failed {
        let words = entry.verdict.words();
        return error.hint(format!("{} never became live ({words}); its id is {}", entry.label(), entry.id));
    }
    error.hint("a whole id, '#42', a prefix of an id, a commit or -1; mc_project history NAME lists them")
}

fn ambiguous(found: &[&Entry], spec: &str) -> Error {
    let newest: Vec<String> = found.iter().rev().take(5).map(|entry| entry.label()).collect();
    let more = if found.len() > 5 { format!(" and {} more", found.len() - 5) } else { String::new() };
    let shown = escape::visible(&spec.chars().take(80).collect::<String>());
    Error::usage(format!("`{shown}` fits {} deployments", found.len()))
        .hint(format!("name one of {}{more}", newest.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::outcome::SwitchKind;
    use crate::report::event::Begin;
    use crate::report::samples;
    use crate::sys::error::Kind;

    /// Deployment number `seq` of the commit that begins with `start`; `serves` is what serves after it.
    fn entry(seq: u64, start: &str, verdict: Verdict, serves: Option<(u64, &str)>) -> Entry {
        let begin = Begin { commit: samples::commit(start), ..samples::begin_facts(seq) };
        let mut events = vec![Event::Begin(Box::new(begin))];
        if verdict == Verdict::Deployed {
            events.push(Event::Commit { serves: Serving { id: samples::id(seq), commit: samples::commit(start) } });
        }
        events.push(samples::end(verdict, None, None, serves));
        let records: Vec<Record> = events.into_iter().map(|event| samples::record(seq * 60, event)).collect();
        summarise(&records).unwrap()
    }

    fn five() -> Vec<Entry> {
        vec![
            entry(1, "aaaaaaa1", Verdict::Deployed, Some((1, "aaaaaaa1"))),
            entry(2, "bbbbbbb2", Verdict::Deployed, Some((2, "bbbbbbb2"))),
            entry(3, "ccccccc3", Verdict::RolledBack, Some((2, "bbbbbbb2"))),
            entry(4, "aaaaaaa1", Verdict::Deployed, Some((4, "aaaaaaa1"))),
            entry(5, "aaaaaaa9", Verdict::Failed, Some((4, "aaaaaaa1"))),
        ]
    }

    #[test]
    fn a_journal_is_summed_up() {
        let switching = Event::Switching { how: SwitchKind::Exchange, run_ino: 1, spare_ino: 2 };
        let done = Event::StageDone { stage: Stage::Build, ms: 12, note: Some("3 steps".into()) };
        let failed =
            Event::StageFailed { stage: Stage::Upgrade, ms: 7, reason: "exit 2".into(), tail: vec!["x".into()] };
        let end = samples::end(Verdict::RolledBack, Some(Stage::Upgrade), Some("exit 2"), Some((1, "9f8e7d6c5b")));
        let events = [samples::begin(2), done, Event::BackedUp, switching, failed, Event::RolledBack, end];
        let records: Vec<Record> =
            events.into_iter().enumerate().map(|(n, event)| samples::record(n as u64, event)).collect();
        let entry = summarise(&records).unwrap();
        assert_eq!((entry.seq, entry.verdict, entry.stage), (2, Verdict::RolledBack, Some(Stage::Upgrade)));
        assert_eq!((entry.restore_point, entry.was_live, entry.duration_ms), (true, false, 6_000));
        assert_eq!(entry.branch.as_deref(), Some("main"));
        assert_eq!(entry.ended(), records[6].at);
        let stages: Vec<_> = entry.stages.iter().map(|s| (s.stage, s.ms, s.ok, s.note.as_deref())).collect();
        assert_eq!(stages, [(Stage::Build, 12, true, Some("3 steps")), (Stage::Upgrade, 7, false, Some("exit 2"))]);
        assert_eq!(entry.outcome().line(), "rolled back at upgrade: exit 2; run serves 9f8e7d6c5b again");

        assert!(summarise(&records[..6]).unwrap_err().message().ends_with("has not ended"));
        assert!(summarise(&records[1..]).is_err());
        let mut back = records;
        back[6].at = back[0].at - jiff::SignedDuration::from_secs(100);
        assert_eq!(summarise(&back).unwrap().duration_ms, 0, "the clock was set back");
    }

    #[test]
    fn the_key_goes_from_the_journal_into_the_history_and_old_lines_have_none() {
        let mut facts = samples::begin_facts(1);
        facts.key = Some("SHA256:x".into());
        let end = samples::end(Verdict::Refused, None, None, None);
        let records = [samples::record(0, Event::Begin(Box::new(facts))), samples::record(1, end)];
        let entry = summarise(&records).unwrap();
        assert_eq!((entry.key.as_deref(), entry.by().as_str()), (Some("SHA256:x"), "alice (SHA256:x)"));
        let mut old = serde_json::to_value(&entry).unwrap();
        assert!(old.as_object_mut().unwrap().remove("key").is_some());
        let old: Entry = serde_json::from_value(old).unwrap();
        assert_eq!((old.key.as_deref(), old.by().as_str()), (None, "alice"));
        let mut journal = serde_json::to_value(&records[0]).unwrap();
        assert!(journal.as_object_mut().unwrap().remove("key").is_some());
        assert!(serde_json::from_value::<Record>(journal).is_ok());
    }

    #[test]
    fn entries_are_kept_once_and_read_back_newest_last_from_the_end() {
        let (_dir, place) = samples::place();
        assert!(read(&place, None).unwrap().is_empty());
        let entries = five();
        for entry in entries.iter().chain(&entries) {
            append(&place, entry).unwrap();
        }
        assert_eq!(read(&place, None).unwrap(), entries);
        assert_eq!(read(&place, Some(2)).unwrap(), entries[3..]);
        assert_eq!(read(&place, Some(0)).unwrap(), []);

        let mut decided = entries[4].clone();
        decided.verdict = Verdict::Deployed;
        append(&place, &decided).unwrap();
        let read = read(&place, None).unwrap();
        assert_eq!((read.len(), &read[4]), (5, &decided), "the last word of a deployment counts");
    }

    #[test]
    fn a_torn_last_line_is_cut_and_a_damaged_one_is_named_and_keeps_no_new_entry_out() {
        let (_dir, place) = samples::place();
        let entries = five();
        append(&place, &entries[0]).unwrap();
        let whole = std::fs::read_to_string(place.history()).unwrap();
        let torn = format!("{whole}{}", &whole[..whole.len() / 2]);
        std::fs::write(place.history(), torn).unwrap();
        assert_eq!(read(&place, None).unwrap(), entries[..1]);
        append(&place, &entries[1]).unwrap();
        assert_eq!(read(&place, None).unwrap(), entries[..2]);

        let damaged = std::fs::read_to_string(place.history()).unwrap().replacen("\"seq\":1", "\"seq\":x", 1);
        std::fs::write(place.history(), damaged).unwrap();
        append(&place, &entries[2]).unwrap();
        assert_eq!(read(&place, Some(2)).unwrap(), entries[1..3]);
        let error = read(&place, None).unwrap_err();
        assert!(error.message().starts_with("line 3 from the end of "), "{error}");
        assert!(error.message().contains("history.jsonl"), "{error}");
    }

    #[test]
    fn a_deployment_is_found_by_every_name_that_a_person_may_use() {
        let entries = five();
        let whole = samples::id(3).to_string();
        let cases = [
            (&whole[..], 3),
            (&whole[..15], 3),
            ("#5", 5),
            ("000000000002", 2),
            ("bbbbbbb", 2),
            ("BBBBBBB2", 2),
            ("aaaaaaa1", 4),
            ("-1", 2),
            ("-2", 1),
            (" #1 ", 1),
        ];
        for (spec, seq) in cases {
            assert_eq!(find(&entries, spec).unwrap().seq, seq, "{spec}");
        }
    }

    #[test]
    fn what_cannot_be_found_is_explained() {
        let entries = five();
        let told = |spec: &str| {
            let error = find(&entries, spec).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            format!("{} | {}", error.message(), error.hint_text().unwrap())
        };
        let label = "cart: no empty orders)";
        assert_eq!(
            told("20261120"),
            format!(
                "`20261120` fits 5 deployments | name one of #5 (aaaaaaa900 {label}, #4 (aaaaaaa100 {label}, \
                 #3 (ccccccc300 {label}, #2 (bbbbbbb200 {label}, #1 (aaaaaaa100 {label}"
            )
        );
        let unknown = " | a whole id, '#42', a prefix of an id, a commit or -1; mc_project history NAME lists them";
        for spec in ["#42", "", "aa", "aaaaaa", "-0", "#", "main", "0199e5a0-0000"] {
            assert_eq!(told(spec), format!("no deployment `{spec}`{unknown}"));
        }
        assert_eq!(told("4"), format!("no deployment `4` | did you mean #4 (aaaaaaa100 {label}? write '#4' in quotes"));
        let id = samples::id(3);
        assert_eq!(
            told("ccccccc"),
            format!("no deployment `ccccccc` | #3 (ccccccc300 {label} never became live (rolled back); its id is {id}")
        );
        assert!(told("-3").starts_with("there are fewer than 3 good deployments before the live one, #4 "));
        assert!(!told("\u{1b}[31mx").contains('\u{1b}'));
        assert!(find(&[], "-1").unwrap_err().message().starts_with("nothing is live"));
    }

    #[test]
    fn commits_that_share_a_prefix_are_ambiguous_only_if_both_became_live() {
        let mut entries = five();
        assert_eq!(find(&entries, "aaaaaaa").unwrap().seq, 4);
        entries.push(entry(6, "aaaaaaa9", Verdict::Deployed, Some((6, "aaaaaaa9"))));
        let error = find(&entries, "aaaaaaa").unwrap_err();
        assert_eq!(error.message(), "`aaaaaaa` fits 2 deployments");
        assert_eq!(find(&entries, "-1").unwrap().seq, 4);
    }
}

//! The mail as HTML: a template filled with texts of which every one was escaped, first for the eye, then for HTML.
//!
//! It must be read by mail programs: tables, styles at the elements, nothing that is loaded from elsewhere; and it stays
//! below the 102 KB at which some of them cut.

use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use serde_json::Value;

use super::{CommitLine, MAX_LINE, MailFacts, Suggestion, serves, subject, suggestions, text};
use crate::project::outcome::Verdict;
use crate::project::stage::Stage;
use crate::report::event::Work;
use crate::report::history::Entry;
use crate::report::terminal::{self, cut};
use crate::sys::escape::visible;

const TEMPLATE: &str = include_str!("letter.html");

const MAX_TAIL_LINES: usize = 60;
const MAX_TAIL: usize = 12 * 1024;
const MAX_COMMITS: usize = 20;
const MAX_LIST: usize = 12;
/// A line in this form, where a phone shows some forty characters.
const MAX_ITEM: usize = MAX_LINE / 2;
/// What some mail programs show of a mail; a larger one is sent as text alone.
const MAX_HTML: usize = 100 * 1024;

#[derive(Serialize)]
struct Letter {
    subject: String,
    /// `good`, `bad` or `person`: the colour.
    tone: &'static str,
    mark: &'static str,
    title: String,
    place: String,
    reason: String,
    line: String,
    commit: String,
    by: String,
    serves: String,
    tail: Vec<String>,
    tail_left_out: usize,
    step: &'static str,
    taken_back: Vec<String>,
    kept: Vec<(String, String)>,
    commits: Vec<CommitLine>,
    more_commits: usize,
    stages: Vec<Bar>,
    warnings: Vec<String>,
    drift: Vec<String>,
    hints: Vec<String>,
    suggestions: Vec<Suggestion>,
    on_the_node: String,
    log: String,
    rows: Vec<(&'static str, String)>,
}

/// A stage, its time, and how much of the longest one that is.
#[derive(Serialize)]
struct Bar {
    name: &'static str,
    ok: bool,
    time: String,
    note: String,
    percent: u64,
}

/// The whole document; `None` if it cannot be made or would be too long: then the text speaks alone.
#[must_use]
pub fn of(entry: &Entry, facts: &MailFacts) -> Option<String> {
    let mut letter = serde_json::to_value(letter(entry, facts)).ok()?;
    make_visible(&mut letter);
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("letter", TEMPLATE).ok()?;
    let html = environment.get_template("letter").ok()?.render(minijinja::value::Serde(&letter)).ok()?;
    (html.len() <= MAX_HTML).then_some(html)
}

/// Control characters and what turns the direction of writing become visible in every text; HTML escapes the rest.
fn make_visible(value: &mut Value) {
    match value {
        // A tab of a step's output may stay: nothing else than blanks comes of it.
        Value::String(text) => *text = text.split('\t').map(visible).collect::<Vec<_>>().join("\t"),
        Value::Array(list) => list.iter_mut().for_each(make_visible),
        Value::Object(map) => map.values_mut().for_each(make_visible),
        _ => {}
    }
}

fn letter(entry: &Entry, facts: &MailFacts) -> Letter {
    let is_good = matches!(entry.verdict, Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared);
    let (tail, tail_left_out) = text::last_lines(&facts.tail, MAX_TAIL, MAX_TAIL_LINES);
    Letter {
        subject: subject::of(entry, facts),
        tone: match entry.verdict {
            Verdict::NeedsPerson => "person",
            _ if is_good => "good",
            _ => "bad",
        },
        mark: subject::mark(entry.verdict),
        title: title(entry, facts, is_good),
        place: format!("{} · {} · {}", facts.project, entry.environment.name(), facts.node),
        reason: short(entry.reason.as_deref().unwrap_or_default()),
        line: short(&entry.outcome().line()),
        commit: short(&format!("{} {}", entry.commit.short(), entry.subject)),
        by: format!("by {}, {}", entry.pusher, terminal::duration(entry.duration_ms)),
        serves: serves(entry),
        tail,
        tail_left_out,
        step: entry.stages.iter().rev().find(|time| !time.ok).map_or("", |time| time.stage.name()),
        taken_back: list(&facts.taken_back),
        kept: list(&facts.kept).into_iter().map(place_apart).collect(),
        commits: facts.commits.iter().take(MAX_COMMITS).map(commit).collect(),
        more_commits: facts.more_commits + facts.commits.len().saturating_sub(MAX_COMMITS),
        stages: bars(entry),
        warnings: list(&facts.warnings),
        drift: list(&facts.drift),
        hints: list(&entry.hints),
        suggestions: suggestions(entry, facts),
        on_the_node: if facts.from_afar.is_some() { facts.command.clone() } else { String::new() },
        log: facts.log.clone(),
        rows: text::rows(entry).into_iter().skip(1).map(|(name, value)| (name, short(&value))).collect(),
    }
}

fn title(entry: &Entry, facts: &MailFacts, is_good: bool) -> String {
    let words = subject::verdict(entry, facts.occasion);
    let words = words.trim_end_matches(',').trim_end_matches(" with").trim_end_matches(" to");
    let mut letters = words.chars();
    let words: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    match entry.stage.filter(|stage| !is_good && *stage != Stage::Commit) {
        Some(stage) => format!("{words} at {}", stage.name()),
        None if entry.work == Work::Rollback && is_good => format!("{words} to {}", entry.commit.short()),
        None => words,
    }
}

fn commit(commit: &CommitLine) -> CommitLine {
    // The address is in the text; here the name is enough.
    let name = commit.author.split(" <").next().unwrap_or_default();
    CommitLine { id: short(&commit.id), subject: short(&commit.subject), author: short(name) }
}

fn bars(entry: &Entry) -> Vec<Bar> {
    let longest = entry.stages.iter().map(|time| time.ms).max().unwrap_or(0).max(1);
    let bar = |time: &crate::report::history::StageTime| Bar {
        name: time.stage.name(),
        ok: time.ok,
        time: terminal::duration(time.ms),
        note: short(time.note.as_deref().unwrap_or_default()),
        percent: (time.ms.saturating_mul(100) / longest).max(1),
    };
    entry.stages.iter().map(bar).collect()
}

fn list(lines: &[String]) -> Vec<String> {
    let mut shown: Vec<String> = lines.iter().take(MAX_LIST).map(|line| short(line)).collect();
    if lines.len() > MAX_LIST {
        shown.push(format!("and {} more", lines.len() - MAX_LIST));
    }
    shown
}

/// `what it is: /where/it/is` in its two parts.
fn place_apart(line: String) -> (String, String) {
    line.split_once(": /").map(|(what, path)| (what.to_string(), format!("/{path}"))).unwrap_or((line, String::new()))
}

fn short(text: &str) -> String {
    cut(text, Some(MAX_ITEM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::history::StageTime;
    use crate::report::samples;

    fn html(change: impl FnOnce(&mut Entry, &mut MailFacts)) -> String {
        let (mut entry, mut facts) = (samples::rolled_back_entry(), samples::mail_facts());
        change(&mut entry, &mut facts);
        of(&entry, &facts).unwrap()
    }

    /// The text between the tags, blanks made one.
    fn words(html: &str) -> String {
        let body = &html[html.find("<body").unwrap()..];
        let mut text = String::new();
        for part in body.split('<').skip(1) {
            text.push_str(part.split_once('>').unwrap().1);
            text.push(' ');
        }
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_html_tells_what_the_text_tells() {
        let words = words(&html(|_, _| {}));
        for part in [
            "shop · staging · web1.example.org",
            "✗ Rolled back at upgrade exit 2 1a2b3c4d5e cart: no empty orders by alice, 3.0 s",
            "Serves now 9f8e7d6c5b, the version before, again",
            "Last output of upgrade Traceback: no such column",
            "Taken back code and configuration: those of 9f8e7d6c5b",
            "Commits since the last good deployment cart 1a2b3c4d5e · Alice and 2 more",
            "✓ build &nbsp; 12.4 s 3 steps ✗ upgrade &nbsp; &nbsp; 2.1 s exit 2",
            "Warnings disk is 91 % full",
            "Changed by hand before this deployment templates&#x2f; 2 files",
            "Kept what failed &#x2f;archives&#x2f;x&#x2f;run.failed",
            "what happened, in full mc_project show shop &#x27;#12&#x27;",
        ] {
            assert!(words.contains(part), "{part}\n{words}");
        }
        assert!(!words.contains("rollback shop"), "{words}");
    }

    #[test]
    fn each_verdict_has_its_words_and_its_colour() {
        let good = html(|e, f| {
            (e.verdict, e.was_live, e.before) = (Verdict::Deployed, true, e.serves.clone());
            (e.stage, e.reason) = (None, None);
            (f.tail, f.taken_back) = (Vec::new(), Vec::new());
        });
        assert!(good.contains("bgcolor=\"#1b7f4b\"") && !good.contains("bgcolor=\"#7b2cbf\""), "{good}");
        let told = words(&good);
        assert!(told.contains("✓ Deployed 1a2b3c4d5e cart: no empty orders by alice, 3.0 s Serves now 9f8e7d6c5b, this version Commits"), "{told}");
        assert!(told.contains("back to the version before mc_project rollback shop"), "{told}");
        let recovered = html(|e, f| {
            (e.verdict, e.stage) = (Verdict::Deployed, None);
            f.occasion = crate::project::recipe::NotifyOn::Recovered;
        });
        assert!(words(&recovered).contains("✓ Recovered"), "{recovered}");
        let person = html(|e, _| e.verdict = Verdict::NeedsPerson);
        assert!(person.contains("bgcolor=\"#7b2cbf\"") && words(&person).contains("‼ Needs a person at upgrade"));
        assert!(words(&person).contains("mc_project recover shop --back"));
    }

    #[test]
    fn every_text_is_escaped_wherever_it_comes_from() {
        let evil = "<img src=x onerror=alert(1)>\" ' & {{ 7*7 }} {% raw %}\u{202e}\u{1b}[2J";
        let html = html(|e, f| {
            let all = || vec![evil.to_string()];
            (e.subject, e.author, e.pusher) = (evil.into(), evil.into(), evil.into());
            (e.why, e.reason, e.branch, e.key) =
                (Some(evil.into()), Some(evil.into()), Some(evil.into()), Some(evil.into()));
            (e.hints, e.stages[0].note) = (all(), Some(evil.into()));
            f.commits = vec![CommitLine { id: evil.into(), subject: evil.into(), author: evil.into() }];
            (f.tail, f.drift, f.kept, f.warnings, f.taken_back) = (all(), all(), all(), all(), all());
            (f.project, f.node, f.log, f.command) = (evil.into(), evil.into(), evil.into(), evil.into());
            f.from_afar = Some(evil.into());
        });
        assert!(!html.contains("<img") && !html.contains("7*7 }}%") && !html.contains(" 49 "), "{html}");
        assert!(!html.contains(['\u{202e}', '\u{1b}']));
        assert!(
            html.matches("&lt;img src=x onerror=alert(1)&gt;&quot; &#x27; &amp; {{ 7*7 }}").count() >= 18,
            "{html}"
        );
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere_and_no_style_is_left_to_the_head_alone() {
        let html = html(|_, _| {});
        for part in ["http:", "https:", "src=", "url(", "<script", "<link", "@import", "position:", "display:flex"] {
            assert!(!html.contains(part), "{part}");
        }
        // Light colours stand at the elements; the sheet only darkens.
        let head = &html[html.find("<style>").unwrap()..html.find("</style>").unwrap()];
        assert!(head.contains("prefers-color-scheme: dark"));
        assert!(html.contains("max-width:640px") && html.contains("style=\"margin:0;padding:0;background:#f1f3f5"));
        for tag in ["table", "tr", "td", "p", "pre", "span", "div"] {
            assert_eq!(
                html.matches(&format!("<{tag} ")).count() + html.matches(&format!("<{tag}>")).count(),
                html.matches(&format!("</{tag}>")).count(),
                "{tag}"
            );
        }
    }

    #[test]
    fn bars_are_in_proportion_and_never_nothing() {
        let entry = Entry {
            stages: [(Stage::Build, 60_000), (Stage::Start, 0), (Stage::Upgrade, 15_000)]
                .map(|(stage, ms)| StageTime { stage, ms, ok: true, note: None })
                .into(),
            ..samples::rolled_back_entry()
        };
        assert_eq!(bars(&entry).iter().map(|bar| bar.percent).collect::<Vec<_>>(), [100, 1, 25]);
    }

    #[test]
    fn a_long_story_stays_below_what_mail_programs_cut() {
        let html = html(|e, f| {
            e.hints = vec!["h&".repeat(100_000); 1000];
            f.tail = (0..10_000).map(|n| format!("{n} {}", "<".repeat(3_000))).collect();
            f.drift = vec!["d'".repeat(10_000); 10_000];
            f.commits = vec![f.commits[0].clone(); 10_000];
        });
        assert!(html.len() <= MAX_HTML, "{}", html.len());
        assert!(words(&html).contains("and 9982 more"), "{}", html.len());
    }
}

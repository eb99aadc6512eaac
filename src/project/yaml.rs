//! Strict YAML: every file that people write comes in through [`parse`], and every error names file, line, column,
//! what is allowed there and what was probably meant.
//!
//! A file is read twice. The first pass looks at the structure alone: size, depth, expansion of aliases, keys that are
//! no text, stand twice or are `<<`, tags. The second one fills the type. So no type has to care about the former, and
//! a map can be a plain `BTreeMap` although serde would let the last of two equal keys win.

use serde::de::{DeserializeOwned, DeserializeSeed};
use serde_yaml::Deserializer;

use crate::sys::error::{Error, Result};
use crate::sys::escape::{visible, visible_bounded};

pub mod locate;
pub mod scalar;
pub mod structure;

use locate::{Locate, Step};

/// The largest file that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Keys that are known only to be refused with a word of their own: nobody is offered them.
const REFUSED: [&str; 1] = ["listen"];
/// Stands between message and hint in the text of an error that passes through serde.
const HINT: char = '\u{1}';

/// Reads a strict YAML file; `file` is its name for messages.
///
/// # Errors
/// Of kind Invalid, with file, line and column in the message and the source line in the hint.
pub fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    Source::new(file, bytes)?.read()
}

/// A checked YAML text and its name.
pub struct Source<'a> {
    file: &'a str,
    text: &'a str,
    shown: bool,
}

impl<'a> Source<'a> {
    /// Checks the text: size, encoding, structure.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn new(file: &'a str, bytes: &'a [u8]) -> Result<Self> {
        Self::checked(file, bytes, true)
    }

    /// As [`Source::new`] for a file full of secrets: no error quotes its lines.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn new_secret(file: &'a str, bytes: &'a [u8]) -> Result<Self> {
        Self::checked(file, bytes, false)
    }

    fn checked(file: &'a str, bytes: &'a [u8], shown: bool) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            let size = bytes.len();
            return Err(Error::invalid(format!(
                "{file}: the file has {size} bytes, the limit is {}",
                crate::sys::size::words(MAX_BYTES as u64)
            )));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let line = 1 + memchr::memchr_iter(b'\n', &bytes[..error.valid_up_to()]).count();
                return Err(Error::invalid(format!("{file}:{line}:1: the line is not UTF-8")));
            }
        };
        let source = Self { file, text, shown };
        source.check_lines()?;
        source.check_structure(text)?;
        // The parser drops tags of the form `!!name` without a word. Written as `!xname` they come through to us, and
        // what only looks like one (in a text, in a comment) is not seen in this pass at all.
        if text.contains("!!") || text.contains("!<") {
            source.check_structure(&text.replace("!!", "!x").replace("!<", "!x"))?;
        }
        Ok(source)
    }

    /// Fills the type from the text.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(Deserializer::from_str(self.text)).map_err(|error| self.translated(&error))
    }

    /// An error of kind Invalid at the place of a key or list item, told as `message`.
    #[must_use]
    pub fn error_at(&self, way: &[Step<'_>], message: &str) -> Error {
        let (line, column) = self.place_of(way);
        let (message, hint) = message.rsplit_once(HINT).unwrap_or((message, ""));
        self.error(line, column, message, hint)
    }

    /// Line and column of a key or list item; of the first line where there is none.
    #[must_use]
    pub fn place_of(&self, way: &[Step<'_>]) -> (usize, usize) {
        let place = Locate(way).deserialize(Deserializer::from_str(self.text)).err().and_then(|e| e.location());
        place.map_or((1, 1), |place| (place.line(), place.column()))
    }

    /// Where a key or list item stands: `file:line:column`.
    #[must_use]
    pub fn shown_place_of(&self, way: &[Step<'_>]) -> String {
        let (line, column) = self.place_of(way);
        format!("{}:{line}:{column}", self.file)
    }

    /// What the line-based view can tell better than the parser.
    fn check_lines(&self) -> Result<()> {
        let (mut in_document, mut open) = (false, 0);
        for (index, line) in self.text.lines().enumerate() {
            let content = line.trim_start();
            open += line.bytes().filter(|b| matches!(b, b'[' | b'{')).count();
            if open.saturating_mul(self.text.len()) > structure::MAX_WORK {
                return Err(self.error(index + 1, 1, "the file has too many lists and mappings in brackets", ""));
            }
            if line.starts_with('%') {
                return Err(self.error(index + 1, 1, "a YAML directive is not allowed", "remove the line"));
            }
            if line == "---" || line.starts_with("--- ") {
                if in_document {
                    return Err(self.error(index + 1, 1, "a second document is not allowed", "one document per file"));
                }
                in_document = true;
            } else if !content.is_empty() && !content.starts_with('#') {
                in_document = true;
            }
        }
        if in_document {
            return Ok(());
        }
        Err(self.error(1, 1, "the file is empty", "write {} if nothing is to be set, or remove the file"))
    }

    fn check_structure(&self, text: &str) -> Result<()> {
        structure::check(Deserializer::from_str(text)).map_err(|error| self.translated(&error))
    }

    /// Says in our words what serde or the parser complains about.
    fn translated(&self, error: &serde_yaml::Error) -> Error {
        let (line, column) = error.location().map_or((1, 1), |place| (place.line(), place.column()));
        let text = error.to_string();
        let (text, own_hint) = text.rsplit_once(HINT).unwrap_or((&text, ""));
        let suffix = format!(" at line {line} column {column}");
        // Where a hint follows, the position stands behind the hint.
        let text = text.replacen(&suffix, "", 1);
        let own_hint = own_hint.strip_suffix(&suffix).unwrap_or(own_hint);
        let words = match reworded(&text) {
            Some(words) if own_hint.is_empty() || words.contains(HINT) => words,
            Some(words) => with_hint(&words, own_hint),
            None => with_hint(&text, own_hint),
        };
        let (message, hint) = words.rsplit_once(HINT).unwrap_or((&words, ""));
        let before = self.line(line).map_or("", |l| l.get(..l.len() - l.trim_start().len()).unwrap_or(""));
        if before.contains('\t') && hint.is_empty() {
            return self.error(line, column, message, "YAML is indented with spaces, never with tabs");
        }
        self.error(line, column, message, hint)
    }

    fn line(&self, line: usize) -> Option<&str> {
        self.text.lines().nth(line.saturating_sub(1))
    }

    fn error(&self, line: usize, column: usize, message: &str, hint: &str) -> Error {
        let message = visible_bounded(message.as_bytes(), 600);
        let mut hint = visible(hint);
        if let Some(quoted) = self.quoted(line, column) {
            hint = if hint.is_empty() { format!("look at\n{quoted}") } else { format!("{hint}\n{quoted}") };
        }
        let error = Error::invalid(format!("{}:{line}:{column}: {message}", self.file));
        if hint.is_empty() { error } else { error.hint(hint) }
    }

    /// The source line with a caret below the column, unless it may hold a secret.
    fn quoted(&self, line: usize, column: usize) -> Option<String> {
        let source = self.line(line)?;
        let previous = self.line(line.saturating_sub(1)).unwrap_or("");
        if !self.shown || source.trim().is_empty() || is_secret_word(source) || is_secret_word(previous) {
            return None;
        }
        let skipped = column.saturating_sub(60);
        let window: Vec<char> =
            source.chars().skip(skipped).take(100).map(|c| if c == '\t' { ' ' } else { c }).collect();
        let split = (column - 1 - skipped).min(window.len());
        let before = visible(&window[..split].iter().collect::<String>());
        let after = visible(&window[split..].iter().collect::<String>());
        let width = before.chars().count();
        Some(format!("{line:>5} | {before}{after}\n      | {:width$}^", ""))
    }
}

/// The text of an error for serde: a message and a hint.
#[must_use]
pub fn with_hint(message: &str, hint: &str) -> String {
    format!("{message}{HINT}{hint}")
}

/// The text of an error about a word that is none of the allowed ones.
#[must_use]
pub fn unknown(what: &str, word: &str, allowed: &[&str]) -> String {
    let near = nearest(word, allowed).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    let list = allowed.join(", ");
    with_hint(&format!("unknown {what} `{}`", visible_bounded(word.as_bytes(), 80)), &format!("{near}allowed: {list}"))
}

/// Whether a key or line speaks of something secret.
#[must_use]
pub fn is_secret_word(text: &str) -> bool {
    const WORDS: [&str; 8] = ["password", "passwd", "secret", "token", "private", "api_key", "apikey", "credential"];
    let text = text.to_ascii_lowercase();
    WORDS.iter().any(|word| text.contains(word))
}

/// Finds serde's own messages, wherever in the path prefix they begin, and says them in our words.
fn reworded(text: &str) -> Option<String> {
    for (sign, what) in [("unknown field `", "key"), ("unknown variant `", "word")] {
        if let Some(start) = text.find(sign) {
            let rest = &text[start + sign.len()..];
            let (word, allowed) = rest.rsplit_once("`, expected ").or_else(|| rest.rsplit_once("`, there "))?;
            let allowed = allowed.split('`').skip(1).step_by(2).filter(|word| !REFUSED.contains(word));
            let allowed: Vec<&str> = allowed.collect();
            return Some(unknown(what, word, &allowed));
        }
    }
    for sign in ["invalid type: ", "invalid value: "] {
        if let Some(start) = text.find(sign) {
            let (found, expected) = text[start + sign.len()..].rsplit_once(", expected ")?;
            return Some(format!("{}expected {}, found {}", path_of(&text[..start]), plain(expected), kind_of(found)));
        }
    }
    if let Some(start) = text.find("missing field `") {
        let missing = text[start..].replacen("missing field", "missing key", 1);
        return Some(format!("{}{missing}", path_of(&text[..start])));
    }
    let fixed = match text {
        "recursion limit exceeded" => "lists and mappings are nested too deeply",
        "repetition limit exceeded" => "the file has too many values (aliases expanded)",
        "deserializing from YAML containing more than one document is not supported" => {
            "a second document is not allowed"
        }
        _ => return None,
    };
    Some(fixed.to_string())
}

/// What serde calls a struct and so on, for people.
fn plain(expected: &str) -> &str {
    match expected.strip_prefix("a ").unwrap_or(expected).split(' ').next().unwrap_or("") {
        "struct" | "map" => "a mapping",
        "sequence" => "a list",
        "boolean" => "true or false",
        "string" => "a text",
        _ => expected,
    }
}

fn path_of(prefix: &str) -> String {
    prefix.strip_suffix(": ").map(|path| format!("`{path}`: ")).unwrap_or_default()
}

/// What was found without its value, which may be secret.
fn kind_of(found: &str) -> &str {
    match found.split([' ', '`']).next().unwrap_or("") {
        "string" => "a text",
        "boolean" => "true or false",
        "integer" | "floating" => "a number",
        "sequence" => "a list",
        "map" => "a mapping",
        "unit" | "null" => "nothing",
        _ => "something else",
    }
}

fn nearest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    if word.len() > 40 {
        return None;
    }
    let distance = |candidate: &&&str| edits(word, candidate);
    let best = allowed.iter().min_by_key(distance)?;
    (edits(word, best) <= (word.chars().count() / 3).max(1)).then_some(*best)
}

/// How many letters must be typed, removed, replaced or swapped with their neighbour to make `b` of `a`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use serde::Deserialize;

    use super::scalar::{Number, Span};
    use super::{MAX_BYTES, Source, edits, parse};
    use crate::project::yaml::locate::Step;
    use crate::sys::error::{Error, Kind};

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        stages: BTreeMap<String, Vec<String>>,
        mode: String,
        keep: Option<Number<1, 1000>>,
        timeout: Option<Span>,
        word: Option<Word>,
        any: Option<serde_json::Value>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Allow,
        Refuse,
    }

    fn refused(text: &[u8]) -> Error {
        let error = parse::<Sample>("mc_project.yaml", text).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        error
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_column() {
        let cases: [(&str, &str, &str); 26] = [
            ("mode: a\nmode: b\n", "2:1: ", "key `mode` stands here twice"),
            ("stages:\n  a: [x]\n  a: [y]\n", "3:3: ", "`a` stands here twice"),
            ("stages: {}\nstagse: {}\n", "2:1: ", "unknown key `stagse`"),
            ("word: alow\n", "1:7: ", "unknown word `alow`"),
            ("stages: 5\n", "1:9: ", "expected a mapping, found a number"),
            ("stages:\n  a: text\n", "2:6: ", "expected a list, found a text"),
            ("mode: a\n---\nmode: b\n", "2:1: ", "a second document"),
            ("", "1:1: ", "the file is empty"),
            ("# only\n\n  # comments\n", "1:1: ", "the file is empty"),
            ("null\n", "1:1: ", "expected a mapping, found nothing"),
            ("- a\n", "1:1: ", "expected a mapping, found a list"),
            ("stages:\n\ta: [x]\n", "2:1: ", "found character that cannot start any token"),
            ("stages:\r\n  a: [x]\r\nx: 1\r\n", "3:1: ", "unknown key `x`"),
            ("any:\n  <<: {a: 1}\n", "2:3: ", "merge key"),
            ("any: !!python/object/apply:os.system [id]\n", "1:6: ", "a YAML tag"),
            ("any: !<tag:yaml.org,2002:python/object> {}\n", "1:20: ", "scanning a tag"),
            ("any: !custom x\n", "1:6: ", "a YAML tag"),
            ("%TAG !e! tag:example.org,2000:\n---\nany: !e!x y\n", "1:1: ", "directive"),
            ("any:\n  8000: x\n", "2:3: ", "a key that is a text"),
            ("any: *nobody\n", "1:6: ", "unknown anchor"),
            ("keep: 0\n", "1:7: ", "0 is not within 1 and 1000"),
            ("keep: -1\n", "1:7: ", "a whole number from 1 to 1000"),
            ("keep: 1000000000\n", "1:7: ", "not within"),
            ("timeout: 0s\n", "1:10: ", "`0s` is not within 1s and 24h"),
            ("timeout: .nan\n", "1:10: ", "`.nan` is no duration"),
            ("timeout: 1000000000000000000h\n", "1:10: ", "is no duration"),
        ];
        for (text, place, words) in cases {
            let error = refused(text.as_bytes());
            let expected = format!("mc_project.yaml:{place}");
            assert!(error.message().starts_with(&expected), "{text:?}: {error}");
            assert!(error.message().contains(words), "{text:?}: {error}");
            assert!(!error.message().contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_shows_its_line_a_caret_and_what_was_meant() {
        let error = refused(b"stages: {}\nstagse: {}\n");
        assert_eq!(
            error.to_string(),
            "mc_project.yaml:2:1: unknown key `stagse`\n\
             hint: did you mean `stages`? allowed: stages, mode, keep, timeout, word, any\n    2 | stagse: {}\n      | ^"
        );
    }

    #[test]
    fn bombs_of_every_kind_are_refused_at_once() {
        let start = Instant::now();
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_string();
        for i in 1..30 {
            let before = format!("*a{}, ", i - 1).repeat(10);
            laughs = format!("{laughs}a{i}: &a{i} [{before}]\n");
        }
        refused(laughs.as_bytes());
        let wide = format!("any:\n  a: &a [{}]\n  b: [{}]\n", "1,".repeat(200_000), "*a,".repeat(100_000));
        assert!(refused(wide.as_bytes()).message().contains("too many values"));
        refused(b"any: &a [*a]\n");
        refused(format!("any:\n  {}", "[ #]\n  ".repeat(15_000)).as_bytes());
        refused(format!("any:\n  {}{}", "[".repeat(1_900), "1,".repeat(500_000)).as_bytes());
        for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
            for depth in [65, 5_000, 40_000, 100_000] {
                refused(format!("any:\n  {}{}\n", open.repeat(depth), close.repeat(depth)).as_bytes());
            }
        }
        let error = refused(&vec![b'a'; MAX_BYTES + 1]);
        assert!(error.message().contains("the limit is 1 MiB"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[test]
    fn what_people_write_is_read_as_it_stands() {
        let text = b"\xef\xbb\xbfmode: 0755\r\nstages:\r\n  a: [yes, on, 1.10, 12:30, 'a !! b', \"it! !!\"] # !!x\r\n";
        let sample: Sample = parse("x.yaml", text).unwrap();
        assert_eq!(sample.mode, "0755");
        assert_eq!(sample.stages["a"], ["yes", "on", "1.10", "12:30", "a !! b", "it! !!"]);
        let sample: Sample = parse("x.yaml", b"---\nany: &a {x: 1}\nstages:\nword: refuse\n").unwrap();
        assert!(matches!(sample.word, Some(Word::Refuse)) && sample.keep.is_none());
        assert!(matches!(parse("x", b"word: allow").unwrap(), Sample { word: Some(Word::Allow), .. }));
        assert!(parse::<Sample>("x.yaml", b"{}").unwrap().timeout.is_none());
    }

    #[test]
    fn hostile_text_is_escaped_and_secret_lines_are_not_quoted() {
        let error = refused("\"a\\e[31m\": 1\n".as_bytes()).to_string();
        assert!(error.contains("unknown key `a\\u{1b}[31m`"), "{error}");
        assert!(refused(b"any: \x1b[31m\n").message().contains("control characters"));
        assert!(refused(b"mode: \xff\n").message().starts_with("mc_project.yaml:1:1: "));
        for text in ["stages: hunter2-password", "db_password:\n hunter2: [", "keep: hunter2 # secret"] {
            let error = refused(text.as_bytes()).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_place_is_found_by_its_way() {
        let source = Source::new("x.yaml", b"a:\n  b:\n    - one\n    - {c: 2}\n").unwrap();
        let at = |way: &[Step<'_>]| source.error_at(way, "m").message().to_string();
        assert_eq!(at(&[Step::Key("a")]), "x.yaml:1:1: m");
        assert_eq!(at(&[Step::Key("a"), Step::Key("b"), Step::Index(1)]), "x.yaml:4:7: m");
        assert_eq!(at(&[Step::Key("a"), Step::Key("b"), Step::Index(1), Step::Key("c")]), "x.yaml:4:8: m");
        assert_eq!(at(&[Step::Key("zzz")]), "x.yaml:1:1: m");
    }

    #[test]
    fn near_words_are_those_with_few_edits() {
        assert_eq!(edits("stagse", "stages"), 1);
        assert_eq!(edits("build", "biuld"), 1);
        assert_eq!(edits("", "abc"), 3);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(stages|env|run|data|a|&a|\\*a|!|!!x|<<|---|%|:|,|-|\\?|\\[|\\]|\\{|\\}|#|'|\"|\\||>| |  |\t|\r|\n|\u{85}|\u{1}|é){0,60}") {
            let name = "shop".parse().unwrap();
            for error in [
                crate::project::recipe::Recipe::parse("f", text.as_bytes()).err(),
                crate::project::node::NodeConfig::parse("f", text.as_bytes()).err(),
                crate::project::pillar::Pillar::parse("f", text.as_bytes(), &name).err(),
            ].into_iter().flatten() {
                proptest::prop_assert_eq!(error.kind(), Kind::Invalid);
                proptest::prop_assert!(!error.message().contains(char::is_control), "{:?}", error);
            }
        }
    }
}

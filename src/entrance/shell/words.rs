//! What somebody typed behind `ssh mc@node`: split into words without a shell, and looked up in the table of what is
//! served over ssh.
//!
//! A command is a word of the table, its first plain word is the project, and every flag is listed: what is not in the
//! table is refused here, so that the words that go on to root mean what they say. [`check`] is a pure function and is
//! asked on both sides of the node's socket.

use crate::project::access::Role;
use crate::project::ids::ProjectName;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;

/// The longest command that is read, in bytes.
pub const LIMIT: usize = 8 * 1024;

/// A command that is served over ssh.
struct Rule {
    name: &'static str,
    role: Role,
    /// Flags that stand alone.
    flags: &'static [&'static str],
    /// Flags that are followed by a value, or by `=` and a value.
    options: &'static [&'static str],
    /// How many plain words may follow the project.
    more: usize,
    /// Whether it changes something.
    changes: bool,
}

const fn looks(
    name: &'static str,
    role: Role,
    flags: &'static [&'static str],
    options: &'static [&'static str],
    more: usize,
) -> Rule {
    Rule { name, role, flags, options, more, changes: false }
}

const fn acts(
    name: &'static str,
    role: Role,
    flags: &'static [&'static str],
    options: &'static [&'static str],
    more: usize,
) -> Rule {
    Rule { name, role, flags, options, more, changes: true }
}

/// How many services may be named: as many as a recipe may have.
const SERVICES: usize = 50;

/// What is served. `run` is not: it would be a shell; nor is anything that is about the node or a path on it.
const TABLE: &[Rule] = &[
    looks("status", Role::Read, &["--json", "--disk", "--check"], &[], 0),
    looks("history", Role::Read, &["--json"], &["-n", "--limit"], 0),
    looks("show", Role::Read, &["--json", "--log"], &[], 1),
    looks("logs", Role::Read, &["-f", "--follow", "--json"], &["--service", "--since", "-n", "--lines"], 1),
    looks("follow", Role::Read, &["--json"], &[], 1),
    looks("diff", Role::Read, &["--json"], &[], 2),
    looks("drift", Role::Read, &["--json"], &[], 0),
    looks("verify", Role::Read, &["--json"], &[], 0),
    looks("plan", Role::Read, &["--json"], &["--commit"], 0),
    looks("release list", Role::Read, &["--json"], &[], 0),
    // What the pillar says is for those who may write it.
    looks("config", Role::Deploy, &["--json"], &["--explain"], 1),
    acts("deploy", Role::Deploy, &["--force"], &["--commit", "-o", "--wait"], 0),
    acts("start", Role::Deploy, &[], &[], SERVICES),
    acts("stop", Role::Deploy, &[], &[], SERVICES),
    acts("restart", Role::Deploy, &[], &[], SERVICES),
    acts("task", Role::Deploy, &[], &[], 1),
    acts("cancel", Role::Deploy, &["--json"], &[], 1),
    acts("rollback", Role::Admin, &["--yes"], &["--to", "--with", "--reason"], 0),
    acts("recover", Role::Admin, &["--forward", "--back", "--json"], &["--with"], 0),
];

/// A command of the table, with its words in their order: command, project, all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The command.
    pub command: &'static str,
    /// The role that it needs.
    pub role: Role,
    /// Whether it changes something: it goes on to its end even if nobody reads what it says.
    pub changes: bool,
    /// The project that it is about.
    pub project: ProjectName,
    /// The words of the command line: nothing in them but what the table allows.
    pub words: Vec<String>,
}

/// Splits a command into words as git and ssh write them: words are separated by blanks, `'…'` keeps everything inside
/// as it is, and `\'` and `\!` may stand between two quoted parts.
///
/// # Errors
/// Of kind `Usage`, if it is too long, is no text, or holds what only a shell would understand.
pub fn split(command: &[u8]) -> Result<Vec<String>> {
    if command.len() > LIMIT {
        return Err(Error::usage(format!("the command is longer than {LIMIT} bytes")));
    }
    let text = std::str::from_utf8(command).map_err(|_| Error::usage("the command is no text"))?;
    if text.chars().any(char::is_control) {
        return Err(Error::usage("the command holds a control character"));
    }
    let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' => words.extend(word.take()),
            '\'' => {
                let (quoted, after) =
                    rest.as_str().split_once('\'').ok_or_else(|| Error::usage("a quote has no end"))?;
                word.get_or_insert_default().push_str(quoted);
                rest = after.chars();
            }
            '\\' => match rest.next() {
                Some(escaped @ ('\'' | '!')) => word.get_or_insert_default().push(escaped),
                _ => return Err(no_shell('\\')),
            },
            _ if is_plain(c) => word.get_or_insert_default().push(c),
            _ => return Err(no_shell(c)),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Whether a character means nothing but itself, to any shell.
fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '~' | ':' | '=' | '@' | '#' | '%' | '+' | ',' | '^')
}

fn no_shell(c: char) -> Error {
    Error::usage(format!(
        "there is no shell here, and `{}` means nothing",
        visible_bounded(c.to_string().as_bytes(), 16)
    ))
    .hint("a word that holds more than letters and digits stands in single quotes")
}

/// Looks a command up in the table; a leading `mc_project` is left out.
///
/// # Errors
/// Of kind `Usage`, if it is not served, names no project, or holds a word that the table does not know.
pub fn check(words: &[String]) -> Result<Checked> {
    let words = match words.split_first() {
        Some((first, rest)) if first == "mc_project" => rest,
        _ => words,
    };
    let name = words.first().ok_or_else(|| Error::usage("no command was given").hint(served()))?;
    let (rule, rest) = TABLE.iter().find_map(|rule| Some((rule, rule.after_name(words)?))).ok_or_else(|| {
        Error::usage(format!("`{}` is not served here", visible_bounded(name.as_bytes(), 60))).hint(served())
    })?;
    let mut project: Option<ProjectName> = None;
    let mut others = Vec::new();
    let mut plain = 0;
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        if rule.flags.contains(&word.as_str()) {
            others.push(word.clone());
        } else if let Some(option) = rule.option(word) {
            others.push(word.clone());
            match word.strip_prefix(option).and_then(|rest| rest.strip_prefix('=')) {
                Some(written) => value(rule, option, Some(written)).map(drop)?,
                None => others.push(value(rule, option, rest.next().map(String::as_str))?),
            }
        } else if !is_value(word) {
            return Err(rule.unknown(word));
        } else if project.is_none() {
            project = Some(word.parse()?);
        } else {
            plain += 1;
            others.push(word.clone());
        }
    }
    let project = project
        .ok_or_else(|| Error::usage(format!("{} of which project?", rule.name)).hint(format!("{} NAME", rule.name)))?;
    if plain > rule.more {
        return Err(Error::usage(format!("too many words for {}", rule.name)));
    }
    let name = rule.name.split(' ').map(str::to_string);
    let words = name.chain([project.to_string()]).chain(others).collect();
    Ok(Checked { command: rule.name, role: rule.role, changes: rule.changes, project, words })
}

/// Whether a word may stand where a value is wanted: it is no flag, but `-1` (the version before) is none either.
fn is_value(word: &str) -> bool {
    match word.strip_prefix('-') {
        None => !word.is_empty(),
        Some(digits) => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
    }
}

fn value(rule: &Rule, option: &str, word: Option<&str>) -> Result<String> {
    let good = word.filter(|word| is_value(word)).map(str::to_string);
    good.ok_or_else(|| Error::usage(format!("{option} of {} needs a value", rule.name)))
}

impl Rule {
    /// The words behind the command's own, if it is this one.
    fn after_name<'w>(&self, words: &'w [String]) -> Option<&'w [String]> {
        let (own, rest) = words.split_at_checked(self.name.split(' ').count())?;
        own.iter().eq(self.name.split(' ')).then_some(rest)
    }

    /// The option that a word is or begins with (`--commit=…`).
    fn option(&self, word: &str) -> Option<&'static str> {
        let is_it = |option: &&&str| match word.strip_prefix(**option) {
            Some("") => true,
            Some(rest) => option.starts_with("--") && rest.starts_with('='),
            None => false,
        };
        self.options.iter().find(is_it).copied()
    }

    fn unknown(&self, word: &str) -> Error {
        let known: Vec<&str> = self.flags.iter().chain(self.options).copied().collect();
        let known = if known.is_empty() { "it has no flags".to_string() } else { known.join(" ") };
        Error::usage(format!("`{}` is no flag of {} over ssh", visible_bounded(word.as_bytes(), 60), self.name))
            .hint(known)
    }
}

/// The commands of the table.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|rule| rule.name)
}

/// What is served, in one line.
fn served() -> String {
    let names: Vec<&str> = names().collect();
    format!("served over ssh: git push, git fetch, list, {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::error::Kind;

    fn words(text: &str) -> Vec<String> {
        split(text.as_bytes()).unwrap()
    }

    fn checked(text: &str) -> Result<Checked> {
        check(&words(text))
    }

    #[test]
    fn commands_are_split_as_git_and_ssh_write_them() {
        for (text, want) in [
            ("git-receive-pack 'shop'", &["git-receive-pack", "shop"][..]),
            ("git receive-pack '/srv/a b.git'", &["git", "receive-pack", "/srv/a b.git"]),
            (r"git-upload-pack 'it'\''s'\!'x'", &["git-upload-pack", "it's!x"]),
            ("  show   shop #42 ", &["show", "shop", "#42"]),
            ("deploy shop -o 'reason=a $(b) \"c\"; d'", &["deploy", "shop", "-o", "reason=a $(b) \"c\"; d"]),
            ("a ''", &["a", ""]),
            ("", &[]),
        ] {
            assert_eq!(words(text), want, "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_understand_is_refused() {
        for text in [
            "a;id",
            "a&id",
            "a|id",
            "a>b",
            "a<b",
            "`id`",
            "$(id)",
            "$x",
            "\"a\"",
            "a*",
            "a?",
            "a\\ b",
            "a\\",
            "'a",
            "(a)",
            "{a}",
            "!a",
            "a\nb",
            "a\rb",
            "a\0b",
            "a\tb",
            "a\u{1b}[31m",
            "\u{85}",
            "\u{202e}",
        ] {
            assert_eq!(split(text.as_bytes()).unwrap_err().kind(), Kind::Usage, "{text:?}");
        }
        assert!(split(b"\xff\xfe").is_err());
        assert!(split(&[b'a'; LIMIT]).is_ok());
        assert!(split(&[b'a'; LIMIT + 1]).is_err());
    }

    #[test]
    fn commands_of_the_table_pass_with_their_role() {
        for (text, role, want) in [
            ("status shop", Role::Read, "status shop"),
            ("mc_project status --json shop", Role::Read, "status shop --json"),
            ("status shop --disk", Role::Read, "status shop --disk"),
            ("history shop -n 5 --json", Role::Read, "history shop -n 5 --json"),
            ("show shop -1", Role::Read, "show shop -1"),
            ("diff shop #1 #2 --json", Role::Read, "diff shop #1 #2 --json"),
            ("logs -f shop", Role::Read, "logs shop -f"),
            ("logs shop --service=web --since 10m -n 5", Role::Read, "logs shop --service=web --since 10m -n 5"),
            ("status shop --check", Role::Read, "status shop --check"),
            ("restart shop web worker", Role::Deploy, "restart shop web worker"),
            ("plan shop --commit=1a2b", Role::Read, "plan shop --commit=1a2b"),
            ("config shop", Role::Deploy, "config shop"),
            ("config shop --explain db.host --json", Role::Deploy, "config shop --explain db.host --json"),
            ("rollback shop --to -2 --with data --yes", Role::Admin, "rollback shop --to -2 --with data --yes"),
            ("recover shop --back", Role::Admin, "recover shop --back"),
            ("release list shop --json", Role::Read, "release list shop --json"),
            ("task shop reindex", Role::Deploy, "task shop reindex"),
        ] {
            let checked = checked(text).unwrap();
            assert_eq!((checked.role, checked.words.join(" ").as_str()), (role, want), "{text}");
            assert_eq!(checked.project.as_str(), "shop");
            assert_eq!(
                checked.changes,
                ["rollback", "recover", "restart", "task"].contains(&checked.command),
                "{text}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "id",
            "sh",
            "scp -t /",
            "rsync --server",
            "/usr/lib/openssh/sftp-server",
            "internal-sftp",
            "run shop",
            "init shop",
            "destroy shop",
            "setup",
            "keys add bob",
            "doctor",
            "work",
            "shell alice",
            "release checkout shop -1 /etc",
            "release",
            "release list",
            "release pack shop",
            "release fetch shop",
            "release serve shop",
            "list release shop",
            "mc_project",
            "mc_project mc_project status shop",
            "status",
            "status --json",
            "status --disk",
            "status ../shop",
            "status shop blog",
            "status shop --root /x",
            "status --root=/x shop",
            "status shop -h",
            "status shop --",
            "history shop -n",
            "history shop -n --json",
            "history shop -n5",
            "deploy shop -o --force",
            "deploy shop --commit",
            "deploy shop --commit=",
            "deploy shop --commit=--force",
            "deploy shop --forced",
            "deploy shop --commits=a",
            "deploy shop -oplan",
            "show shop ''",
            "show shop -x",
            "show shop -",
            "logs shop -f -f -f a b",
        ] {
            assert_eq!(checked(text).unwrap_err().kind(), Kind::Usage, "{text}");
        }
        assert!(check(&[]).is_err());
    }
}

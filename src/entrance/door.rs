//! The door between the receiver of pushes and root: what may be asked through the socket, and how it is written.
//!
//! One connection carries one question: one line of JSON from the hook. The answer is one line, or, for a deployment
//! and for a command, a stream of lines that ends with a last word ([`Answer::is_last`]). A question is bounded and
//! strict: an unknown field is an error. Nothing here decides whether a question may be asked; that is
//! [`super::serve`]'s work.

use serde::{Deserialize, Serialize};

use crate::entrance::{ProjectFacts, RepoKind};
use crate::project::ids::{DeploymentId, ObjectId, ProjectName, RefName};
use crate::project::request::{Options, RefUpdate};
use crate::project::wanted::Wanted;
use crate::report::event::Record;
use crate::sys::error::{Context, Error, Kind, Result};
use crate::sys::escape::visible_bounded;

/// The version of the protocol; both sides are the same program, except for a moment while it is replaced.
pub const VERSION: u32 = 1;
/// The longest question, in bytes, its line feed not counted.
pub const QUESTION_LIMIT: usize = 64 * 1024;
/// The longest line of an answer; root writes it, so it is only a guard against waste.
pub const ANSWER_LIMIT: usize = 2 * 1024 * 1024;
/// The most words of a command.
pub const MAX_WORDS: usize = 100;

/// One line from the receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    version: u32,
    ask: Ask,
}

/// The repository that was pushed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pushed {
    /// The project.
    pub project: ProjectName,
    /// Which of its repositories.
    pub kind: RepoKind,
}

/// What the receiver can ask root for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// The facts about the project: [`Answer::Facts`].
    Facts {
        /// The repository.
        of: Pushed,
    },
    /// Whether there is space to begin: [`Answer::Done`].
    CheckSpace {
        /// The repository.
        of: Pushed,
    },
    /// Records the branch that the first push chose: [`Answer::Done`].
    RecordBranch {
        /// The repository.
        of: Pushed,
        /// The branch, without `refs/heads/`.
        branch: String,
    },
    /// The head of the deploy branch: [`Answer::Head`].
    ProjectHead {
        /// The repository.
        of: Pushed,
    },
    /// Whether a push has started this deployment: [`Answer::Deployed`].
    WasDeployed {
        /// The repository.
        of: Pushed,
        /// The push.
        push: String,
        /// The pushed ref.
        refname: RefName,
        /// Its new value.
        new: ObjectId,
    },
    /// Starts a deployment and follows it: [`Answer::Started`], records, [`Answer::End`] or [`Answer::Gone`].
    Start {
        /// The repository.
        of: Pushed,
        /// What is to be deployed.
        order: Box<Order>,
    },
    /// Runs one of the commands that people may run from afar: output, then [`Answer::Exit`].
    Command {
        /// Who asks.
        who: Person,
        /// The command and its arguments.
        words: Vec<String>,
    },
    /// Hands over a part of a deliverable: [`Answer::Deliverable`], then the bytes themselves.
    Deliverable {
        /// Who asks.
        who: Person,
        /// The part.
        wanted: Wanted,
    },
}

/// A deployment as a hook orders it; what else a worker can do is not for hooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The id that the deployment shall have.
    pub id: DeploymentId,
    /// The commit.
    pub commit: ObjectId,
    /// The pushed ref; `None` for a pillar's push.
    pub update: Option<RefUpdate>,
    /// Push options.
    pub options: Options,
    /// Who pushes, for people to read.
    pub pusher: String,
    /// The fingerprint of their key, where it is known.
    pub key: Option<String>,
    /// The push.
    pub push: Option<String>,
    /// How long to wait for the lock, in seconds.
    pub wait_seconds: Option<u64>,
}

/// Whom the receiver's ssh server let in. What they may do is looked up by root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// The name in the access file.
    pub name: String,
    /// The fingerprint of the key, for the history.
    pub key: Option<String>,
}

/// Which of a command's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// One line from root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The facts about the project.
    Facts(Box<ProjectFacts>),
    /// It is done, or nothing speaks against it.
    Done,
    /// The head of the deploy branch.
    Head(Option<ObjectId>),
    /// Whether it was.
    Deployed(bool),
    /// The worker runs.
    Started,
    /// One event of the deployment.
    Record(Box<Record>),
    /// Everything was told.
    End,
    /// Worker and watcher are dead and have not said how it ended.
    Gone,
    /// One line of a command's output.
    Output {
        /// Where it was written to.
        to: Stream,
        /// The line, safe to show.
        line: String,
    },
    /// The exit code of a command.
    Exit(u8),
    /// The size of a part of a deliverable, if there is one; its bytes from the wanted offset on follow.
    Deliverable {
        /// The whole size.
        size: Option<u64>,
    },
    /// It was refused or could not be done.
    Failed {
        /// What kind of failure.
        kind: Kind,
        /// Message and causes in one line.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl Answer {
    /// An error as an answer.
    #[must_use]
    pub fn failed(error: &Error) -> Self {
        Self::Failed { kind: error.kind(), message: error.one_line(), hint: error.hint_text().map(str::to_string) }
    }

    /// Whether nothing follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Started | Self::Record(_) | Self::Output { .. })
    }

    /// The answer itself, or the error that it tells.
    ///
    /// # Errors
    /// The one that the other side had.
    pub fn or_error(self) -> Result<Self> {
        match self {
            Self::Failed { kind, message, hint } => {
                let error = Error::new(kind, message);
                Err(match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                })
            }
            answer => Ok(answer),
        }
    }
}

/// A question as a line, without its line feed.
///
/// # Errors
/// If it is too long.
pub fn write_question(ask: &Ask) -> Result<Vec<u8>> {
    let question = Question { version: VERSION, ask: ask.clone() };
    let line = serde_json::to_vec(&question).context(|| "cannot write a question".to_string())?;
    if line.len() > QUESTION_LIMIT {
        return Err(Error::usage(format!("this is too long to be asked ({} bytes)", line.len())));
    }
    Ok(line)
}

/// Understands a question.
///
/// # Errors
/// If it is of another version or not exactly of the form.
pub fn read_question(line: &[u8]) -> Result<Ask> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bad = |cause: serde_json::Error| {
        Error::usage(format!("this is no question: {}", visible_bounded(cause.to_string().as_bytes(), 300)))
    };
    if line.len() > QUESTION_LIMIT {
        return Err(Error::usage(format!("a question is longer than {QUESTION_LIMIT} bytes")));
    }
    let Versioned { version } = serde_json::from_slice(line).map_err(bad)?;
    if version != VERSION {
        return Err(Error::refused(format!("the hook speaks version {version}, the node's service version {VERSION}"))
            .hint("on the node, as root: mc_project setup"));
    }
    let question: Question = serde_json::from_slice(line).map_err(bad)?;
    Ok(question.ask)
}

/// An answer as a line, without its line feed.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn write_answer(answer: &Answer) -> Result<Vec<u8>> {
    serde_json::to_vec(answer).context(|| "cannot write an answer".to_string())
}

/// Understands an answer.
///
/// # Errors
/// If it is not of the form.
pub fn read_answer(line: &[u8]) -> Result<Answer> {
    serde_json::from_slice(line)
        .context(|| "cannot understand the node's service".to_string())
        .map_err(|error| error.hint("on the node, as root: mc_project setup"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrance::fake::{end, facts, id};
    use crate::project::outcome::Verdict;

    fn pushed() -> Pushed {
        Pushed { project: "shop".parse().unwrap(), kind: RepoKind::Project }
    }

    fn order() -> Order {
        let update =
            RefUpdate { name: "refs/heads/main".parse().unwrap(), old: id('0'), new: id('b'), moved_by_worker: true };
        Order {
            id: DeploymentId::new(jiff::Timestamp::UNIX_EPOCH),
            commit: id('b'),
            update: Some(update),
            options: Options { reason: Some("näh\n".into()), ..Options::default() },
            pusher: "alice from 192.0.2.7".into(),
            key: None,
            push: Some("7-8".into()),
            wait_seconds: Some(60),
        }
    }

    #[test]
    fn every_question_and_answer_reads_back_as_it_was_written_in_one_line() {
        let who = Person { name: "alice".into(), key: None };
        let refname: RefName = "refs/heads/main".parse().unwrap();
        let asks = [
            Ask::Facts { of: pushed() },
            Ask::CheckSpace { of: pushed() },
            Ask::RecordBranch { of: pushed(), branch: "main".into() },
            Ask::ProjectHead { of: pushed() },
            Ask::WasDeployed { of: pushed(), push: "7-8".into(), refname, new: id('b') },
            Ask::Start { of: pushed(), order: Box::new(order()) },
            Ask::Command { who, words: vec!["status".into(), "shop\n".into()] },
        ];
        for ask in asks {
            let line = write_question(&ask).unwrap();
            assert!(!line.contains(&b'\n'));
            assert_eq!(read_question(&line).unwrap(), ask);
        }
        let failed = Answer::failed(&Error::new(Kind::NeedsPerson, "x").hint("y"));
        let answers = [
            Answer::Facts(Box::new(facts(Some("main")))),
            Answer::Done,
            Answer::Head(None),
            Answer::Head(Some(id('a'))),
            Answer::Deployed(true),
            Answer::Started,
            Answer::Record(Box::new(end(Verdict::Deployed))),
            Answer::End,
            Answer::Gone,
            Answer::Output { to: Stream::Err, line: "\u{1b}[1m ü\n".into() },
            Answer::Exit(5),
            failed.clone(),
        ];
        for answer in answers {
            let line = write_answer(&answer).unwrap();
            assert!(!line.contains(&b'\n') && !line.contains(&0x1b));
            assert_eq!(read_answer(&line).unwrap(), answer);
        }
        let error = failed.or_error().unwrap_err();
        assert_eq!((error.kind(), error.message(), error.hint_text()), (Kind::NeedsPerson, "x", Some("y")));
    }

    #[test]
    fn what_is_not_exactly_a_question_is_an_error() {
        let good = write_question(&Ask::Start { of: pushed(), order: Box::new(order()) }).unwrap();
        let good = String::from_utf8(good).unwrap();
        for (what, changed) in [
            ("an unknown field of the question", good.replacen('{', r#"{"more":1,"#, 1)),
            ("an unknown field of the order", good.replace(r#""pusher":"#, r#""want":"rollback","pusher":"#)),
            ("an unknown option", good.replace(r#""plan":"#, r#""user":"root","plan":"#)),
            ("an unknown field of the update", good.replace(r#""moved_by_worker":"#, r#""x":1,"moved_by_worker":"#)),
            ("a field twice", good.replace(r#""pusher":"#, r#""pusher":"x","pusher":"#)),
            ("a bad project", good.replace("shop", "../shop")),
            ("a bad ref", good.replace("refs/heads/main", "refs/heads/../main")),
            ("a bad id", good.replace("19700101T", "19700101t")),
            ("two values", format!("{good}{good}")),
            ("a part", good[..good.len() - 1].to_string()),
            ("another question", good.replace(r#""start""#, r#""destroy""#)),
            ("no version", good.replace(r#""version":1,"#, "")),
            ("nothing", String::new()),
            ("depth", "[".repeat(60_000)),
        ] {
            assert_ne!(changed, good, "{what}");
            assert!(read_question(changed.as_bytes()).is_err(), "{what}: {changed}");
        }
        assert!(read_question(&vec![b' '; QUESTION_LIMIT + 1]).unwrap_err().message().contains("longer than"));
    }

    #[test]
    fn another_version_is_told_whatever_else_it_holds() {
        let error = read_question(br#"{"version":2,"ask":{"news":{}},"more":[]}"#).unwrap_err();
        assert!(error.message().contains("version 2, the node's service version 1"), "{error}");
        assert_eq!(error.hint_text(), Some("on the node, as root: mc_project setup"));
    }

    #[test]
    fn a_question_that_is_too_long_is_not_asked() {
        let words = vec!["x".repeat(QUESTION_LIMIT)];
        let who = Person { name: "alice".into(), key: None };
        assert!(write_question(&Ask::Command { who, words }).is_err());
    }
}

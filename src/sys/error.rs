//! The one error type: what we were doing, why it did not work, and the command to run next.
//!
//! An `Err` means that *we* could not do our job. A step that fails is an outcome, not an error
//! (see `project::outcome`).

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// What kind of failure this is; it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The command line or a push option is wrong.
    Usage,
    /// The recipe, the pillar or the node's configuration is invalid.
    Invalid,
    /// Another deployment holds the lock.
    Busy,
    /// The project waits for a person's decision.
    NeedsPerson,
    /// The request was understood and is refused; nothing was changed.
    Refused,
    /// The outside world (disk, program, network) failed us.
    Failed,
    /// What is on disk contradicts itself, or we did something that must not happen.
    Bug,
}

/// The documented exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done, or nothing to do.
    Done = 0,
    /// Failed; the node is as before or was rolled back.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Recipe, pillar or node configuration are invalid.
    Invalid = 3,
    /// Somebody else holds the lock.
    Busy = 4,
    /// A person is needed.
    NeedsPerson = 5,
    /// A bug in `mc_project` itself.
    Bug = 70,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

impl Kind {
    /// The exit code that a command ends with when this kind of error reaches `main`.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Usage => ExitCode::Usage,
            Self::Invalid => ExitCode::Invalid,
            Self::Busy => ExitCode::Busy,
            Self::NeedsPerson => ExitCode::NeedsPerson,
            Self::Refused | Self::Failed => ExitCode::Failed,
            Self::Bug => ExitCode::Bug,
        }
    }
}

/// An error with its message, an optional hint and an optional cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    cause: Option<Box<dyn std::error::Error + Send + Sync + 'static>>,
}

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of the given kind; `message` is a lowercase sentence fragment.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, cause: None }
    }

    /// An error of kind [`Kind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// An error of kind [`Kind::Refused`].
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// An error of kind [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// An error of kind [`Kind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// An error of kind [`Kind::Bug`].
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// Adds what to do next; a hint is best a command to run.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message alone, without cause and hint.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The hint, if there is one.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The raw operating system error below this one, if any (`errno(3)`).
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let cause = self.cause.as_deref()?;
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        if let Some(errno) = cause.downcast_ref::<rustix::io::Errno>() {
            return Some(errno.raw_os_error());
        }
        cause.downcast_ref::<Self>().and_then(Self::errno)
    }

    /// Whether the cause is "no such file or directory".
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(rustix::io::Errno::NOENT.raw_os_error())
    }

    /// Whether the disk, a quota or the inode table is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        use rustix::io::Errno;
        let errno = self.errno();
        errno == Some(Errno::NOSPC.raw_os_error()) || errno == Some(Errno::DQUOT.raw_os_error())
    }

    /// Message and causes in one line, without the hint.
    #[must_use]
    pub fn one_line(&self) -> String {
        let mut text = self.message.clone();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = self.cause.as_deref().map(|c| c as _);
        while let Some(error) = cause {
            text.push_str(": ");
            match error.downcast_ref::<Self>() {
                Some(ours) => text.push_str(&ours.message),
                None => text.push_str(&error.to_string()),
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.one_line())?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|c| c as _)
    }
}

/// Adds to a foreign error what we were doing when it happened.
pub trait Context<T> {
    /// Turns the error into ours, of kind [`Kind::Failed`]; `doing` reads like "cannot read /etc/x".
    ///
    /// # Errors
    /// The error itself, wrapped.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E> Context<T> for std::result::Result<T, E>
where
    E: Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
{
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::failed(doing()).because(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_doing_cause_and_hint() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(28))
            .context(|| "cannot write /x".to_string())
            .unwrap_err()
            .hint("df -h");
        assert!(error.is_no_space());
        let text = error.to_string();
        assert!(text.starts_with("cannot write /x: No space left"), "{text}");
        assert!(text.ends_with("\nhint: df -h"), "{text}");
    }

    #[test]
    fn errno_is_found_below_two_layers() {
        let inner = Error::failed("inner").because(io::Error::from_raw_os_error(2));
        let of_rustix = Err::<(), _>(rustix::io::Errno::PIPE).context(|| "x".to_string()).unwrap_err();
        assert_eq!(of_rustix.errno(), Some(32));
        let outer = Error::failed("outer").because(inner);
        assert!(outer.is_not_found());
        assert!(outer.one_line().starts_with("outer: inner: No such file"));
    }
}

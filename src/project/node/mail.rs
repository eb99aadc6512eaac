//! How a node sends mail.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{AbsoluteDir, Address, Number, Source, Span, Text, Way, with_hint};
use crate::project::recipe::notify::{Receiver, ReceiverFile};
use crate::sys::error::Result;

/// How mail goes out, and to whom in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// The sender.
    pub from: String,
    /// Who gets mail about every project, besides the people that recipes name.
    pub to: Vec<Receiver>,
    /// The way out.
    pub transport: Transport,
}

/// The way out for mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Into a maildir; `None`: the node's own (`NodePlace::maildir`).
    Maildir(Option<PathBuf>),
    /// To a mail server.
    Smtp(Smtp),
    /// Through this program.
    Sendmail(PathBuf),
    /// Not at all.
    None,
}

/// How the connection to a mail server is protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Clear text.
    None,
    /// STARTTLS, required.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
}

/// A mail server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smtp {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: Tls,
    /// The account, if it wants one.
    pub login: Option<Login>,
    /// A file with the certificate of an authority that is trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How long one operation may take.
    pub timeout: Duration,
}

/// An account at a mail server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The account's name.
    pub user: String,
    /// Its password.
    pub password: Password,
}

/// A password; it does not print.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// As written in the file.
    Text(String),
    /// In a file of its own, to be read when it is needed.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(hidden)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl Default for Mail {
    fn default() -> Self {
        Self { from: "mc_project@localhost".into(), to: Vec::new(), transport: Transport::Maildir(None) }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MailFile {
    from: Option<Address>,
    to: Vec<ReceiverFile>,
    transport: Option<TransportName>,
    smtp: Option<SmtpFile>,
    sendmail: Option<AbsoluteDir>,
    maildir: Option<AbsoluteDir>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TransportName {
    Maildir,
    Smtp,
    Sendmail,
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SmtpFile {
    host: Text,
    port: Option<Number<1, 65_535>>,
    #[serde(default)]
    tls: Tls,
    user: Option<Text>,
    password: Option<Text>,
    password_file: Option<AbsoluteDir>,
    ca_file: Option<AbsoluteDir>,
    timeout: Option<Span>,
}

impl MailFile {
    /// The mail configuration with its defaults.
    ///
    /// # Errors
    /// If keys contradict each other.
    pub fn resolve(self, source: &Source<'_>) -> Result<Mail> {
        let base = Mail::default();
        // Who describes a way out and does not name it means that way.
        let name = self.transport.unwrap_or(match (&self.smtp, &self.sendmail) {
            (Some(_), _) => TransportName::Smtp,
            (None, Some(_)) => TransportName::Sendmail,
            (None, None) => TransportName::Maildir,
        });
        let smtp = self.smtp.map(|smtp| smtp.resolve(source)).transpose()?;
        let transport = match (name, smtp) {
            (TransportName::Smtp, Some(smtp)) => Transport::Smtp(smtp),
            (TransportName::Smtp, None) => {
                let message =
                    with_hint("transport smtp needs a server", "add under mail: smtp: {host: mail.example.org}");
                return Err(source.error_at(&[Way::Key("mail"), Way::Key("transport")], &message));
            }
            (TransportName::Sendmail, _) => {
                Transport::Sendmail(self.sendmail.map_or_else(|| PathBuf::from("/usr/sbin/sendmail"), |path| path.0))
            }
            (TransportName::Maildir, _) => Transport::Maildir(self.maildir.map(|path| path.0)),
            (TransportName::None, _) => Transport::None,
        };
        Ok(Mail {
            from: self.from.map_or(base.from, |address| address.0),
            to: self.to.into_iter().map(ReceiverFile::resolve).collect(),
            transport,
        })
    }
}

impl SmtpFile {
    fn resolve(self, source: &Source<'_>) -> Result<Smtp> {
        let refused =
            |key, message: &str| Err(source.error_at(&[Way::Key("mail"), Way::Key("smtp"), Way::Key(key)], message));
        let host = self.host.0;
        if host.len() > 253 || !host.chars().all(|c| c.is_ascii_alphanumeric() || "-.:[]".contains(c)) {
            return refused("host", "this is no name or address of a server");
        }
        let password = match (self.password, self.password_file) {
            (Some(_), Some(_)) => return refused("password_file", "there is a `password` too"),
            (Some(text), None) => Some(Password::Text(text.0)),
            (None, Some(path)) => Some(Password::File(path.0)),
            (None, None) => None,
        };
        let login = match (self.user, password) {
            (Some(user), Some(password)) => Some(Login { user: user.0, password }),
            (None, None) => None,
            (Some(_), None) => return refused("user", "`user` needs `password` or `password_file`"),
            (None, Some(_)) => return refused("host", "a password needs a `user`"),
        };
        let is_local = matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1" | "[::1]");
        if login.is_some() && self.tls == Tls::None && !is_local {
            return refused("tls", "a password is not sent in clear text to another machine");
        }
        let usual = match self.tls {
            Tls::None => 25,
            Tls::Starttls => 587,
            Tls::Tls => 465,
        };
        let port = self.port.and_then(|port| u16::try_from(port.0).ok()).unwrap_or(usual);
        let timeout = self.timeout.map_or(Duration::from_secs(5), |span| span.0);
        Ok(Smtp { host, port, tls: self.tls, login, ca_file: self.ca_file.map(|path| path.0), timeout })
    }
}

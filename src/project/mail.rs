//! How a node sends mail: plain data.

use std::path::PathBuf;
use std::time::Duration;

pub use super::node::{Login, Password};

/// The way that mail takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MailTransport {
    /// No mail is sent.
    None,
    /// Each mail becomes a file in a maildir.
    Maildir {
        /// The maildir; it is made if it is missing.
        path: PathBuf,
    },
    /// Mail goes to a mail server.
    Smtp {
        /// The server's name, as its certificate has it.
        host: String,
        /// The port.
        port: u16,
        /// How the connection is protected.
        tls: SmtpTls,
        /// The account, if the server wants one.
        login: Option<Login>,
        /// A file with the certificate of an authority that is trusted beside the system's.
        ca_file: Option<PathBuf>,
        /// How long one exchange with the server may take.
        timeout: Duration,
    },
    /// Mail is handed to the local `sendmail` program.
    Sendmail {
        /// The program.
        program: PathBuf,
    },
}

/// How a connection to a mail server is protected; there is no way back to clear text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// Not at all: for a server on this machine, without a login.
    None,
    /// By STARTTLS, which must succeed.
    Starttls,
    /// From the first byte (port 465).
    Tls,
}

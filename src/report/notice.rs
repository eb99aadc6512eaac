//! A notice: what goes out about a deployment, as a mail or to a webhook.

use serde::{Deserialize, Serialize};

use super::mail::Mail;
use super::post;
use super::webhook::{self, Hook};
use crate::project::mail::MailTransport;
use crate::project::recipe::notify::shown_url;
use crate::sys::error::Result;
use crate::sys::escape;

/// What goes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// A mail.
    Mail(Mail),
    /// A body for a webhook.
    Hook(Hook),
}

impl Notice {
    /// Whom it is for, as it may be shown: `mail to dev@example.org`, `webhook https://example.org/…`.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Mail(mail) => format!("mail to {}", escape::visible(&mail.to)),
            Self::Hook(hook) => format!("webhook {}", shown_url(&hook.url)),
        }
    }

    /// Tells receivers apart.
    #[must_use]
    pub fn receiver(&self) -> &str {
        match self {
            Self::Mail(mail) => &mail.to,
            Self::Hook(hook) => &hook.url,
        }
    }

    /// Sends it, and tells what the other side said.
    ///
    /// # Errors
    /// If it was not taken; the text tells why and holds no secret.
    pub fn send(&self, transport: &MailTransport) -> Result<String> {
        match self {
            Self::Mail(mail) => post::send(mail, transport),
            Self::Hook(hook) => webhook::send(hook),
        }
    }
}

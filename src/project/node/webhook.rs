//! The node's own webhook: where the outcomes of all its projects are posted to, and what they are signed with.

use std::path::PathBuf;

use serde::Deserialize;

use super::{AbsoluteDir, Password, Source, Text, Way};
use crate::project::mode::Environment;
use crate::project::recipe::notify::{NotifyOn, UrlText, Webhook, When};
use crate::sys::error::Result;

/// The node's webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeWebhook {
    /// Where to, and when.
    pub hook: Webhook,
    /// What bodies are signed with.
    pub secret: Option<Password>,
    /// A file with the certificate of an authority that is trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeWebhookFile {
    url: UrlText,
    secret: Option<Text>,
    secret_file: Option<AbsoluteDir>,
    ca_file: Option<AbsoluteDir>,
    on: Option<Vec<NotifyOn>>,
    environments: Option<Vec<Environment>>,
}

impl NodeWebhookFile {
    /// What it means.
    ///
    /// # Errors
    /// If the secret is said twice.
    pub fn resolve(self, source: &Source<'_>) -> Result<NodeWebhook> {
        let secret = match (self.secret, self.secret_file) {
            (Some(_), Some(_)) => {
                return Err(source.error_at(&[Way::Key("webhook"), Way::Key("secret_file")], "there is a `secret` too"));
            }
            (Some(text), None) => Some(Password::Text(text.0)),
            (None, Some(path)) => Some(Password::File(path.0)),
            (None, None) => None,
        };
        Ok(NodeWebhook {
            hook: Webhook { url: self.url.0, when: When { on: self.on, environments: self.environments } },
            secret,
            ca_file: self.ca_file.map(|path| path.0),
        })
    }
}

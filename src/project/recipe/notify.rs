//! Who is told of an outcome: addresses, the authors of the commits, and webhooks, each for its occasions and environments.
//!
//! Recipe and node configuration write receivers in the same form: an address alone, or a mapping that says when.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IntoDeserializer, MapAccess, Visitor};

use crate::project::mode::Environment;
use crate::project::yaml::locate::Step as Way;
use crate::project::yaml::scalar::{Address, from_text};
use crate::project::yaml::{Source, with_hint};
use crate::sys::error::Result;

/// The word that stands where an address may and means the authors of the commits.
pub const AUTHORS: &str = "authors";

const MAX_RECEIVERS: usize = 50;

/// An occasion to notify people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyOn {
    /// A deployment did not deploy.
    Failure,
    /// The first one that deployed after a failure.
    Recovered,
    /// Any other one that deployed.
    Success,
}

const ALL_OCCASIONS: [NotifyOn; 3] = [NotifyOn::Failure, NotifyOn::Recovered, NotifyOn::Success];

/// Who a mail goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// One address.
    Address(String),
    /// The authors of the commits since the last good deployment.
    Authors,
}

/// When somebody is told; what is `None` is not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct When {
    /// On these occasions.
    pub on: Option<Vec<NotifyOn>>,
    /// In these environments; unsaid: in all.
    pub environments: Option<Vec<Environment>>,
}

impl When {
    /// Whether it is time; `usual` are the occasions that hold where none are said.
    #[must_use]
    pub fn is_for(&self, occasion: NotifyOn, environment: Environment, usual: &[NotifyOn]) -> bool {
        self.is_in(environment) && self.on.as_deref().unwrap_or(usual).contains(&occasion)
    }

    /// Whether this environment is meant.
    #[must_use]
    pub fn is_in(&self, environment: Environment) -> bool {
        self.environments.as_ref().is_none_or(|wanted| wanted.contains(&environment))
    }
}

/// Somebody who gets mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Who.
    pub who: Who,
    /// When.
    pub when: When,
}

/// A URL that outcomes are posted to, as a recipe names it.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where to.
    pub url: String,
    /// When.
    pub when: When,
}

impl std::fmt::Debug for Webhook {
    // What stands behind the host is often a password in all but name.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Webhook({}, {:?})", shown_url(&self.url), self.when)
    }
}

/// A URL as it may be shown: scheme and host, for its path may hold a token.
#[must_use]
pub fn shown_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    crate::sys::escape::visible_bounded(format!("{scheme}://{host}/…").as_bytes(), 300)
}

/// Who is notified of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// Who gets mail.
    pub to: Vec<Receiver>,
    /// The occasions of those who have none of their own.
    pub on: Vec<NotifyOn>,
    /// Where outcomes are posted to.
    pub webhook: Option<Webhook>,
}

impl Default for Notify {
    fn default() -> Self {
        Self { to: Vec::new(), on: ALL_OCCASIONS.to_vec(), webhook: None }
    }
}

/// `notify` as written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotifyFile {
    to: Vec<ReceiverFile>,
    on: Option<Vec<NotifyOn>>,
    webhook: Option<WebhookFile>,
}

impl NotifyFile {
    /// What it means.
    ///
    /// # Errors
    /// If there are too many receivers.
    pub fn resolve(self, source: &Source<'_>) -> Result<Notify> {
        if self.to.len() > MAX_RECEIVERS {
            return Err(source.error_at(&[Way::Key("notify"), Way::Key("to")], "more than 50 addresses"));
        }
        Ok(Notify {
            to: self.to.into_iter().map(ReceiverFile::resolve).collect(),
            on: self.on.unwrap_or_else(|| ALL_OCCASIONS.to_vec()),
            webhook: self.webhook.map(|hook| hook.0),
        })
    }
}

/// A receiver as written: `dev@example.org`, `authors`, or a mapping.
pub struct ReceiverFile(Receiver);

impl ReceiverFile {
    /// What it means.
    #[must_use]
    pub fn resolve(self) -> Receiver {
        self.0
    }
}

struct WhoText(Who);

impl<'de> Deserialize<'de> for WhoText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a mail address or `authors`", |text| {
            if text == AUTHORS {
                return Ok(Self(Who::Authors));
            }
            let address: Result<Address, serde::de::value::Error> = Address::deserialize(text.into_deserializer());
            address.map(|address| Self(Who::Address(address.0))).map_err(|error| error.to_string())
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReceiverMap {
    address: WhoText,
    on: Option<Vec<NotifyOn>>,
    environments: Option<Vec<Environment>>,
}

impl<'de> Deserialize<'de> for ReceiverFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMap;
        impl<'de> Visitor<'de> for TextOrMap {
            type Value = Receiver;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mail address, `authors`, or a mapping with `address`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Receiver, E> {
                let who = WhoText::deserialize(text.into_deserializer())?;
                Ok(Receiver { who: who.0, when: When::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Receiver, A::Error> {
                let map = ReceiverMap::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Receiver { who: map.address.0, when: When { on: map.on, environments: map.environments } })
            }
        }
        deserializer.deserialize_any(TextOrMap).map(Self)
    }
}

/// A URL of a web server: `https://host/path` or `http://host/path`, without blanks and control characters.
pub struct UrlText(pub String);

impl<'de> Deserialize<'de> for UrlText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a URL", |text| {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
            let good = |b: u8| {
                b.is_ascii_graphic() && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
            };
            if host.is_empty()
                || host.starts_with([':', '@'])
                || host.ends_with('@')
                || !text.bytes().all(good)
                || text.len() > 2000
            {
                return Err(with_hint("this is no URL of a web server", "https://HOST/PATH"));
            }
            Ok(Self(text.to_string()))
        })
    }
}

/// A webhook of a recipe as written: a URL, or a mapping that says when.
struct WebhookFile(Webhook);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookMap {
    url: UrlText,
    on: Option<Vec<NotifyOn>>,
    environments: Option<Vec<Environment>>,
}

impl<'de> Deserialize<'de> for WebhookFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMap;
        impl<'de> Visitor<'de> for TextOrMap {
            type Value = Webhook;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a URL, or a mapping with `url`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Webhook, E> {
                let url = UrlText::deserialize(text.into_deserializer())?;
                Ok(Webhook { url: url.0, when: When::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Webhook, A::Error> {
                let map = WebhookMap::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Webhook { url: map.url.0, when: When { on: map.on, environments: map.environments } })
            }
        }
        deserializer.deserialize_any(TextOrMap).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::recipe::Recipe;

    fn notify(text: &str) -> Notify {
        Recipe::parse("r", format!("notify: {text}\n").as_bytes()).unwrap().notify
    }

    fn plain(address: &str) -> Receiver {
        Receiver { who: Who::Address(address.into()), when: When::default() }
    }

    #[test]
    fn the_plain_form_and_the_one_with_when_are_read() {
        let read = notify(
            "{to: [dev@x.org, authors, {address: ops@x.org, on: [failure], environments: [prod, qa]}, {address: authors, on: [failure]}]}",
        );
        assert_eq!(read.to[..2], [plain("dev@x.org"), Receiver { who: Who::Authors, when: When::default() }]);
        let ops = &read.to[2];
        assert_eq!(ops.who, Who::Address("ops@x.org".into()));
        assert!(ops.when.is_for(NotifyOn::Failure, Environment::Prod, &[]));
        assert!(!ops.when.is_for(NotifyOn::Success, Environment::Prod, &read.on));
        assert!(!ops.when.is_for(NotifyOn::Failure, Environment::Staging, &read.on));
        assert_eq!((&read.to[3].who, read.to[3].when.on.as_deref()), (&Who::Authors, Some(&[NotifyOn::Failure][..])));
        assert!(read.to[0].when.is_for(NotifyOn::Success, Environment::Dev, &read.on));
        assert!(!read.to[0].when.is_for(NotifyOn::Success, Environment::Dev, &notify("{on: [failure]}").on));
    }

    #[test]
    fn a_webhook_is_a_url_or_says_when_and_its_path_is_not_shown() {
        let hook = notify("{webhook: 'https://u:pw@hooks.example.org:8443/T0/s3cret?x=1'}").webhook.unwrap();
        assert_eq!(shown_url(&hook.url), "https://hooks.example.org:8443/…");
        assert!(!format!("{hook:?}").contains("s3cret") && !format!("{hook:?}").contains("pw"));
        let hook = notify("{webhook: {url: 'http://h', on: [failure], environments: [prod]}}").webhook.unwrap();
        assert!(hook.when.is_in(Environment::Prod) && !hook.when.is_in(Environment::Dev));
    }

    #[test]
    fn faults_are_told_at_their_place() {
        let many = format!("notify: {{to: [{}]}}\n", "a@x.org, ".repeat(51));
        let cases: [(&str, &str, &str); 10] = [
            ("notify: {to: [author]}\n", "1:15: ", "`author` is no mail address"),
            ("notify: {to: [{address: x}]}\n", "1:25: ", "`x` is no mail address"),
            ("notify: {to: [{on: [failure]}]}\n", "1:15: ", "address"),
            ("notify: {to: [{address: a@x.org, mode: prod}]}\n", "1:34: ", "unknown key `mode`"),
            ("notify: {to: [{address: a@x.org, on: [never]}]}\n", "1:39: ", "unknown word `never`"),
            ("notify: {to: [a@x.org], web: 1}\n", "1:25: ", "unknown key `web`"),
            ("notify: {webhook: 'file:///x'}\n", "1:19: ", "no URL"),
            ("notify: {webhook: \"https://h/a\\r\\nX-Evil: 1\"}\n", "1:19: ", "no URL"),
            ("notify: {webhook: {url: 'https://h', secret: x}}\n", "1:38: ", "unknown key `secret`"),
            (&many, "1:10: ", "more than 50"),
        ];
        for (text, place, words) in cases {
            let error = Recipe::parse("r", text.as_bytes()).unwrap_err();
            assert!(error.message().starts_with(&format!("r:{place}")), "{text}: {error}");
            assert!(error.message().contains(words), "{text}: {error}");
        }
    }
}

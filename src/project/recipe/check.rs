//! The check of a service: what must hold, several times in a row and within a deadline, before a deployment is final.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use super::Command;
use super::step::CommandFile;
use crate::project::yaml::scalar::{Number, Span, Text, from_text};
use crate::project::yaml::with_hint;
use crate::sys::escape::visible_bounded;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET of this path; good are an expected status and, if one is named, a text in the body.
    Http {
        /// The path with its query.
        path: String,
        /// The `Host` header, if not the address.
        host: Option<String>,
        /// The expected statuses.
        expect: Vec<u16>,
        /// A text that the body must hold.
        body: Option<String>,
    },
    /// A connection is accepted.
    Tcp,
    /// A program of the project ends well.
    Run(Command),
}

/// A check of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is asked.
    pub probe: Probe,
    /// The port that is asked, on the loopback address; `None`: that of the instance.
    pub port: Option<u16>,
    /// When the check must have held.
    pub within: Duration,
    /// How many good answers in a row are enough.
    pub times: u32,
    /// The time between two questions.
    pub every: Duration,
    /// How long one answer may take.
    pub timeout: Duration,
    /// Whether the new version is also asked before it takes the place of the one that serves.
    pub before: bool,
}

/// A check as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckFile {
    http: Option<PathText>,
    host: Option<Text>,
    expect: Option<Expect>,
    body: Option<Text>,
    tcp: Option<Number<1, 65_535>>,
    run: Option<CommandFile>,
    port: Option<Number<1, 65_535>>,
    within: Option<Span>,
    times: Option<Number<1, 100>>,
    every: Option<Span>,
    timeout: Option<Span>,
    #[serde(default)]
    before: bool,
}

impl CheckFile {
    /// What is meant; `has_port` is whether the service has one of its own.
    ///
    /// # Errors
    /// The message, where two keys do not go together.
    pub fn resolve(self, has_port: bool) -> Result<Check, String> {
        const ONE: &str = "a check has one of: http, tcp, run";
        let number = |number: &Number<1, 65_535>| u16::try_from(number.0).ok();
        let port = self.tcp.as_ref().or(self.port.as_ref()).and_then(number);
        let of_http = [("host", self.host.is_some()), ("expect", self.expect.is_some()), ("body", self.body.is_some())];
        let (is_http, is_tcp) = (self.http.is_some(), self.tcp.is_some());
        if let Some((key, _)) = of_http.iter().find(|(_, is_there)| *is_there && !is_http) {
            return Err(with_hint(&format!("`{key}` goes with `http`"), ONE));
        }
        let probe = match (self.http, self.tcp, self.run) {
            (Some(path), None, None) => Probe::Http {
                path: path.0,
                host: self.host.map(|host| host.0),
                expect: self.expect.map_or_else(|| vec![200], |expect| expect.0),
                body: self.body.map(|body| body.0),
            },
            (None, Some(_), None) => Probe::Tcp,
            (None, None, Some(command)) => Probe::Run(command.0),
            (None, None, None) => return Err(with_hint("the check asks nothing", ONE)),
            _ => return Err(with_hint("the check asks two things", ONE)),
        };
        if is_tcp && self.port.is_some() {
            return Err("`tcp` names the port already".to_string());
        }
        if is_http && port.is_none() && !has_port {
            return Err(with_hint(
                "the check does not know which port to ask",
                "`port:` of the service or of the check",
            ));
        }
        if self.before && matches!(probe, Probe::Run(_)) {
            return Err(with_hint(
                "`before` goes with `http` and `tcp`",
                "a step of the stage `check` runs a program beforehand",
            ));
        }
        if self.before && self.port.is_some() {
            return Err(with_hint(
                "`before` asks where the service listens in its trial, and no other `port`",
                "take `port` out of the check",
            ));
        }
        if self.before && !has_port {
            return Err(with_hint(
                "`before` needs a service that is told where to listen",
                "`port:` or `listen:` of the service",
            ));
        }
        Ok(Check {
            probe,
            port,
            within: self.within.map_or(Duration::from_secs(30), |span| span.0),
            times: self.times.map_or(2, |number| number.0),
            every: self.every.map_or(Duration::from_secs(1), |span| span.0),
            timeout: self.timeout.map_or(Duration::from_secs(5), |span| span.0),
            before: self.before,
        })
    }
}

/// A path of a URL: it goes into a request as it stands.
struct PathText(String);

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "the path of a URL", |text| {
            let good = text.starts_with('/') && text.len() <= 2000 && text.bytes().all(|b| b.is_ascii_graphic());
            if good && !text.contains('#') {
                return Ok(Self(text.to_string()));
            }
            Err(with_hint(
                &format!("`{}` is no path of a URL", visible_bounded(text.as_bytes(), 80)),
                "it begins with / and holds visible ASCII characters only: /healthz?deep=1",
            ))
        })
    }
}

/// One status or several: `200`, `[200, 204]`.
struct Expect(Vec<u16>);

impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Statuses;
        impl<'de> Visitor<'de> for Statuses {
            type Value = Expect;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an HTTP status or a list of them, each from 100 to 599")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Expect, E> {
                let status = u16::try_from(number).ok().filter(|status| (100..600).contains(status));
                let status = status.ok_or_else(|| E::custom(format!("{number} is no HTTP status: 100 to 599")))?;
                Ok(Expect(vec![status]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Expect, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = items.next_element::<Number<100, 599>>()? {
                    all.extend(u16::try_from(one.0));
                }
                if all.is_empty() { Err(A::Error::custom("the list of statuses is empty")) } else { Ok(Expect(all)) }
            }
        }
        deserializer.deserialize_any(Statuses)
    }
}

//! Where a service listens by a socket that is held for it: `listen:`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use crate::project::yaml::scalar::message_of;
use crate::project::yaml::with_hint;
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::path::TreePath;

/// The name of what holds sockets, among the services of a project; none of a recipe may have it.
pub const HOLDER: &str = "held-sockets";
/// The most sockets of one service.
const MOST: usize = 8;
/// What an address is.
const FORMS: &str =
    "a port (8000, on 127.0.0.1), an address with a port (0.0.0.0:80, [::1]:80), or a path in data (data/web.sock)";

/// An address that is listened at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// By TCP.
    Tcp(SocketAddr),
    /// By a unix socket below `data`.
    Unix(TreePath),
}

impl Listen {
    /// The port that the machine itself can ask at, if it is one.
    #[must_use]
    pub fn local_port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) if address.ip().is_unspecified() || address.ip() == Ipv4Addr::LOCALHOST => {
                Some(address.port())
            }
            _ => None,
        }
    }

    /// Whether it is one of these ports.
    #[must_use]
    pub fn is_among(&self, ports: std::ops::Range<u32>) -> bool {
        matches!(self, Self::Tcp(address) if ports.contains(&u32::from(address.port())))
    }

    /// Whether both cannot be listened at together.
    #[must_use]
    pub fn clashes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(two)) => {
                let (a, b) = (one.ip(), two.ip());
                let is_any = a.is_unspecified() || b.is_unspecified();
                one.port() == two.port() && (a == b || (is_any && a.is_ipv4() == b.is_ipv4()))
            }
            _ => self == other,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "data/{path}"),
        }
    }
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let shown = visible_bounded(text.as_bytes(), 80);
            Error::invalid(format!("`{shown}` is nothing to listen at")).hint(FORMS)
        };
        if let Some(below) = text.strip_prefix("data/") {
            let is_plain = |c: char| !c.is_control() && c != ',';
            return match TreePath::new(below.as_bytes()) {
                Ok(path) if below.chars().all(is_plain) => Ok(Self::Unix(path)),
                _ => Err(wrong()),
            };
        }
        let address = match text.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => text.parse().map_err(|_| wrong())?,
        };
        if address.port() == 0 { Err(wrong()) } else { Ok(Self::Tcp(address)) }
    }
}

/// The value of `listen`: one address, or a list of them.
pub struct ListenFile(pub Vec<Listen>);

impl<'de> Deserialize<'de> for ListenFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = ListenFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORMS)
            }

            fn visit_u64<E: serde::de::Error>(self, port: u64) -> Result<ListenFile, E> {
                self.visit_str(&port.to_string())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ListenFile, E> {
                text.parse().map(|one| ListenFile(vec![one])).map_err(|error| E::custom(message_of(&error)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<ListenFile, A::Error> {
                let each = Vec::<Self::Value>::deserialize(SeqAccessDeserializer::new(items))?;
                let all: Vec<Listen> = each.into_iter().flat_map(|one| one.0).collect();
                if all.is_empty() || all.len() > MOST {
                    let message = with_hint(&format!("between 1 and {MOST} addresses"), FORMS);
                    return Err(serde::de::Error::custom(message));
                }
                Ok(ListenFile(all))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        text.parse::<Listen>().map_or_else(|error| error.one_line(), |listen| listen.to_string())
    }

    #[test]
    fn addresses_are_ports_addresses_and_paths_in_data() {
        assert_eq!(of("8000"), "127.0.0.1:8000");
        assert_eq!((of("0.0.0.0:80"), of("[::1]:80")), ("0.0.0.0:80".into(), "[::1]:80".into()));
        assert_eq!(of("data/run/web.sock"), "data/run/web.sock");
        for bad in ["0", "65536", "host:80", "data/", "data/../x", "run/web.sock", "/tmp/x", "", "data/a,b"] {
            assert!(of(bad).contains("is nothing to listen at"), "{bad}");
        }
        let port = |text: &str| text.parse::<Listen>().unwrap().local_port();
        assert_eq!((port("8000"), port("0.0.0.0:80"), port("10.0.0.1:80")), (Some(8000), Some(80), None));
    }

    #[test]
    fn everything_clashes_with_one_address_of_the_same_port() {
        let clash = |a: &str, b: &str| a.parse::<Listen>().unwrap().clashes_with(&b.parse().unwrap());
        assert!(clash("80", "0.0.0.0:80") && clash("80", "80") && clash("data/a", "data/a"));
        assert!(!clash("80", "81") && !clash("10.0.0.1:80", "10.0.0.2:80") && !clash("data/a", "data/b"));
    }
}

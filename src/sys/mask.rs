//! Secrets by value: what a program prints must not carry them into logs, mails or history.

use std::borrow::Cow;

use memchr::memmem;

use super::escape;

/// Shorter values are not masked: they would turn up in innocent words.
const MIN: usize = 8;

const MASK: &str = "[secret]";

/// Replaces the values of secrets in text.
#[derive(Clone, Default)]
pub struct Mask {
    /// Longest first, so that a secret that holds another one goes as a whole.
    values: Vec<String>,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} values)", self.values.len())
    }
}

impl Mask {
    /// A mask for these values. A value of several lines (a private key) is known by each of them, because output
    /// comes line by line; each is known raw and in the escaped form in which lines are shown.
    #[must_use]
    pub fn new(secrets: &[String]) -> Self {
        let mut values: Vec<String> = secrets
            .iter()
            .flat_map(|secret| secret.lines().chain([secret.as_str()]))
            .map(str::trim)
            .flat_map(|value| {
                [value.to_string(), escape::visible(value), escape::output_line(value.as_bytes(), usize::MAX)]
            })
            .filter(|value| value.len() >= MIN)
            .collect();
        values.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        values.dedup();
        Self { values }
    }

    /// Masks these too.
    pub fn add(&mut self, secrets: &[String]) {
        let is_new = |value: &String| !self.values.contains(value);
        let more: Vec<String> = Self::new(secrets).values.into_iter().filter(is_new).collect();
        if !more.is_empty() {
            self.values.extend(more);
            self.values.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        }
    }

    /// Whether there is nothing to mask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The text without the secrets.
    #[must_use]
    pub fn text(&self, text: String) -> String {
        self.values.iter().fold(text, |text, value| {
            if memmem::find(text.as_bytes(), value.as_bytes()).is_some() { text.replace(value, MASK) } else { text }
        })
    }

    /// The line, which need not be UTF-8, without the secrets.
    #[must_use]
    pub fn line<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        self.values.iter().fold(Cow::Borrowed(line), |line, value| {
            let mut rest = line.as_ref();
            let mut out = Vec::new();
            while let Some(at) = memmem::find(rest, value.as_bytes()) {
                out.extend_from_slice(&rest[..at]);
                out.extend_from_slice(MASK.as_bytes());
                rest = &rest[at + value.len()..];
            }
            if rest.len() == line.len() {
                return line;
            }
            out.extend_from_slice(rest);
            Cow::Owned(out)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_masked_raw_and_escaped_by_line_and_short_ones_stay() {
        let key = "-----BEGIN KEY-----\nMIIEvgIBADANBgkqhkiG\n-----END KEY-----\n";
        let mask = Mask::new(&[
            "hunter2hunter2".into(),
            "hunter2h".into(),
            "abc".into(),
            "p\u{202e}ssword".into(),
            key.into(),
        ]);
        assert_eq!(mask.text("a hunter2hunter2 b abc hunter2h".into()), "a [secret] b abc [secret]");
        assert_eq!(mask.text(escape::visible("x=p\u{202e}ssword;")), "x=[secret];");
        assert_eq!(mask.text("MIIEvgIBADANBgkqhkiG".into()), "[secret]");
        assert!(!format!("{mask:?}").contains("hunter2"));
        assert_eq!(mask.line(b"\xff hunter2hunter2hunter2h \xfe").as_ref(), b"\xff [secret][secret] \xfe");
        assert!(matches!(mask.line(b"abc"), Cow::Borrowed(b"abc")));
    }
}

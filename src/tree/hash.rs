//! The digest of a content: blake3, 32 bytes, written as 64 hexadecimal digits.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use crate::sys::error::{Error, Result};

/// A blake3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Copies everything from `from` to `to`; returns the digest and the number of bytes.
    ///
    /// # Errors
    /// Whatever reading or writing says.
    pub fn copying(from: &mut dyn Read, to: &mut dyn Write) -> std::io::Result<(Self, u64)> {
        let mut hasher = blake3::Hasher::new();
        // Most files are small: a large buffer for each costs more than they do.
        let (mut small, mut large) = ([0_u8; 8 * 1024], Vec::new());
        let mut total = 0;
        loop {
            let buffer = if total < small.len() as u64 {
                small.as_mut_slice()
            } else {
                large.resize(128 * 1024, 0);
                large.as_mut_slice()
            };
            let count = match from.read(buffer) {
                Ok(0) => return Ok((Self(*hasher.finalize().as_bytes()), total)),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&buffer[..count]);
            to.write_all(&buffer[..count])?;
            total += count as u64;
        }
    }

    /// Reads everything; returns the digest and the number of bytes.
    ///
    /// # Errors
    /// Whatever reading says.
    pub fn reading(from: &mut dyn Read) -> std::io::Result<(Self, u64)> {
        Self::copying(from, &mut std::io::sink())
    }

    /// Adds the digest as hexadecimal text.
    pub fn write_hex(&self, text: &mut String) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in self.0 {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }

    /// The digest as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest as hexadecimal text.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(64);
        self.write_hex(&mut text);
        text
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex()[..12])
    }
}

impl FromStr for Hash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
        let mut bytes = [0; 32];
        let mut is_good = text.len() == 64;
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            match digits(pair) {
                Some(found) => *byte = found,
                None => is_good = false,
            }
        }
        if is_good {
            return Ok(Self(bytes));
        }
        let shown = crate::sys::escape::visible_bounded(text.as_bytes(), 80);
        Err(Error::failed(format!("`{shown}` is no blake3 digest")))
    }
}

/// The value of a lowercase hexadecimal digit.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

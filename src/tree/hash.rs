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
        let mut buffer = vec![0_u8; 128 * 1024];
        let mut total = 0;
        loop {
            let count = match from.read(&mut buffer) {
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
        text.push_str(&blake3::Hash::from_bytes(self.0).to_hex());
    }

    /// The digest as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest as hexadecimal text.
    #[must_use]
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
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
        let lowercase = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match blake3::Hash::from_hex(text) {
            Ok(hash) if lowercase => Ok(Self(*hash.as_bytes())),
            _ => Err(Error::failed(format!(
                "`{}` is no blake3 digest",
                crate::sys::escape::visible_bounded(text.as_bytes(), 80)
            ))),
        }
    }
}

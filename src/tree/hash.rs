//! The digest of a content: blake3, 32 bytes, written as 64 hexadecimal digits.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use crate::sys::error::{Error, Result};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

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
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text.push_str(std::str::from_utf8(&digits).unwrap_or_default());
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
        let mut bytes = [0; 32];
        // Digits are below 16: every other value shows in the upper half of the sum of all.
        let mut all = 0;
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let (high, low) = (VALUES[usize::from(pair[0])], VALUES[usize::from(pair[1])]);
            all |= high | low;
            *byte = high << 4 | low & 15;
        }
        let is_good = text.len() == 64 && all < 16;
        if is_good {
            return Ok(Self(bytes));
        }
        let shown = crate::sys::escape::visible_bounded(text.as_bytes(), 80);
        Err(Error::failed(format!("`{shown}` is no blake3 digest")))
    }
}

/// The value of each lowercase hexadecimal digit; 255 for what is none.
const VALUES: [u8; 256] = {
    let mut values = [255; 256];
    let mut digit = 0_u8;
    while digit < 16 {
        values[DIGITS[digit as usize] as usize] = digit;
        digit += 1;
    }
    values
};

//! ed25519 keys that sign deliverables, and the keys that a node trusts (RFC 8032, through `ring`); and what signs a message
//! for those who share a secret with us.

use std::fmt;
use std::path::Path;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::error::{Context, Error, Result};
use super::fs;

/// A public key, written as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// If the text is of another form.
    pub fn parse(text: &str) -> Result<Self> {
        let bytes = from_hex(text.trim()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| {
            Error::invalid("a release key is 64 hexadecimal digits")
                .hint("mc_project keys show prints the key of a node")
        })
    }
}

impl PublicKey {
    /// A short form to compare by eye: 16 digits of the key's digest in groups of four.
    #[must_use]
    pub fn short(&self) -> String {
        let digits = to_hex(&blake3::hash(&self.0).as_bytes()[..8]);
        let groups: Vec<&str> = (0..digits.len()).step_by(4).map(|at| &digits[at..at + 4]).collect();
        groups.join("-")
    }
}

/// A key that was trusted by command: a line of the file `trusted`, the key and perhaps a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// Whose it is, in the words of who trusted it.
    pub name: Option<String>,
}

impl TrustedKey {
    /// Reads the file in `dir`; nothing if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or a line of it is no key.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>> {
        let path = dir.join("trusted");
        let bytes = fs::read_bounded(&path, fs::CONFIG_LIMIT)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let read = |line: &str| -> Result<Self> {
            let (key, name) = line.split_once(' ').unwrap_or((line, ""));
            let key = PublicKey::parse(key).context(|| format!("cannot understand {}", path.display()))?;
            Ok(Self { key, name: Some(name.trim().to_string()).filter(|name| !name.is_empty()) })
        };
        text.lines().filter(|line| !line.trim().is_empty()).map(read).collect()
    }

    /// Replaces the file in `dir`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_all(dir: &Path, keys: &[Self]) -> Result<()> {
        let line = |known: &Self| match &known.name {
            Some(name) => format!("{} {name}\n", known.key),
            None => format!("{}\n", known.key),
        };
        fs::ensure_dir(dir, 0o700)?;
        fs::write_durable(&dir.join("trusted"), keys.iter().map(line).collect::<String>().as_bytes(), 0o644)
    }

    /// Whether this is what somebody names: the whole key, its short form, or its name.
    #[must_use]
    pub fn is_called(&self, text: &str) -> bool {
        self.key.to_string() == text || self.key.short() == text || self.name.as_deref() == Some(text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The key that this node signs its deliverables with.
pub struct ReleaseKey {
    pair: Ed25519KeyPair,
}

impl fmt::Debug for ReleaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReleaseKey({})", self.public())
    }
}

impl ReleaseKey {
    /// Reads the node's key from `dir`, making one if there is none.
    ///
    /// # Errors
    /// If it cannot be read, made or understood.
    pub fn load_or_make(dir: &Path) -> Result<Self> {
        let path = dir.join("release.key");
        let document = if let Some(bytes) = fs::read_if_there(&path)? {
            bytes
        } else {
            let made = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
                .map_err(|_| Error::failed("cannot make a release key: the system gives no random numbers"))?;
            fs::ensure_dir(dir, 0o700)?;
            fs::write_durable(&path, made.as_ref(), 0o600)?;
            made.as_ref().to_vec()
        };
        let pair = Ed25519KeyPair::from_pkcs8(&document)
            .map_err(|e| Error::failed(format!("cannot use the release key {}: {e}", path.display())))?;
        Ok(Self { pair })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs; the signature is hexadecimal text.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> String {
        to_hex(self.pair.sign(message).as_ref())
    }
}

/// The keys whose signatures a node accepts.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// Trusts these keys.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// If it is by none of the keys.
    pub fn verify(&self, message: &[u8], signature: &str) -> Result<()> {
        let bytes = from_hex(signature).ok_or_else(|| Error::refused("the signature is no hexadecimal text"))?;
        let good = self.0.iter().any(|key| UnparsedPublicKey::new(&ED25519, &key.0).verify(message, &bytes).is_ok());
        if good {
            return Ok(());
        }
        let known = if self.0.is_empty() {
            "no key is trusted yet".to_string()
        } else {
            match self.0.len() {
                1 => "1 key is trusted".to_string(),
                many => format!("{many} keys are trusted"),
            }
        };
        Err(Error::refused(format!("it is by no key that this node trusts ({known})")).hint(
            "`keys show` on the node that cooked it prints its key; accept it here with: mc_project keys trust KEY",
        ))
    }
}

/// The HMAC-SHA256 (RFC 2104) of a message, in hexadecimal digits.
#[must_use]
pub fn hmac_sha256_hex(key: &[u8], message: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    to_hex(ring::hmac::sign(&key, message).as_ref())
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_message_and_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let key = ReleaseKey::load_or_make(dir.path()).unwrap();
        let again = ReleaseKey::load_or_make(dir.path()).unwrap();
        assert_eq!(key.public(), again.public());
        let signature = key.sign(b"x");
        let trusted = TrustedKeys::new(vec![PublicKey::parse(&key.public().to_string()).unwrap()]);
        trusted.verify(b"x", &signature).unwrap();
        assert!(trusted.verify(b"y", &signature).is_err());
        assert!(TrustedKeys::default().verify(b"x", &signature).is_err());
        assert!(trusted.verify(b"x", "zz").is_err());
        assert_eq!(key.public().short().len(), 19);
        let other = ReleaseKey::load_or_make(&dir.path().join("other")).unwrap();
        assert!(TrustedKeys::new(vec![other.public()]).verify(b"x", &signature).is_err());
        assert_ne!(key.public().short(), other.public().short());
    }

    #[test]
    fn trusted_keys_are_read_as_they_were_written_and_called_by_three_names() {
        let dir = tempfile::tempdir().unwrap();
        assert!(TrustedKey::read_all(dir.path()).unwrap().is_empty());
        let key = |byte| PublicKey::from_bytes([byte; 32]);
        let keys = [TrustedKey { key: key(1), name: None }, TrustedKey { key: key(2), name: Some("staging".into()) }];
        TrustedKey::write_all(dir.path(), &keys).unwrap();
        assert_eq!(TrustedKey::read_all(dir.path()).unwrap(), keys);
        for name in [&key(2).to_string(), &key(2).short(), "staging"] {
            assert!(keys[1].is_called(name) && !keys[0].is_called(name), "{name}");
        }
        std::fs::write(dir.path().join("trusted"), "not a key\n").unwrap();
        assert!(TrustedKey::read_all(dir.path()).is_err());
    }
}

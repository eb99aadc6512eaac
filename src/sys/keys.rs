//! ed25519 keys that sign deliverables, and the keys that a node trusts (RFC 8032, through `ring`).

use std::fmt;
use std::path::Path;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::error::{Error, Result};
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
        let other = ReleaseKey::load_or_make(&dir.path().join("other")).unwrap();
        assert!(TrustedKeys::new(vec![other.public()]).verify(b"x", &signature).is_err());
    }
}

//! The public keys of people, as OpenSSH writes them: one line, `<type> <base64> [comment]`.
//!
//! A key is taken apart here before it is believed: what stands in `authorized_keys` is read by sshd, and a line that
//! is no plain key (options in front, a second line hidden inside) would be a way in.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::sys::error::{Error, Result};
use crate::sys::escape::{visible, visible_bounded};

/// The most that is read of a file of keys.
pub const FILE_LIMIT: u64 = 64 * 1024;

/// The longest key in base64: an RSA key of 16384 bits has 2800 characters.
const LONGEST: usize = 4096;
/// The longest comment that is kept, in characters.
const COMMENT: usize = 100;
/// The sizes of an RSA key that are taken, in bits; OpenSSH itself takes none above.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=16384;
/// The types that are taken. Certificates are none of them: what they allow stands in them and not here.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
];

/// A public key that was examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct SshKey {
    kind: String,
    blob: String,
    fingerprint: String,
    comment: String,
}

/// A key as it stands in `access.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "type")]
    kind: String,
    key: String,
    fingerprint: String,
    comment: String,
}

impl SshKey {
    /// Reads one line: `<type> <base64> [comment]`.
    ///
    /// # Errors
    /// Of kind `Usage`, if it is no single plain public key of a type that is taken, with the reason.
    pub fn parse(line: &str) -> Result<Self> {
        if line.contains("PRIVATE KEY-----") {
            return Err(Error::usage("this is a private key, which belongs on its owner's machine alone")
                .hint("give the public one: the file whose name ends in .pub"));
        }
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::usage("a public key is one line without control characters").hint(HOW));
        }
        let mut words = line.split_whitespace();
        let (Some(kind), blob) = (words.next(), words.next()) else {
            return Err(Error::usage("this is an empty line, no public key").hint(HOW));
        };
        if !TYPES.contains(&kind) {
            return Err(foreign_type(kind, line));
        }
        let blob = blob.ok_or_else(|| Error::usage(format!("nothing stands behind {kind}")).hint(HOW))?;
        Self::new(kind, blob, &words.collect::<Vec<_>>().join(" "))
    }

    /// Reads a file of keys, one on each line; empty lines and comments (`#`) are left out.
    ///
    /// # Errors
    /// Of kind `Usage`, if there is none, or one is not taken.
    pub fn parse_file(bytes: &[u8]) -> Result<Vec<Self>> {
        let text = std::str::from_utf8(bytes).map_err(|_| Error::usage("a public key is text").hint(HOW))?;
        if text.contains("PRIVATE KEY-----") {
            return Self::parse(text).map(|key| vec![key]);
        }
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        let keys = lines.map(Self::parse).collect::<Result<Vec<_>>>()?;
        if keys.is_empty() {
            return Err(Error::usage("there is no public key in it").hint(HOW));
        }
        Ok(keys)
    }

    fn new(kind: &str, blob: &str, comment: &str) -> Result<Self> {
        let wrong = |why: &str| Error::usage(format!("this {kind} key is not taken: {why}")).hint(HOW);
        if blob.len() > LONGEST {
            return Err(wrong("it is too long"));
        }
        let bytes = STANDARD.decode(blob).map_err(|_| wrong("it is no base64 text"))?;
        examine(kind, &bytes).map_err(|why| wrong(&why))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        Ok(Self {
            kind: kind.to_string(),
            blob: blob.to_string(),
            fingerprint: format!("SHA256:{}", STANDARD_NO_PAD.encode(digest)),
            comment: visible(&comment.chars().take(COMMENT).collect::<String>()),
        })
    }

    /// Its type, for example `ssh-ed25519`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The key itself in base64.
    #[must_use]
    pub fn blob(&self) -> &str {
        &self.blob
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What its owner calls it, safe to show.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

const HOW: &str = "one line of the file whose name ends in .pub; to make a key: ssh-keygen -t ed25519";

fn foreign_type(kind: &str, line: &str) -> Error {
    if line.split_whitespace().any(|word| TYPES.contains(&word)) {
        return Error::usage("options in front of a public key are not taken").hint(HOW);
    }
    let shown = visible_bounded(kind.as_bytes(), 60);
    Error::usage(format!("`{shown}` is no type of public key that is taken"))
        .hint(format!("one of {}", TYPES.join(", ")))
}

/// The fields of a key on the wire: each is its length in four bytes, then the bytes (RFC 4251, section 5).
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> std::result::Result<&'a [u8], String> {
        let cut = || "it is cut off".to_string();
        let (length, rest) = self.0.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| cut())?;
        let (field, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        self.0 = rest;
        Ok(field)
    }
}

/// Whether these bytes are a whole key of this type and nothing else; the reason if not.
fn examine(kind: &str, bytes: &[u8]) -> std::result::Result<(), String> {
    let mut fields = Fields(bytes);
    let inner = fields.next()?;
    if inner != kind.as_bytes() {
        return Err(format!("inside it says `{}`", visible_bounded(inner, 60)));
    }
    match kind {
        "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => of_size(fields.next()?, 32)?,
        "ssh-rsa" => rsa(fields.next()?, fields.next()?)?,
        _ => curve(kind, fields.next()?, fields.next()?)?,
    }
    if kind.starts_with("sk-") && fields.next()?.is_empty() {
        return Err("it names no application".into());
    }
    if fields.0.is_empty() { Ok(()) } else { Err("something follows the key".into()) }
}

fn of_size(field: &[u8], size: usize) -> std::result::Result<(), String> {
    if field.len() == size { Ok(()) } else { Err(format!("it has {} bytes instead of {size}", field.len())) }
}

fn curve(kind: &str, name: &[u8], point: &[u8]) -> std::result::Result<(), String> {
    let (curve, size) = match kind {
        "ecdsa-sha2-nistp384" => ("nistp384", 97),
        "ecdsa-sha2-nistp521" => ("nistp521", 133),
        _ => ("nistp256", 65),
    };
    if name != curve.as_bytes() {
        return Err("its curve is another one".into());
    }
    of_size(point, size)?;
    if point[0] == 4 { Ok(()) } else { Err("its point is not written whole".into()) }
}

fn rsa(exponent: &[u8], modulus: &[u8]) -> std::result::Result<(), String> {
    // Positive, and written in the one shortest way: two texts of one key would have two fingerprints.
    let is_number = |field: &[u8]| match field {
        [0, second, ..] => *second >= 0x80,
        [first, ..] => *first < 0x80 && *first > 0,
        [] => false,
    };
    if !is_number(exponent) || !is_number(modulus) {
        return Err("it holds no numbers".into());
    }
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let bits = match modulus.get(zeros) {
        Some(first) => (modulus.len() - zeros) * 8 - first.leading_zeros() as usize,
        None => 0,
    };
    if RSA_BITS.contains(&bits) {
        return Ok(());
    }
    Err(format!("it has {bits} bits; {} to {} are taken", RSA_BITS.start(), RSA_BITS.end()))
}

/// Whether a text has the shape of a fingerprint: `SHA256:` and 43 characters of base64.
#[must_use]
pub fn is_fingerprint(text: &str) -> bool {
    text.strip_prefix("SHA256:").is_some_and(|digest| {
        digest.len() == 43 && digest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
    })
}

impl TryFrom<Written> for SshKey {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        let key = Self::new(&written.kind, &written.key, &written.comment)?;
        if key.fingerprint != written.fingerprint || !TYPES.contains(&written.kind.as_str()) {
            return Err(Error::invalid("the fingerprint of a key is that of another one"));
        }
        Ok(key)
    }
}

impl From<SshKey> for Written {
    fn from(key: SshKey) -> Self {
        Self { kind: key.kind, key: key.blob, fingerprint: key.fingerprint, comment: key.comment }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINDOy1tMe0274wIyCjomPt6qpGjkteQbcoqn84SKb2U1 alice@laptop";
    const P256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIsIjCFX4aaC7J09EYhzPjmtdCl43o4zCWM8CyKSCjOGm4NdoYZ8SgwwSOLAMVf2iLkS4f269WWV4ZWhs1HeywU=";
    const P384: &str = "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBFdk2WfMr2n4F1+RJJ+S+kYDWS86S/dcksupeIQUkjXBZaek38ezAODc6/2SjEGcZoJ5DLPYUiTbRXYrufbQBe15xf7INU9K1AxXkq1WhxUWSbRFj7uTcsS5qST2ZYlGDw==";
    const P521: &str = "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBABRp3I4Bkd4kAJfxVHYEYa3sk+PYP4yrZVE2OAyb9JqXyedVtskFR9AuYx0c+4YmQpxphqWAoGOhU7fM5IyV/qxQQFtgBmZh/A2CQr95QPZ8rAC2hclU02zTXhXwL/X1FeWD86C1rp4X9nsb6IGGOnAl3hztIZZlHtd+Tn+i/Q0kwYfNg==";
    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCx7x+b4SOz0EDJopAdsTx+iH7EYU+D2Aal+ZSwTFg/+IlK6+hWMw3DULmf6R00q5QzboPZHCqSn8OYZF2DqHqY1uWvTSImsbMcWEqHKhUeD+wnq2QpsvkGl977jbDUOFV7yb0nYRcT87NTdGrQA920NLrvr/mhmK0pZOi5hmxwNinrzQ2GUQvnQAxJwIeFhPC7v2xQHWPATj5bdKcl8Hk6fheKdxUdYTi6U+nA5+MYEpMGcwt7OY/dHHnSfdWeL3/SIvaKgjWA44nC+POnflTmHM4hkUWV3jwbizch/z5kqeCrKd9SD0CVpEu32cnSt/MjlWk4MK3HQmgr1ZEcA0zR";
    const SHORT_RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCyi5JQ2bu+SowACFQpcj3domGHviDzr1sH5wJtmsd8fYIRc8jwmZ8ySEbEs5/4W9NpOq/fv+S2IK22cxC38nEFVq5CebD+hggVyXDDmqGRhU5szVjVtYwdWgl/8ZkWtM7FdMGdb0CS7Rti6t4QAG7q74iLOLgdwrVqifHh0eUQPQ==";

    fn wire(fields: &[&[u8]]) -> String {
        let length = |field: &&[u8]| u32::try_from(field.len()).unwrap().to_be_bytes().to_vec();
        STANDARD.encode(fields.iter().flat_map(|field| [length(field), field.to_vec()].concat()).collect::<Vec<_>>())
    }

    #[test]
    fn fingerprints_are_those_of_ssh_keygen() {
        for (line, fingerprint) in [
            (ED, "SHA256:RahA0/9bIkZnOR4F7bnczYW/u0UX7ORWVnYm4xqQqkI"),
            (P256, "SHA256:IXAgQaiHh+BQ7Q3W/ybXKmlw8h1MFHtNMrkT+lMXdwk"),
            (P384, "SHA256:t9u8gvPY+QnmIPZAMLse+W/5E5y1CuM0jo9hdyK1ExY"),
            (P521, "SHA256:ro9KhHqYQSe41/yle9UUbahizjpK/yMn7MVX5LaqUXo"),
            (RSA, "SHA256:zhdINutFnE2UpPicqLMr3evZOtFkcVkDu5JhP8BKvWQ"),
        ] {
            let key = SshKey::parse(line).unwrap();
            assert_eq!(key.fingerprint(), fingerprint);
            assert!(is_fingerprint(key.fingerprint()));
            let written = serde_json::to_string(&key).unwrap();
            assert_eq!(serde_json::from_str::<SshKey>(&written).unwrap(), key);
        }
        assert_eq!(SshKey::parse(ED).unwrap().comment(), "alice@laptop");
        let sk = wire(&[b"sk-ssh-ed25519@openssh.com", &[7; 32], b"ssh:"]);
        assert!(SshKey::parse(&format!("sk-ssh-ed25519@openssh.com {sk}")).is_ok());
    }

    #[test]
    fn what_is_no_plain_public_key_is_refused_with_the_reason() {
        let told = |line: &str| SshKey::parse(line).unwrap_err().message().to_string();
        let blob = ED.split(' ').nth(1).unwrap();
        assert_eq!(told(&format!("command=\"id\" {ED}")), "options in front of a public key are not taken");
        assert_eq!(told(&format!("no-pty,permitopen=\"x\" {ED}")), "options in front of a public key are not taken");
        for split in ["\n", "\r", "\0", "\u{1b}"] {
            assert_eq!(told(&format!("{ED}{split}{ED}")), "a public key is one line without control characters");
        }
        assert!(told("-----BEGIN OPENSSH PRIVATE KEY-----").starts_with("this is a private key"));
        assert!(told("ssh-dss AAAA").contains("no type of public key"));
        assert!(told(&format!("ssh-ed25519-cert-v01@openssh.com {blob}")).contains("no type of public key"));
        assert!(told(&format!("ssh-rsa {blob}")).ends_with("inside it says `ssh-ed25519`"));
        assert!(told("ssh-ed25519").ends_with("nothing stands behind ssh-ed25519"));
        assert!(told("").contains("an empty line"));
        assert!(told(&format!("ssh-ed25519 {}", &blob[..60])).ends_with("it is cut off"));
        assert!(told(&format!("ssh-ed25519 {blob}x")).ends_with("it is no base64 text"));
        assert!(told(&format!("ssh-ed25519 {}", "A".repeat(5000))).ends_with("it is too long"));
        assert!(told(SHORT_RSA).ends_with("it has 1024 bits; 2048 to 16384 are taken"));
    }

    #[test]
    fn a_key_that_is_not_whole_inside_is_refused() {
        let told = |kind: &str, fields: &[&[u8]]| {
            SshKey::parse(&format!("{kind} {}", wire(fields))).unwrap_err().message().to_string()
        };
        let ed = "ssh-ed25519";
        assert!(told(ed, &[ed.as_bytes(), &[1; 31]]).ends_with("it has 31 bytes instead of 32"));
        assert!(told(ed, &[ed.as_bytes(), &[1; 32], b"more"]).ends_with("something follows the key"));
        let p256 = "ecdsa-sha2-nistp256";
        assert!(told(p256, &[p256.as_bytes(), b"nistp384", &[4; 65]]).ends_with("its curve is another one"));
        assert!(told(p256, &[p256.as_bytes(), b"nistp256", &[2; 65]]).ends_with("its point is not written whole"));
        let sk = "sk-ssh-ed25519@openssh.com";
        assert!(told(sk, &[sk.as_bytes(), &[1; 32]]).ends_with("it is cut off"));
        for modulus in [[vec![0, 0], vec![0xff; 256]].concat(), vec![0xff; 257], Vec::new()] {
            assert!(told("ssh-rsa", &[b"ssh-rsa", &[1, 0, 1], &modulus]).ends_with("it holds no numbers"));
        }
        assert!(told("ssh-rsa", &[b"ssh-rsa", &[3], &[1; 4000]]).ends_with("too long"));
    }

    #[test]
    fn a_file_may_hold_several_keys_and_remarks() {
        let keys = SshKey::parse_file(format!("# alice\n\n{ED}\r\n{P256}\n").as_bytes()).unwrap();
        assert_eq!(keys.iter().map(SshKey::kind).collect::<Vec<_>>(), ["ssh-ed25519", "ecdsa-sha2-nistp256"]);
        assert_eq!(SshKey::parse_file(b"\n# x\n").unwrap_err().message(), "there is no public key in it");
        assert!(SshKey::parse_file(b"\xff\xfe").is_err());
        let private = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE\n-----END OPENSSH PRIVATE KEY-----\n";
        let error = SshKey::parse_file(private).unwrap_err();
        assert!(error.message().starts_with("this is a private key") && !error.to_string().contains("b3Bl"));
    }

    #[test]
    fn a_written_key_whose_fingerprint_is_another_ones_is_not_read() {
        let mut value = serde_json::to_value(SshKey::parse(ED).unwrap()).unwrap();
        value["fingerprint"] = SshKey::parse(P256).unwrap().fingerprint().into();
        assert!(serde_json::from_value::<SshKey>(value).is_err());
    }
}

//! Seals: a checksum at the end of a record in JSON, so that a bit that flipped on the disk is found and not believed.
//!
//! A sealed record is still JSON, with one more key. One without it was written by an older version and is taken as it is.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Context, Error, Result};
use super::fs;

const KEY: &[u8] = b"\"seal\":";

/// The record as JSON on many lines, sealed, as [`read`] takes it.
///
/// # Errors
/// If it cannot be written as JSON; `what` is its name for the message.
pub fn pretty<T: Serialize>(record: &T, what: &str) -> Result<Vec<u8>> {
    let json = serde_json::to_vec_pretty(record).context(|| format!("cannot write {what}"))?;
    Ok(sealed(&json, ",\n  \"seal\": \"", "\"\n}"))
}

/// The record as JSON on one line, sealed, as [`understood`] takes it.
///
/// # Errors
/// As [`pretty`].
pub fn line<T: Serialize>(record: &T, what: &str) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(record).context(|| format!("cannot write {what}"))?;
    Ok(sealed(&json, ",\"seal\":\"", "\"}"))
}

/// Reads a record from a file; `None` if there is none.
///
/// # Errors
/// If it cannot be read, is damaged, or is another record.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = fs::read_if_there(path)? else { return Ok(None) };
    understood(&bytes).map(Some).context(|| format!("cannot understand {}", path.display())).map_err(|error| {
        error
            .hint("nothing was changed; look for disk errors (dmesg) and bring the file back from a backup of the node")
    })
}

/// The record in these bytes.
///
/// # Errors
/// If the seal does not fit, or it is another record.
pub fn understood<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let json = unsealed(bytes).ok_or_else(|| Error::failed("its seal does not fit"))?;
    serde_json::from_slice(&json).context(|| "it is another record".to_string())
}

/// The JSON of an object with its checksum as the last key.
fn sealed(json: &[u8], before: &str, after: &str) -> Vec<u8> {
    let body = json.strip_suffix(b"}").unwrap_or(json).trim_ascii_end();
    [body, before.as_bytes(), sum(body).as_bytes(), after.as_bytes()].concat()
}

/// The JSON as it was before it was sealed; `None` if its seal does not fit.
fn unsealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let Some(at) = memchr::memmem::rfind(bytes, KEY) else { return Some(bytes.to_vec()) };
    let body = bytes[..at].trim_ascii_end().strip_suffix(b",")?;
    let seal = bytes[at + KEY.len()..].trim_ascii().strip_prefix(b"\"")?.strip_suffix(b"}")?.trim_ascii_end();
    (seal.strip_suffix(b"\"")? == sum(body).as_bytes()).then(|| [body, b"}"].concat())
}

fn sum(body: &[u8]) -> String {
    blake3::hash(body).to_hex()[..16].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        text: String,
        numbers: Vec<u64>,
    }

    fn sample() -> Sample {
        Sample { text: "a \"seal\": \"x\" }".into(), numbers: vec![1, 2] }
    }

    #[test]
    fn a_sealed_record_is_json_and_reads_back() {
        for bytes in [pretty(&sample(), "it").unwrap(), line(&sample(), "it").unwrap()] {
            assert_eq!(understood::<Sample>(&bytes).unwrap(), sample());
            assert!(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["seal"].is_string());
        }
        assert!(pretty(&sample(), "it").unwrap().ends_with(b"\"\n}"));
        // What an older version wrote.
        assert_eq!(understood::<Sample>(&serde_json::to_vec(&sample()).unwrap()).unwrap(), sample());
    }

    #[test]
    fn no_flipped_bit_and_no_cut_changes_what_a_record_says() {
        for bytes in [pretty(&sample(), "it").unwrap(), line(&sample(), "it").unwrap()] {
            for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                // A flip in the name of the key makes a record without a seal of it, which says the same.
                assert!(understood::<Sample>(&bad).map_or(true, |read| read == sample()), "bit {bit} of byte {at}");
            }
            for cut in 0..bytes.len() {
                assert!(understood::<Sample>(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
    }
}

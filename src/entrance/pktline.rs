//! Git's pkt-lines (gitprotocol-common(5)): four hexadecimal digits of length, then that many bytes, or a flush.
//!
//! What arrives is bounded before it is stored: the other side is git, but what git repeats comes from strangers.

use std::io::{ErrorKind, Read, Write};

use crate::sys::error::{Context, Error, Result};

/// The longest packet, its four digits of length included.
pub const MAX_PACKET: usize = 65520;
/// The most bytes of one section (what stands between two flushes) that are kept.
pub const MAX_SECTION: usize = 32 * 1024 * 1024;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The end of a section.
    Flush,
    /// A line, without the line feed that may end it.
    Data(Vec<u8>),
}

/// Reads one packet; `None` at the clean end of the stream.
///
/// # Errors
/// If the stream cannot be read, ends inside a packet, or holds something else than pkt-lines.
pub fn read(input: &mut dyn Read) -> Result<Option<Packet>> {
    let mut digits = [0_u8; 4];
    let got = fill(input, &mut digits)?;
    if got == 0 {
        return Ok(None);
    }
    if got < 4 {
        return Err(malformed("the stream ends inside a length"));
    }
    let mut length = 0_usize;
    for digit in digits {
        let value = char::from(digit).to_digit(16).ok_or_else(|| malformed("a length is no number"))?;
        length = length * 16 + value as usize;
    }
    // 1 to 3 are the delimiters of protocol version 2, which receive-pack does not speak.
    if length == 0 {
        return Ok(Some(Packet::Flush));
    }
    if !(4..=MAX_PACKET).contains(&length) {
        return Err(malformed("a length is out of range"));
    }
    let mut data = vec![0; length - 4];
    if fill(input, &mut data)? < data.len() {
        return Err(malformed("the stream ends inside a line"));
    }
    if data.last() == Some(&b'\n') {
        data.pop();
    }
    Ok(Some(Packet::Data(data)))
}

/// Reads the lines up to the next flush, at most `max_lines` of at most `max_bytes` each.
///
/// # Errors
/// If the stream is malformed, ends before the flush, or passes a limit, which is named.
pub fn read_section(input: &mut dyn Read, what: &str, max_lines: usize, max_bytes: usize) -> Result<Vec<Vec<u8>>> {
    let mut lines = Vec::new();
    let mut total = 0;
    loop {
        match read(input)? {
            None => return Err(malformed("the stream ends before a flush")),
            Some(Packet::Flush) => return Ok(lines),
            Some(Packet::Data(line)) => {
                total += line.len();
                if lines.len() >= max_lines {
                    return Err(Error::refused(format!("more than {max_lines} {what} in one push")));
                }
                if line.len() > max_bytes || total > MAX_SECTION {
                    return Err(Error::refused(format!("the {what} of this push are too long")));
                }
                lines.push(line);
            }
        }
    }
}

/// Writes one line, as it is, without a line feed.
///
/// # Errors
/// If it is too long or cannot be written.
pub fn write(output: &mut dyn Write, line: &[u8]) -> Result<()> {
    let length = line.len() + 4;
    if length > MAX_PACKET {
        return Err(Error::bug(format!("a packet of {length} bytes is too long")));
    }
    // One write for both, so that nobody sees half a packet of a hook that is killed.
    let mut packet = format!("{length:04x}").into_bytes();
    packet.extend_from_slice(line);
    output.write_all(&packet).context(|| "cannot answer git".into())
}

/// Writes a flush and pushes everything out.
///
/// # Errors
/// If it cannot be written.
pub fn write_flush(output: &mut dyn Write) -> Result<()> {
    output.write_all(b"0000").and_then(|()| output.flush()).context(|| "cannot answer git".into())
}

/// Reads until the buffer is full or the stream ends; says how much came.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "cannot read what git sends".into()),
        }
    }
    Ok(got)
}

fn malformed(how: &str) -> Error {
    Error::usage(format!("this is not git's proc-receive protocol: {how}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut bytes = Vec::new();
        for line in [&b"ok refs/heads/main"[..], b"", b"\0x\xff"] {
            write(&mut bytes, line).unwrap();
        }
        write_flush(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"0016ok refs/heads/main0004"));
        let mut input = &bytes[..];
        let lines = read_section(&mut input, "commands", 10, 100).unwrap();
        assert_eq!(lines, [&b"ok refs/heads/main"[..], b"", b"\0x\xff"]);
        assert_eq!(read(&mut input).unwrap(), None);
    }

    #[test]
    fn one_line_feed_at_the_end_of_a_line_is_not_part_of_it() {
        assert_eq!(read(&mut &b"0007a\n\n"[..]).unwrap(), Some(Packet::Data(b"a\n".to_vec())));
    }

    #[test]
    fn malformed_and_truncated_streams_are_errors() {
        for bad in [&b"0"[..], b"000", b"zzzz", b"0001", b"0003", b"0010abc", b"-001", b"fff1", b"ffff", b"+004"] {
            assert!(read(&mut &*bad).is_err(), "{bad:?}");
        }
        assert!(read_section(&mut &b"0005a"[..], "commands", 10, 10).is_err(), "no flush");
    }

    #[test]
    fn limits_on_count_and_length_hold() {
        let mut bytes = Vec::new();
        for _ in 0..3 {
            write(&mut bytes, b"abc").unwrap();
        }
        write_flush(&mut bytes).unwrap();
        assert!(read_section(&mut &bytes[..], "commands", 3, 3).is_ok());
        assert!(
            read_section(&mut &bytes[..], "commands", 2, 3).unwrap_err().message().contains("more than 2 commands")
        );
        assert!(read_section(&mut &bytes[..], "commands", 3, 2).unwrap_err().message().contains("too long"));
        assert!(write(&mut Vec::new(), &vec![b'x'; MAX_PACKET - 4]).is_ok());
        assert!(write(&mut Vec::new(), &vec![b'x'; MAX_PACKET - 3]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut input = &bytes[..];
            while let Ok(Some(_)) = read(&mut input) {}
            let _ = read_section(&mut &bytes[..], "commands", 5, 50);
        }

        #[test]
        fn a_valid_packet_followed_by_anything_is_read(line in prop::collection::vec(any::<u8>(), 0..200), rest in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut bytes = Vec::new();
            write(&mut bytes, &line).unwrap();
            bytes.extend_from_slice(&rest);
            let expected = line.strip_suffix(b"\n").unwrap_or(&line).to_vec();
            assert_eq!(read(&mut &bytes[..]).unwrap(), Some(Packet::Data(expected)));
        }
    }
}

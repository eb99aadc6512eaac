//! Cuts a stream of bytes into lines with bounded memory.

/// The longest piece of a line that is handed on.
pub const LINE_LIMIT: usize = 64 * 1024;

/// How far from the end of a piece a word may begin that is not cut.
const WORD: usize = 4 * 1024;

/// Collects the bytes of a line that is not complete yet.
#[derive(Default)]
pub struct Lines {
    part: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes and hands on every line that they complete, and a piece whenever a line passes the limit.
    pub fn feed(&mut self, bytes: &[u8], on: &mut dyn FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.extend(&rest[..end], on);
            on(&self.part);
            self.part.clear();
            rest = &rest[end + 1..];
        }
        self.extend(rest, on);
    }

    /// Hands on what is left at the end of the stream.
    pub fn finish(&mut self, on: &mut dyn FnMut(&[u8])) {
        if !self.part.is_empty() {
            on(&self.part);
            self.part.clear();
        }
    }

    fn extend(&mut self, bytes: &[u8], on: &mut dyn FnMut(&[u8])) {
        let mut rest = bytes;
        while self.part.len() + rest.len() > LINE_LIMIT {
            let (now, later) = rest.split_at(LINE_LIMIT - self.part.len());
            self.part.extend_from_slice(now);
            let at = cut_of(&self.part);
            on(&self.part[..at]);
            self.part.drain(..at);
            rest = later;
        }
        self.part.extend_from_slice(rest);
    }
}

/// Where a line that is too long is cut: behind a blank or a quote near its end, so that no word comes in two halves of which
/// neither is known as the secret that it is.
fn cut_of(part: &[u8]) -> usize {
    let from = part.len() - part.len().min(WORD);
    let behind = |is_end: fn(&u8) -> bool| part[from..].iter().rposition(is_end).map(|at| from + at + 1);
    behind(u8::is_ascii_whitespace).or_else(|| behind(|b| matches!(b, b'"' | b'\''))).unwrap_or(part.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, &mut |line| out.push(line.to_vec()));
        }
        lines.finish(&mut |line| out.push(line.to_vec()));
        out
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        assert_eq!(cut(&[b"a\n\nb\xff"]), [b"a".to_vec(), b"".to_vec(), b"b\xff".to_vec()]);
        assert_eq!(cut(&[b"a", b"b\nc", b"\n"]), [b"ab".to_vec(), b"c".to_vec()]);
    }

    #[test]
    fn a_line_beyond_the_limit_comes_in_pieces_without_loss() {
        let long = vec![b'x'; 3 * LINE_LIMIT + 5];
        let pieces = cut(&[&long[..100], &long[100..], b"\ny"]);
        assert!(pieces.iter().all(|piece| piece.len() <= LINE_LIMIT));
        assert_eq!(pieces.concat().len(), long.len() + 1);
        assert_eq!(pieces.last().unwrap(), b"y");
    }

    #[test]
    fn a_word_at_the_limit_is_not_cut_in_two() {
        for separator in [b' ', b'"'] {
            let mut long = vec![b'x'; LINE_LIMIT - 5];
            long.push(separator);
            long.extend_from_slice(b"correct-horse-battery");
            long.push(separator);
            long.extend(vec![b'y'; LINE_LIMIT]);
            let pieces = cut(&[&long]);
            assert!(pieces.iter().any(|piece| piece.windows(21).any(|word| word == b"correct-horse-battery")));
            assert_eq!(pieces.concat(), long);
        }
    }
}

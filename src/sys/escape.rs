//! Makes strangers' text safe to show: on a terminal, in a log, in a mail.

use std::fmt::Write as _;

/// Text in which control characters, bidirectional overrides and invisible characters are written as `\u{..}`.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_visible(&mut out, c);
    }
    out
}

/// Like [`visible`], line by line: line ends stay.
#[must_use]
pub fn visible_lines(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}

/// A hint as lines to show: `hint: ` before the first, the others below its text.
#[must_use]
pub fn hint_lines(hint: &str) -> Vec<String> {
    let before = |n| if n == 0 { "hint: " } else { "      " };
    hint.lines().enumerate().map(|(n, line)| format!("{}{}", before(n), visible(line))).collect()
}

/// Like [`visible`] for bytes that may not be UTF-8 (`\xNN`), cut after `max` bytes of input.
#[must_use]
pub fn visible_bounded(bytes: &[u8], max: usize) -> String {
    let cut = bytes.len() > max;
    let mut out = String::new();
    for chunk in bytes[..bytes.len().min(max)].utf8_chunks() {
        for c in chunk.valid().chars() {
            push_visible(&mut out, c);
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    if cut {
        out.push('…');
    }
    out
}

/// A text of any length as a part of a sentence: cut after some hundred characters.
#[must_use]
pub fn in_sentence(text: &str) -> String {
    const MOST: usize = 400;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

/// One line of a program's output, safe to show: tabs stay, a trailing carriage return goes, the rest is [`visible_bounded`].
#[must_use]
pub fn output_line(bytes: &[u8], max: usize) -> String {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // A progress bar redraws its line with carriage returns: the last state is what a person would see.
    let line = line.rsplit(|b| *b == b'\r').next().unwrap_or(line);
    let without_colour = strip_colour(line);
    let parts: Vec<String> = without_colour.split(|b| *b == b'\t').map(|part| visible_bounded(part, max)).collect();
    parts.join("\t")
}

/// Removes colour and style sequences (`ESC [ … m`), which are harmless but unreadable once escaped.
fn strip_colour(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = memchr::memmem::find(rest, b"\x1b[") {
        out.extend_from_slice(&rest[..start]);
        let body = &rest[start + 2..];
        let end = body.iter().position(|b| !matches!(b, b'0'..=b'9' | b';'));
        match end {
            Some(end) if matches!(body[end], b'm' | b'K') => rest = &body[end + 1..],
            _ => {
                out.extend_from_slice(b"\x1b[");
                rest = body;
            }
        }
    }
    out.extend_from_slice(rest);
    out
}

fn push_visible(out: &mut String, c: char) {
    let hidden = c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
        || ('\u{e0000}'..='\u{e007f}').contains(&c);
    if hidden {
        let _ = write!(out, "\\u{{{:x}}}", c as u32);
    } else {
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(visible("a\u{1b}[31mb"), "a\\u{1b}[31mb");
        assert_eq!(visible("x\u{202e}y\nz"), "x\\u{202e}y\\u{a}z");
        assert_eq!(visible_bounded(b"ab\xff", 10), "ab\\xff");
        assert_eq!(visible_bounded(b"abcdef", 3), "abc…");
    }

    #[test]
    fn output_lines_lose_colour_and_keep_the_last_state_of_a_progress_bar() {
        assert_eq!(output_line(b"\x1b[32mok\x1b[0m done\r\n", 100), "ok done");
        assert_eq!(output_line(b" 10%\r 90%\r100%\n", 100), "100%");
        assert_eq!(output_line(b"\x1b]0;title\x07x", 100), "\\u{1b}]0;title\\u{7}x");
    }
}

//! Text in columns: how wide it stands on a terminal, cut and filled to a width, and times as people say them.

use jiff::Timestamp;

/// How many columns a character takes: East Asian wide ones and pictures two, marks that stand on others none.
fn columns_of(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036F | 0x200B..=0x200D | 0x20D0..=0x20FF | 0xFE00..=0xFE0F => 0,
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1F64F
        | 0x1F680..=0x1F6FF
        | 0x1F900..=0x1F9FF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

/// How many columns a text takes on a terminal.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// The text, cut to so many columns; where something is cut off, the last one is `…`.
#[must_use]
pub fn cut(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_string();
    }
    let (mut out, mut used) = (String::new(), 0);
    for c in text.chars() {
        if used + columns_of(c) + 1 > room {
            break;
        }
        used += columns_of(c);
        out.push(c);
    }
    if room > 0 {
        out.push('…');
    }
    out
}

/// The text, filled with blanks to so many columns, behind it or before it.
#[must_use]
pub fn fill(text: &str, columns: usize, to_the_right: bool) -> String {
    let blanks = " ".repeat(columns.saturating_sub(width(text)));
    if to_the_right { blanks + text } else { format!("{text}{blanks}") }
}

/// How long ago something was: `just now`, `5 min ago`, `3 h ago`, `12 d ago`, `3 y ago`.
#[must_use]
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    match now.duration_since(then).as_secs() {
        // A clock that was set back is no news.
        i64::MIN..5 => "just now".to_string(),
        s @ 5..60 => format!("{s} s ago"),
        s @ 60..3_600 => format!("{} min ago", s / 60),
        s @ 3_600..86_400 => format!("{} h ago", s / 3_600),
        s @ 86_400..63_072_000 => format!("{} d ago", s / 86_400),
        s => format!("{} y ago", s / 31_536_000),
    }
}

/// A bar for a part of the whole, `room` columns long where it is all of it; what took any time at all has one column.
#[must_use]
pub fn bar(part: u64, whole: u64, room: usize) -> String {
    let length = part.saturating_mul(room as u64).checked_div(whole).and_then(|length| usize::try_from(length).ok());
    "█".repeat(length.unwrap_or(0).min(room).max(usize::from(part > 0 && whole > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_measured_cut_and_filled_as_they_stand_on_a_terminal() {
        assert_eq!(["", "abc", "Ånström", "e\u{301}", "日本", "🚀 go"].map(width), [0, 3, 7, 1, 4, 5]);
        assert_eq!(cut("hello", 5), "hello");
        assert_eq!(cut("hello", 4), "hel…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!((cut("hello", 1), cut("hello", 0)), ("…".to_string(), String::new()));
        assert_eq!((fill("日", 4, false), fill("7", 3, true)), ("日  ".to_string(), "  7".to_string()));
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        let then: Timestamp = "2026-11-20T15:04:05Z".parse().unwrap();
        for (seconds, want) in [
            (-100, "just now"),
            (4, "just now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3_599, "59 min ago"),
            (3_600, "1 h ago"),
            (86_399, "23 h ago"),
            (86_400, "1 d ago"),
            (700 * 86_400, "700 d ago"),
            (800 * 86_400, "2 y ago"),
        ] {
            assert_eq!(ago(then, then + jiff::SignedDuration::from_secs(seconds)), want, "{seconds}");
        }
    }

    #[test]
    fn bars_are_never_longer_than_their_room_and_never_nothing() {
        assert_eq!(
            [(0, 9), (1, 900), (450, 900), (900, 900), (9, 0)].map(|(p, w)| bar(p, w, 4)),
            ["", "█", "██", "████", ""]
        );
    }
}

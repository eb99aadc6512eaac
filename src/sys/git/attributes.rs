//! What `.gitattributes` asks of a checkout that goes beyond copying blobs, and Git LFS pointers; pure.

use crate::sys::escape;
use crate::sys::path::TreePath;

/// Something that only the git program's checkout does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributeUse {
    /// `filter=NAME`: a program changes the content.
    Filter(String),
    /// `working-tree-encoding=NAME`: the content is recoded.
    Encoding(String),
    /// `eol=crlf`: line ends are changed; only worth a warning.
    Eol,
    /// `ident`: `$Id$` is replaced; only worth a warning.
    Ident,
}

/// One use with its line, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributesLine {
    /// The line.
    pub line: usize,
    /// What it asks for.
    pub what: AttributeUse,
}

/// Everything that the text of a `.gitattributes` asks for, in order.
#[must_use]
pub fn attribute_uses(text: &[u8]) -> Vec<AttributesLine> {
    // git skips a byte order mark at the beginning.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut uses = Vec::new();
    for (number, line) in text.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii_start();
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let attributes = after_pattern(line).split(u8::is_ascii_whitespace);
        uses.extend(attributes.filter_map(attribute_use).map(|what| AttributesLine { line: number + 1, what }));
    }
    uses
}

/// Why a `.gitattributes` at `path` cannot be honoured without the git program's checkout: its first filter or
/// encoding; `None` if there is none.
#[must_use]
pub fn attributes_problem(path: &TreePath, text: &[u8]) -> Option<String> {
    attribute_uses(text).into_iter().find_map(|found| {
        let what = match found.what {
            AttributeUse::Filter(name) => format!("filter={}", escape::visible_bounded(name.as_bytes(), 80)),
            AttributeUse::Encoding(name) => {
                format!("working-tree-encoding={}", escape::visible_bounded(name.as_bytes(), 80))
            }
            AttributeUse::Eol | AttributeUse::Ident => return None,
        };
        Some(format!("`{path}` line {} sets {what}", found.line))
    })
}

/// What stands behind the pattern, which may be quoted as in C.
fn after_pattern(line: &[u8]) -> &[u8] {
    if line[0] == b'"' {
        let mut escaped = false;
        for (i, b) in line.iter().enumerate().skip(1) {
            match b {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => return &line[i + 1..],
                _ => {}
            }
        }
        // An open quote is no quote to git: the pattern then ends at the first blank.
    }
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    &line[end..]
}

fn attribute_use(word: &[u8]) -> Option<AttributeUse> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    if word == b"ident" {
        return Some(AttributeUse::Ident);
    }
    if word == b"eol=crlf" {
        return Some(AttributeUse::Eol);
    }
    if let Some(name) = word.strip_prefix(b"filter=") {
        return (!name.is_empty()).then(|| AttributeUse::Filter(text(name)));
    }
    let name = word.strip_prefix(b"working-tree-encoding=")?;
    // UTF-8 is what content is kept in: git does nothing then.
    let plain = name.is_empty() || name.eq_ignore_ascii_case(b"utf-8") || name.eq_ignore_ascii_case(b"utf8");
    (!plain).then(|| AttributeUse::Encoding(text(name)))
}

/// Whether a blob is a Git LFS pointer instead of content.
#[must_use]
pub fn is_lfs_pointer(blob: &[u8]) -> bool {
    blob.len() <= 1024 && blob.starts_with(b"version https://git-lfs.github.com/spec/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(text: &str) -> Vec<(usize, AttributeUse)> {
        attribute_uses(text.as_bytes()).into_iter().map(|found| (found.line, found.what)).collect()
    }

    #[test]
    fn filters_and_encodings_are_found_with_their_lines() {
        let text = "\u{feff}*.bin filter=lfs diff=lfs -text\r\n# *.x filter=no\n\n  \"a \\\" b\" text working-tree-encoding=UTF-16\n\
                    [attr]big filter=big\n*.c\teol=crlf ident\n";
        assert_eq!(
            uses(text),
            [
                (1, AttributeUse::Filter("lfs".into())),
                (4, AttributeUse::Encoding("UTF-16".into())),
                (5, AttributeUse::Filter("big".into())),
                (6, AttributeUse::Eol),
                (6, AttributeUse::Ident),
            ]
        );
    }

    #[test]
    fn what_changes_nothing_is_no_use() {
        let text =
            "* text=auto eol=lf -filter !filter filter filter= working-tree-encoding=utf-8 -ident !ident\nfilter=x\n";
        assert_eq!(uses(text), []);
        assert_eq!(uses("\"open filter=a b=c"), [(1, AttributeUse::Filter("a".into()))]);
    }

    #[test]
    fn the_problem_names_path_line_and_attribute_escaped() {
        let path = TreePath::new(b"sub/.gitattributes").unwrap();
        let problem = attributes_problem(&path, b"* ident\n*.x filter=a\x1bb\n").unwrap();
        assert_eq!(problem, "`sub/.gitattributes` line 2 sets filter=a\\u{1b}b");
        assert_eq!(attributes_problem(&path, b"* eol=crlf ident\n"), None);
    }

    #[test]
    fn only_short_blobs_that_begin_like_a_pointer_are_pointers() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        assert!(is_lfs_pointer(pointer));
        assert!(!is_lfs_pointer(b"version 1") && !is_lfs_pointer(b""));
        let mut long = pointer.to_vec();
        long.resize(1025, b'x');
        assert!(!is_lfs_pointer(&long));
    }
}

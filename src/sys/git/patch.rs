//! Patches between two texts, for people.

use crate::sys::path::TreePath;

/// A patch in git's format that leads from one text to another; `None` if one of them is no text.
#[must_use]
pub fn text_patch(path: &TreePath, old: &[u8], new: &[u8]) -> Option<String> {
    let (old, new) = (std::str::from_utf8(old).ok()?, std::str::from_utf8(new).ok()?);
    let name = Some(path.as_path());
    let mut difference = git2::Patch::from_buffers(old.as_bytes(), name, new.as_bytes(), name, None).ok()?;
    String::from_utf8(difference.to_buf().ok()?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_names_the_file_and_its_lines_and_binary_files_have_none() {
        let path = TreePath::new(b"conf/app.ini").unwrap();
        let text = text_patch(&path, b"a\nb\n", b"a\nc\n").unwrap();
        assert!(text.contains("+++ b/conf/app.ini\n") && text.contains("\n-b\n+c\n"), "{text}");
        assert!(text_patch(&path, b"\xff", b"a").is_none());
    }
}

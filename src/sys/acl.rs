//! POSIX access control lists, as far as a node's own directories need them: one more user who may pass through.
//!
//! The format is that of the attribute `system.posix_acl_access` (linux/posix_acl_xattr.h): a version and entries of tag,
//! permissions and id, little endian, ordered by tag.

/// The extended attribute that holds the list.
pub const ATTRIBUTE: &str = "system.posix_acl_access";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const USER_OBJECT: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJECT: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The list that means `mode` and lets one more user pass through the directory without reading it.
#[must_use]
pub fn passing(mode: u32, uid: u32) -> Vec<u8> {
    let bits = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
    let entries = [
        (USER_OBJECT, bits(6), NO_ID),
        (USER, 1, uid),
        (GROUP_OBJECT, bits(3), NO_ID),
        // What named users and the group have at most; it is shown as the group's bits.
        (MASK, bits(3) | 1, NO_ID),
        (OTHER, bits(0), NO_ID),
    ];
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::dir::Dir;
    use std::path::Path;

    #[test]
    fn the_kernel_takes_the_list_and_shows_the_same_mode() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        dir.make_dir(Path::new("d"), 0o750).unwrap();
        let list = vec![(ATTRIBUTE.to_string(), passing(0o750, 12345))];
        dir.set_xattrs("d".as_ref(), &list).unwrap();
        assert_eq!(dir.xattrs("d".as_ref()).unwrap(), list);
        assert_eq!(dir.stat(Path::new("d")).unwrap().unwrap().mode, 0o750);
        let shown = std::process::Command::new("getfacl").args(["-n", "-p", "-c"]).arg(temp.path().join("d")).output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        assert_eq!(shown.trim(), "user::rwx\nuser:12345:--x\ngroup::r-x\nmask::r-x\nother::---");
    }
}

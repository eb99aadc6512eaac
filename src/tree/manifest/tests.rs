//! What a manifest keeps, reads back and refuses.

use super::*;
use crate::project::ids::DeploymentId;

fn entry(path: &[u8], content: Content) -> Entry {
    Entry {
        path: TreePath::new(path).unwrap(),
        mode: 0o644,
        owner: None,
        mtime: -1,
        content,
        hard_link: None,
        xattrs: Vec::new(),
        blob: None,
        stamp: Stamp::default(),
    }
}

fn sample() -> Manifest {
    let file = Content::File { size: 3, hash: Hash::of(b"abc") };
    let mut odd = entry(b"d/\xff \n%", file.clone());
    odd.xattrs = vec![("user.a=b c".into(), vec![0, 255, b' '])];
    odd.owner = Some((5, 6));
    odd.blob = Some("a".repeat(40).parse().unwrap());
    let mut other = entry(b"d/\xff z", file);
    other.hard_link = Some(odd.path.clone());
    Manifest::new(vec![entry(b"l", Content::Symlink(b"../\xfe x".to_vec())), other, odd, entry(b"d", Content::Dir)])
        .unwrap()
}

#[test]
fn a_manifest_reads_back_exactly() {
    let manifest = sample();
    assert_eq!(Manifest::from_text(&manifest.to_text()).unwrap(), manifest);
}

#[test]
fn every_cut_and_every_flipped_bit_is_found() {
    let text = sample().to_text();
    for end in 0..text.len() {
        assert!(Manifest::from_text(&text[..end]).is_err(), "cut at {end}");
    }
    for index in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[index] ^= 1;
        let Ok(flipped) = String::from_utf8(bytes) else { continue };
        assert!(Manifest::from_text(&flipped).is_err(), "flip at {index}");
    }
}

#[test]
fn changes_lead_from_one_manifest_to_the_other() {
    let (old, id) = (sample(), DeploymentId::new(jiff::Timestamp::UNIX_EPOCH));
    let new = old.with(vec![entry(b"new", Content::Dir)], &[TreePath::new(b"l").unwrap()]).unwrap();
    let text = new.to_changes(&old, &id);
    assert_eq!(Manifest::changes_against(&text).unwrap(), Some(id));
    assert_eq!(text.lines().count(), 4);
    assert_eq!(old.with_changes(&text).unwrap(), new);
}

#[test]
fn twins_and_orphans_are_refused() {
    let dir = |path: &[u8]| entry(path, Content::Dir);
    assert!(Manifest::new(vec![dir(b"a"), dir(b"a")]).is_err());
    assert!(Manifest::new(vec![dir(b"a/b")]).is_err());
    assert!(Manifest::new(vec![entry(b"a", Content::Symlink(b"/etc".to_vec())), dir(b"a/b")]).is_err());
}

#[test]
fn a_hard_link_whose_leader_is_gone_or_is_another_file_by_now_becomes_a_file_of_its_own() {
    let path = |text: &str| TreePath::new(text.as_bytes()).unwrap();
    let file = |name: &str, text: &str, leader: Option<&str>| Entry {
        hard_link: leader.map(path),
        ..entry(name.as_bytes(), Content::File { size: text.len() as u64, hash: Hash::of(text.as_bytes()) })
    };
    let whole =
        Manifest::new(vec![file("a", "x", None), file("b", "x", Some("a")), file("c", "x", Some("a"))]).unwrap();
    let links = |manifest: &Manifest| -> Vec<(String, Option<String>)> {
        let escaped = |entry: &Entry| (entry.path.escaped(), entry.hard_link.as_ref().map(TreePath::escaped));
        manifest.entries().map(escaped).collect()
    };
    let of = |name: &str, leader: Option<&str>| (name.to_string(), leader.map(str::to_string));
    assert_eq!(links(&whole), [of("a", None), of("b", Some("a")), of("c", Some("a"))]);
    let without = whole.with(Vec::new(), &[path("a")]).unwrap();
    assert_eq!(links(&without), [of("b", None), of("c", Some("b"))]);
    let replaced = whole.with(vec![file("a", "other", None)], &[]).unwrap();
    assert_eq!(links(&replaced), [of("a", None), of("b", None), of("c", Some("b"))]);
    // What no tree can be, as a stranger may write it down.
    let backwards = Manifest::new(vec![file("a", "x", Some("b")), file("b", "x", None)]).unwrap();
    assert_eq!(links(&backwards), [of("a", None), of("b", None)]);
    let round = Manifest::new(vec![file("a", "x", Some("b")), file("b", "x", Some("a"))]).unwrap();
    assert_eq!(links(&round), [of("a", None), of("b", None)]);
    let dir = Entry { hard_link: Some(path("a")), ..entry(b"d", Content::Dir) };
    let odd = Manifest::new(vec![file("a", "x", None), dir]).unwrap();
    assert_eq!(links(&odd), [of("a", None), of("d", None)]);
    for manifest in [whole, without, replaced, backwards, round, odd] {
        assert_eq!(Manifest::from_text(&manifest.to_text()).unwrap(), manifest);
    }
}

#[test]
fn no_time_and_no_size_is_too_large() {
    for mtime in [i64::MIN, i64::MIN + 1, -1, i64::MAX] {
        let manifest = Manifest::new(vec![Entry { mtime, ..entry(b"a", Content::Dir) }]).unwrap();
        assert_eq!(Manifest::from_text(&manifest.to_text()).unwrap(), manifest);
    }
    let huge = |name: &[u8]| entry(name, Content::File { size: u64::MAX, hash: Hash::of(b"") });
    assert_eq!(Manifest::new(vec![huge(b"a"), huge(b"b")]).unwrap().bytes(), u64::MAX);
}

#[test]
fn the_tree_digest_ignores_times_and_owners_only() {
    let mut other = sample();
    other.set_times(7);
    assert_eq!(sample().tree_digest(), other.tree_digest());
    let changed = other.with(vec![entry(b"l", Content::Symlink(b"x".to_vec()))], &[]).unwrap();
    assert_ne!(changed.tree_digest(), other.tree_digest());
}

/// A tree of many files, whose chunks are more than one.
fn many(count: usize) -> Vec<Entry> {
    let file = |n: usize| {
        let text = format!("d{}/f{n}", n % 40);
        entry(text.as_bytes(), Content::File { size: n as u64, hash: Hash::of(text.as_bytes()) })
    };
    let dirs = (0..40).map(|n| entry(format!("d{n}").as_bytes(), Content::Dir));
    dirs.chain((0..count).map(file)).collect()
}

#[test]
fn the_same_tree_has_the_same_chunks_whatever_led_to_it() {
    let all = many(3000);
    let whole = Manifest::new(all.clone()).unwrap();
    assert!(whole.chunks.len() > 5);
    // One by one, in an order that has nothing to do with the paths, some of them there and gone again.
    let mut grown = Manifest::new(all[..40].to_vec()).unwrap();
    for step in 0..7 {
        let part: Vec<Entry> = all[40..].iter().skip(step).step_by(7).cloned().collect();
        grown = grown.with(part, &[]).unwrap();
    }
    assert_eq!(grown, whole);
    assert_eq!(grown.tree_digest(), whole.tree_digest());
    for entry in all[40..].iter().step_by(3) {
        let less = whole.with(Vec::new(), std::slice::from_ref(&entry.path)).unwrap();
        assert_eq!(less, Manifest::new(less.entries().cloned().collect()).unwrap());
        assert_eq!(less.with(vec![entry.clone()], &[]).unwrap(), whole);
    }
}

#[test]
fn a_change_touches_its_chunk_alone_and_differing_finds_just_that() {
    let old = Manifest::new(many(3000)).unwrap();
    let mut other = old.entries().nth(1000).unwrap().clone();
    other.mode = 0o600;
    let gone = old.entries().filter(|entry| !entry.is_dir()).nth(2000).unwrap().path.clone();
    let new = old.with(vec![other.clone()], std::slice::from_ref(&gone)).unwrap();
    let shared = new.chunks.iter().filter(|chunk| old.chunks.iter().any(|other| Arc::ptr_eq(chunk, other)));
    assert!(shared.count() + 4 >= old.chunks.len());
    let found: Vec<_> = differing(&old, &new).map(|(a, b)| a.or(b).unwrap().path.clone()).collect();
    assert_eq!(found, [other.path, gone]);
}

#[test]
fn what_loses_its_directory_is_refused_wherever_it_stands() {
    let manifest = Manifest::new(many(500)).unwrap();
    let directory = TreePath::new(b"d7").unwrap();
    assert!(manifest.with(Vec::new(), std::slice::from_ref(&directory)).is_err());
    assert!(manifest.with(vec![entry(b"d7", Content::Symlink(b"x".to_vec()))], &[]).is_err());
    assert!(manifest.with(vec![entry(b"none/f", Content::Dir)], &[]).is_err());
    assert!(manifest.below(&directory).all(|entry| entry.path.is_within(&directory)));
    assert_eq!(manifest.below(&directory).count(), (0..500).filter(|n| n % 40 == 7).count());
}

#[test]
fn a_file_is_opened_without_reading_it_and_damage_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let (path, index) = (temp.path().join("manifest"), temp.path().join("manifest.index"));
    let whole = Manifest::new(many(3000)).unwrap();
    let written = whole.to_manifest();
    std::fs::write(&path, &written.text).unwrap();
    std::fs::write(&index, &written.index).unwrap();
    let (opened, _) = Manifest::open(&path, &index, Style::Plain).unwrap();
    assert_eq!((opened.len(), opened.files(), opened.bytes()), (whole.len(), whole.files(), whole.bytes()));
    assert_eq!(opened.tree_digest(), whole.tree_digest());
    assert_eq!(differing(&opened, &whole).count(), 0);
    assert!(opened.entries().eq(whole.entries()));
    // One bit in the middle: only who asks for that part sees it, and is told.
    let mut text = written.text.clone().into_bytes();
    let middle = text.len() / 2;
    text[middle] ^= 1;
    std::fs::write(&path, &text).unwrap();
    let (opened, _) = Manifest::open(&path, &index, Style::Plain).unwrap();
    assert!(opened.intact().is_ok());
    let _ = opened.entries().count();
    assert!(opened.intact().is_err());
    // Nor does what is made of it hide the damage.
    let (opened, _) = Manifest::open(&path, &index, Style::Plain).unwrap();
    let put: Vec<Entry> = whole.entries().cloned().map(|entry| Entry { mode: 0o600, ..entry }).collect();
    assert!(opened.with(put, &[]).is_err());
    // Another file, or an index that is cut short, is no match.
    std::fs::write(&path, format!("{} ", written.text)).unwrap();
    assert!(Manifest::open(&path, &index, Style::Plain).is_none());
    std::fs::write(&path, &written.text).unwrap();
    std::fs::write(&index, &written.index[..written.index.len() - 9]).unwrap();
    assert!(Manifest::open(&path, &index, Style::Plain).is_none());
}

//! Journals: what is read is read again the same, a cut costs whole records at the end and nothing else, and every
//! reader of records takes whatever a journal can hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mc_project::report::event::Record;
use mc_project::report::{history, journal, terminal};
use mc_project_fuzz::{Input, assert_error, assert_shown};

/// A line with its checksum, as the journal writes it.
fn checked(json: &[u8]) -> Vec<u8> {
    let sum = blake3::hash(json).to_hex();
    [json, b"\t", &sum.as_bytes()[..16], b"\n"].concat()
}

fn written(records: &[Record]) -> Vec<u8> {
    let lines = records.iter().map(|record| checked(&serde_json::to_vec(record).expect("JSON")));
    checked(br#"{"mc_project_journal":1}"#).into_iter().chain(lines.flatten()).collect()
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (choice, cut) = (input.byte(), usize::from(input.byte()) << 8 | usize::from(input.byte()));
    let bytes = if choice & 1 == 0 {
        input.0.to_vec()
    } else {
        let header = checked(br#"{"mc_project_journal":1}"#);
        let lines = input.0.split(|byte| *byte == b'\n').flat_map(checked);
        header.into_iter().chain(lines).collect()
    };
    let (records, good) = match journal::parse(&bytes, "J") {
        Ok(read) => read,
        Err(error) => return assert_error(&error),
    };
    let good = usize::try_from(good).expect("a length");
    assert!(good <= bytes.len());
    assert_eq!(journal::parse(&bytes[..good], "J").expect("its good part"), (records.clone(), good as u64));
    assert_eq!(journal::parse(&written(&records), "J").expect("it was written by us").0, records);

    // Killed or without power anywhere: the records before it are there, and no other.
    let cut = &bytes[..cut.min(good)];
    let (fewer, kept) = journal::parse(cut, "J").expect("a cut is no damage");
    assert!(records.starts_with(&fewer) && kept as usize <= cut.len());
    assert_eq!(fewer.len(), cut.iter().filter(|byte| **byte == b'\n').count().saturating_sub(1));

    for record in &records {
        terminal::plain(record).iter().for_each(|line| assert_shown(line, false));
        let line = record.ascii_line().expect("JSON");
        assert_eq!(&serde_json::from_str::<Record>(&line).expect("our own line"), record);
    }
    match history::summarise(&records) {
        Err(error) => assert_error(&error),
        Ok(entry) => {
            let text = serde_json::to_string(&entry).expect("JSON");
            assert_eq!(serde_json::from_str::<history::Entry>(&text).expect("our own line"), entry);
            assert_shown(&entry.label(), false);
            let _ = (entry.ended(), entry.by(), entry.outcome());
        }
    }
});

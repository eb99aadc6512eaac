//! Random histories against a naive model: store, archives and rotation must be as good as full copies of everything.
//!
//! The model keeps a whole directory for each release, for `run`, for `data` and for the data of each restore point, and does
//! to its copies by hand what the program does to the node. After each operation both are compared.

mod node;
mod oracle;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use node::Both;

/// One thing that happens to a node.
#[derive(Debug, Clone)]
pub enum Op {
    Deploy(Version),
    FailingBuild(Version),
    FailingUpgrade(Version),
    /// Which kept release, and whether its data come back too.
    Rollback(usize, bool),
    /// A command of somebody who works in `run`.
    Edit(usize),
    /// A command of the application, in `data`.
    Data(usize),
    /// A deployment (one whose upgrade fails, if so) that is killed at a passage of a fault point.
    Kill(Version, bool, usize, usize),
}

/// What a deployment brings.
#[derive(Debug, Clone)]
pub struct Version {
    /// Indices into [`PATHS`] and [`CONTENTS`], and whether the file is executable.
    pub files: Vec<(usize, usize, bool)>,
    /// Index into [`BUILDS`].
    pub build: usize,
    /// Index into [`DATA`]: its upgrade step.
    pub upgrade: usize,
    pub keep: usize,
}

/// Few, so that contents move, return, and change between file and directory.
pub const PATHS: [&str; 7] = ["a", "b", "dir", "dir/c", "dir/d", "deep/er/e", "out"];
pub const CONTENTS: [&str; 5] = ["", "one\n", "two\n", "three\n", "LARGE"];
pub const BUILDS: [&str; 6] = [
    "true",
    "cp a out 2>/dev/null || echo none > made",
    "mkdir -p empty/dir; ln -s nowhere dangling; echo made > empty/made",
    "rm -rf dir; echo two > dir; chmod 600 dir",
    "test -f a && ln a hard || true",
    "cat a b > sum 2>/dev/null || true; chmod 755 sum",
];
pub const EDITS: [&str; 8] = [
    "echo by-hand > a",
    "rm -rf dir deep",
    "mkdir -p dir 2>/dev/null && echo two > dir/new || true",
    "chmod 640 b 2>/dev/null || true",
    "test -f a && touch -r a ../stamp && echo xyz | head -c $(stat -c %s a) > a && touch -r ../stamp a; rm -f ../stamp; true",
    "ln -sf b soft; echo one > added; mkdir -p void",
    "test -f b && ln -f b twin || true",
    "rm -f b; mkdir -p b/inside; echo three > b/inside/x",
];
pub const DATA: [&str; 7] = [
    "true",
    "echo $V > $D/db",
    "mkdir -p $D/up; echo one > $D/up/$V; rm -f $D/db",
    "cp $D/db $D/old 2>/dev/null || echo two > $D/old",
    "rm -rf $D/up; echo file > $D/up.txt; ln -sf db $D/link",
    "test -d $D/old || rm -f $D/old; mkdir -p $D/old; echo three > $D/old/x",
    "mv $D/db $D/moved 2>/dev/null || true; chmod 600 $D/moved 2>/dev/null || true",
];

fn version() -> impl Strategy<Value = Version> {
    let file = (0..PATHS.len(), 0..CONTENTS.len(), any::<bool>());
    let parts = (vec(file, 0..6), 0..BUILDS.len(), 0..DATA.len(), 1_usize..4);
    parts.prop_map(|(files, build, upgrade, keep)| Version { files, build, upgrade, keep })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => version().prop_map(Op::Deploy),
        1 => version().prop_map(Op::FailingBuild),
        2 => version().prop_map(Op::FailingUpgrade),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, data)| Op::Rollback(which, data)),
        3 => (0..EDITS.len()).prop_map(Op::Edit),
        3 => (1..DATA.len()).prop_map(Op::Data),
        3 => (version(), any::<bool>(), any::<usize>(), 1_usize..4)
            .prop_map(|(version, fails, point, nth)| Op::Kill(version, fails, point, nth)),
    ]
}

/// Plays `histories` random histories; the same ones in each run, others in full mode.
fn play(seed: u8, histories: u32, length: usize) {
    let full = std::env::var_os("MC_TEST_FULL").is_some();
    let (histories, length) = if full { (histories * 15, length * 2) } else { (histories, length) };
    let config = Config {
        cases: histories,
        failure_persistence: None,
        max_shrink_iters: if full { 200 } else { 0 },
        ..Config::default()
    };
    let mut runner = if full {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
    };
    let history = (version().prop_map(Op::Deploy), vec(op(), length));
    let result = runner.run(&history, |(first, ops)| {
        let played = std::panic::catch_unwind(|| {
            let mut both = Both::new();
            for op in std::iter::once(&first).chain(&ops) {
                both.play(op);
            }
            both.end();
        });
        played.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            TestCaseError::fail(text.unwrap_or_else(|| "a panic".to_string()))
        })
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, history)) => panic!("{reason}\nthe history:\n{history:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn a_random_history_leaves_what_full_copies_would_have_kept() {
    play(1, 4, 7);
}

#[test]
fn another_random_history_leaves_what_full_copies_would_have_kept() {
    play(2, 4, 7);
}

#[test]
fn a_third_random_history_leaves_what_full_copies_would_have_kept() {
    play(3, 4, 7);
}

//! Clocks that jump: order comes from numbers, and durations from a clock that only goes forward.
//!
//! Every process of a push, the detached ones too, sees a wall clock that is off: a library that only this mount namespace
//! preloads. So nothing of the machine changes.

use std::path::PathBuf;
use std::process::Command;

use crate::support::{self, Finished, Record, World};

const YEAR: i64 = 365 * 86_400;

/// A node in whose processes the wall clock is off.
struct Clock {
    world: World,
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// `None`, with the reason printed, where no mount namespace can be had.
    fn new() -> Option<Self> {
        let world = World::with_shop();
        let (library, file) = (world.home().path("clock.so"), world.home().path("offset"));
        let compiled = Command::new("gcc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(format!("-DCLOCK_FILE=\"{}\"", file.display()))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/clock.c"))
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let clock = Self { world, library, file };
        let begin = seconds_now();
        clock.set(100 * YEAR);
        let seen = clock.shell("date +%s");
        if seen.exit_code() != Some(0) {
            eprintln!("skipped: no /etc of its own can be had here: {seen}");
            return None;
        }
        let seen: i64 = seen.stdout.trim().parse().unwrap();
        assert!(seen - begin >= 100 * YEAR, "the clock is off: {seen}");
        Some(clock)
    }

    fn set(&self, seconds: i64) {
        std::fs::write(&self.file, seconds.to_string()).unwrap();
    }

    /// Runs a script, and whatever it starts, with the clock that is off.
    fn shell(&self, script: &str) -> Finished {
        let upper = tempfile::tempdir_in(self.world.home().dir()).unwrap().keep();
        let etc = "mkdir -p $0/u $0/w; mount -t overlay -o lowerdir=/etc,upperdir=$0/u,workdir=$0/w none /etc; \
                   echo $1 > /etc/ld.so.preload; cd $2; ";
        let mut command = self.world.home().command("unshare");
        command.args(["--mount", "sh", "-euc"]).arg(format!("{etc}{script}")).arg(&upper).arg(&self.library);
        command.arg(self.world.home().dir());
        Finished::of(command)
    }

    fn push(&self, work: &std::path::Path) -> Finished {
        self.shell(&format!("cd {}; git push node main", work.display()))
    }
}

fn seconds_now() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

#[test]
fn clocks_that_jump_change_neither_the_order_nor_a_duration() {
    let Some(clock) = Clock::new() else { return };
    let world = &clock.world;
    let (work, now) = (world.clone_of("shop"), seconds_now());
    let jump = format!("stages: {{build: ['echo -{} > {}']}}\n", 10 * YEAR, clock.file.display());
    let year_2106 = 4_294_967_400 - now;
    // By a year forth and back, right, at the epoch, after 32 bits, and ten years back in the middle of a deployment.
    let offsets = [YEAR, -YEAR, 0, 60 - now, year_2106, 0];
    let mut record = Record { points: offsets.len(), of: offsets.len(), hit: offsets.len(), ..Record::default() };
    let mut commits = Vec::new();
    for (n, offset) in offsets.iter().enumerate() {
        let recipe =
            if n + 1 == offsets.len() { jump.as_str() } else { "stages: {upgrade: ['date >> $MC_DATA/when']}\n" };
        let commit = work.commit(&format!("version {n}"), &[("version", &n.to_string()), ("mc_project.yaml", recipe)]);
        clock.set(*offset);
        let pushed = clock.push(work.dir());
        world.settle("shop");
        record.dishonest_exits += usize::from(pushed.exit_code() != Some(0));
        record.panics += usize::from(pushed.stderr.contains("panicked"));
        record.half_states += usize::from(world.serves("shop").as_ref() != Some(&commit));
        assert_eq!(record.found(), 0, "{offset}: {pushed}");
        commits.push(commit);
    }
    // The last deployment ended ten years before it began.
    clock.set(0);
    let history = world.history("shop");
    let order: Vec<&str> = history.iter().map(|entry| entry["commit"].as_str().unwrap()).collect();
    assert_eq!(order, commits, "in the order of the pushes");
    for entry in &history {
        assert!(entry["duration_ms"].as_u64().unwrap() < 120_000, "{entry}");
        for stage in entry["stages"].as_array().unwrap() {
            assert!(stage["ms"].as_u64().unwrap() < 120_000, "{stage}");
        }
    }
    let years: Vec<&str> = history.iter().map(|entry| &entry["started"].as_str().unwrap()[..4]).collect();
    assert!(years.contains(&"1970") && years.contains(&"2106"), "{years:?}");

    // Rotation keeps the newest by number, whatever their names say.
    let ids: Vec<&str> = history.iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    for (n, id) in ids.iter().enumerate() {
        let is_kept = world.project("shop").join("archives").join(id).join("before.json").exists();
        record.litter += usize::from(is_kept != (n + 3 >= ids.len()));
        assert_eq!(is_kept, n + 3 >= ids.len(), "the restore point of #{}", n + 1);
    }
    world.mc(&["verify", "--all"]).ok();
    world.mc(&["rollback", "shop"]).ok();
    assert_eq!(world.serves("shop").as_ref(), Some(&commits[4]), "the one before by number");
    world.mc(&["status", "shop"]).ok();
    support::record("clocks", &record);
}

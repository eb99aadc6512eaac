//! Room on the disk: real small file systems, refused before anything changes, enlarged where the node allows it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Finished, Tree, World, assert_has, assert_lacks, digest_without};

const MIB: usize = 1 << 20;

/// A file system of its own, until the end of the test.
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Mounts a file system; `None`, with the reason printed, where nothing may be mounted.
fn mount(args: &[&str], dir: PathBuf) -> Option<Mounted> {
    let output = Command::new("mount").args(args).arg(&dir).output().unwrap();
    if output.status.success() {
        return Some(Mounted(dir));
    }
    eprintln!("skipped: mount {args:?} is not possible here: {}", String::from_utf8_lossy(&output.stderr).trim());
    None
}

pub fn tmpfs(options: &str, dir: PathBuf) -> Option<Mounted> {
    mount(&["-t", "tmpfs", "-o", options, "none"], dir)
}

/// Puts a world's root on an ext4 of its own, of which root keeps a part for itself; `None`, with the reason printed, where
/// that is not possible.
pub fn ext4(world: &World, mib: usize) -> Option<Mounted> {
    let image = world.home().path("image");
    std::fs::File::create(&image).unwrap().set_len((mib * MIB) as u64).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-m", "20"]).arg(&image).output().ok();
    if !made.is_some_and(|output| output.status.success()) {
        eprintln!("skipped: no ext4 can be made here");
        return None;
    }
    mount(&["-o", "loop", image.to_str().unwrap()], world.root())
}

/// A node on small file systems; they are unmounted before its directory goes.
struct Node {
    mounts: Vec<Mounted>,
    world: World,
}

impl Node {
    /// A node on a tmpfs with these options, which serves a first version.
    fn on_tmpfs(options: &str, config: &str) -> Option<Self> {
        let world = World::new();
        let mounts = vec![tmpfs(options, world.root())?];
        Some(Self { mounts, world }.serving(config))
    }

    /// A node on an ext4 of this size, of which root keeps a part for itself.
    fn on_ext4(mib: usize, config: &str) -> Option<Self> {
        let world = World::new();
        let mounts = vec![ext4(&world, mib)?];
        Some(Self { mounts, world }.serving(config))
    }

    fn serving(self, config: &str) -> Self {
        let reserve = "reserve: {bytes: 1MiB, percent: 0}\n";
        self.world.configure(&format!("{reserve}{config}"));
        self.world.mc(&["init", "shop"]).ok();
        let work = self.world.clone_of("shop");
        work.commit("first version", &[("index", "one"), ("gone", "later")]);
        work.push(&["main"]).ok();
        drop(work);
        self.world.settle("shop");
        self
    }

    /// Everything but what a refused push may write: objects, its own records and lines.
    fn unchanged(&self) -> Tree {
        let p = "srv/projects/shop";
        let except = [format!("{p}/git"), format!("{p}/state"), "var".to_string(), "etc".to_string()];
        digest_without(&self.world.root(), &except.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Pushes one more commit with a file of so many bytes, which pack to next to nothing.
    fn push_file(&self, name: &str, bytes: usize) -> Finished {
        let work = self.world.checkout_of("shop");
        work.commit(name, &[(name, &"0".repeat(bytes))]);
        let pushed = work.push(&["main"]);
        self.world.settle("shop");
        pushed
    }

    /// Pushes it and expects a refusal that changes nothing; returns what was told.
    #[track_caller]
    fn refuses(&self, name: &str, bytes: usize) -> String {
        let (before, serves) = (self.unchanged(), self.world.serves("shop"));
        let pushed = self.push_file(name, bytes);
        let reason = pushed.rejected("main");
        assert_has(&reason, "no space: ");
        before.assert_same(&self.unchanged(), "the node after a refusal");
        assert_eq!(self.world.serves("shop"), serves);
        assert_eq!(self.world.newest("shop")["verdict"], "refused");
        format!("{reason}\n{}", pushed.remote_text())
    }

    /// Writes zeros until nothing more fits for anybody but root, or for root either.
    fn fill(&self, path: &str, for_root_too: bool) -> PathBuf {
        // What still settles, and what was removed but not committed yet, would give something free again.
        self.world.settle("shop");
        Command::new("sync").arg("-f").arg(self.world.root()).output().unwrap();
        let at = self.world.root().join(path);
        if for_root_too {
            let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", at.display())).output();
        } else {
            // More than once: the postman removes what he sent, and that becomes free a little later.
            let mut length = 0;
            for _ in 0..20 {
                let output = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(self.world.root()).output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
                length += numbers[0] * numbers[1];
                Command::new("fallocate").args(["-l", &length.to_string()]).arg(&at).output().unwrap();
            }
        }
        at
    }

    fn free_bytes(&self) -> u64 {
        let output = Command::new("stat").args(["-f", "-c", "%a"]).arg(self.world.root()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    fn write(&self, path: &str, bytes: usize) {
        std::fs::write(self.world.root().join(path), vec![7; bytes]).unwrap();
    }
}

#[test]
fn a_commit_that_does_not_fit_is_refused_with_the_numbers_and_one_that_fits_is_deployed() {
    let Some(node) = Node::on_tmpfs("size=40m", "") else { return };
    let told = node.refuses("big", 14 * MIB);
    assert_has(&told, &format!("no space: {} needs ", node.world.root().display()));
    assert_has(&told, " bytes) and ");
    assert_has(&told, " inodes free, of which 1 MiB stay reserved");
    assert_has(&told, "status shop --disk tells what takes it");
    // What needs 42 MiB and more in three trees needs far less where it is a tenth.
    node.push_file("small", MIB).ok();
    node.world.mc(&["verify", "shop"]).ok();
}

#[test]
fn a_commit_with_more_files_than_inodes_is_refused() {
    let Some(node) = Node::on_tmpfs("size=200m,nr_inodes=1500", "") else { return };
    let (before, serves) = (node.unchanged(), node.world.serves("shop"));
    let work = node.world.checkout_of("shop");
    for n in 0..600 {
        work.write(&format!("many/{n}"), format!("{n}"));
    }
    work.commit_all("many files");
    let reason = work.push(&["main"]).rejected("main");
    assert_has(&reason, "no space: ");
    assert_has(&reason, " inodes, has ");
    node.world.settle("shop");
    before.assert_same(&node.unchanged(), "the node after a refusal");
    assert_eq!(node.world.serves("shop"), serves);
}

#[test]
fn the_snapshot_of_data_on_a_mount_of_their_own_is_counted_where_it_will_be_written() {
    let Some(mut node) = Node::on_tmpfs("size=24m", "") else { return };
    let data = node.world.project("shop").join("data");
    let Some(mounted) = tmpfs("size=40m", data.clone()) else { return };
    node.mounts.insert(0, mounted);
    std::fs::create_dir(data.join("shared")).unwrap();
    node.write("srv/projects/shop/data/db", 25 * MIB);
    let told = node.refuses("two", 10);
    assert_has(&told, &format!("no space: {} needs ", node.world.root().display()));
    assert_lacks(&told, &format!("{} needs", data.display()));
    assert_has(&told, "snapshot: [uploads, db.sqlite3]");
    node.write("srv/projects/shop/data/db", 5 * MIB);
    node.push_file("two", 10).ok();
}

#[test]
fn enlarge_makes_the_push_succeed_that_would_have_been_refused() {
    let script =
        "#!/bin/sh\nset -eu\nenv > \"$1/asked\"\nmount -o remount,size=$((MC_NEED_BYTES + 40000000)) \"$MC_DIR\"\n";
    let Some(node) = Node::on_tmpfs("size=24m", "") else { return };
    assert_has(&node.refuses("big", 9 * MIB), "needs");
    let grow = node.world.home().path("grow");
    std::fs::write(&grow, script).unwrap();
    std::fs::set_permissions(&grow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (grow, to) = (grow.display().to_string(), node.world.home().path("home").display().to_string());
    let enlarge = |argv: &str| {
        let allow = format!("projects: {{shop: {{allow: {{enlarge: [{argv}]}}}}}}\n");
        node.world.configure(&format!("reserve: {{bytes: 1MiB, percent: 0}}\n{allow}"));
    };
    // One that does nothing is told with what was there before and after.
    enlarge("/bin/echo, growing is for others");
    let told = node.refuses("bigger", 9 * MIB);
    assert_has(&told, "was enlarged (ok)");
    assert_has(&told, " were free before, ");
    enlarge("/bin/false");
    assert_has(&node.refuses("bigger2", 9 * MIB), "was enlarged (exit 1)");

    enlarge(&format!("{grow}, {to}"));
    let pushed = node.push_file("biggest", 9 * MIB).ok();
    assert_has(&pushed.remote_text(), &format!("{} was enlarged (ok)", node.world.root().display()));
    let asked = std::fs::read_to_string(Path::new(&to).join("asked")).unwrap();
    let value = |name: &str| {
        asked.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).unwrap_or_else(|| panic!("{asked}"))
    };
    assert_eq!((value("MC_DIR"), value("MC_PROJECT")), (node.world.root().to_str().unwrap(), "shop"));
    let (need, free): (u64, u64) = (value("MC_NEED_BYTES").parse().unwrap(), value("MC_FREE_BYTES").parse().unwrap());
    assert!(need > free && need > 27 * MIB as u64 && value("MC_NEED_INODES").parse::<u64>().unwrap() > 3, "{asked}");
    assert!(!asked.contains("GIT_") && !asked.contains("MC_ROOT"), "{asked}");
    // It is not asked again where there is room.
    std::fs::remove_file(Path::new(&to).join("asked")).unwrap();
    node.push_file("small", 10).ok();
    assert!(!Path::new(&to).join("asked").exists());
}

#[test]
fn a_push_to_a_node_below_its_reserve_is_refused_early_and_doctor_says_so() {
    let Some(node) = Node::on_tmpfs("size=30m", "") else { return };
    node.world.mc(&["doctor"]).ok();
    node.write("filler", 25 * MIB);
    node.world.configure("reserve: {bytes: 10MiB, percent: 0}\n");
    let before = node.unchanged();
    let told = node.push_file("small", 10);
    assert_has(&told.remote_text(), "of which 10 MiB stay reserved");
    before.assert_same(&node.unchanged(), "the node after a refusal");
    node.world.mc(&["doctor"]).code(1).says("less than the reserve of 10 MiB");
    node.world.mc(&["status", "shop", "--disk"]).ok().says("less than the reserve of 10 MiB");
}

#[test]
fn a_project_that_may_take_so_much_takes_no_more() {
    let world = World::with_config("projects: {shop: {disk: 6MiB}}\n");
    world.mc(&["init", "shop"]).ok();
    let node = Node { mounts: Vec::new(), world }.serving("projects: {shop: {disk: 6MiB}}\n");
    let told = node.refuses("big", 2 * MIB);
    assert_has(&told, "shop may take 6 MiB (6,291,456 bytes) on this node, takes ");
    assert_has(&told, ", and this needs ");
    node.push_file("small", 10).ok();
    node.world.configure("");
    std::fs::write(node.world.root().join("etc/mc_project/node.yaml"), "{}\n").unwrap();
    node.push_file("big", 2 * MIB).ok();
}

#[test]
fn a_rollback_works_when_nothing_is_free_for_anybody_but_root() {
    let Some(node) = Node::on_ext4(64, "") else { return };
    let first = node.world.serves("shop");
    node.push_file("second", MIB).ok();
    node.fill("filler", false);
    assert_eq!(node.free_bytes(), 0, "the disk is full");
    let pushed = node.push_file("third", 10);
    assert_has(&pushed.remote_text(), "no space: ");
    node.world.mc(&["rollback", "shop"]).ok();
    assert_eq!(node.world.serves("shop"), first);
    assert!(!node.world.run_path("shop", "second").exists());
    std::fs::remove_file(node.world.root().join("filler")).unwrap();
    node.world.mc(&["verify", "shop"]).ok();
}

#[test]
fn a_version_that_fills_the_disk_to_the_last_byte_is_rolled_back() {
    let Some(node) = Node::on_tmpfs("size=30m", "") else { return };
    let first = node.world.serves("shop");
    let before = node.world.run_tree("shop");
    node.write("srv/projects/shop/data/db", 10);
    let work = node.world.checkout_of("shop");
    let full = "echo new > $MC_DATA/db; dd if=/dev/zero of=$MC_DATA/../../../../filler bs=64k; echo full; false";
    work.commit("fills", &[("mc_project.yaml", &format!("stages: {{upgrade: ['{full}']}}\n")), ("index", "two")]);
    work.push(&["main"]).code(1).tells("rolled back");
    assert_eq!(node.world.serves("shop"), first);
    before.assert_same(&node.world.run_tree("shop"), "run");
    assert_eq!(std::fs::read(node.world.project("shop").join("data/db")).unwrap(), [7; 10]);
    std::fs::remove_file(node.world.root().join("filler")).unwrap();
    node.world.settle("shop");
    node.world.mc(&["verify", "shop"]).ok();
}

#[test]
fn a_rollback_by_hand_works_when_not_a_byte_is_free() {
    let Some(node) = Node::on_tmpfs("size=40m", "") else { return };
    let first = node.world.serves("shop");
    node.push_file("second", MIB).ok();
    let filler = node.fill("filler", true);
    assert_eq!(node.free_bytes(), 0, "the disk is full");
    node.world.mc(&["rollback", "shop"]).ok();
    assert_eq!(node.world.serves("shop"), first);
    assert!(!node.world.run_path("shop", "second").exists());
    std::fs::remove_file(filler).unwrap();
    node.world.mc(&["verify", "shop"]).ok();
    // What was given back is held again.
    node.push_file("third", 10).ok();
    assert!(node.world.project("shop").join("state/ballast/space").metadata().unwrap().len() >= MIB as u64);
}

#[test]
fn a_rollback_by_hand_works_when_not_an_inode_is_free() {
    let Some(node) = Node::on_tmpfs("size=60m,nr_inodes=1500", "") else { return };
    let first = node.world.serves("shop");
    node.push_file("second", MIB).ok();
    let filler = node.world.root().join("filler");
    std::fs::create_dir(&filler).unwrap();
    assert!((0..2000).any(|n| std::fs::File::create(filler.join(n.to_string())).is_err()), "the inodes are used up");
    node.world.mc(&["rollback", "shop"]).ok();
    assert_eq!(node.world.serves("shop"), first);
    std::fs::remove_dir_all(filler).unwrap();
    node.world.mc(&["verify", "shop"]).ok();
}

#[test]
fn what_a_project_costs_is_told_by_part_and_by_kept_deployment() {
    let (world, _) = World::serving(&[("same", &"s".repeat(100_000)), ("one", &"1".repeat(1_000_000))]);
    let work = world.checkout_of("shop");
    for version in ["two", "three"] {
        work.git(&["rm", "-q", "--ignore-unmatch", "one", "two"]).ok();
        work.commit(version, &[(version, &version.repeat(400_000))]);
        work.push(&["main"]).ok();
        world.settle("shop");
    }
    let told = world.mc(&["status", "shop", "--disk", "--json"]).ok().json();
    let parts = told["parts"].as_array().unwrap();
    let sum: u64 = parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(told["total"]["bytes"].as_u64(), Some(sum));
    let mut du = world.home().command("du");
    du.args(["-s", "--block-size=1", world.project("shop").to_str().unwrap()]);
    let du: u64 = Finished::of(du).ok().stdout.split_whitespace().next().unwrap().parse().unwrap();
    let logs = parts.iter().find(|part| part["part"] == "logs").unwrap()["bytes"].as_u64().unwrap();
    let directory = 4096;
    assert!((sum - logs).abs_diff(du) <= 2 * directory, "{sum} - {logs} is not {du}: {told}");

    let kept = told["deployments"].as_array().unwrap();
    assert_eq!(kept.len(), 3, "{told}");
    let of = |n: usize, key: &str| kept[n][key].as_u64().unwrap();
    // The first one's own file is in the pool alone; what all have is given back by none.
    assert!((1_000_000..1_100_000).contains(&of(0, "frees")), "{told}");
    assert!((1_100_000..1_130_000).contains(&of(0, "alone")), "{told}");
    assert!((100_000..110_000).contains(&of(0, "shared")), "{told}");
    assert_eq!((kept[1]["tree"].as_str(), kept[2]["tree"].as_str()), (Some("spare"), Some("run")));
    assert!(of(1, "frees") < 100_000 && of(2, "frees") == 0, "{told}");

    let text = world.mc(&["status", "--disk"]).ok().stdout;
    for line in ["build cache", "kept deployments", "restore points", "it serves", "total"] {
        assert_has(&text, line);
    }
}

#[test]
fn a_unit_that_the_node_does_not_allow_is_refused_before_anything_changes() {
    let node = Node { mounts: Vec::new(), world: World::with_shop() }.serving("");
    let before = node.unchanged();
    let work = node.world.checkout_of("shop");
    work.commit("restarts", &[("mc_project.yaml", "stages:\n  post_deploy:\n    - restart: shop.service\n")]);
    let pushed = work.push(&["main"]);
    let reason = pushed.rejected("main");
    assert_has(&reason, "mc_project.yaml:3:7: this node does not allow the project to restart shop.service");
    assert_has(&pushed.remote_text(), "projects: {shop: {allow: {units: [shop.service]}}}");
    node.world.settle("shop");
    before.assert_same(&node.unchanged(), "the node after a refusal");

    node.world.configure("projects: {shop: {allow: {units: [shop.service]}}}\n");
    let pushed = work.push(&["main"]);
    if Path::new("/run/systemd/system").exists() {
        eprintln!("skipped: systemd runs here, and shop.service is not ours to restart");
    } else {
        assert_has(&pushed.rejected("main"), "systemd does not run here");
        node.world.settle("shop");
        before.assert_same(&node.unchanged(), "the node after a refusal");
    }
}

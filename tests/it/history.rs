//! `history` and `show` of a real history: what a person reads, and that the commands that stand there work.

use std::time::{Duration, Instant};

use crate::support::{Finished, World, assert_has, assert_lacks};

/// First version, second version, a broken build, an upgrade that fails; the commits of the first two.
fn story() -> (World, [String; 2]) {
    let (world, first) = World::serving(&[("a", "1"), ("b", "1"), ("c", "1")]);
    let second = {
        let work = world.checkout_of("shop");
        work.git(&["rm", "--quiet", "c"]).ok();
        let second = work.commit(
            "Tea, with a subject that is far too long for any terminal that somebody may have in front of them today",
            &[("a", "2"), ("d", "new")],
        );
        work.push(&["main"]).ok();
        work.commit("Broken build", &[("mc_project.yaml", "stages: {build: ['echo no such column; exit 3']}\n")]);
        work.push(&["main"]).code(1);
        work.commit("Broken upgrade", &[("mc_project.yaml", "stages: {upgrade: ['echo half done; exit 4']}\n")]);
        work.push(&["main"]).code(1);
        second
    };
    world.settle("shop");
    (world, [first, second])
}

/// A command of the program on a terminal of this width.
fn on_a_terminal(world: &World, columns: u32, words: &str, env: &str) -> String {
    let mut command = world.home().command("script");
    let line = format!(
        "stty cols {columns} rows 50; {env} {} --root {} {words}",
        env!("CARGO_BIN_EXE_mc_project"),
        world.root().display()
    );
    command.args(["-qec", &line, "/dev/null"]);
    Finished::of(command).ok().stdout.replace('\r', "")
}

fn without_colour(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |all, part| all + part.split_once('m').unwrap().1)
}

#[test]
fn the_table_of_a_real_history_says_what_happened_and_fits_where_it_is_shown() {
    let (world, [first, second]) = story();
    let text = world.mc(&["history", "shop"]).ok().stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with(" #  verdict ") && lines[0].ends_with("when (UTC)"), "{text}");
    for (line, begin, parts) in [
        (lines[1], " 4  rolled back at upgrade  ", ["Broken upgrade", " cooking "]),
        (lines[2], " 3  failed at build  ", ["Broken build", " cooking "]),
        (lines[3], "*2  deployed  ", [&second[..10], "Tea, with a subject"]),
        (lines[4], " 1  deployed  ", [&first[..10], "first version"]),
    ] {
        assert!(line.starts_with(begin), "{begin} in\n{text}");
        assert!(line.ends_with(" ago") || line.ends_with("just now"), "{line}");
        assert!(line.chars().count() <= 160, "{line}");
        for part in parts {
            assert_has(line, part);
        }
        assert_has(line, "Alice Ånström");
    }
    assert!(lines[3].contains('…'), "{text}");
    assert_lacks(&text, "\u{1b}");

    for columns in [60, 80, 120] {
        let shown = on_a_terminal(&world, columns, "history shop", "");
        assert!(shown.contains("\u{1b}[33mrolled back at upgrade"), "{shown}");
        assert_eq!(shown.matches("\u{1b}[").count(), 8, "a colour and its end for each verdict, nothing else\n{shown}");
        let plain = without_colour(&shown);
        assert!(plain.lines().all(|line| line.chars().count() <= columns as usize), "{columns}\n{plain}");
        assert_eq!(on_a_terminal(&world, columns, "history shop", "NO_COLOR=1"), plain);
    }
}

#[test]
fn show_explains_a_deployment_and_its_commands_work() {
    let (world, [first, second]) = story();
    let shown = world.mc(&["show", "shop", "#2"]).ok().stdout;
    for part in [
        "#2 deployed; run serves ",
        "stages\n  ✓ accept",
        &format!("changes since #1 {}\n  1 commit; files: 1 added, 1 changed, 1 removed\n", &first[..10]),
        &format!("    {} Tea, with a subject", &second[..10]),
        "release\n  made     as committed in cooking mode",
        "restore point: what was before it, ",
        &format!("  code     {} of ", &first[..10]),
        "  data     all of data/",
        "  log      blake3 ",
        "\ncommands\n",
    ] {
        assert_has(&shown, part);
    }
    let failed = world.mc(&["show", "shop", "#4"]).ok().stdout;
    for part in ["  ✗ upgrade", "exit 4\n    | half done\n", "kept\n  the files in which the failed version differs: "]
    {
        assert_has(&failed, part);
    }
    assert_lacks(&failed, "\nrelease\n");
    assert_lacks(&failed, "to have it back");

    // All of the log, as the last line of the short form promises.
    let (end, whole) = (world.mc(&["show", "shop", "#2"]).ok(), world.mc(&["show", "shop", "#2", "--log"]).ok());
    assert!(whole.stdout.lines().count() >= end.stdout.lines().count());
    assert_has(&whole.stdout, "\nlog (");

    // Each command that stands there can be typed, and the one of the restore point brings back what it says.
    let commands = shown.split_once("\ncommands\n").unwrap().1;
    for line in commands.lines().filter(|line| line.contains(" show ") || line.contains(" diff ")) {
        let command = line.trim().split("  ").next().unwrap();
        typed(&world, command).ok();
    }
    let back = shown.lines().find_map(|line| line.trim().strip_prefix("to have it back: ")).unwrap();
    typed(&world, &back.replace("[--with data]", "--yes")).ok();
    assert_eq!(world.serves("shop"), Some(first));
}

/// A command as the program prints it, where the program is in the path.
fn typed(world: &World, command: &str) -> Finished {
    let rest = command.strip_prefix("mc_project ").unwrap_or_else(|| panic!("{command}"));
    let mut shell = world.home().command("sh");
    shell.args(["-c", &format!("'{}' {rest}", env!("CARGO_BIN_EXE_mc_project"))]);
    Finished::of(shell)
}

#[test]
fn ten_thousand_deployments_are_listed_at_once() {
    let (world, _) = World::serving(&[("a", "1")]);
    world.settle("shop");
    let path = world.project("shop").join("state/history.jsonl");
    let line = std::fs::read_to_string(&path).unwrap();
    let mut entry: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    entry.as_object_mut().unwrap().shift_remove("seal").unwrap();
    let id = entry["id"].as_str().unwrap().to_string();
    let mut many = Vec::new();
    for n in 0..10_000 {
        entry["id"] = format!("{}{n:012x}", &id[..id.len() - 12]).into();
        many.extend(mc_project::sys::seal::line(&entry, "an entry").unwrap());
        many.push(b'\n');
    }
    many.extend(line.into_bytes());
    std::fs::write(&path, many).unwrap();
    let begin = Instant::now();
    let text = world.mc(&["history", "shop", "-n", "10001"]).ok().stdout;
    assert_eq!(text.lines().count(), 10_002);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let begin = Instant::now();
    world.mc(&["history", "shop"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

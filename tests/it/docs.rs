//! The documents say what the program does: commands, exit codes, recipe keys, links.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser;
use mc_project::cli::Cli;
use mc_project::project::node::NodeConfig;
use mc_project::project::nodes::Nodes;
use mc_project::project::pillar::Pillar;
use mc_project::project::recipe::Recipe;
use mc_project::project::stage::Stage;

use crate::support::{Finished, Home, assert_has};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn mc(home: &Home, args: &[&str]) -> Finished {
    let mut command = home.command(env!("CARGO_BIN_EXE_mc_project"));
    command.args(args);
    Finished::of(command)
}

/// The subcommands that the help lists.
fn commands(home: &Home) -> BTreeSet<String> {
    let help = mc(home, &["--help"]).ok().stdout;
    let list = help.split("Commands:\n").nth(1).expect("a list of commands").split("\n\n").next().unwrap();
    let names: BTreeSet<String> = list
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_string())
        .filter(|name| name != "help")
        .collect();
    assert!(names.len() > 10, "{help}");
    names
}

#[test]
fn the_readme_names_every_command_and_no_other() {
    let home = Home::new();
    let readme = read("README.md");
    let known = commands(&home);
    for name in &known {
        assert!(
            readme.contains(&format!("mc_project {name}")) || readme.contains(&format!("`{name}")),
            "README lacks `{name}`"
        );
    }
    let used: BTreeSet<String> = readme
        .match_indices("mc_project ")
        .map(|(at, word)| {
            readme[at + word.len()..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect()
        })
        .filter(|name: &String| name.len() > 2 && !name.starts_with('-'))
        .collect();
    // In running text the program's name is followed by ordinary words: only those that stand in code count.
    for name in used.iter().filter(|name| readme.contains(&format!("`mc_project {name}"))) {
        assert!(known.contains(name), "README uses `mc_project {name}`, which is no command");
    }
}

#[test]
fn every_command_explains_itself() {
    let home = Home::new();
    for name in commands(&home) {
        let help = mc(&home, &[&name, "--help"]).ok().stdout;
        let first = help.lines().next().unwrap();
        assert!(first.len() > 10 && first.starts_with(|c: char| c.is_uppercase()), "{name}: {first:?}");
        assert_has(&help, "Usage:");
    }
}

#[test]
fn the_readme_tells_every_exit_code() {
    let readme = read("README.md");
    for code in ["0", "1", "2", "3", "4", "5", "70"] {
        let in_a_table = readme.lines().any(|line| {
            let cell = line.trim_start_matches('|').trim_start().trim_start_matches('`');
            line.starts_with('|') && cell.strip_prefix(code).is_some_and(|rest| rest.starts_with([' ', '`', '|']))
        });
        assert!(in_a_table, "README's table of exit codes lacks {code}");
    }
    let home = Home::new();
    mc(&home, &["no-such-command"]).code(2);
    mc(&home, &["status", "shop", "--no-such-option"]).code(2);
    mc(&home, &["init", "-rf"]).code(2);
}

#[test]
fn the_readme_tells_every_stage_and_key_of_the_recipe() {
    let readme = read("README.md");
    for stage in Stage::WITH_STEPS {
        assert!(readme.contains(stage.name()), "README lacks the stage {}", stage.name());
    }
    for key in [
        "stages",
        "tasks",
        "cache",
        "shared",
        "sync",
        "exclude",
        "ignore_drift",
        "data",
        "snapshot",
        "backup",
        "keep",
        "archives",
        "build",
        "notify",
        "attributes",
        "submodules",
        "allow_empty",
        "env",
        "timeout",
        "modes",
        "memory",
        "processes",
        "network",
        "user",
        "limits",
        "config",
        "required",
        "defaults",
        "schema",
        "template",
        "merge",
        "templates",
        "owner",
        "restart",
        "watch",
        "services",
        "count",
        "port",
        "type",
        "stop_signal",
        "stop_timeout",
        "start_timeout",
        "cpu",
        "open_files",
        "unchanged",
        "check",
        "http",
        "expect",
        "body",
        "host",
        "tcp",
        "within",
        "times",
        "every",
    ] {
        assert!(
            readme.contains(&format!("{key}:")) || readme.contains(&format!("`{key}`")),
            "README lacks the key {key}"
        );
    }
    for option in [
        "mode=",
        "plan",
        "stage-only",
        "only=",
        "skip=",
        "reason=",
        "async",
        "no-deploy",
        "deploy",
        "keep-aside",
        "events=1",
    ] {
        assert!(readme.contains(&format!("`{option}")), "README lacks the push option {option}");
    }
}

#[test]
fn the_readme_names_what_steps_get() {
    let readme = read("README.md");
    for name in [
        "MC_PROJECT",
        "MC_MODE",
        "MC_ENV",
        "MC_DEPLOYMENT",
        "MC_COMMIT",
        "MC_RUN",
        "MC_DATA",
        "MC_BUILD",
        "MC_PROJECT_DIR",
        "MC_PILLAR",
        "MC_CONFIG",
        "MC_SECRETS_DIR",
        "MC_DUMPS",
        "MC_SERVICE",
        "MC_INSTANCE",
        "PORT",
    ] {
        assert!(readme.contains(name), "README lacks {name}");
    }
}

/// How a heading is linked to.
fn anchor(line: &str) -> Option<String> {
    let title = line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?;
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let headings: BTreeSet<String> = read("README.md").lines().filter_map(anchor).collect();
    for file in ["README.md", "CHANGELOG.md", "SECURITY.md"] {
        let text = read(file);
        for (at, _) in text.match_indices("](") {
            let target: String = text[at + 2..].chars().take_while(|c| *c != ')').collect();
            if target.contains("://") {
                continue;
            }
            if let Some(heading) = target.strip_prefix('#') {
                assert!(file == "README.md" && headings.contains(heading), "{file} links to {target}");
                continue;
            }
            let path = target.split('#').next().unwrap();
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{file} links to {target}");
        }
    }
}

#[test]
fn what_the_readme_types_on_a_server_is_understood() {
    let mut tried = 0;
    for heading in ["A server for several people", "From your own machine", "Editable mode"] {
        let text = blocks(heading, "sh").concat();
        for line in text.lines().map(|line| line.split(" #").next().unwrap().trim()) {
            let typed =
                ["sudo mc_project ", "sudo ./mc_project ", "mc_project "].iter().find_map(|it| line.strip_prefix(it));
            let Some(typed) = typed else { continue };
            // Read and not done: half of it would change this machine.
            let words = ["mc_project"].into_iter().chain(typed.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
            tried += 1;
        }
    }
    assert!(tried > 8, "{tried}");
}

#[test]
fn the_changelog_knows_this_version() {
    assert_has(&read("CHANGELOG.md"), env!("CARGO_PKG_VERSION"));
    let home = Home::new();
    let version = mc(&home, &["--version"]).ok().stdout;
    assert_eq!(version, format!("mc_project {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_are_made_for_the_common_shells() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = mc(&home, &["completions", shell]).ok().stdout;
        for name in commands(&home) {
            assert!(script.contains(&name), "{shell}: {name}");
        }
    }
}

#[test]
fn the_demo_runs_to_its_end_by_itself() {
    let home = Home::new();
    let demo = mc(&home, &["demo"]).ok();
    for part in ["deployed; run serves", "rolled back at"] {
        assert!(demo.stdout.contains(part) || demo.stderr.contains(part), "{demo}");
    }
}

/// The fenced blocks of a language in the README's section that begins with this heading.
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let readme = read("README.md");
    let section = readme.split(&format!("\n## {heading}")).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let begin = format!("```{language}\n");
    section.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_string()).collect()
}

#[test]
fn the_files_that_the_readme_shows_are_valid() {
    let first = blocks("Your first deployment", "yaml");
    let (recipe, node) = (blocks("The recipe", "yaml"), blocks("The node", "yaml"));
    assert_eq!((first.len(), recipe.len(), node.len()), (2, 2, 1));
    assert_eq!(Recipe::parse("README", recipe[1].as_bytes()).unwrap().services.len(), 2);
    let told = Recipe::parse("README", recipe[0].as_bytes()).unwrap();
    assert_eq!(told.tasks.len(), 1);
    for text in &first {
        Recipe::parse("README", text.as_bytes()).unwrap();
    }
    NodeConfig::parse("README", node[0].as_bytes()).unwrap();
    let server = blocks("A server for several people", "yaml");
    let editable = blocks("Editable mode", "yaml");
    let far = blocks("From your own machine", "yaml");
    assert_eq!((server.len(), editable.len(), far.len()), (2, 1, 1));
    assert_eq!(Nodes::parse("README", far[0].as_bytes(), Path::new("/home/me")).unwrap().nodes.len(), 2);
    Recipe::parse("README", server[0].as_bytes()).unwrap();
    let node = NodeConfig::parse("README", server[1].as_bytes()).unwrap();
    assert_eq!(node.for_project(&"shop".parse().unwrap(), None).allow.units.len(), 1);
    Recipe::parse("README", editable[0].as_bytes()).unwrap();
    let of_pillar = blocks("The pillar", "yaml");
    assert_eq!(of_pillar.len(), 3);
    assert_eq!(Recipe::parse("README", of_pillar[1].as_bytes()).unwrap().config.required.len(), 2);
    assert_eq!(Recipe::parse("README", of_pillar[2].as_bytes()).unwrap().templates.len(), 2);
    let pillar = Pillar::parse("README", of_pillar[0].as_bytes(), &"shop".parse().unwrap()).unwrap();
    assert_eq!(pillar.exports()["PORT"], "8010");
    assert_eq!(pillar.secrets().len(), 1);
}

#[test]
fn what_the_readme_types_for_the_first_deployment_does_what_it_says() {
    let home = Home::new();
    let script: String = blocks("Your first deployment", "sh").concat();
    let script: String =
        script.lines().filter(|line| !line.starts_with("cargo ")).fold(String::new(), |all, line| all + line + "\n");
    assert_has(&script, "git push node main");
    let program = Path::new(env!("CARGO_BIN_EXE_mc_project")).parent().unwrap().display().to_string();
    let mut command = home.command("/bin/bash");
    command.args(["-c", &format!("export HOME={}; PATH={program}:$PATH\n{script}", home.dir().display())]);
    let done = Finished::of(command);
    let all = format!("{}{}", done.stdout, done.stderr);
    for part in [
        "shop is ready",
        "deployed; run serves",
        "! [remote rejected] main -> main (failed at build: exit 3; run still serves",
        "failed at build ",
        "Broken",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    let text = std::fs::read_to_string(home.path("node/srv/projects/shop/run/index.html")).unwrap();
    assert_eq!(text, "<h1>Shop</h1>\n", "rolled back to the first version");
}

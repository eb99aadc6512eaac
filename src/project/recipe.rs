//! The recipe: what a project says about its own deployment, `mc_project.yaml` at its root.
//!
//! What is written ([`RecipeFile`]) is not what it means ([`Recipe`]): every default and every check between two keys
//! stands in [`RecipeFile::resolve`], and nothing behind it sees an `Option` that has a default.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::Deserializer;

use super::limits::{Demand, StepLimitsFile};
use super::secrets::SecretName;
use super::stage::Stage;
use super::yaml::Source;
use super::yaml::locate::Step as Way;
use super::yaml::scalar::{Number, Variables, from_text, message_of};
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::path::TreePath;

pub mod check;
pub mod config;
mod demands;
mod keys;
pub mod notify;
mod patterns;
pub mod salt;
pub mod service;
mod step;
pub mod units;

pub use config::{Config, Template, TemplateOwner};
use config::{ConfigFile, TemplateFile};
use keys::{StageKey, TaskKey};
use notify::NotifyFile;
pub use notify::{Notify, NotifyOn};
use patterns::Glob;
pub use patterns::Patterns;
pub use salt::{SaltRun, SlsName};
use service::ServicesFile;
pub use service::{Service, ServiceName};
use step::StepsFile;
pub use step::{Command, Step};

/// The name of the recipe at the root of a project.
pub const FILE: &str = "mc_project.yaml";

/// What holds where neither the recipe nor the node says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// How many restore points are kept.
    pub keep_archives: u32,
    /// How long a step may take.
    pub step_timeout: Duration,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { keep_archives: 3, step_timeout: Duration::from_mins(30) }
    }
}

/// A path that lives in `data/shared` and is a link in every tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Where it is in the tree, and below `data/shared`.
    pub path: TreePath,
    /// Whether it is a directory (`uploads/`) or a file (`x.db`).
    pub is_dir: bool,
}

/// When the backup is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupWhen {
    /// While the services are stopped: nothing is lost by a restore.
    #[default]
    Stopped,
    /// While they run: no pause, but what is written after the dump is lost by a restore.
    Running,
}

/// Where build steps must see their tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildAt {
    /// At the path of `run` if possible, else at `build/tree`.
    #[default]
    Any,
    /// At the path of `run`.
    Run,
}

/// How a commit becomes files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attributes {
    /// By ourselves, byte for byte; filters and encodings are refused.
    #[default]
    Strict,
    /// By the git program, with filters and encodings.
    Git,
}

/// What a project says about its own deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The steps of each stage; a stage without steps has no entry.
    pub stages: BTreeMap<Stage, Vec<Step>>,
    /// The services, in the order in which they start.
    pub services: Vec<Service>,
    /// The steps of each task, run on demand.
    pub tasks: BTreeMap<String, Vec<Step>>,
    /// What is kept from build to build.
    pub cache: Vec<TreePath>,
    /// What lives in `data/shared`.
    pub shared: Vec<Shared>,
    /// What is never copied into a tree.
    pub exclude: Patterns,
    /// What is no drift.
    pub ignore_drift: Patterns,
    /// The paths below `data/` that a restore point holds; `None`: all of them.
    pub snapshot: Option<Vec<TreePath>>,
    /// When the backup is made.
    pub backup_when: BackupWhen,
    /// How many restore points are kept.
    pub keep_archives: u32,
    /// Where build steps must see their tree.
    pub build_at: BuildAt,
    /// Whether building in `run`, with the services stopped, is allowed where nothing else is possible.
    pub in_place: bool,
    /// Who is notified of what.
    pub notify: Notify,
    /// How a commit becomes files.
    pub attributes: Attributes,
    /// Whether submodules are allowed.
    pub submodules: bool,
    /// Whether a commit without files may be deployed.
    pub allow_empty: bool,
    /// Plain variables for every step.
    pub env: BTreeMap<String, String>,
    /// The most of each thing that the node may refuse to give.
    pub demands: Vec<Demand>,
    /// What the configuration must be.
    pub config: Config,
    /// Files that are made from templates and the configuration.
    pub templates: Vec<Template>,
    /// Variables that are secrets of the pillar.
    pub secrets: BTreeMap<String, SecretName>,
    /// Whether what states made in `run` is carried into the next version, as makina-states' working copies do.
    pub keeps_made: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self::without_file(&Defaults::default())
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and column.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        Self::parse_with(file, bytes, &Defaults::default())
    }

    /// Reads a recipe on a node with its own defaults.
    ///
    /// # Errors
    /// Of kind Invalid, with file, line and column.
    pub fn parse_with(file: &str, bytes: &[u8], defaults: &Defaults) -> Result<Self> {
        let source = Source::new(file, bytes)?;
        let written: RecipeFile = source.read()?;
        written.resolve(&source, defaults)
    }

    /// What holds for a project without a recipe: it is deployed as plain files.
    #[must_use]
    pub fn without_file(defaults: &Defaults) -> Self {
        Self {
            stages: BTreeMap::new(),
            services: Vec::new(),
            tasks: BTreeMap::new(),
            cache: Vec::new(),
            shared: Vec::new(),
            exclude: Patterns::default(),
            ignore_drift: Patterns::default(),
            snapshot: None,
            backup_when: BackupWhen::default(),
            keep_archives: defaults.keep_archives,
            build_at: BuildAt::default(),
            in_place: false,
            notify: Notify::default(),
            attributes: Attributes::default(),
            submodules: false,
            allow_empty: false,
            env: BTreeMap::new(),
            demands: Vec::new(),
            config: Config::default(),
            templates: Vec::new(),
            secrets: BTreeMap::new(),
            keeps_made: false,
        }
    }

    /// The steps of a stage, none if it has none.
    #[must_use]
    pub fn steps(&self, stage: Stage) -> &[Step] {
        self.stages.get(&stage).map_or(&[], Vec::as_slice)
    }
}

/// The recipe as written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RecipeFile {
    stages: BTreeMap<StageKey, StepsFile>,
    tasks: BTreeMap<TaskKey, StepsFile>,
    services: ServicesFile,
    cache: Vec<PathText>,
    shared: Vec<PathText>,
    sync: SyncFile,
    data: DataFile,
    backup: BackupFile,
    keep: KeepFile,
    build: BuildFile,
    notify: NotifyFile,
    attributes: Attributes,
    submodules: Permission,
    allow_empty: bool,
    env: Variables,
    limits: StepLimitsFile,
    config: ConfigFile,
    templates: Vec<TemplateFile>,
    secrets: config::SecretsFile,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SyncFile {
    exclude: Vec<Glob>,
    ignore_drift: Vec<Glob>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DataFile {
    snapshot: Option<Vec<PathText>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BackupFile {
    when: BackupWhen,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeepFile {
    archives: Option<Number<1, 1000>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BuildFile {
    at: BuildAt,
    in_place: Permission,
}

/// A word that says yes or no to something dangerous.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Permission {
    #[default]
    Refuse,
    Allow,
}

impl RecipeFile {
    fn resolve(self, source: &Source<'_>, defaults: &Defaults) -> Result<Recipe> {
        let base = Recipe::without_file(defaults);
        let limits = self.limits.resolve();
        let demands = self.demands(source, &limits);
        let steps = |written: StepsFile| -> Vec<Step> {
            written.0.into_iter().map(|step| step.resolve(limits, defaults.step_timeout)).collect()
        };
        let stages = self.stages.into_iter().map(|(key, written)| (key.0, steps(written)));
        check_paths(source, &self.cache, &self.shared)?;
        check_apart(source, &["data", "snapshot"], self.data.snapshot.as_deref().unwrap_or_default())?;
        let misplaced = |(name, message): (String, String)| {
            source.error_at(&[Way::Key("services"), Way::Key(&name)], &format!("`services.{name}`: {message}"))
        };
        Ok(Recipe {
            services: self.services.resolve().map_err(misplaced)?,
            stages: stages.filter(|(_, steps)| !steps.is_empty()).collect(),
            tasks: self.tasks.into_iter().map(|(key, written)| (key.0, steps(written))).collect(),
            cache: self.cache.into_iter().map(|cached| cached.path).collect(),
            shared: self.shared.into_iter().map(|p| Shared { path: p.path, is_dir: p.is_dir }).collect(),
            exclude: compiled(source, "exclude", self.sync.exclude)?,
            ignore_drift: compiled(source, "ignore_drift", self.sync.ignore_drift)?,
            snapshot: self.data.snapshot.map(|paths| paths.into_iter().map(|p| p.path).collect()),
            backup_when: self.backup.when,
            keep_archives: self.keep.archives.map_or(base.keep_archives, |number| number.0),
            build_at: self.build.at,
            in_place: self.build.in_place == Permission::Allow,
            notify: self.notify.resolve(source)?,
            attributes: self.attributes,
            submodules: self.submodules == Permission::Allow,
            allow_empty: self.allow_empty,
            env: self.env.0,
            demands,
            config: self.config.resolve(source)?,
            templates: config::templates(source, self.templates)?,
            secrets: self.secrets.0,
            keeps_made: false,
        })
    }
}

/// No path may be inside another, neither within one list nor between the two.
fn check_paths(source: &Source<'_>, cache: &[PathText], shared: &[PathText]) -> Result<()> {
    check_apart(source, &["cache"], cache)?;
    check_apart(source, &["shared"], shared)?;
    for (index, path) in shared.iter().enumerate() {
        if let Some(cached) = cache.iter().find(|cached| overlap(&cached.path, &path.path)) {
            let message = if cached.path == path.path {
                format!("`{}` stands in both `cache` and `shared`", path.path)
            } else {
                format!("`{}` of `shared` and `{}` of `cache` are inside each other", path.path, cached.path)
            };
            return Err(source.error_at(&[Way::Key("shared"), Way::Index(index)], &message));
        }
    }
    Ok(())
}

fn check_apart(source: &Source<'_>, list: &[&str], paths: &[PathText]) -> Result<()> {
    for (index, path) in paths.iter().enumerate() {
        let Some(other) = paths[..index].iter().find(|other| overlap(&other.path, &path.path)) else { continue };
        let message = if other.path == path.path {
            format!("`{}` stands here twice", path.path)
        } else {
            format!("`{}` and `{}` are inside each other", path.path, other.path)
        };
        let mut way: Vec<Way<'_>> = list.iter().map(|key| Way::Key(key)).collect();
        way.push(Way::Index(index));
        return Err(source.error_at(&way, &message));
    }
    Ok(())
}

fn overlap(one: &TreePath, other: &TreePath) -> bool {
    one.is_within(other) || other.is_within(one)
}

fn compiled(source: &Source<'_>, key: &str, globs: Vec<Glob>) -> Result<Patterns> {
    let globs: Vec<String> = globs.into_iter().map(|glob| glob.0).collect();
    let at = |error: Error| source.error_at(&[Way::Key("sync"), Way::Key(key)], &message_of(&error));
    Patterns::new(&globs).map_err(at)
}

/// A path in a tree; a trailing slash says that it is a directory.
struct PathText {
    path: TreePath,
    is_dir: bool,
}

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a path in the tree", Self::read)
    }
}

impl PathText {
    fn read(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix('/').unwrap_or(text);
        let path = TreePath::new(body.as_bytes()).map_err(|error| message_of(&error))?;
        if body.contains(char::is_control) {
            return Err(format!("path `{path}` holds a control character"));
        }
        let reserved = |name: &str| name == ".git" || name.starts_with(".mc_project");
        if let Some(name) = body.split('/').find(|name| reserved(name)) {
            return Err(format!("path `{path}`: the name `{}` is reserved", visible_bounded(name.as_bytes(), 80)));
        }
        Ok(Self { path, is_dir: body.len() != text.len() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{
        Attributes, BackupWhen, BuildAt, Command, Defaults, FILE, NotifyOn, Patterns, Recipe, Shared, Step, TreePath,
    };
    use crate::project::limits::User;
    use crate::project::mode::Mode;
    use crate::project::stage::Stage;
    use crate::sys::error::Kind;
    use crate::sys::step_exec::Network;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    fn shell(text: &str) -> Step {
        Step {
            command: Command::Shell(text.into()),
            timeout: Duration::from_mins(30),
            modes: None,
            env: BTreeMap::new(),
            memory: None,
            processes: None,
            network: Network::On,
            user: User::Project,
            watch: Patterns::default(),
        }
    }

    const WHOLE: &str = "\
stages:
  build:
    - python3 -m venv venv
    - run: [venv/bin/pip, install, -r, requirements.txt, 3]
      timeout: 15m
      modes: [cooking]
      env: {PIP_RETRIES: 1.10}
      watch: [src/, '*.txt']
    - [sh, -c, 'exit 0']
    - true
  upgrade: venv/bin/python manage.py migrate
  start: {run: ./start}
  stop:
tasks:
  clear-cache: [rm -rf x]
cache: [venv, node_modules/]
shared: [uploads/, db/x.db]
sync: {exclude: [.git], ignore_drift: [__pycache__/, '*.pyc']}
data: {snapshot: [uploads, db.sqlite3]}
backup: {when: running}
keep: {archives: 7}
build: {at: run, in_place: allow}
notify: {to: [dev@example.org], on: [failure]}
attributes: git
submodules: allow
allow_empty: true
env: {DJANGO_SETTINGS: shop.settings, FLAG: yes}
";

    #[test]
    fn a_whole_recipe_is_read() {
        let recipe = Recipe::parse(FILE, WHOLE.as_bytes()).unwrap();
        let argv = |words: &[&str]| Command::Argv(words.iter().map(ToString::to_string).collect());
        let build = recipe.steps(Stage::Build);
        assert_eq!(build[0], shell("python3 -m venv venv"));
        assert_eq!(build[1].command, argv(&["venv/bin/pip", "install", "-r", "requirements.txt", "3"]));
        assert_eq!(build[1].timeout, Duration::from_mins(15));
        assert_eq!(build[1].env["PIP_RETRIES"], "1.10");
        assert!(build[1].watch.matches(&path("src/a/b"), false) && build[0].watch.is_empty());
        assert!(build[1].applies(Mode::Cooking) && !build[1].applies(Mode::Final) && build[0].applies(Mode::Final));
        assert_eq!(build[2].command, argv(&["sh", "-c", "exit 0"]));
        assert_eq!(build[3], shell("true"));
        assert_eq!(recipe.steps(Stage::Upgrade), [shell("venv/bin/python manage.py migrate")]);
        assert_eq!(recipe.steps(Stage::Start), [shell("./start")]);
        assert!(!recipe.stages.contains_key(&Stage::Stop));
        assert_eq!(recipe.tasks["clear-cache"], [shell("rm -rf x")]);
        assert_eq!(recipe.cache, [path("venv"), path("node_modules")]);
        let dir = Shared { path: path("uploads"), is_dir: true };
        assert_eq!(recipe.shared, [dir, Shared { path: path("db/x.db"), is_dir: false }]);
        assert!(recipe.ignore_drift.matches(&path("a/b.pyc"), false));
        assert_eq!(recipe.exclude.globs(), [".git"]);
        assert_eq!(recipe.snapshot, Some(vec![path("uploads"), path("db.sqlite3")]));
        assert_eq!((recipe.backup_when, recipe.keep_archives), (BackupWhen::Running, 7));
        assert_eq!((recipe.build_at, recipe.in_place), (BuildAt::Run, true));
        assert_eq!(recipe.notify.on, [NotifyOn::Failure]);
        assert_eq!(recipe.attributes, Attributes::Git);
        assert!(recipe.submodules && recipe.allow_empty);
        assert_eq!(recipe.env["FLAG"], "yes");
    }

    #[test]
    fn what_is_not_written_has_the_defaults_of_the_node() {
        assert_eq!(Recipe::parse(FILE, b"{}").unwrap(), Recipe::default());
        let defaults = Defaults { keep_archives: 9, step_timeout: Duration::from_secs(5) };
        let recipe = Recipe::parse_with(FILE, b"stages: {build: make}\ndata: {snapshot: []}\n", &defaults).unwrap();
        assert_eq!((recipe.keep_archives, recipe.steps(Stage::Build)[0].timeout), (9, Duration::from_secs(5)));
        assert_eq!(recipe.snapshot, Some(Vec::new()));
        assert_eq!(Recipe::default().notify.on.len(), 3);
    }

    #[test]
    fn every_fault_of_a_recipe_is_told_at_its_place() {
        let cases: [(&str, &str, &str); 39] = [
            ("stages:\n  build:\n    - {run: x, watch: [src/, '[']}\n", "3:30: ", "is no glob"),
            ("stages:\n  biuld: x\n", "2:3: ", "unknown stage `biuld`"),
            ("stages:\n  fetch: x\n", "2:3: ", "stage `fetch` takes no steps"),
            ("stages:\n  build:\n    - rum: x\n", "3:7: ", "unknown key `rum`"),
            ("stages:\n  build:\n    - timeout: 5m\n", "3:7: ", "missing key `run`"),
            ("stages:\n  build:\n    - {run: x, stop: a.service}\n", "3:7: ", "the step does two things"),
            ("stages:\n  build:\n    - {stop: a.service, env: {A: b}}\n", "3:7: ", "takes no `env`"),
            ("stages:\n  build:\n    - stop: ssh\n", "3:13: ", "`ssh` is no name of a unit"),
            ("stages:\n  build:\n    - {run: x, timeout: 5}\n", "3:25: ", "`5` is no duration"),
            ("stages:\n  build:\n    - {run: x, timeout: 25h}\n", "3:25: ", "not within 1s and 24h"),
            ("stages:\n  build:\n    - {run: x, modes: [cook]}\n", "3:24: ", "unknown word `cook`"),
            ("stages:\n  build:\n    - {run: x, modes: []}\n", "3:23: ", "the list of modes is empty"),
            ("stages:\n  build:\n    - 5\n", "3:7: ", "found a number"),
            ("stages:\n  build:\n    - ''\n", "3:7: ", "the command is empty"),
            ("stages:\n  build:\n    - []\n", "3:7: ", "the command is empty"),
            ("stages:\n  build:\n    - \"a\\0b\"\n", "3:7: ", "NUL"),
            ("stages:\n  build:\n    - [a, \"\\0\"]\n", "3:11: ", "NUL"),
            ("tasks: {Bad: x}\n", "1:9: ", "`Bad` is no name of a task"),
            ("services:\n  web: {run: x, listen: host:80}\n", "2:25: ", "is nothing to listen at"),
            ("env: {PATH: x}\n", "1:7: ", "variable `PATH` may not be set"),
            ("env: {MC_RUN: x}\n", "1:7: ", "may not be set"),
            ("env: {LD_PRELOAD: x}\n", "1:7: ", "may not be set"),
            ("env: {a-b: x}\n", "1:7: ", "no name of a variable"),
            ("env: {A: \"\\0\"}\n", "1:10: ", "NUL"),
            ("env: {A: [1]}\n", "1:10: ", "found a list"),
            ("cache: [a]\nshared: [b, a/]\n", "2:13: ", "`a` stands in both"),
            ("cache: [a/b]\nshared: [a/]\n", "2:10: ", "inside each other"),
            ("shared: [a/, a/b]\n", "1:14: ", "inside each other"),
            ("shared: [x/.git/]\n", "1:10: ", "the name `.git` is reserved"),
            ("shared: [.mc_project.d]\n", "1:10: ", "reserved"),
            ("shared: [../x]\n", "1:10: ", "holds `.` or `..`"),
            ("sync:\n  exclude: [a, '[']\n", "2:16: ", "is no glob"),
            ("notify:\n  to: ['A <a@example.org>']\n", "2:8: ", "is no mail address"),
            ("stages:\n  build:\n    - {run: x, memory: 512MB}\n", "3:24: ", "is no amount of memory"),
            ("stages:\n  build:\n    - {run: x, memory: 1M}\n", "3:24: ", "is no amount of memory"),
            ("stages:\n  build:\n    - {run: x, network: none}\n", "3:25: ", "unknown word `none`"),
            ("stages:\n  build:\n    - {run: x, user: nobody}\n", "3:22: ", "unknown word `nobody`"),
            ("limits: {processes: 0}\n", "1:21: ", "not within 1 and"),
            ("keep: {archives: 1001}\n", "1:18: ", "not within 1 and 1000"),
        ];
        for (text, place, words) in cases {
            let error = Recipe::parse(FILE, text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            let expected = format!("{FILE}:{place}");
            assert!(error.message().starts_with(&expected), "{text:?}: {error}");
            assert!(error.message().contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_error_about_a_stage_says_what_was_meant() {
        let error = Recipe::parse(FILE, b"stages:\n  biuld: x\n").unwrap_err();
        let hint = error.hint_text().unwrap();
        assert!(hint.starts_with("did you mean `build`? allowed: pre_install, build,"), "{hint}");
    }

    #[test]
    fn a_title_is_one_escaped_line_of_bounded_length() {
        assert_eq!(shell("cd x\n\n  make\u{1b}[31m\n").title(), "cd x; make\\u{1b}[31m");
        let argv = Step { command: Command::Argv(vec!["a".into(), "b c".into(), String::new()]), ..shell("") };
        assert_eq!(argv.title(), "a 'b c' ''");
        let long = shell(&"é".repeat(500)).title();
        assert!(long.chars().count() == 120 && long.ends_with('…'));
    }

    #[test]
    fn addresses_cannot_smuggle_headers() {
        for bad in ["a", "@b", "a@", "a b@c", "a@b@c", "a@b\\nBcc: x@y", "a,b@c", "a@b..c", "<a@b>"] {
            let text = format!("notify: {{to: [\"{bad}\"]}}");
            assert!(Recipe::parse(FILE, text.as_bytes()).is_err(), "{bad}");
        }
        assert!(Recipe::parse(FILE, b"notify: {to: [root@localhost, a.b+c@example.org]}").is_ok());
    }
}

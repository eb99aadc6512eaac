//! The directory that one run of Salt works with: configuration, the commit's states, the pillar, our own modules.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::known::known;
use super::states::{States, files};
use super::{shown, user_of};
use crate::pipeline::draft::Version;
use crate::pipeline::secret_store::SecretStore;
use crate::pipeline::site::Site;
use crate::pipeline::steps::Place;
use crate::project::limits::User;
use crate::project::recipe::{self, SaltRun, SlsName};
use crate::project::stage::Stage;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::{fs, process};

/// The modules that stand in for those of makina-states.
const MODULES: [(&str, &str); 5] = [
    ("mc_project.py", include_str!("../../../salt/modules/mc_project.py")),
    ("mc_utils.py", include_str!("../../../salt/modules/mc_utils.py")),
    ("mc_locations.py", include_str!("../../../salt/modules/mc_locations.py")),
    ("mc_usergroup.py", include_str!("../../../salt/modules/mc_usergroup.py")),
    ("mc_env.py", include_str!("../../../salt/modules/mc_env.py")),
];
const STATES: [(&str, &str); 1] = [("mc_proxy.py", include_str!("../../../salt/states/mc_proxy.py"))];
const RESET_PERMS: &str = include_str!("../../../salt/bin/reset-perms");

/// The folders of a project's own modules, and the option of Salt's configuration that names such folders.
const CUSTOM: [(&str, &str); 13] = [
    ("_modules", "module_dirs"),
    ("_states", "states_dirs"),
    ("_grains", "grains_dirs"),
    ("_renderers", "render_dirs"),
    ("_returners", "returner_dirs"),
    ("_utils", "utils_dirs"),
    ("_output", "outputter_dirs"),
    ("_pillar", "pillar_dirs"),
    ("_sdb", "sdb_dirs"),
    ("_serializers", "serializers_dirs"),
    ("_matchers", "matchers_dirs"),
    ("_executors", "executors_dirs"),
    ("_log_handlers", "log_handlers_dirs"),
];

/// The directory; it is gone when this is.
#[derive(Debug)]
pub struct SaltTree {
    dir: PathBuf,
    mark: String,
    /// Who may read it beside us.
    group: Option<u32>,
}

impl Drop for SaltTree {
    fn drop(&mut self) {
        let removed = remove(&self.dir);
        if let Err(error) = removed {
            tracing::warn!("{}", error.one_line());
        }
    }
}

impl SaltTree {
    /// Makes it.
    ///
    /// # Errors
    /// If it cannot be written, or the commit's states cannot be read.
    pub fn make(
        site: &Site,
        version: &Version,
        (stage, step, run): (Stage, &recipe::Step, &SaltRun),
        place: &Place,
    ) -> Result<Self> {
        let top = site.place.salt_runs();
        sweep(&top)?;
        let group = site.owners().map(|owners| owners.project.1);
        let mark = format!("@{}:", uuid::Uuid::now_v7().simple());
        let ours = process::ProcessId::ours().ok_or_else(|| Error::failed("this process is not in /proc"))?;
        let made = Self { dir: top.join(format!("{}-{}", ours.pid, ours.start)), mark, group };
        made.make_dir(&top)?;
        remove(&made.dir)?;
        made.make_dir(&made.dir)?;
        for sub in ["conf", "pillar", "modules", "states", "tree", "custom"] {
            made.make_dir(&made.dir.join(sub))?;
        }
        made.make_work(site, step)?;
        for (name, text) in MODULES {
            made.write(&made.dir.join("modules").join(name), text.as_bytes(), false)?;
        }
        for (name, text) in STATES {
            made.write(&made.dir.join("states").join(name), text.as_bytes(), false)?;
        }
        made.write_reset_perms(site)?;
        made.write_pillar(version)?;
        let custom = made.write_states(site, version)?;
        let known = known(site, version, (stage, step), place)?;
        made.write_config(site, version, (step, run), &known, &custom)?;
        Ok(made)
    }

    /// What the runner's lines begin with.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The program with its arguments.
    #[must_use]
    pub fn command(&self, program: &Path) -> Vec<OsString> {
        let conf = self.dir.join("conf");
        let words = ["--local", "--retcode-passthrough", "--log-level=quiet", "--out=json", "--config-dir"];
        let mut argv = vec![program.as_os_str().to_os_string()];
        argv.extend(words.map(OsString::from));
        argv.push(conf.into_os_string());
        argv.push("mc_project.run".into());
        argv
    }

    /// Where Salt keeps what it needs for itself.
    fn make_work(&self, site: &Site, step: &recipe::Step) -> Result<()> {
        let work = self.dir.join("work");
        fs::ensure_dir(&work, 0o700)?;
        match site.owners().filter(|_| step.user != User::Root) {
            Some(owners) => Dir::open_real(&work)?.give_to(owners.project.0, owners.project.1),
            None => Ok(()),
        }
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        fs::ensure_dir(path, 0o700)?;
        if let Some(gid) = self.group {
            let dir = Dir::open_real(path)?;
            dir.give_to(0, gid)?;
            dir.set_own_mode(0o750)?;
        }
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8], is_executable: bool) -> Result<()> {
        let mode = match (self.group, is_executable) {
            (None, false) => 0o600,
            (None, true) => 0o700,
            (Some(_), false) => 0o640,
            (Some(_), true) => 0o750,
        };
        let mut file = fs::create_new(path, 0o600)?;
        file.write_all(bytes).context(|| format!("cannot write {}", path.display()))?;
        match self.group {
            Some(gid) => fs::give_file(&file, 0, gid, mode),
            None => fs::set_mode(path, mode),
        }
    }

    fn write_pillar(&self, version: &Version) -> Result<()> {
        let top = json!({"base": {"*": ["all"]}});
        for (name, value) in [("top.sls", &top), ("all.sls", &Value::Object(version.pillar.whole().clone()))] {
            let text =
                format!("#!json\n{}\n", serde_json::to_string(value).context(|| "cannot write the pillar".into())?);
            self.write(&self.dir.join("pillar").join(name), text.as_bytes(), false)?;
        }
        Ok(())
    }

    /// `reset-perms` at a place that stays: scripts that states write name it.
    fn write_reset_perms(&self, site: &Site) -> Result<()> {
        let path = site.place.reset_perms();
        if fs::read_if_there(&path)?.is_some_and(|bytes| bytes == RESET_PERMS.as_bytes()) {
            return Ok(());
        }
        let mode = if self.group.is_some() { 0o755 } else { 0o700 };
        fs::write_durable(&path, RESET_PERMS.as_bytes(), mode)
    }

    /// Copies the commit's `.salt`; returns the folders of own modules.
    fn write_states(&self, site: &Site, version: &Version) -> Result<Vec<(&'static str, String)>> {
        let repo = site.repo()?;
        let states = files(site, &repo, &version.commit.id)?;
        let place = self.dir.join("tree/makina-projects");
        self.make_dir(&place)?;
        let place = place.join(site.place.name().as_str());
        self.make_dir(&place)?;
        for (rel, file) in &states.files {
            for parent in rel.ancestors().collect::<Vec<_>>().iter().rev() {
                self.make_dir(&place.join(parent.as_path()))?;
            }
            self.write(&place.join(rel.as_path()), &file.bytes(&states)?, file.is_executable)?;
        }
        self.write_custom(site, &states)
    }

    /// The project's own modules, as makina-states offers them: by their name, and by one that no other project has.
    fn write_custom(&self, site: &Site, states: &States<'_>) -> Result<Vec<(&'static str, String)>> {
        let project = site.place.name().as_str();
        let mut found = Vec::new();
        for (folder, option) in CUSTOM {
            let modules = states.modules(folder);
            if modules.is_empty() {
                continue;
            }
            let dir = self.dir.join("custom").join(folder);
            self.make_dir(&dir)?;
            for (name, file) in &modules {
                let bytes = file.bytes(states)?;
                self.write(&dir.join(name), &bytes, false)?;
                let alias = format!("{project}_{name}");
                if !modules.contains_key(&alias) {
                    self.write(&dir.join(alias), &bytes, false)?;
                }
            }
            found.push((option, shown(&dir)));
        }
        Ok(found)
    }

    fn write_config(
        &self,
        site: &Site,
        version: &Version,
        (step, run): (&recipe::Step, &SaltRun),
        facts: &Map<String, Value>,
        custom: &[(&'static str, String)],
    ) -> Result<()> {
        let at = |name: &str| shown(&self.dir.join(name));
        let names = |all: &[SlsName]| all.iter().map(|name| name.as_str().to_string()).collect::<Vec<_>>();
        let mut config = json!({
            "id": crate::sys::machine::host_name().unwrap_or_else(|| "node".to_string()),
            "user": user_of(site, step),
            "file_client": "local",
            "use_master_when_local": false,
            "default_include": at("conf/none"),
            "root_dir": at("work"),
            "pki_dir": at("work/pki"),
            "cachedir": at("work/cache"),
            "sock_dir": at("work/sock"),
            "extension_modules": at("work/extmods"),
            "conf_file": at("conf/minion"),
            "log_file": at("work/log"),
            "log_level_logfile": "quiet",
            "enable_gpu_grains": false,
            "enable_fqdns_grains": false,
            "file_roots": {"base": [at("tree")]},
            "pillar_roots": {"base": [at("pillar")]},
            "module_dirs": [at("modules")],
            "states_dirs": [at("states")],
            "default_env": facts.get("default_env").cloned().unwrap_or_default(),
            "ms_project_name": site.place.name(),
            "mc_project_order": {
                "mark": self.mark,
                "states": names(&run.states),
                "lenient": names(&run.lenient),
                "resetperms": shown(&site.place.reset_perms()),
                "passwords": passwords(site, version)?,
            },
            "ms_project": facts,
        });
        for (option, dir) in custom {
            // The project's own come first.
            let mut dirs = vec![Value::from(dir.clone())];
            dirs.extend(config[*option].as_array().cloned().unwrap_or_default());
            config[*option] = dirs.into();
        }
        self.write(&self.dir.join("conf/minion"), for_yaml(&config)?.as_bytes(), false)
    }
}

/// The passwords that were made up for the configuration, by name.
fn passwords(site: &Site, version: &Version) -> Result<Map<String, Value>> {
    let store = SecretStore::of_project(site);
    let mut all = Map::new();
    for (name, number) in &version.passwords {
        if let Some(value) = store.get(name, *number)? {
            let text = String::from_utf8_lossy(&value).trim_end().to_string();
            all.insert(name.to_string(), text.into());
        }
    }
    Ok(all)
}

/// JSON that a reader of YAML 1.1 takes for the same: characters that YAML does not print are escaped, and a number with an
/// exponent has the point and the sign without which it would be a text.
///
/// # Errors
/// Never for a JSON value.
pub fn for_yaml(value: &Value) -> Result<String> {
    let mut value = value.clone();
    let mut numbers = Vec::new();
    take_exponents(&mut value, &mut numbers);
    let text = serde_json::to_string(&value).context(|| "cannot write Salt's configuration".to_string())?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let printed = !matches!(u32::from(c), 0x7f..=0x9f | 0x2028 | 0x2029 | 0xfeff | 0xfffe | 0xffff);
        if printed {
            out.push(c);
        } else {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
    }
    for (placeholder, number) in numbers {
        out = out.replacen(&format!("\"{placeholder}\""), &number, 1);
    }
    Ok(out)
}

fn take_exponents(value: &mut Value, taken: &mut Vec<(String, String)>) {
    match value {
        Value::Number(number) => {
            let text = number.to_string();
            if let Some((digits, exponent)) = text.split_once('e') {
                let digits = if digits.contains('.') { digits.to_string() } else { format!("{digits}.0") };
                let exponent = if exponent.starts_with('-') {
                    exponent.to_string()
                } else {
                    format!("+{}", exponent.trim_start_matches('+'))
                };
                let placeholder = uuid::Uuid::now_v7().to_string();
                taken.push((placeholder.clone(), format!("{digits}e{exponent}")));
                *value = placeholder.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| take_exponents(item, taken)),
        Value::Object(map) => map.values_mut().for_each(|inner| take_exponents(inner, taken)),
        _ => {}
    }
}

/// Removes the directories of processes that are gone.
///
/// # Errors
/// If one cannot be removed.
pub fn sweep(top: &Path) -> Result<()> {
    if !fs::exists(top) {
        return Ok(());
    }
    for name in fs::names(top)? {
        let whose = name.split_once('-').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse::<u64>().ok()?)));
        let lives = |(pid, start)| process::ProcessId::of(pid).is_some_and(|now| now.start == start);
        if !whose.is_some_and(lives) {
            remove(&top.join(&name))?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    if !fs::exists(dir) {
        return Ok(());
    }
    Dir::open_real(parent)?.remove_tree(Path::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_so_that_a_reader_of_yaml_reads_the_same() {
        let text = for_yaml(&json!({"a": "x\u{7f}y\u{85}é😀", "b": 1e30, "c": 1.5e-7, "d": 12, "e": 0.5})).unwrap();
        assert_eq!(text, "{\"a\":\"x\\u007fy\\u0085é😀\",\"b\":1.0e+30,\"c\":1.5e-7,\"d\":12,\"e\":0.5}");
    }
}

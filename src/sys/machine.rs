//! What is known of the machine that we run on.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::error::Result;
use super::fs;

/// Whether systemd runs this machine (sd_booted(3)).
#[must_use]
pub fn runs_systemd() -> bool {
    fs::exists(Path::new("/run/systemd/system"))
}

/// Whether we are what the machine's boot runs: the recovery unit sets `MC_BOOT`. Nobody may wait for another unit then,
/// which may itself wait for us.
#[must_use]
pub fn at_boot() -> bool {
    std::env::var_os("MC_BOOT").is_some_and(|value| value == "1")
}

/// What the machine calls itself; `None` if that is nothing that could be told. Not escaped.
#[must_use]
pub fn host_name() -> Option<String> {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty())
}

/// What Salt calls the grains, as far as pillars use them: the system, its names, its size.
///
/// # Errors
/// If a file that says so is there and cannot be read: nobody may deploy with half of it.
pub fn grains() -> Result<&'static Map<String, Value>> {
    // A deployment asks several times; the machine does not change meanwhile.
    static KNOWN: OnceLock<Map<String, Value>> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known);
    }
    let found = look()?;
    Ok(KNOWN.get_or_init(|| found))
}

fn look() -> Result<Map<String, Value>> {
    let read = |path: &str| fs::read_if_there(Path::new(path)).map(Option::unwrap_or_default);
    let (release, hosts) = (read("/etc/os-release")?, read("/etc/hosts")?);
    let (memory, cpus) = (read("/proc/meminfo")?, read("/proc/cpuinfo")?);
    let name = host_name().unwrap_or_else(|| "localhost".to_string());
    let fqdn = full_name(&name, &String::from_utf8_lossy(&hosts));
    let (host, domain) = fqdn.split_once('.').unwrap_or((&fqdn, ""));
    let memory = String::from_utf8_lossy(&memory).lines().find_map(|line| {
        let kib: u64 = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib / 1024)
    });
    // Of the machine, whatever share of it this process may use.
    let cpus = String::from_utf8_lossy(&cpus).lines().filter(|line| line.starts_with("processor")).count().max(1);
    let mut grains = system_grains(&String::from_utf8_lossy(&release));
    for (key, value) in [("id", &*fqdn), ("fqdn", &fqdn), ("nodename", &name), ("host", host), ("domain", domain)] {
        grains.insert(key.into(), value.into());
    }
    grains.insert("kernel".into(), "Linux".into());
    grains.insert("cpuarch".into(), std::env::consts::ARCH.into());
    grains.insert("num_cpus".into(), cpus.into());
    grains.insert("mem_total".into(), memory.unwrap_or(0).into());
    Ok(grains)
}

/// The name with its domain, where /etc/hosts knows one (hosts(5): the first name of a line is the canonical one).
fn full_name(name: &str, hosts: &str) -> String {
    if name.contains('.') {
        return name.to_string();
    }
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or("").split_whitespace().skip(1));
    let canonical = lines.filter_map(|mut names| {
        let first = names.next()?;
        let is_ours = first.split('.').next() == Some(name) || names.any(|other| other == name);
        (is_ours && first.contains('.') && !first.starts_with("localhost")).then(|| first.to_string())
    });
    canonical.into_iter().next().unwrap_or_else(|| name.to_string())
}

/// `os`, `os_family` and the release from os-release(5), in Salt's words.
fn system_grains(release: &str) -> Map<String, Value> {
    let field = |key: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(|value| value.trim_matches(['"', '\'']).to_string()).unwrap_or_default()
    };
    let (id, like) = (field("ID"), field("ID_LIKE"));
    let kinds: Vec<&str> = std::iter::once(id.as_str()).chain(like.split_whitespace()).collect();
    let families = [
        ("debian", "Debian"),
        ("ubuntu", "Debian"),
        ("fedora", "RedHat"),
        ("rhel", "RedHat"),
        ("centos", "RedHat"),
        ("suse", "Suse"),
        ("arch", "Arch"),
        ("alpine", "Alpine"),
    ];
    let family = kinds.iter().find_map(|kind| families.iter().find(|(word, _)| kind == word)).map_or("", |(_, f)| f);
    let os = field("NAME").split_whitespace().next().unwrap_or("Linux").to_string();
    let version = field("VERSION_ID");
    let major: Value =
        version.split('.').next().and_then(|major| major.parse::<u64>().ok()).map_or(Value::Null, Value::from);
    let mut grains = Map::new();
    grains.insert("os".into(), os.clone().into());
    grains.insert("os_family".into(), if family.is_empty() { os.into() } else { family.into() });
    grains.insert("osfullname".into(), field("NAME").into());
    grains.insert("osrelease".into(), version.into());
    grains.insert("osmajorrelease".into(), major);
    grains.insert("oscodename".into(), field("VERSION_CODENAME").into());
    grains
}

#[cfg(test)]
mod tests {
    use super::{full_name, grains, system_grains};

    #[test]
    fn the_system_is_told_in_salts_words() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n\
                      VERSION_CODENAME=bookworm\nID=debian\n";
        let told = system_grains(debian);
        assert_eq!((told["os"].as_str(), told["os_family"].as_str()), (Some("Debian"), Some("Debian")));
        assert_eq!((told["osmajorrelease"].as_u64(), told["oscodename"].as_str()), (Some(12), Some("bookworm")));
        let ubuntu = system_grains("NAME=Ubuntu\nID=ubuntu\nID_LIKE=debian\nVERSION_ID='24.04'\n");
        assert_eq!((ubuntu["os"].as_str(), ubuntu["os_family"].as_str()), (Some("Ubuntu"), Some("Debian")));
        assert_eq!(system_grains("NAME=Rocky\nID=rocky\nID_LIKE=\"rhel centos fedora\"\n")["os_family"], "RedHat");
        let here = grains().unwrap();
        assert!(here["mem_total"].as_u64() > Some(0) && here["num_cpus"].as_u64() > Some(0), "{here:?}");
    }

    #[test]
    fn the_full_name_is_the_one_that_hosts_knows() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1 node.example.org node # node.example.net\n10.0.0.1 other.example.org other\n";
        assert_eq!(full_name("node", hosts), "node.example.org");
        assert_eq!(full_name("other", hosts), "other.example.org");
        assert_eq!(full_name("third", hosts), "third");
        assert_eq!(full_name("a.b", hosts), "a.b");
    }
}

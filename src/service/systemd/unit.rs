//! The text of a generated unit: one instance of a service in the language of systemd.unit(5).
//!
//! The box is that of the steps ([`crate::sys::step_exec`]), as far as systemd has words for it. The environment stands in
//! a file of its own that only root may read, because everybody may ask systemd for what is in a unit.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::project::ids::ProjectName;
use crate::project::recipe::service::{Kind, Restart};
use crate::service::definition::{Definition, Instance};
use crate::sys::error::{Error, Result};
use crate::sys::escape::visible_bounded;
use crate::sys::step_exec::{Network, Processes};

/// The first line of every unit that we generate.
const HEAD: &str =
    "# Written by mc_project with every deployment. Your own changes belong in a directory NAME.d/ beside it.\n";
/// The first systemd that knows a restart delay which grows.
const GROWING_DELAY: u32 = 254;

/// The name of the unit of an instance. Names of projects and services hold no dot, so no two are the same.
#[must_use]
pub fn name(project: &ProjectName, instance: &Instance) -> String {
    format!("mc-{project}.{}@{}.service", instance.service, instance.number)
}

/// The instance whose unit has this name, if it is one of the project's.
#[must_use]
pub fn instance_of(project: &ProjectName, unit: &str) -> Option<Instance> {
    let rest = unit.strip_prefix("mc-")?.strip_prefix(project.as_str())?.strip_prefix('.')?;
    let (service, number) = rest.strip_suffix(".service")?.split_once('@')?;
    Some(Instance { service: service.parse().ok()?, number: number.parse().ok()? })
}

/// The slice that all services of a project run in, below `mc_project.slice`.
#[must_use]
pub fn slice(project: &ProjectName) -> String {
    format!("mc_project-{}.slice", project.as_str().replace('-', "\\x2d"))
}

/// The text of a unit for a systemd of this version.
///
/// # Errors
/// Of kind Invalid, if a path holds what a line of a unit cannot.
pub fn text(project: &ProjectName, definition: &Definition, environment: &Path, version: u32) -> Result<String> {
    let mut text = HEAD.to_string();
    let order = &definition.order;
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key}={value}");
    };
    line("[Unit]\nDescription", &format!("{project}: {}", definition.instance));
    line("RequiresMountsFor", &quoted(order.cwd.as_os_str()));
    line("StartLimitIntervalSec", "0");
    let kind = match definition.kind {
        Kind::Simple => "exec",
        Kind::Notify => "notify\nNotifyAccess=all",
        Kind::Oneshot => "oneshot\nRemainAfterExit=yes",
    };
    line("\n[Service]\nType", kind);
    line("ExecStart", &command(&order.argv));
    line("WorkingDirectory", &plain(&order.cwd)?);
    line("EnvironmentFile", &plain(environment)?);
    line("Slice", &slice(project));
    line("SyslogIdentifier", &format!("{project}.{}", definition.instance));
    let restart = match definition.restart {
        Restart::Always => "always",
        Restart::OnFailure => "on-failure",
        Restart::Never => "no",
    };
    line("Restart", restart);
    line("RestartSec", if version < GROWING_DELAY { "2" } else { "1\nRestartSteps=6\nRestartMaxDelaySec=60" });
    line("KillSignal", definition.stop_signal.name());
    line("TimeoutStopSec", &format!("{}ms", definition.stop_timeout.as_millis()));
    line("TimeoutStartSec", &format!("{}ms", definition.start_timeout.as_millis()));
    text.push_str(&limits(definition));
    text.push_str(&enclosure(definition));
    Ok(text)
}

/// What an instance may use; and that it is counted.
fn limits(definition: &Definition) -> String {
    let limits = &definition.limits;
    let lines = [
        Some("CPUAccounting=yes\nMemoryAccounting=yes\nTasksAccounting=yes".to_string()),
        limits.memory.map(|bytes| format!("MemoryMax={bytes}\nMemorySwapMax=0")),
        limits.processes.map(|count| format!("TasksMax={count}")),
        limits.cpu.map(|percent| format!("CPUQuota={percent}%")),
        limits.open_files.map(|count| format!("LimitNOFILE={count}")),
        Some("LimitCORE=0\nUMask=0022".to_string()),
    ];
    lines.into_iter().flatten().map(|line| line + "\n").collect()
}

/// Who it is and what it sees of the machine.
fn enclosure(definition: &Definition) -> String {
    let order = &definition.order;
    let mut lines = Vec::new();
    if let Some(identity) = &order.run_as {
        let groups: Vec<String> = identity.groups.iter().map(u32::to_string).collect();
        lines.push(format!("User={}\nGroup={}\nSupplementaryGroups={}", identity.uid, identity.gid, groups.join(" ")));
    }
    for bind in &order.view.binds {
        lines.push(format!("BindPaths={}:{}", quoted(bind.source.as_os_str()), quoted(bind.at.as_os_str())));
    }
    lines.extend(
        order.view.shm.map(|size| format!("TemporaryFileSystem=/dev/shm:rw,nosuid,nodev,mode=1777,size={size}")),
    );
    if order.view.processes == Processes::Own {
        lines.push("ProtectProc=invisible".to_string());
    }
    if order.view.network == Network::Off {
        lines.push("PrivateNetwork=yes".to_string());
    }
    for wall in [
        "NoNewPrivileges=yes",
        "ProtectSystem=full",
        "ProtectControlGroups=yes",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelLogs=yes",
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
    ] {
        lines.push(wall.to_string());
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

/// A command line in which systemd replaces nothing. It begins with a shell, because systemd takes no program that is named
/// relative to the working directory, and looks others up in a path of its own.
fn command(argv: &[impl AsRef<OsStr>]) -> String {
    let is_shell = argv.first().is_some_and(|program| program.as_ref() == "/bin/sh");
    let through: &[&str] = if is_shell { &[] } else { &["/bin/sh", "-c", "exec \"$0\" \"$@\""] };
    let words = through.iter().map(OsStr::new).chain(argv.iter().map(AsRef::as_ref));
    let words: Vec<String> = words.map(quoted).collect();
    format!(":{}", words.join(" "))
}

/// A word in the quotes of systemd.syntax(7), with specifiers taken literally.
fn quoted(word: &OsStr) -> String {
    let mut text = String::from("\"");
    for chunk in word.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                '%' => text.push_str("%%"),
                '\n' => text.push_str("\\n"),
                c if c.is_ascii_control() => {
                    let _ = write!(text, "\\x{:02x}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

/// A path that systemd takes as it stands, but for specifiers. There is no quoting for it: one that ends the line could go on
/// with settings of its own.
fn plain(path: &Path) -> Result<String> {
    let is_one_line =
        |text: &&str| !text.chars().any(char::is_control) && !text.ends_with('\\') && text.trim() == *text;
    let text = path.to_str().filter(is_one_line).ok_or_else(|| {
        let shown = visible_bounded(path.as_os_str().as_bytes(), 300);
        Error::invalid(format!("systemd takes no directory with the name `{shown}`"))
            .hint("no control characters, and no blank or backslash at its end")
    })?;
    Ok(text.replace('%', "%%"))
}

/// The file with the environment of an instance, quoted for systemd.exec(5).
///
/// # Errors
/// Of kind Invalid, if a value holds what systemd passes to no service.
pub fn environment(definition: &Definition) -> Result<String> {
    let mut text = String::new();
    for (name, value) in &definition.order.env {
        if value.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            return Err(Error::invalid(format!(
                "the service {}: the value of {name} holds a control character, and systemd gives that to no service",
                definition.instance.service
            ))
            .hint("line ends alone are good: is it a file from Windows, with \\r before each?"));
        }
        let value = value.chars().fold(String::new(), |mut quoted, c| {
            if matches!(c, '"' | '\\' | '`' | '$') {
                quoted.push('\\');
            }
            quoted.push(c);
            quoted
        });
        let _ = writeln!(text, "{name}=\"{value}\"");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::project::recipe::service::{ServiceLimits, StopSignal, Unchanged};
    use crate::service::definition::Running;
    use crate::sys::step_exec::{Bind, RunAs, StepOrder};

    fn definition(argv: &[&str]) -> Definition {
        let argv = argv.iter().map(Into::into).collect();
        let env = vec![("TOKEN".to_string(), "a\"b$c\\d`e\nf %h".to_string())];
        Definition {
            instance: Instance { service: "web".parse().unwrap(), number: 2 },
            kind: Kind::Simple,
            restart: Restart::OnFailure,
            stop_signal: StopSignal::Quit,
            stop_timeout: Duration::from_secs(3),
            start_timeout: Duration::from_mins(1),
            limits: ServiceLimits::default(),
            unchanged: Unchanged::Restart,
            order: StepOrder::new(argv, env, PathBuf::from("/srv/projects/my-shop/run")),
            running: Running::default(),
            secrets: Vec::new(),
        }
    }

    fn text_of(definition: &Definition, version: u32) -> String {
        text(
            &"my-shop".parse().unwrap(),
            definition,
            Path::new("/srv/projects/my-shop/state/services/web@2.env"),
            version,
        )
        .unwrap()
    }

    #[test]
    fn names_tell_project_service_and_number_and_back() {
        let project: ProjectName = "my-shop".parse().unwrap();
        let instance = definition(&["x"]).instance;
        assert_eq!(name(&project, &instance), "mc-my-shop.web@2.service");
        assert_eq!(instance_of(&project, "mc-my-shop.web@2.service"), Some(instance));
        for other in ["mc-my-shop.web@.service", "mc-my.shop@1.service", "mc-my-shopx.web@1.service", "nginx.service"] {
            assert_eq!(instance_of(&project, other), None, "{other}");
        }
        assert_eq!(slice(&project), "mc_project-my\\x2dshop.slice");
    }

    #[test]
    fn systemd_replaces_nothing_in_a_command() {
        let shell = ["/bin/sh", "-euc", "echo \"$HOME\" 100% \\\nä"];
        assert_eq!(command(&shell), r#":"/bin/sh" "-euc" "echo \"$HOME\" 100%% \\\nä""#);
        assert_eq!(command(&["bin/web", "--x"]), r#":"/bin/sh" "-c" "exec \"$0\" \"$@\"" "bin/web" "--x""#);
    }

    #[test]
    fn a_unit_has_the_box_of_steps_and_no_secret() {
        let mut definition = definition(&["bin/web"]);
        definition.limits =
            ServiceLimits { memory: Some(1 << 20), processes: Some(9), cpu: Some(150), open_files: Some(64) };
        definition.order.run_as = Some(RunAs { uid: 990, gid: 991, groups: vec![991, 5] });
        definition.order.view.network = Network::Off;
        definition.order.view.binds = vec![Bind { source: "/srv/a b/tmp".into(), at: "/tmp".into(), read_only: false }];
        let unit = text_of(&definition, 252);
        for line in [
            "Description=my-shop: web@2",
            "Type=exec",
            "User=990",
            "SupplementaryGroups=991 5",
            "BindPaths=\"/srv/a b/tmp\":\"/tmp\"",
            "PrivateNetwork=yes",
            "NoNewPrivileges=yes",
            "MemoryMax=1048576",
            "TasksMax=9",
            "CPUQuota=150%",
            "LimitNOFILE=64",
            "KillSignal=SIGQUIT",
            "Restart=on-failure",
            "RestartSec=2",
            "TimeoutStopSec=3000ms",
            "Slice=mc_project-my\\x2dshop.slice",
            "EnvironmentFile=/srv/projects/my-shop/state/services/web@2.env",
        ] {
            assert!(unit.lines().any(|found| found == line), "{line} is not in\n{unit}");
        }
        assert!(!unit.contains("TOKEN") && !unit.contains("RestartSteps"), "{unit}");
        assert!(text_of(&definition, 254).contains("RestartSec=1\nRestartSteps=6\nRestartMaxDelaySec=60\n"));
    }

    #[test]
    fn a_path_adds_no_line_to_a_unit() {
        let mut definition = definition(&["x"]);
        let mut of = |dir: &str| {
            definition.order.cwd = Path::new("/srv/projects/my-shop/run").join(dir);
            text(&"my-shop".parse().unwrap(), &definition, Path::new("/e"), 252)
        };
        assert!(of("a %h b").unwrap().contains("\nWorkingDirectory=/srv/projects/my-shop/run/a %%h b\n"));
        for bad in ["a\nExecStartPre=+/bin/sh", "a\rUser=root", "a\\", "a "] {
            let error = of(bad).unwrap_err();
            assert!(error.message().starts_with("systemd takes no directory with the name"), "{error}");
        }
    }

    #[test]
    fn the_environment_is_quoted_and_what_systemd_would_drop_is_refused() {
        let mut definition = definition(&["x"]);
        assert_eq!(environment(&definition).unwrap(), "TOKEN=\"a\\\"b\\$c\\\\d\\`e\nf %h\"\n");
        definition.order.env = vec![("KEY".into(), "one\r\ntwo".into())];
        let error = environment(&definition).unwrap_err();
        assert!(error.message().contains("the value of KEY holds a control character"), "{error}");
        assert!(!error.one_line().contains("two"), "{error}");
    }
}

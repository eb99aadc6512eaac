//! The units that `setup` writes on a machine that systemd runs.

use std::path::{Path, PathBuf};

use crate::project::place::NodePlace;

/// Where units of the operator stand.
pub const DIR: &str = "/etc/systemd/system";
/// How many connections are served at the same time.
pub const CONNECTIONS: usize = 64;

/// The units that are switched on: by name, and whether they are started at once.
pub const ENABLED: [(&str, bool); 2] = [("mc_project.socket", true), ("mc_project-recover.service", false)];

/// Every unit: its file and its text.
#[must_use]
pub fn all(place: &NodePlace, group: &str) -> Vec<(PathBuf, String)> {
    let fill = |text: &str| {
        let socket = place.socket().display().to_string();
        text.replace("@binary@", &place.binary().display().to_string())
            .replace("@socket@", &socket)
            .replace("@group@", group)
            .replace("@connections@", &CONNECTIONS.to_string())
            .replace("@projects@", &place.projects().display().to_string())
    };
    [
        ("mc_project.socket", SOCKET),
        ("mc_project@.service", CONNECTION),
        ("mc_project-recover.service", RECOVER),
        ("mc_project.slice", SLICE),
    ]
    .map(|(name, text)| (Path::new(DIR).join(name), fill(text)))
    .into()
}

const SOCKET: &str = "\
# Written by mc_project setup. Your own changes belong in /etc/systemd/system/mc_project.socket.d/
[Unit]
Description=Where the receiver of pushes reaches mc_project

[Socket]
ListenStream=@socket@
SocketUser=root
SocketGroup=@group@
SocketMode=0660
Accept=yes
MaxConnections=@connections@

[Install]
WantedBy=sockets.target
";

const CONNECTION: &str = "\
# Written by mc_project setup. Your own changes belong in /etc/systemd/system/mc_project@.service.d/
[Unit]
Description=mc_project answers a push or a command
CollectMode=inactive-or-failed

[Service]
ExecStart=@binary@ --root / serve-connection
StandardInput=socket
StandardOutput=journal
StandardError=journal
Slice=mc_project.slice
# A service that a command has started lives on when the command is done.
KillMode=process
OOMPolicy=continue
";

// Units of a project may be ordered after this one: at boot, steps about units ask for them and do not wait (MC_BOOT).
const RECOVER: &str = "\
# Written by mc_project setup. Your own changes belong in /etc/systemd/system/mc_project-recover.service.d/
[Unit]
Description=Finish interrupted deployments, and start what serves
# Steps that bring data back need what the data are in.
After=local-fs.target network.target postgresql.service mariadb.service mysql.service redis-server.service
RequiresMountsFor=@projects@ /var/log/mc_project /etc/mc_project

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=MC_BOOT=1
ExecStart=@binary@ --root / recover --all
Slice=mc_project.slice
# A service that is started again lives on.
KillMode=process
TimeoutStartSec=1h

[Install]
WantedBy=multi-user.target
";

const SLICE: &str = "\
# Written by mc_project setup. Your own changes belong in /etc/systemd/system/mc_project.slice.d/
[Unit]
Description=Deployments and what they start
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_name_the_installed_program_and_leave_no_blank() {
        let units = all(&NodePlace::new(Path::new("/")), "mc");
        assert_eq!(units.len(), 4);
        let text: String = units.iter().map(|(_, text)| text.as_str()).collect();
        for part in [
            "ListenStream=/run/mc_project.sock\n",
            "SocketGroup=mc\n",
            "MaxConnections=64\n",
            "ExecStart=/usr/local/bin/mc_project --root / serve-connection\n",
            "ExecStart=/usr/local/bin/mc_project --root / recover --all\n",
            "RequiresMountsFor=/srv/projects /var/log",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.lines().any(|line| !line.starts_with('#') && line.matches('@').count() > 1), "{text}");
        assert!(ENABLED.iter().all(|(name, _)| units.iter().any(|(path, _)| path.ends_with(name))));
    }
}

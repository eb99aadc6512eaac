//! Editable mode on a whole machine: the clone is the project's account's, git works in it with that account's rights, and
//! the mount comes back with a boot.

use crate::support::{Machine, WorkTree, assert_has, assert_lacks};

const RECIPE: &str = "\
shared: [uploads/]
stages:
  build: ['cp version built; id -un > who']
  start: ['cp version $MC_DATA/started']
";

const RUN: &str = "/srv/projects/shop/run";

/// A machine that was set up, with a project `shop` in editable mode whose clone is at a first commit.
fn editable() -> Option<Machine> {
    let machine = Machine::boot("node1")?;
    machine.install_program("/usr/local/bin/mc_project");
    machine.ssh_root("mc_project setup && mc_project init shop --environment dev").ok();
    push(&machine, &[("mc_project.yaml", RECIPE), ("version", "1"), (".gitignore", "built\nwho\nuploads\n")]).1.ok();
    Some(machine)
}

/// Pushes a commit with these files, as root over ssh.
fn push<'m>(machine: &'m Machine, files: &[(&str, &str)]) -> (WorkTree<'m>, crate::support::Finished) {
    let work = machine.work_tree("root", "root", "/srv/projects/shop/git/project");
    let _ = work.git(&["pull", "--quiet", "node", "main"]);
    work.commit("a version", files);
    let pushed = work.push(&["main"]);
    (work, pushed)
}

#[track_caller]
fn assert_fits(machine: &Machine) {
    let doctor = machine.ssh_root("mc_project doctor");
    assert_eq!(doctor.exit_code(), Some(0), "{doctor}");
    let verify = machine.ssh_root("mc_project verify --all");
    assert_eq!(verify.exit_code(), Some(0), "{verify}");
}

/// Which directory the project's own shows; seen from the machine's own mounts.
fn shown(machine: &Machine) -> String {
    machine.run("findmnt -no FSROOT /srv/projects/shop/project || true").stdout.trim().to_string()
}

#[test]
fn a_clone_on_a_machine_is_its_accounts_and_comes_back_with_a_boot() {
    let Some(mut machine) = editable() else { return };
    let owners = machine.run(&format!("stat -c '%U:%G %a' {RUN} {RUN}/.git {RUN}/version {RUN}/uploads")).ok().stdout;
    assert_eq!(owners.lines().next(), Some("mc-shop:mc-shop 750"), "{owners}");
    assert!(owners.lines().all(|line| line.starts_with("mc-shop:mc-shop ")), "{owners}");
    assert_eq!(machine.read_text(&format!("{RUN}/who")), "mc-shop\n");
    assert_eq!(machine.run(&format!("find {RUN} ! -user mc-shop | wc -l")).ok().stdout, "0\n", "nothing of root's");
    let unit = "/etc/systemd/system/srv-projects-shop-project.mount";
    assert_has(&machine.read_text(unit), "What=/srv/projects/shop/run\nWhere=/srv/projects/shop/project\n");
    assert_eq!(machine.run("systemctl is-enabled srv-projects-shop-project.mount").ok().stdout, "enabled\n");
    assert_has(&shown(&machine), "/srv/projects/shop/run");
    assert_fits(&machine);

    machine.reboot();
    assert_has(&shown(&machine), "/srv/projects/shop/run");
    assert_lacks(&machine.failed_units(), "shop");
    assert_fits(&machine);
    push(&machine, &[("version", "2")]).1.ok();
    assert_eq!(machine.read_text("/srv/projects/shop/project/built"), "2");

    // Without the unit, what runs after the boot restores it.
    machine.run(&format!("systemctl disable --quiet srv-projects-shop-project.mount; rm -f {unit}")).ok();
    machine.reboot();
    assert_has(&shown(&machine), "/srv/projects/shop/run");
    assert_fits(&machine);

    machine.run(&format!("su -s /bin/sh mc-shop -c 'echo mine > {RUN}/notes; echo x >> {RUN}/version'")).ok();
    let refused = push(&machine, &[("version", "3")]).1.fails();
    assert_has(&refused.remote_text(), "version");
    machine.ssh_root("mc_project init shop --environment staging").ok();
    assert_eq!(shown(&machine), "");
    assert!(!machine.exists(unit));
    assert_eq!(machine.run("cat /srv/projects/shop/archives/editable-*/notes").ok().stdout, "mine\n");
    assert_fits(&machine);
    push(&machine, &[("version", "4")]).1.ok();
    assert_eq!(machine.read_text("/srv/projects/shop/run/built"), "4");
    assert_fits(&machine);
}

/// The account writes what it likes into the clone's own configuration, and into the clone: nothing of it is done by root.
#[test]
fn what_the_account_puts_into_its_clone_is_never_done_by_root() {
    let Some(machine) = editable() else { return };
    let evil = "#!/bin/sh\nid -un >> /tmp/evil; cp /etc/shadow /tmp/shadow 2> /tmp/refused; cat\n";
    machine.write("/tmp/evil.sh", evil, 0o755);
    machine.run("touch /tmp/evil && chmod 666 /tmp/evil && chmod 1777 /tmp").ok();
    let set = |key: &str, value: &str| format!("git -C {RUN} config {key} '{value}'");
    let settings = [
        set("filter.evil.clean", "/tmp/evil.sh"),
        set("filter.evil.smudge", "/tmp/evil.sh"),
        set("core.fsmonitor", "/tmp/evil.sh"),
        set("core.hooksPath", "/tmp/hooks"),
        set("core.sshCommand", "/tmp/evil.sh"),
        set("core.pager", "/tmp/evil.sh"),
        set("gpg.program", "/tmp/evil.sh"),
        set("commit.gpgSign", "true"),
        set("alias.status", "!/tmp/evil.sh"),
        set("include.path", "/tmp/more"),
        format!("mkdir -p {RUN}/.git/info; echo '* filter=evil' > {RUN}/.git/info/attributes"),
        // What we make ourselves is led elsewhere: shared paths, the recipe, the place of a new file.
        format!("rm -rf {RUN}/uploads; ln -s /etc {RUN}/uploads; ln -s /etc/passwd {RUN}/notes; ln -s / {RUN}/dir"),
        format!("echo changed >> {RUN}/version"),
    ]
    .join("; ");
    machine.write("/tmp/set.sh", settings, 0o755);
    machine.run("su -s /bin/sh mc-shop -c 'export HOME=/tmp; sh /tmp/set.sh'").ok();
    let before = machine.run("md5sum /etc/passwd /etc/shadow; ls -la /etc | md5sum").ok().stdout;
    let work = machine.work_tree("root", "root", "/srv/projects/shop/git/project");
    let _ = work.git(&["pull", "--quiet", "node", "main"]);
    work.commit("two", &[("version", "2"), ("notes", "n"), ("dir/tmp/new", "n"), ("more", "m")]);
    work.push(&["main"]).fails();
    let pushed = work.push(&["-o", "keep-aside", "main"]);
    machine.ssh_root("mc_project drift shop; mc_project verify shop; mc_project status shop");
    assert_eq!(machine.run("md5sum /etc/passwd /etc/shadow; ls -la /etc | md5sum").ok().stdout, before);
    assert!(!machine.exists("/tmp/shadow") && !machine.exists("/tmp/new"), "{pushed}");
    let who = machine.read_text("/tmp/evil");
    assert!(!who.is_empty() && who.lines().all(|name| name == "mc-shop"), "{who}");
    assert_eq!(machine.run(&format!("find {RUN} ! -user mc-shop | wc -l")).ok().stdout, "0\n", "nothing of root's");
    // The account replaces the repository itself by a link.
    let replaced = format!("mv {RUN}/.git {RUN}/.git2; ln -s /srv/projects/shop/git/project {RUN}/.git");
    machine.run(&format!("su -s /bin/sh mc-shop -c '{replaced}'")).ok();
    work.commit("three", &[("version", "3")]);
    let refused = work.push(&["main"]).fails();
    assert_has(&refused.remote_text(), "cannot be examined");
    machine.run("su -s /bin/sh mc-shop -c 'test ! -r /srv/projects/shop/git/project/HEAD'").ok();
}

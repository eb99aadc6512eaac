#!/bin/bash
# Machines for the tests: Debian with systemd as its init, in namespaces of its own, on this very kernel. Needs root.
#
#   tests/machine.sh can            whether this machine can; says what is missing
#   tests/machine.sh base           makes the tree that all machines stand on, once; prints its path
#   tests/machine.sh keep NAME KEY  keeps one machine (see below); KEY is the file with root's authorized key
#   tests/machine.sh sweep          removes what killed runs left
#
# `keep` prints one line, `NUMBER DIRECTORY CGROUP`, and then obeys lines on its standard input: `on` boots the machine,
# `off` pulls its plug; each is answered with the same word. At the end of the input everything is taken down, so that
# a test that is killed takes its machine along. Its process is the developer's side of the wire (network namespace,
# 10.77.NUMBER.1); the machine is 10.77.NUMBER.2. All mounts, interfaces and processes live in namespaces of this
# process: the kernel itself removes them, however it ends.
#
# The tree lies in $MC_MACHINE_CACHE, otherwise in target/machine.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 2
cache=${MC_MACHINE_CACHE:-${CARGO_TARGET_DIR:-$here/../target}/machine}
locks=/run/lock/mc-machine
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

die() { echo "tests/machine.sh: $*" >&2; exit 1; }

# --- the tree below all machines

packages=systemd-sysv,libpam-systemd,dbus,openssh-server,git,iproute2,procps,rsync,python3,util-linux,strace,acl

# What is changed in the tree of packages; run in it.
furnish() {
    # Nothing that wakes up by itself or wants the world outside, and no login on a console that is a pipe.
    systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
        fstrim.timer e2scrub_reap.service console-getty.service getty.target
    systemctl --quiet enable ssh.service
    mkdir -p /var/log/journal /srv # the journal is to outlive a reboot
    rm -f /etc/machine-id /var/lib/dbus/machine-id /etc/resolv.conf
    : > /etc/resolv.conf
}

codename() { (. /etc/os-release && echo "${VERSION_CODENAME:-}"); }

# The files that tell apt where this machine's own packages come from.
sources() {
    local files
    files=$(compgen -G '/etc/apt/sources.list.d/*.sources'; compgen -G '/etc/apt/sources.list.d/*.list'
        compgen -G /etc/apt/sources.list)
    # shellcheck disable=SC2086 # names without blanks: apt reads no others
    grep -lE "(^|[[:space:]])$(codename)([[:space:]]|$)" $files /dev/null
}

make_base() { # DIRECTORY
    local files
    mapfile -t files < <(sources)
    [ "${#files[@]}" -gt 0 ] || die "no apt source for $(codename) in /etc/apt"
    mmdebstrap --quiet --mode=root --format=directory --variant=minbase --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$(codename)" "$1" "${files[@]}" >&2 || return
    chroot "$1" /bin/bash -euc "$(declare -f furnish); furnish" >&2
}

base() {
    local recipe dir
    recipe=$({ codename; echo "$packages"; declare -f furnish make_base; } | sha256sum | cut -c 1-16)
    mkdir -p "$cache" || exit
    dir=$(cd "$cache" && pwd)/base-$recipe
    if [ ! -e "$dir" ]; then
        (
            flock 8
            [ ! -e "$dir" ] || exit 0 # another one made it while we waited
            echo "tests/machine.sh: making $dir" >&2
            rm -rf --one-file-system "$dir.part"
            make_base "$dir.part" 8>&- && sync -f "$dir.part" && mv -T "$dir.part" "$dir"
        ) 8> "$cache/lock" || die "cannot make the tree of packages (mmdebstrap, see above)"
    fi
    echo "$dir"
}

# --- whether it can work here

can() {
    local program
    [ "$(id -u)" = 0 ] || die "a machine needs root"
    for program in systemd-nspawn mmdebstrap ip unshare nsenter flock ssh ssh-keygen; do
        command -v $program > /dev/null || die "a machine needs the program $program (tests/run installs it)"
    done
    [ -n "$(codename)" ] && [ -e /etc/apt ] || die "the tree of a machine is made from the sources of a Debian or its like"
    [ -n "$(groups_for 0)" ] || die "no control groups that systemd could use are mounted on /sys/fs/cgroup"
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount --net --pid --fork --mount-proc sh -euc '
        mount -t tmpfs tmpfs /run
        mkdir /run/lower /run/upper /run/work /run/all /run/netns
        mount -t overlay -o lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work overlay /run/all
        ip netns add try
        ip link add here type veth peer name there netns try' ||
        die "a machine needs namespaces, overlayfs and veth (see above)"
}

# --- the control groups of a machine, one in each hierarchy that its systemd uses

# The controllers that a host with the old hierarchies lends to its machines.
controllers="memory pids cpu cpuacct"

groups_for() { # NUMBER
    local at
    for at in systemd unified . $controllers; do
        [ ! -e "/sys/fs/cgroup/$at/cgroup.procs" ] || echo "/sys/fs/cgroup/$at/mc-machine-$1"
    done
}

kill_groups() { # NUMBER
    local group pids
    for group in $(groups_for "$1"); do
        [ -d "$group" ] || continue
        for _ in $(seq 200); do
            pids=$(find "$group" -name cgroup.procs -exec cat {} + 2> /dev/null | grep -v '^0$')
            [ -n "$pids" ] || break
            # shellcheck disable=SC2086 # one id a word
            kill -KILL $pids 2> /dev/null
            sleep 0.01
        done
        find "$group" -depth -type d -exec rmdir {} + 2> /dev/null
    done
}

# --- one machine

directory() { echo "/var/tmp/mc-machine-$1"; }

# Removes what is left of a machine whose lock we hold.
remove() { # NUMBER
    kill_groups "$1"
    # Its mounts went with its namespaces.
    rm -rf --one-file-system "$(directory "$1")"
}

sweep() {
    local dir number
    mkdir -p "$locks"
    for dir in /var/tmp/mc-machine-*; do
        number=${dir#/var/tmp/mc-machine-}
        [[ $number =~ ^[0-9]+$ ]] || continue
        # One whose lock is held is in use.
        ( ! flock -n 9 || remove "$number" ) 9> "$locks/$number" || die "cannot remove $dir"
    done
}

keep() { # NAME KEY
    local base number
    base=$(base) || exit
    sweep
    for number in $(seq 1 250) none; do
        [ "$number" != none ] || die "250 machines are running"
        exec 9> "$locks/$number"
        flock -n 9 && break
    done
    remove "$number"
    mkdir -p "$(directory "$number")" || exit
    exec unshare --mount --net --pid --fork --kill-child --mount-proc -- \
        /bin/bash "$here/machine.sh" kept "$number" "$base" "$1" "$2"
}

# The same, in its namespaces, as their process 1.
kept() { # NUMBER BASE NAME KEY
    local number=$1 dir word runner=
    dir=$(directory "$number")
    cd "$dir" || exit
    wire "$number" && furnish_one "$2" "$3" "$4" || die "cannot prepare machine $number"
    echo "$number $dir $(groups_for "$number" | head -n 1)"
    while read -r word; do
        case $word in
        on)
            [ -z "$runner" ] || wait "$runner"
            boot "$number" "$3" 2> /dev/null &
            runner=$!
            ;;
        off)
            kill_groups "$number"
            [ -z "$runner" ] || wait "$runner"
            runner=
            ;;
        *) die "unknown word $word" ;;
        esac
        echo "$word"
    done
    kill_groups "$number"
    [ -z "$runner" ] || wait "$runner"
    kill_groups "$number"
    cd / && umount --recursive "$dir/root"
    rm -rf --one-file-system "$dir"
}

wire() { # NUMBER
    mount -t tmpfs tmpfs /run && mkdir /run/netns &&
        ip netns add machine && ip link add dev0 type veth peer name host0 netns machine &&
        ip link set lo up && ip link set dev0 up && ip addr add "10.77.$1.1/24" dev dev0 &&
        ip -n machine link set lo up && ip -n machine link set host0 up &&
        ip -n machine addr add "10.77.$1.2/24" dev host0 && ip -n machine route add default via "10.77.$1.1"
}

furnish_one() { # BASE NAME KEY
    mkdir upper work root srv &&
        mount -t overlay overlay -o "lowerdir=$1,upperdir=upper,workdir=work" root &&
        # What a machine serves lies on a plain file system, as on a real one; the rest may be an overlay.
        mount --bind srv root/srv &&
        echo "$2" > root/etc/hostname && printf '127.0.0.1 localhost %s\n' "$2" > root/etc/hosts &&
        tr -d - < /proc/sys/kernel/random/uuid > root/etc/machine-id &&
        install -d -m 0700 root/root/.ssh && install -m 0600 "$3" root/root/.ssh/authorized_keys
}

# What runs as process 1 before systemd does. systemd-nspawn leaves the old hierarchies read-only, although what is seen
# of them in the machine is its own group; without this no limit of a unit would hold.
init='for at; do
    [ ! -d "/sys/fs/cgroup/$at" ] || mount -o remount,bind,rw "/sys/fs/cgroup/$at"
done
exec /lib/systemd/systemd'

boot() { # NUMBER NAME
    local group code
    while :; do
        kill_groups "$1" # what the boot before this one left
        (
            for group in $(groups_for "$1"); do
                mkdir -p "$group" && echo 0 > "$group/cgroup.procs" || exit 1
            done
            exec systemd-nspawn --quiet --directory=root --machine="$2" --console=pipe --register=no --keep-unit \
                --network-namespace-path=/run/netns/machine --capability=CAP_NET_ADMIN \
                --resolv-conf=off --timezone=off --link-journal=no --kill-signal=SIGRTMIN+3 \
                /bin/sh -c "$init" sh $controllers
        ) 9>&- < /dev/null >> log 2>&1
        code=$?
        echo "== systemd-nspawn ended with $code" >> log
        [ $code = 133 ] || return # it wants to be booted again
    done
}

case ${1:-} in
can | base | sweep) "$1" ;;
keep) keep "$2" "$3" ;;
kept) shift && kept "$@" ;;
*) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

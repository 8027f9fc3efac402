#!/bin/sh
# Makes this machine a worker of a fleet, with a launchd daemon on a Mac and a systemd service on Linux.
#
#   sudo deploy/mac/join.sh --pair qwen3-4b
#
# It asks for the URL of the fleet's Redis, with this worker's user and password, unless REDIS_URL has it. Running it
# again is harmless: it changes what is not as it should be, and restarts the worker only then. So it is the way to
# upgrade (git pull, then join.sh) and to change an option. leave.sh removes all of it.
set -eu

usage() {
    cat <<'TEXT'
usage: sudo deploy/mac/join.sh --pair NAME [OPTION…] [-- OPTION OF `draftmill worker`…]
  --pair NAME          pair to serve; auto: what `draftmill workers pair` says
  --host NAME          name of this machine in the fleet; default: its host name
  --user NAME          who runs the worker; default: who called sudo
  --drain SECONDS      what a stop may take to finish what runs; default: 300
  --wired-limit MB     on a Mac: let the GPU use so much of its memory, from each boot on
  --prefix DIR         where everything goes; default: /opt/draftmill
  --venv DIR           a virtual environment with draftmill in it; default: one of its own, from this checkout
  --wait SECONDS       for a heartbeat of the worker; default: 300 if it was started
The URL of Redis is that of REDIS_URL, or the one that this machine joined with before, or asked for.
DESTDIR=DIR puts all files below DIR and starts nothing.
TEXT
}

say() { printf '%s\n' "$*"; }
fail() { printf 'join.sh: %s\n' "$*" >&2; exit 2; }

root=${DESTDIR:-}
prefix=/opt/draftmill pair='' user='' drain=300 wired='' venv='' wait=''
host=$(uname -n | sed 's/[.].*//; s/[^A-Za-z0-9_-]/-/g')
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        --pair | --host | --user | --drain | --wired-limit | --prefix | --venv | --wait)
            [ $# -gt 1 ] || fail "$1 needs a value; see join.sh --help" ;;
        *) fail "no such option: $1; see join.sh --help" ;;
    esac
    case $1 in
        --pair) pair=$2 ;;
        --host) host=$2 ;;
        --user) user=$2 ;;
        --drain) drain=$2 ;;
        --wired-limit) wired=$2 ;;
        --prefix) prefix=$2 ;;
        --venv) venv=$2 ;;
        --wait) wait=$2 ;;
    esac
    shift 2
done

# What the machine is, and who runs the worker.

source=$(cd "$(dirname "$0")/../.." && pwd)
system=$(uname -s)
case $system in
    Darwin)
        [ "$(uname -m)" = arm64 ] || fail "this Mac has no Apple silicon, which MLX needs (or this is a Rosetta shell)"
        version=$(sw_vers -productVersion)
        [ "${version%%.*}" -ge 14 ] || fail "macOS $version is too old for MLX; update to 14 or later" ;;
    Linux) ;;
    *) fail "$system is neither macOS nor Linux" ;;
esac
if [ -n "$root" ]; then
    user=${user:-$(id -un)}
else
    [ "$(id -u)" -eq 0 ] || fail "it writes below $prefix and sets up a service: call it with sudo"
    user=${user:-${SUDO_USER:-}}
    [ -n "$user" ] || fail "say with --user who is to run the worker"
fi
id "$user" >/dev/null 2>&1 || fail "there is no user $user"

home=$root$prefix
settings=$home/worker.env
url=${REDIS_URL:-}
[ -n "$url" ] || [ ! -r "$settings" ] || url=$(sed -n "s/^REDIS_URL='\(.*\)'$/\1/p" "$settings")
if [ -z "$url" ] && [ -t 0 ]; then
    printf 'URL of the Redis, such as rediss://worker:PASSWORD@queue.local:6379 (not shown): '
    trap 'stty echo' EXIT INT TERM
    stty -echo
    read -r url
    stty echo
    trap - EXIT INT TERM
    say
fi
[ -n "$url" ] || fail "REDIS_URL is not set: it names the Redis of the fleet and this worker's user there"
[ -n "$pair" ] || fail "say which --pair to serve, or --pair auto"
case $drain$wait$wired in *[!0-9]*) fail "--drain, --wait and --wired-limit are whole numbers" ;; esac
options="--pair $pair --host $host --drain $drain"
[ "$system" = Linux ] || options="$options --log $root/var/log/draftmill/worker.log"
options="$options${*:+ $*}"
for value in "$url" "$options" "$home" "$user" "$venv"; do
    case $value in
        *[\'\|\\\<\>]* | *'
'*) fail "no quotes, bars, backslashes, angle brackets or line ends, please: percent-encode them in REDIS_URL" ;;
    esac
done
case $home$user$venv in *[\&\ ]*) fail "no spaces and no & in folders and user names, please" ;; esac

# Small tools.

changed=''

# Writes standard input to a file with this mode, unless it is there already.
put() {
    mkdir -p "$(dirname "$2")"
    (umask 077 && cat >"$2.new")
    chmod "$1" "$2.new"
    if cmp -s "$2.new" "$2"; then
        rm "$2.new"
    else
        mv "$2.new" "$2"
        changed=yes
        say "wrote $2"
    fi
}

# A template of deploy/, with its @WORDS@ filled in.
fill() {
    sed -e "s|@PREFIX@|$home|g" -e "s|@LOGS@|$root/var/log/draftmill|g" -e "s|@USER@|$user|g" \
        -e "s|@STOP_SECONDS@|$((drain + 30))|g" -e "s|@WIRED_LIMIT@|$wired|g" "$source/deploy/$1"
}

own() { [ "$(id -un)" = "$user" ] || chown -R "$user" "$@"; }

# draftmill with the worker's settings, as the user who runs the worker.
mill() {
    if [ "$(id -un)" = "$user" ]; then
        "$home/draftmill" "$@"
    elif command -v runuser >/dev/null; then
        runuser -u "$user" -- "$home/draftmill" "$@"
    else
        sudo -u "$user" "$home/draftmill" "$@"
    fi
}

# The virtual environment. It is filled from a copy, so that no build is left in the checkout.

newest_python() {
    PATH=$PATH:/opt/homebrew/bin # sudo may leave it out
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "draftmill needs Python 3.11, 3.12 or 3.13; on a Mac: brew install python@3.12"
}

install_package() {
    code=$(cd "$source" && find pyproject.toml ./*.py kernels engine producer worker deploy/lock -type f ! -name '*.pyc' \
        -exec cksum {} + | sort -k 3 | cksum)
    if [ -x "$venv/bin/draftmill" ] && [ "$code" = "$(cat "$venv/installed" 2>/dev/null)" ]; then return; fi
    say "installing draftmill into $venv"
    if [ ! -x "$venv/bin/python" ]; then "$(newest_python)" -m venv "$venv"; fi
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    (cd "$source" && tar -cf - --exclude '*.pyc' pyproject.toml README.md LICENSE py.typed ./*.py kernels engine producer \
        worker) | tar -xf - -C "$copy"
    # The same versions on all machines of a fleet: those of the lock.
    install="$venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps"
    for file in tools worker; do
        $install --require-hashes --only-binary :all: -r "$source/deploy/lock/$file.txt"
    done
    $install --no-build-isolation "$copy"
    printf '%s\n' "$code" >"$venv/installed"
    changed=yes
}

mkdir -p "$home/home" "$home/cache"
chmod 755 "$home"
chmod 700 "$home/home"
if [ -z "$venv" ]; then
    venv=$home/venv
    install_package
fi

# Its settings, for its user's eyes only, and what reads them.

put 600 "$settings" <<EOT
REDIS_URL='$url'
DRAFTMILL_HOME='$home/home'
DRAFTMILL_CACHE='$home/cache'
HF_HOME='$home/cache/hub'
DRAFTMILL_VENV='$venv'
DRAFTMILL_WORKER='$options'
EOT
put 755 "$home/draftmill" <"$source/deploy/mac/worker.sh"
own "$home/home" "$home/cache" "$settings"
if [ "$pair" != auto ]; then
    say "fetching $pair, unless it is here"
    mill pairs --fetch "$pair"
fi

# The service.

label=org.draftmill.worker
started=''
if [ "$system" = Darwin ]; then
    daemons=$root/Library/LaunchDaemons
    mkdir -p "$root/var/log/draftmill"
    own "$root/var/log/draftmill"
    fill mac/newsyslog.conf | put 644 "$root/etc/newsyslog.d/draftmill.conf"
    fill mac/$label.plist | put 644 "$daemons/$label.plist"
    if [ -n "$wired" ]; then
        fill mac/org.draftmill.wired-limit.plist | put 644 "$daemons/org.draftmill.wired-limit.plist"
        [ -n "$root" ] || sysctl "iogpu.wired_limit_mb=$wired"
    elif [ -e "$daemons/org.draftmill.wired-limit.plist" ]; then
        rm "$daemons/org.draftmill.wired-limit.plist"
        changed=yes
        say "removed $daemons/org.draftmill.wired-limit.plist"
        [ -n "$root" ] || sysctl iogpu.wired_limit_mb=0 # the system's own limit
    fi
    if [ -z "$root" ]; then
        if [ -n "$changed" ] && launchctl print system/$label >/dev/null 2>&1; then
            say "stopping the worker; it may take $drain s to finish what runs"
            launchctl bootout system/$label || true
            while launchctl print system/$label >/dev/null 2>&1; do sleep 1; done
        fi
        launchctl print system/$label >/dev/null 2>&1 || launchctl bootstrap system "$daemons/$label.plist"
        started=yes
    fi
else
    fill linux/draftmill-worker.service | put 644 "$root/etc/systemd/system/draftmill-worker.service"
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl enable --quiet draftmill-worker
        if [ -n "$changed" ]; then systemctl restart draftmill-worker; else systemctl start draftmill-worker; fi
        started=yes
    fi
fi

[ -n "$changed" ] || say "nothing to change"
[ -n "$started" ] || say "nothing was started; by hand: $home/draftmill worker"
if [ -n "$started$wait" ]; then
    say "waiting for its heartbeat"
    if ! mill workers --host "$host" --wait "${wait:-300}"; then
        say "no heartbeat after ${wait:-300} s. Its log: $root/var/log/draftmill, or on Linux: journalctl -u draftmill-worker" >&2
        exit 1
    fi
fi
say "to remove all of it: ${root:+DESTDIR=$root }$source/deploy/mac/leave.sh --prefix $prefix"

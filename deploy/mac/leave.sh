#!/bin/sh
# Takes this machine out of the fleet and removes what join.sh put here. The worker finishes what it runs, or hands it
# back.
#
#   sudo deploy/mac/leave.sh [--prefix DIR] [--force]
#
# Results that the fleet's Redis has not taken yet stay, and so does the rest, unless --force is given.
set -eu

say() { printf '%s\n' "$*"; }
fail() { printf 'leave.sh: %s\n' "$*" >&2; exit 2; }

root=${DESTDIR:-}
prefix=/opt/draftmill force=''
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) [ $# -gt 1 ] || fail "--prefix needs a folder"; prefix=$2; shift 2 ;;
        --force) force=yes; shift ;;
        *) fail "usage: sudo deploy/mac/leave.sh [--prefix DIR] [--force]" ;;
    esac
done
[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || fail "it removes a service and $prefix: call it with sudo"

home=$root$prefix
daemons=$root/Library/LaunchDaemons

remove() {
    for path in "$@"; do
        if [ -e "$path" ]; then
            rm -rf "$path"
            say "removed $path"
        fi
    done
}

# The worker first: it hands back what it does not finish.

if [ -z "$root" ] && [ "$(uname -s)" = Darwin ]; then
    say "stopping the worker"
    for label in org.draftmill.worker org.draftmill.wired-limit; do
        launchctl bootout system/$label 2>/dev/null || true
        while launchctl print system/$label >/dev/null 2>&1; do sleep 1; done
    done
    if [ -e "$daemons/org.draftmill.wired-limit.plist" ]; then sysctl iogpu.wired_limit_mb=0; fi # the system's own limit
elif [ -z "$root" ] && [ -d /run/systemd/system ]; then
    say "stopping the worker"
    systemctl disable --now --quiet draftmill-worker 2>/dev/null || true
fi

if [ -z "$force" ] && [ -d "$home/home/spool" ] && [ -n "$(find "$home/home/spool" -name '*.jsonl' -size +0)" ]; then
    fail "results wait in $home/home/spool until Redis takes them: run join.sh again when it is there, or use --force"
fi

remove "$daemons/org.draftmill.worker.plist" "$daemons/org.draftmill.wired-limit.plist" \
    "$root/etc/newsyslog.d/draftmill.conf" "$root/var/log/draftmill" "$root/etc/systemd/system/draftmill-worker.service"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

# Of the folder only what join.sh put there, in case it is shared with something else.
remove "$home/worker.env" "$home/draftmill" "$home/venv" "$home/home" "$home/cache"
rmdir "$home" 2>/dev/null || true
say "this machine has left the fleet"

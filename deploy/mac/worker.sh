#!/bin/sh
# draftmill with the settings of this machine's worker. join.sh puts it beside them; the service calls it with `worker`.
#   /opt/draftmill/draftmill doctor
set -eu
set -a
# shellcheck source=/dev/null
. "$(dirname "$0")/worker.env"
set +a

[ "${1:-}" = worker ] || exec "$DRAFTMILL_VENV/bin/draftmill" "$@"
shift
# Keeps a Mac awake for as long as this process, which becomes the worker, lives.
if command -v caffeinate >/dev/null; then caffeinate -i -w $$ & fi
# shellcheck disable=SC2086 # several options
exec "$DRAFTMILL_VENV/bin/draftmill" worker $DRAFTMILL_WORKER "$@"

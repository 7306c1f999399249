#!/usr/bin/env bash
# tools/fuzz.sh SECONDS [TARGET …] — runs the fuzz targets, each for so long, from seeds and from what was found before.
# The coverage comes from flags that every toolchain has, so neither cargo-fuzz nor a nightly compiler is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: tools/fuzz.sh SECONDS [TARGET …]}
shift
[ $# -gt 0 ] || set -- dns cni netlink objects

coverage="-C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4
  -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table
  -C llvm-args=-sanitizer-coverage-trace-compares -C codegen-units=1 -C debug-assertions --cfg fuzzing"
# With --target, build scripts are compiled without these flags.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS=$(echo $coverage) cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml \
  --target "$target" --target-dir target/fuzz

for name; do
  corpus=target/fuzz/corpus/$name
  mkdir -p "$corpus"
  if ! "target/fuzz/$target/release/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
    -artifact_prefix="target/fuzz/$name-" "$corpus" "fuzz/seeds/$name" 2>"$corpus.log"; then
    tail -30 "$corpus.log" >&2
    echo "fuzz: $name found an input that breaks it, see above; the file is target/fuzz/$name-*" >&2
    exit 1
  fi
  echo "fuzz: $name: $(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\).*/\1 inputs in \2 s/p' "$corpus.log"), none broke it"
done

"""What `./run test` and `./run matrix` are made of.

    lane      one part after another                                    mostly
    build     formatting, programs, tests, fuzzing, all crates          computes
    cluster   peers from source, then tests of a real cluster           waits for kubelets
    lab       tests of labs, then of nodes                              waits for pods

The lanes run side by side. What is tested is what users get: the programs are built in the release profile. The tests
are built in the development profile, without optimization: that is a fifth of the work, and computing is a small part
of what they do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from engine import Part

TOP = Path(__file__).resolve().parents[2]
PROGRAMS = TOP / "target/suite/bin"
IMAGE = TOP / "target/plumb.tar"

# Executables of the tiers that wait more than they compute: lane, threads, the parts that they need.
SLOW = {
    "plumb/cluster": ("cluster", 5, ("peers", "downloads", "programs", "image")),
    "plumb/lab": ("lab", 5, ("downloads", "programs")),
    "plumb/node": ("lab", 4, ("downloads", "programs")),
    "lab/lab": ("lab", 4, ("downloads",)),
}
# The tests that take PLUMB_COMBINATIONS.
COMBINED = ("plumb/lab", ["combinations::"])


def test(seed, without, only, tests):
    """Everything; or one part, or tests of one, with what it needs."""
    asked = os.environ.get("PLUMB_COMBINATIONS")
    environment = {"PLUMB_COMBINATIONS": asked or f"seed:{seed}"}
    again = f"PLUMB_COMBINATIONS={asked} ./run test" if asked else f"./run test --seed {seed}"
    wanted = Wanted(without, environment, {only: tests} if only else None, again=again)
    parts = [
        Part("peers", "cluster", [["tools/peers.sh"], ["tools/peers.sh", "coredns", "helm"]], again="tools/peers.sh"),
        downloads(),
        command("runner", "python3 -m unittest discover -s tools/suite", lane="lab"),  # it waits; the lane does, too
        command("formatting", "cargo fmt --all --check"),
        *build(wanted),
        # It computes beside tests that wait: these get the processor first.
        command("fuzz", "nice -n 10 tools/fuzz.sh 5", again="./run fuzz"),
    ]
    parts = [part for part in parts if part.name not in without]
    if only:
        parts = wanted.closure(parts, only)
    for part in parts:
        part.needs = tuple(need for need in part.needs if need not in without)
    return parts


def matrix(combinations):
    """The tests of combinations, one part for each."""
    environments = {name: {"PLUMB_COMBINATIONS": name} for name in combinations}
    parts = build(Wanted((), environments, None, COMBINED))
    return [downloads(), *(part for part in parts if part.name not in ("image", "compile-tests"))]


def command(name, words, lane="build", needs=(), again=""):
    return Part(name, lane, [words.split()], needs=needs, again=again or words, quiet=True)


def downloads():
    """What Debian's and Python's registries have ready."""
    return Part("downloads", "lab", [["tools/kubectl.sh"], ["tools/vm.sh", "--fetch"], ["tools/prometheus.sh"]],
                again="tools/kubectl.sh; tools/vm.sh --fetch; tools/prometheus.sh", quiet=True)


def build(wanted):
    """The programs as users get them, the tests, and the image."""
    words = "cargo build --locked --workspace"
    return [
        # Copies, because the image links the programs anew, in their place, while tests run.
        Part("programs", "build", [f"{words} --release --bins".split(), ["mkdir", "-p", str(PROGRAMS)], [
            "cp", "--remove-destination", "target/release/plumb", "target/release/plumb-cni", str(PROGRAMS)]],
            again=f"{words} --release --bins", quiet=True),
        command("image", "./run image", needs=("programs",)),
        # The tiers that wait begin while the rest is compiled.
        compiled("compile-tiers", [f"--test={name.partition('/')[2]}" for name in SLOW], wanted.tiers),
        compiled("compile-tests", ["--all-targets"], wanted.others, ["nice", "-n", "10"]),
    ]


def compiled(name, targets, more, before=()):
    """Test executables, of the whole workspace in both parts: cargo chooses the features of crates by what is asked for."""
    words = "cargo build --locked --workspace --message-format json-render-diagnostics".split()
    return Part(name, "build", [[*before, *words, *sorted(set(targets))]], environment=lints(), more=more,
                again="./run check", quiet=True)


def lints():
    """Our crates are compiled by clippy, and every warning is an error, so that lints take no pass of their own over all
    crates. These two variables are what cargo-clippy sets, too."""
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    return {"RUSTC_WORKSPACE_WRAPPER": f"{sysroot}/bin/clippy-driver", "CLIPPY_ARGS": "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__"}


class Wanted:
    """Which test executables become parts, and how they are run."""

    def __init__(self, without, environment, filters, combined=None, again=""):
        self.without, self.environment, self.filters, self.combined = without, environment, filters, combined
        self.again = again  # the command that takes the same combinations

    def closure(self, parts, name):
        """The part and what it needs; an executable needs what builds it. Nothing if there is no such part."""
        by_name = {part.name: part for part in parts}
        if name not in by_name and not exists(name):
            return []
        if name in by_name:
            todo = [name]
        elif name in SLOW:
            todo = ["compile-tiers", *SLOW[name][2]]
        else:
            todo = ["compile-tests"]
        needed = set()
        while todo:
            part = by_name.get(todo.pop())
            if part and part.name not in needed:
                needed.add(part.name)
                todo.extend(part.needs)
        return [part for part in parts if part.name in needed]

    def tiers(self, lines):
        return self.executables(lines, lambda name: name in SLOW)

    def others(self, lines):
        return self.executables(lines, lambda name: name not in SLOW)

    def executables(self, lines, takes):
        found = []
        for line in lines:
            message = json.loads(line)
            if message.get("reason") != "compiler-artifact" or not message.get("executable"):
                continue
            if message["profile"]["test"] and takes(name_of(message)):
                found.extend(self.parts_of(message))
        return found

    def parts_of(self, message):
        name = name_of(message)
        if self.combined:
            if name != self.combined[0]:
                return []
            return [executable(message, environment, self.combined[1], f"./run matrix {combination}",
                               called=f"{name} {combination}")
                    for combination, environment in self.environment.items()]
        if self.filters is not None and name not in self.filters:
            return []
        again = self.again if name == COMBINED[0] else "./run test"
        return [executable(message, self.environment, (self.filters or {}).get(name, []), f"{again} {name} {{}}",
                           without=self.without)]


def name_of(message):
    """`dns` for the unit tests of a crate, `plumb/lab` for another executable."""
    package, target = Path(message["manifest_path"]).parent.name, message["target"]
    return package if "lib" in target["kind"] else f"{package}/{target['name']}"


def exists(name):
    """Whether the tree has the crate, or its test."""
    package, _, test = name.partition("/")
    crate = TOP / "crates" / package
    library = crate / "src/lib.rs"
    places = [crate / f"tests/{test}.rs", crate / f"tests/{test}/main.rs"] if test else [library]
    if test and not library.exists():
        places.append(crate / "src/main.rs")  # a crate of a program alone has its unit tests there
    return any(place.exists() for place in places)


def executable(message, environment, tests, again, called="", without=()):
    directory = Path(message["manifest_path"]).parent
    name = name_of(message)
    lane, threads, needs = SLOW.get(name, ("build", os.cpu_count() or 1, ()))
    environment = {
        "CARGO_MANIFEST_DIR": str(directory),
        "CARGO_PKG_NAME": directory.name,
        "PLUMB_BIN": str(PROGRAMS / "plumb"),
        "PLUMB_IMAGE": str(IMAGE),
        "RUST_TEST_THREADS": str(threads),
        **environment,
    }
    words = [str(TOP / "tools/test-runner.sh"), message["executable"], *tests]
    needs = tuple(need for need in needs if need not in without)
    # Who asks for certain tests wants to see them fail.
    once_more = (lambda test: [*words[:2], "--exact", test]) if name in SLOW and not tests else None
    return Part(called or name, lane, [words], needs=needs, directory=str(directory), environment=environment,
                again=again, quiet=lane == "build", once_more=once_more)


def combinations():
    """All that there are, as crates/combine says."""
    said = subprocess.run(["cargo", "run", "--locked", "--quiet", "-p", "combine", "--", "all"],
                          cwd=TOP, stdout=subprocess.PIPE, text=True)
    if said.returncode:
        sys.exit("run: the list of combinations could not be made; cargo says why above")
    return said.stdout.split()

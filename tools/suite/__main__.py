"""The parts of the tests, side by side: how long each took, how to run alone what failed, an end in time.

    python3 tools/suite test [--seed N] [--limit MINUTES] [--without PART]… [PART [TEST …]]
    python3 tools/suite matrix [--limit MINUTES] [--list] [COMBINATION …]
"""

import argparse
import os
import random
import signal
import sys

import parts
from engine import Suite
from report import Report


def arguments():
    parser = argparse.ArgumentParser(prog="./run", description="Runs tests in parts, side by side.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    test = verbs.add_parser("test", help="everything, or one part of it")
    test.add_argument("--seed", type=int, help="which combinations are run beside the default")
    test.add_argument("--without", action="append", default=[], metavar="PART", help="leave this out")
    test.add_argument("part", nargs="?", help="such as fuzz, dns (unit tests of a crate), plumb/lab")
    test.add_argument("tests", nargs="*", help="names of tests, or parts of names")
    matrix = verbs.add_parser("matrix", help="every combination, or some")
    matrix.add_argument("--list", action="store_true", help="name the combinations")
    matrix.add_argument("combination", nargs="*", help="such as nftables+vxlan+bridge+dual")
    for verb in (test, matrix):
        verb.add_argument("--limit", type=float, default=75, metavar="MINUTES", help="end by itself then (75)")
    # What ./run gives to both verbs.
    matrix.add_argument("--without", action="append", default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(given):
    """The parts that the words ask for."""
    if given.verb == "test":
        seed = random.randrange(10**6) if given.seed is None else given.seed
        if given.part in (None, parts.COMBINED[0]):
            print(f"combinations beside the default: --seed {seed}")
        return parts.test(seed, given.without, given.part, given.tests)
    known = parts.combinations()
    unknown = [word for word in given.combination if word not in known]
    if unknown:
        sys.exit(f"run: there is no combination {unknown[0]}; ./run matrix --list names them")
    if given.list:
        print("\n".join(known))
        sys.exit(0)
    return parts.matrix(given.combination or known)


def main():
    given = arguments()
    os.chdir(parts.TOP)
    if "CI" in os.environ:
        os.environ.setdefault("CARGO_INCREMENTAL", "0")  # nobody will change a file and build again
    report = Report()
    suite = Suite(chosen(given), parts.TOP / "target/suite", given.limit * 60, report.said)
    if not suite.parts:
        sys.exit(f"run: there is no part {given.part}: a crate (dns), a test of one (plumb/lab), fuzz, formatting …")
    if getattr(given, "tests", None) and suite.named(given.part):
        sys.exit(f"run: {given.part} is one command, without tests to choose from; ./run test {given.part} runs it")
    report.watch(suite)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: suite.interrupt(signal.Signals(number).name))
    right = suite.run()
    report.table(suite)
    report.left_out(os.environ.get("NOT_RUN"))
    report.close(suite)
    if right and getattr(given, "part", None) and not suite.named(given.part):
        sys.exit(f"run: there is no part {given.part}")
    if right and getattr(given, "tests", None) and not any(part.passed + part.ignored for part in suite.parts):
        sys.exit(f"run: no test of {given.part} has {' or '.join(given.tests)} in its name")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

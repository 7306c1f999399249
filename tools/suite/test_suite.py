"""The runner's own tests: python3 -m unittest discover -s tools/suite"""

import io
import os
import re
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import engine
import parts
from engine import Part, Suite
from report import Report

# What a Rust test program prints.
ONE_FAILS = """
running 3 tests
test first ... ok
test second - should panic ... ok
test sub::third ... FAILED

failures:

---- sub::third stdout ----
the reason

failures:
    sub::third

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""


def shell(name, script, lane="a", **more):
    return Part(name, lane, [["sh", "-ec", script]], again=f"run {name} {{}}", **more)


class Runs(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def run_suite(self, *parts, limit=60):
        """Runs parts; gives the suite, whether all passed, and what a person saw."""
        report = Report(io.StringIO())
        suite = Suite(parts, self.directory / "logs", limit, report.said)
        report.suite = suite
        right = suite.run()
        report.table(suite)
        report.close(suite)
        return suite, right, report.out.getvalue()

    def test_lanes_run_side_by_side_and_parts_of_one_after_another(self):
        def meets(mine, other):
            return f"cd {self.directory}; touch {mine}; until [ -e {other} ]; do sleep 0.01; done"

        suite, right, _ = self.run_suite(
            shell("left", meets("l", "r"), lane="a"), shell("right", meets("r", "l"), lane="b"),
            shell("later", f"[ -e {self.directory}/l ] && ! [ -e {self.directory}/x ]", lane="a"),
            shell("last", f"touch {self.directory}/x", lane="a"))
        self.assertTrue(right, [(part.name, part.state, part.why) for part in suite.parts])

    def test_what_needs_a_part_that_failed_does_not_run_and_is_named(self):
        _, right, said = self.run_suite(
            shell("base", "echo no luck; false"), shell("upon", "true", needs=("base",)),
            shell("top", "true", lane="b", needs=("upon",)), shell("apart", "true"))
        self.assertFalse(right)
        for words in ("base: FAILED (exit code 1)", "    no luck", "not run: upon (base did not pass)",
                      "not run: top (upon did not pass)"):
            self.assertIn(words, said)
        self.assertTrue(said.endswith("\n0 passed, 3 failed\n"), said)

    def test_at_the_limit_everything_ends_and_what_did_not_run_is_named(self):
        child = self.directory / "child"
        tests = f"echo running 5 tests; echo test a ... ok; sleep 600 & echo $! >{child}; wait"
        began = time.monotonic()
        suite, right, said = self.run_suite(shell("long", tests), shell("waits", "true"), limit=1)
        self.assertLess(time.monotonic() - began, 60)
        self.assertFalse(right)
        self.assertIn("cut off: long (the time limit, 4 of 5 tests not run)", said)
        self.assertIn("not run: waits (the time limit)", said)
        self.assertIn("ended by the time limit", said)
        self.assertTrue(said.endswith("\n1 passed, 2 failed\n"), said)
        self.ends(int(child.read_text()))

    def ends(self, pid):
        """Waits until there is no such process, or nothing of it but its exit code."""
        for _ in range(200):
            try:
                if re.search(r"State:\s+Z", Path(f"/proc/{pid}/status").read_text()):
                    return
            except FileNotFoundError:
                return
            time.sleep(0.05)
        self.fail(f"process {pid} runs on")

    @mock.patch.object(engine, "GRACE", 0.5)
    def test_what_takes_no_sigterm_is_killed(self):
        child = self.directory / "child"
        deaf = "trap '' TERM; while :; do sleep 1; done"
        _, right, said = self.run_suite(shell("deaf", f"sh -c \"{deaf}\" & echo $! >{child}; {deaf}"), limit=1)
        self.assertFalse(right)
        self.assertIn("cut off: deaf (the time limit)", said)
        self.assertIn("  alone: run deaf", said)
        self.ends(int(child.read_text()))

    def test_a_failure_before_the_limit_is_shown_too(self):
        _, right, said = self.run_suite(
            shell("long", "echo running 2 tests; echo test a ... FAILED; exec sleep 600"), limit=1)
        self.assertFalse(right)
        self.assertIn("failed: long a\n  alone: run long a\n", said)
        self.assertTrue(said.endswith("\n0 passed, 2 failed\n"), said)

    @unittest.skipIf(sys.version_info < (3, 11), "groups need Python 3.11")
    def test_parts_stay_in_the_session_in_which_sudo_was_asked(self):
        _, right, _ = self.run_suite(shell("one", f"[ $(ps -o sid= -p $$) = {os.getsid(0)} ]"))
        self.assertTrue(right)

    def test_a_reader_that_left_ends_no_run(self):
        read, write = os.pipe()
        os.close(read)
        report = Report(os.fdopen(write, "w"))
        report.suite = Suite([shell("one", "true")], self.directory / "logs", 60, report.said)
        self.assertTrue(report.suite.run())
        report.table(report.suite)
        report.close(report.suite)

    def test_tests_that_want_root_are_skipped_and_not_passed(self):
        runner = parts.TOP / "tools/test-runner.sh"
        program = self.directory / "cluster"
        program.write_text("#!/bin/sh\necho one: test\necho sub::two: test\n")
        program.chmod(0o755)
        # An ordinary user to whom sudo gives nothing, whoever runs this.
        for name, script in (("sudo", "exit 1"), ("id", "echo 1000")):
            (self.directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (self.directory / name).chmod(0o755)
        part = Part("tier", "a", [[str(runner), str(program)]], environment={
            "CARGO_PKG_NAME": "plumb", "NOT_RUN": str(self.directory / "noted"),
            "PATH": f"{self.directory}:{os.environ['PATH']}"})
        _, right, said = self.run_suite(part)
        self.assertTrue(right, said)
        self.assertTrue(said.endswith("\n0 passed, 0 failed, 2 skipped\n"), said)

    def test_a_failure_shows_its_reason_and_how_to_run_that_test_alone(self):
        suite, right, said = self.run_suite(shell("tier", f"cat <<'END'\n{ONE_FAILS}\nEND\nexit 101"))
        self.assertFalse(right)
        self.assertIn("    the reason", said)
        self.assertEqual(said.count("alone: run tier sub::third"), 2, said)
        self.assertTrue(said.endswith("\n2 passed, 1 failed\n"), said)

    def test_what_passes_alone_is_unsteady_and_a_failure_all_the_same(self):
        def tier(alone):
            said = f"cat <<'END'\n{ONE_FAILS}\nEND\nexit 101"
            return shell("tier", said, once_more=lambda test: ["sh", "-ec", f"echo running 1 test; {alone}"])

        passes = "echo test sub::third ... ok; echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0'"
        suite, right, said = self.run_suite(tier(passes))
        self.assertFalse(right)
        self.assertIn("unsteady: tier sub::third failed beside others and passed alone", said)
        self.assertTrue(said.endswith("\n2 passed, 1 failed (1 of these passed alone)\n"), said)
        self.assertEqual([part.name for part in suite.parts], ["tier"])
        for fails in ("echo test sub::third ... FAILED; exit 101", "echo 'test result: ok. 0 passed; 0 failed; 0 ignored; 0'"):
            _, right, said = self.run_suite(tier(fails))
            self.assertFalse(right)
            self.assertTrue(said.endswith("\n2 passed, 1 failed\n"), said)

    def test_many_failures_are_not_tried_again(self):
        tests = "".join(f"test t{number} ... FAILED\n" for number in range(engine.UNSTEADY + 1))
        said = f"echo running 4 tests; printf '{tests}'; exit 101"
        _, right, said = self.run_suite(shell("tier", said, once_more=lambda test: ["touch", f"{self.directory}/again"]))
        self.assertFalse(right)
        self.assertFalse((self.directory / "again").exists())

    def test_a_program_that_dies_without_a_failed_test_has_failed(self):
        _, right, said = self.run_suite(shell("tier", "echo running 2 tests; echo test a ... ok; kill -9 $$"))
        self.assertFalse(right)
        self.assertIn("tier: FAILED (signal 9)", said)
        self.assertTrue(said.endswith("\n1 passed, 1 failed\n"), said)

    def test_a_program_that_ends_well_before_its_tests_has_failed(self):
        for early in ("echo test a ... ok", "echo test a ... FAILED"):
            _, right, said = self.run_suite(shell("tier", f"echo running 2 tests; {early}; exit 0"))
            self.assertFalse(right)
            self.assertIn("tier: FAILED (it ended before its tests did)", said)

    def test_sums_are_the_programs_own(self):
        torn = "running 2 tests\ntest a ... noise\nok\ntest b ... ok\n\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0"
        _, right, said = self.run_suite(shell("tier", f"cat <<'END'\n{torn}\nEND"))
        self.assertTrue(right)
        self.assertTrue(said.endswith("\n2 passed, 0 failed\n"), said)

    def test_a_fault_of_the_runner_is_the_parts_failure(self):
        def more(lines):
            raise ValueError("no JSON")

        _, right, said = self.run_suite(shell("one", "true", more=more), shell("two", "true", needs=("one",)))
        self.assertFalse(right)
        self.assertIn("no JSON", said)
        self.assertIn("not run: two", said)

    def test_what_a_command_leaves_behind_holds_nobody_up(self):
        began = time.monotonic()
        _, right, _ = self.run_suite(shell("quick", "sleep 50 & echo started"))
        self.assertTrue(right)
        self.assertLess(time.monotonic() - began, 40)

    def test_a_part_may_bring_parts_and_the_table_has_their_tests(self):
        def more(lines):
            self.assertEqual(lines, ['{"a": 1}\n'])
            return [shell("brought", "echo running 1 test; echo test x ... ok; sleep 6; echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0'", lane="new")]

        _, right, said = self.run_suite(shell("bringer", "echo '{\"a\": 1}'; echo words", more=more))
        self.assertTrue(right)
        self.assertRegex(said, r"brought +0:06 +0:00 +1\n")
        self.assertTrue(said.endswith("\n1 passed, 0 failed\n"), said)


class Words(unittest.TestCase):
    """What a person may write behind ./run test."""

    def run_words(self, *words):
        return subprocess.run([sys.executable, str(parts.TOP / "tools/suite"), *words], capture_output=True, text=True,
                              env={k: v for k, v in os.environ.items() if k != "PLUMB_COMBINATIONS"})

    def test_a_part_that_is_one_command_takes_no_names_of_tests(self):
        said = self.run_words("test", "formatting", "dns")
        self.assertEqual(said.returncode, 1)
        self.assertIn("formatting is one command", said.stderr)

    def test_a_part_that_is_not_there_is_named(self):
        said = self.run_words("test", "nothing")
        self.assertEqual(said.returncode, 1)
        self.assertIn("there is no part nothing", said.stderr)

    def test_a_failure_in_combinations_is_repeated_with_the_same_ones(self):
        message = {"manifest_path": str(parts.TOP / "crates/plumb/Cargo.toml"), "executable": "lab",
                   "target": {"kind": ["test"], "name": "lab"}, "profile": {"test": True}}
        lines = [parts.json.dumps({"reason": "compiler-artifact", **message})]
        with mock.patch.dict(os.environ):
            os.environ.pop("PLUMB_COMBINATIONS", None)
            compiles = {part.name: part for part in parts.test(7, [], None, []) if part.more}
            [part] = compiles["compile-tiers"].more(lines)
        self.assertEqual(compiles["compile-tests"].more(lines), [], "it is a part already")
        self.assertEqual(part.again.format("combinations::a"), "./run test --seed 7 plumb/lab combinations::a")


if __name__ == "__main__":
    unittest.main()

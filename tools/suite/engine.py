"""Lanes of parts: each lane runs one part at a time, all lanes side by side, until a common deadline.

A part is ready when the parts that it needs have passed. A part whose needs failed does not run, and says so. At the
deadline everything that runs is ended, and what did not come to its end is reported by name.

A test of processes, timers and packets that failed beside all others is run once more, alone, after everything else. It
stays a failure of the run; one that passes alone is called unsteady, which says where to look.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

RESULT = re.compile(r"^test (\S+)(?: - .*)? \.\.\. (ok|FAILED|ignored)")
SUMMARY = re.compile(r"^test result: (?:ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored")
RUNNING = re.compile(r"^running (\d+) tests?$")
GRACE = 10  # seconds between SIGTERM and SIGKILL
UNSTEADY = 3  # tests of a run that are tried alone; if more failed, none is
# A group, so that a command can be ended with all that it started. Where Python can, the session stays the person's own:
# in another, sudo would ask for the password again.
GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


@dataclass
class Part:
    """One command, or several after one another."""

    name: str
    lane: str
    commands: list  # of lists of words
    needs: tuple = ()
    directory: str = "."
    environment: dict = field(default_factory=dict)
    again: str = ""  # the command that repeats it; `{}` is the test, where it has tests
    more: object = None  # called with its lines of JSON once it has passed; gives further parts
    quiet: bool = False  # said only when it takes long or fails
    once_more: object = None  # gives the command of one test by name, where the load of others may be why it failed

    # What became of it.
    state: str = "waits"  # waits, runs, passed, failed, cut off, not run
    began: float = 0.0
    took: float = 0.0
    cpu: float = 0.0
    expected: int = 0
    begun: int = 0  # test programs that said how many tests they have
    ended: int = 0  # those that said what became of them
    passed: int = 0
    failed: int = 0
    ignored: int = 0
    sums: tuple = (0, 0, 0)  # of the test programs that have ended
    failures: list = field(default_factory=list)
    unsteady: list = field(default_factory=list)  # of the failures, those that passed alone
    why: str = ""
    log: Path = None
    process: subprocess.Popen = None

    @property
    def over(self):
        return self.state not in ("waits", "runs")


class Suite:
    """The parts and what became of them. `said(event, part)` is told of every change."""

    def __init__(self, parts, logs, limit, said=lambda event, part: None):
        self.parts = list(parts)
        self.logs = Path(logs)
        self.start = time.monotonic()
        self.deadline = self.start + limit
        self.said = said
        self.lock = threading.Condition()
        self.stopped = ""  # why everything was ended, if it was
        self.enders = []

    def named(self, name):
        return next((part for part in self.parts if part.name == name), None)

    def run(self):
        """Runs everything; true if every part passed."""
        threads, lanes, tried = [], set(), None
        with self.lock:
            while True:
                for lane in {part.lane for part in self.parts} - lanes:
                    lanes.add(lane)
                    threads.append(threading.Thread(target=self._lane, args=(lane,), daemon=True))
                    threads[-1].start()
                if all(part.over for part in self.parts):
                    if tried is not None:
                        for part, test, alone in tried:
                            self.parts.remove(alone)
                            if alone.state == "passed" and alone.passed:
                                part.unsteady.append(test)
                        break
                    tried = self._once_more()
                    self.parts.extend(alone for _, _, alone in tried)
                    continue
                if not self.stopped and time.monotonic() >= self.deadline:
                    self.stop("the time limit")
                self.lock.wait(timeout=1)
        for thread in threads + self.enders:
            thread.join(timeout=3 * GRACE)
        return all(part.state == "passed" for part in self.parts)

    def stop(self, why):
        """Ends what runs; what waits does not begin any more."""
        self.stopped = self.stopped or why
        for part in self.parts:
            if part.state == "runs" and part.process:
                self.enders.append(threading.Thread(target=end_group, args=(part.process,), daemon=True))
                self.enders[-1].start()
        for part in self.parts:
            if part.state == "waits":
                self._settle(part, "not run", why)

    def interrupt(self, why):
        with self.lock:
            self.stop(why)

    def _once_more(self):
        """The tests that are tried alone: of parts with `once_more`, if they are few."""
        failed = [part for part in self.parts if part.once_more and part.state == "failed" and part.failures]
        tests = [(part, test) for part in failed for test in part.failures]
        if self.stopped or len(tests) > UNSTEADY:
            return []
        return [(part, test, Part(f"{part.name} {test}", "alone", [part.once_more(test)], directory=part.directory,
                                  environment=part.environment, again=part.again.format(test))) for part, test in tests]

    def _settle(self, part, state, why=""):
        part.state, part.why = state, why
        self.said(state, part)
        self.lock.notify_all()

    def _lane(self, lane):
        while True:
            with self.lock:
                part = self._next(lane)
                if part is None:
                    if all(other.over for other in self.parts):
                        return
                    self.lock.wait(timeout=1)
                    continue
                part.state, part.began = "runs", time.monotonic()
                self.said("runs", part)
            # Whatever goes wrong here is the part's failure: a lane that died would hold up the run.
            try:
                self._perform(part)
            except Exception as error:  # pylint: disable=broad-except
                with self.lock:
                    self._settle(part, "failed", f"the runner: {error!r}")

    def _next(self, lane):
        """The lane's first part that may begin. Parts whose needs failed are settled on the way."""
        for part in self.parts:
            if part.lane != lane or part.state != "waits":
                continue
            needs = [(name, self.named(name)) for name in part.needs]
            lost = [name for name, need in needs if need is None or (need.over and need.state != "passed")]
            if lost:
                self._settle(part, "not run", f"{lost[0]} did not pass")
            elif all(need.state == "passed" for _, need in needs):
                return part
        return None

    def _perform(self, part):
        self.logs.mkdir(parents=True, exist_ok=True)
        part.log = self.logs / (part.name.replace("/", "-").replace(" ", "-") + ".log")
        code, lines = 0, []
        with open(part.log, "w", encoding="utf-8", errors="replace") as log:
            for command in part.commands:
                code = self._command(part, command, log, lines)
                if code != 0:
                    break
        with self.lock:
            part.took = time.monotonic() - part.began
            part.process = None
            if self.stopped:
                self._settle(part, "cut off", self.stopped)
            elif code != 0:
                self._settle(part, "failed", f"exit code {code}" if code > 0 else f"signal {-code}")
            elif part.failed or part.begun != part.ended:
                self._settle(part, "failed", "it ended before its tests did")
            else:
                if part.more:
                    self.parts.extend(part.more(lines))
                self._settle(part, "passed")

    def _command(self, part, command, log, lines):
        with self.lock:
            if self.stopped:
                return -signal.SIGTERM
            try:
                part.process = subprocess.Popen(
                    command, cwd=part.directory, env={**os.environ, **part.environment}, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", **GROUP)
            except OSError as error:
                log.write(f"{command[0]}: {error}\n")
                return 127
        # A process that the command left behind may hold its output open: only the command itself is waited for.
        reader = threading.Thread(target=self._read, args=(part, part.process.stdout, log, lines), daemon=True)
        reader.start()
        _, status, usage = os.wait4(part.process.pid, 0)
        part.process.returncode = os.waitstatus_to_exitcode(status)
        reader.join(timeout=5)
        part.cpu += usage.ru_utime + usage.ru_stime
        return part.process.returncode

    def _read(self, part, output, log, lines):
        for line in output:
            if log.closed:
                return
            if part.more and line.startswith("{"):
                lines.append(line)
                continue
            count(part, line.rstrip("\n"))
            try:
                log.write(line)
                log.flush()
            except OSError:
                pass  # a full disk: the program must still be heard, or it would wait for ever


def count(part, line):
    """Takes a line of a test program's output into account."""
    if found := RUNNING.match(line):
        part.expected += int(found[1])
        part.begun += 1
    elif found := SUMMARY.match(line):
        # What was said test by test may be torn by others' output; these are the program's own sums.
        part.ended += 1
        part.passed, part.failed, part.ignored = (old + int(new) for old, new in zip(part.sums, found.groups()))
        part.sums = (part.passed, part.failed, part.ignored)
    elif found := RESULT.match(line):
        name, result = found.groups()
        if result == "ok":
            part.passed += 1
        elif result == "ignored":
            part.ignored += 1
        else:
            part.failed += 1
            part.failures.append(name)


def end_group(process):
    """SIGTERM to the process and all that it started, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            try:
                os.killpg(process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.05)

"""What a person sees of a run: a line for each change, where it stands now and then, a table at the end."""

import os
import sys
import threading
import time

EVERY = 30  # seconds between two looks at where it stands
SMALL = 5.0  # parts that took less are one row of the table
TAIL = 60  # lines of a failed command without test results


def clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes:3}:{seconds:02}"


class Report:
    def __init__(self, out=sys.stdout):
        self.out = out
        self.suite = None
        self.looked = time.monotonic()

    def line(self, text):
        self.print(f"[{clock(time.monotonic() - self.suite.start)}] {text}")

    def print(self, text):
        """One line; who reads may have gone (`./run test | head`)."""
        try:
            print(text, file=self.out, flush=True)
        except OSError:
            self.out = open(os.devnull, "w", encoding="utf-8")

    def watch(self, suite):
        """Says every now and then what runs and how far it is."""
        self.suite = suite

        def look():
            while True:
                time.sleep(EVERY)
                with suite.lock:
                    if all(part.over for part in suite.parts):
                        return
                    self.line(standing(suite))

        threading.Thread(target=look, daemon=True).start()

    def said(self, event, part):
        if event == "runs":
            if not part.quiet:
                self.line(f"{part.name} …")
        elif event == "passed":
            if not part.quiet or part.took >= SMALL:
                self.line(f"{part.name}: passed{counts(part)} in {clock(part.took).strip()}")
        else:
            self.line(f"{part.name}: {event.upper()} ({part.why})")
            if event == "failed" or part.failures:
                self.failure(part)

    def failure(self, part):
        """What it said, and how to run that alone."""
        lines = part.log.read_text(encoding="utf-8", errors="replace").splitlines() if part.log else []
        if part.failures and "failures:" in lines:
            lines = lines[lines.index("failures:"):]
        else:
            lines = lines[-TAIL:]
        for line in lines[:400]:
            self.print("    " + line)
        self.print(f"    all it said: {part.log}")
        self.alone(part, "    ")

    def alone(self, part, indent):
        for test in part.failures or [""]:
            self.print(f"{indent}alone: {part.again.format(test).strip()}")

    def table(self, suite):
        """Rows in the order in which they began: part, minutes, CPU minutes, tests."""
        ran = [part for part in suite.parts if part.began]
        ran.sort(key=lambda part: part.began)
        rows = [row(part.name, part.took, part.cpu, [part]) for part in ran if part.took >= SMALL or part.state != "passed"]
        small = [part for part in ran if part.took < SMALL and part.state == "passed"]
        if small:
            name = small[0].name if len(small) == 1 else f"{len(small)} others"
            rows.append(row(name, sum(p.took for p in small), sum(p.cpu for p in small), small))
        rows.append(row("all", time.monotonic() - suite.start, sum(p.cpu for p in ran), ran))
        width = max(len(name) for name, *_ in rows)
        self.print(f"\n{'part':<{width}} {'took':>7} {'CPU':>7} {'tests':>6}")
        for name, took, cpu, tests, mark in rows:
            self.print(f"{name:<{width}} {took:>7} {cpu:>7} {tests:>6}{mark}")

    def left_out(self, path):
        """What tools/test-runner.sh noted."""
        try:
            noted = sorted(set(open(path, encoding="utf-8").read().split())) if path else []
        except FileNotFoundError:
            noted = []
        if noted:
            self.print("\nnot run, for want of root or sudo (tools/needs-root.txt says why):")
            for name in noted:
                self.print(f"  {name}")

    def close(self, suite):
        """What did not run or failed by name, and the closing line."""
        lost = [part for part in suite.parts if part.state in ("not run", "cut off")]
        if suite.stopped:
            self.print(f"\nended by {suite.stopped} after {clock(time.monotonic() - suite.start).strip()}")
        for part in lost:
            rest = f", {part.expected - part.passed - part.failed - part.ignored} of {part.expected} tests not run" \
                if part.expected else ""
            self.print(f"{part.state}: {part.name} ({part.why}{rest})")
            if part.state == "cut off" and not part.failures:
                self.alone(part, "  ")
        broken = [part for part in suite.parts if part.state == "failed"]
        for part in broken + [part for part in lost if part.failures]:
            for test in part.failures or [""]:
                self.print(f"failed: {part.name} {test}".rstrip())
            self.alone(part, "  ")
        unsteady = [(part, test) for part in suite.parts for test in part.unsteady]
        for part, test in unsteady:
            self.print(f"unsteady: {part.name} {test} failed beside others and passed alone; why: {part.log}")
        passed = sum(part.passed for part in suite.parts)
        ignored = sum(part.ignored for part in suite.parts)
        # A part that failed as a whole, or did not come to its end, counts as one.
        failed = sum(part.failed or 1 for part in broken) + sum(part.failed + 1 for part in lost)
        skipped = f", {ignored} skipped" if ignored else ""
        again = f" ({len(unsteady)} of these passed alone)" if unsteady else ""
        self.print(f"\n{passed} passed, {failed} failed{again}{skipped}")


def row(name, took, cpu, parts):
    tests = sum(part.passed + part.failed for part in parts)
    states = {part.state for part in parts} - {"passed"}
    return name, clock(took), clock(cpu), tests or "", "  " + ", ".join(sorted(states)) if states else ""


def counts(part):
    return f", {part.passed} tests" if part.passed else ""


def standing(suite):
    words = []
    for part in suite.parts:
        if part.state == "runs":
            done = part.passed + part.failed + part.ignored
            far = f" {done} of {part.expected}" if part.expected else ""
            bad = f", {part.failed} FAILED" if part.failed else ""
            words.append(f"{part.name}{far}{bad}")
    waiting = sum(part.state == "waits" for part in suite.parts)
    return " · ".join(words) + (f" · {waiting} wait" if waiting else "")

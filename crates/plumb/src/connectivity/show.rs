//! What a person sees: progress while it runs, one line a test, and below it what failed and where to look.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use super::checks::TESTS;
use super::{Done, Report};

/// Steps, and on a terminal a line that counts.
pub struct Progress {
    began: Instant,
    quiet: bool,
    counting: bool,
    silence: lab::Silence,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        Self { began: Instant::now(), quiet, counting: false, silence: lab::Silence::begins() }
    }

    /// To stderr: stdout is for the table.
    pub fn step(&mut self, text: &str) {
        self.silence.broken();
        if !self.quiet {
            let end = if std::mem::take(&mut self.counting) { "\n" } else { "" };
            eprintln!("{end}{:>6.1} s  {text}", self.began.elapsed().as_secs_f64());
        }
    }

    /// Says from time to time what is waited for, also beside JSON.
    pub fn waits(&self, what: impl FnOnce() -> String) {
        if self.silence.is_over() {
            eprintln!("{:>6.1} s  waiting: {}", self.began.elapsed().as_secs_f64(), what());
        }
    }

    pub fn count(&mut self, done: usize, of: usize, failed: usize) {
        let mut err = std::io::stderr().lock();
        if !self.quiet && err.is_terminal() {
            self.counting = true;
            let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
            let since = self.began.elapsed().as_secs_f64();
            // A terminal that is gone takes its progress with it.
            let _ =
                write!(err, "\r{since:>6.1} s  {done} of {of} checks{failed} ").and_then(|()| err.flush());
        }
    }
}

pub struct Table<'a> {
    pub report: &'a Report,
    /// Every check, also those that hold.
    pub full: bool,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut by_test: BTreeMap<&str, Vec<&Done>> = BTreeMap::new();
        for done in &self.report.checks {
            by_test.entry(&done.test).or_default().push(done);
        }
        for (test, proves, likely) in TESTS {
            let Some(all) = by_test.get(test) else { continue };
            self.test(f, (test, proves, likely), all)?;
        }
        for (test, why) in &self.report.skipped {
            writeln!(f, "· {test:<20} skipped: {why}")?;
        }
        let Report { checks, took_ms, .. } = self.report;
        let good = checks.iter().filter(|done| done.ok).count();
        writeln!(f, "{good} of {} checks hold, {:.1} s", checks.len(), *took_ms as f64 / 1e3)
    }
}

impl Table<'_> {
    fn test(
        &self,
        f: &mut fmt::Formatter<'_>,
        (test, proves, likely): (&str, &str, &str),
        all: &[&Done],
    ) -> fmt::Result {
        let good = all.iter().filter(|done| done.ok).count();
        let slowest = all.iter().map(|done| done.took_ms).max().unwrap_or_default();
        let mark = if good == all.len() { '✓' } else { '✗' };
        writeln!(f, "{mark} {test:<20} {good:>3} of {:<3} {slowest:>6} ms  {proves}", all.len())?;
        for done in all.iter().filter(|done| self.full || !done.ok) {
            let mark = if done.ok { '✓' } else { '✗' };
            let family = if self.report.dual { format!(" {}", done.family) } else { String::new() };
            writeln!(f, "    {mark} {} on {} → {}{family}: {}", done.pod, done.on, done.to, done.said)?;
            if let Some(finding) = &done.finding {
                writeln!(f, "      trace: {finding}")?;
            }
            if let Some(command) = done.trace.as_ref().or(done.again.as_ref()) {
                writeln!(f, "      again: {command}")?;
            }
        }
        if good < all.len() {
            writeln!(f, "      likely: {likely}")?;
        }
        Ok(())
    }
}

//! Samples as a table: median, p99, spread, and from where to where.

use std::fmt;
use std::time::Duration;

/// One measured thing.
pub struct Line {
    what: String,
    from_to: &'static str,
    /// Sorted.
    samples: Vec<Duration>,
    target: &'static str,
}

impl Line {
    pub fn new(what: impl Into<String>, from_to: &'static str, samples: &[Duration]) -> Self {
        let mut samples = samples.to_vec();
        samples.sort_unstable();
        Self { what: what.into(), from_to, samples, target: "" }
    }

    pub fn target(mut self, target: &'static str) -> Self {
        self.target = target;
        self
    }
}

/// The sample below which this share of all lies (nearest rank).
pub fn quantile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied()
}

/// The median of samples in any order.
pub fn median(samples: &[Duration]) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    quantile(&sorted, 0.5)
}

/// A row of docs/benchmarks.md: what was measured beside the floor of the same run.
pub struct Figure {
    pub what: String,
    pub measured: String,
    pub floor: String,
    /// How many times the floor.
    pub ratio: f64,
    pub target: String,
}

impl Figure {
    /// Median and p99 of both, and how the medians compare.
    pub fn of(what: &str, ours: &[Duration], floor: &[Duration], target: &str) -> Self {
        let both = |samples: &[Duration]| {
            let mut sorted = samples.to_vec();
            sorted.sort_unstable();
            format!("{} / {}", shown(quantile(&sorted, 0.5)), shown(quantile(&sorted, 0.99)))
        };
        let seconds = |samples: &[Duration]| median(samples).map_or(f64::NAN, |d| d.as_secs_f64());
        Self {
            what: what.to_owned(),
            measured: both(ours),
            floor: both(floor),
            ratio: seconds(ours) / seconds(floor),
            target: target.to_owned(),
        }
    }

    /// With the command that makes it.
    pub fn markdown(&self, command: &str) -> String {
        let Self { what, measured, floor, ratio, target } = self;
        // Without anything beside it there is no ratio.
        let ratio = if ratio.is_finite() { format!("{ratio:.2}") } else { "–".to_owned() };
        format!("| {what} | {measured} | {floor} | {ratio} | {target} | `{command}` |")
    }
}

/// The head of the rows.
pub const HEAD: &str = "| figure | median / p99 | floor in the same run | times the floor | target | command |\n\
                        |---|---|---|---|---|---|";

/// Lines, and what follows from them.
pub struct Table {
    title: String,
    lines: Vec<Line>,
    notes: Vec<String>,
    pub figures: Vec<Figure>,
}

impl Table {
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), lines: Vec::new(), notes: Vec::new(), figures: Vec::new() }
    }

    pub fn add(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// Something, its floor below it, and the row of both.
    pub fn measure(
        &mut self,
        what: &str,
        ours: (&'static str, &[Duration]),
        floor: (&'static str, &[Duration]),
        target: &'static str,
    ) {
        if ours.1.is_empty() {
            return;
        }
        self.add(Line::new(what, ours.0, ours.1).target(target));
        self.add(Line::new("  floor", floor.0, floor.1));
        self.figure(Figure::of(what, ours.1, floor.1, target));
    }

    pub fn figure(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self
            .lines
            .iter()
            .map(|line| line.what.chars().count())
            .max()
            .unwrap_or(0)
            .max(self.title.chars().count());
        writeln!(
            f,
            "{:what$}  {:>10} {:>10} {:>10} {:>10} {:>5}",
            self.title, "median", "p99", "min", "max", "n"
        )?;
        for line in &self.lines {
            let shares = [0.5, 0.99, 0.0, 1.0].map(|share| shown(quantile(&line.samples, share)));
            let [median, p99, min, max] = shares;
            let count = line.samples.len();
            write!(
                f,
                "{:what$}  {median:>10} {p99:>10} {min:>10} {max:>10} {count:>5}  {}",
                line.what, line.from_to
            )?;
            match line.target {
                "" | "–" => writeln!(f)?,
                target => writeln!(f, "  (target: {target})")?,
            }
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        Ok(())
    }
}

fn shown(duration: Option<Duration>) -> String {
    match duration {
        None => "–".to_owned(),
        Some(d) if d < Duration::from_millis(1) => format!("{:.0} µs", d.as_secs_f64() * 1e6),
        Some(d) if d < Duration::from_secs(1) => format!("{:.2} ms", d.as_secs_f64() * 1e3),
        Some(d) => format!("{:.2} s", d.as_secs_f64()),
    }
}

/// What a figure depends on besides the program.
pub fn machine() -> String {
    let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = line("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let info = line("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    format!(
        "plumb {}, Linux {}, {cpus} CPUs {model}, load average {}",
        env!("CARGO_PKG_VERSION"),
        line("/proc/sys/kernel/osrelease"),
        load.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let samples: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        let micros = |share| quantile(&samples, share).map(|d| d.as_micros());
        assert_eq!(
            [micros(0.0), micros(0.5), micros(0.99), micros(1.0)],
            [Some(1), Some(100), Some(198), Some(200)]
        );
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_row_names_floor_ratio_and_command() {
        let mut table = Table::new("title");
        let micros = |n| [Duration::from_micros(n)];
        table.measure("up", ("a → b", &micros(3000)), ("kernel", &micros(1500)), "≤ 5 s");
        let rows: Vec<_> = table.figures.iter().map(|figure| figure.markdown("plumb bench x")).collect();
        assert_eq!(rows, ["| up | 3.00 ms / 3.00 ms | 1.50 ms / 1.50 ms | 2.00 | ≤ 5 s | `plumb bench x` |"]);
        assert!(table.to_string().contains("floor"), "{table}");
        let alone = Figure::of("x", &micros(1), &[], "–").markdown("c");
        assert_eq!(alone, "| x | 1 µs / 1 µs | – / – | – | – | `c` |");
    }

    #[test]
    fn every_line_says_what_it_measures_in_a_unit() {
        let mut table = Table::new("title");
        table.add(Line::new("x", "from → to", &[Duration::from_micros(1500)]).target("≤ 2 ms"));
        let text = table.to_string();
        assert!(text.contains("1.50 ms") && text.contains("from → to") && text.contains("≤ 2 ms"), "{text}");
    }
}

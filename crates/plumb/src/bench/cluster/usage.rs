//! What processes have used: CPU with the children they have waited for (kube-proxy's `nft`), and memory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::lab::Weight;

/// The sum over some processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: Duration,
    /// MB.
    pub rss: f64,
}

impl Usage {
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let process = Path::new("/proc").join(pid.to_string());
            let stat = std::fs::read_to_string(process.join("stat"))
                .with_context(|| format!("process {pid} has ended while it was measured"))?;
            sum.cpu += cpu(&stat).with_context(|| format!("/proc/{pid}/stat: {stat}"))?;
            sum.rss += Weight::of(&process)?.rss;
        }
        Ok(sum)
    }
}

/// utime, stime, cutime and cstime, which are counted in hundredths of a second (proc_pid_stat(5), USER_HZ).
fn cpu(stat: &str) -> Option<Duration> {
    // The name in parentheses may hold anything; the third field follows it.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(10 * ticks))
}

/// CPU seconds per minute, and memory at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    pub per_minute: f64,
    pub rss: f64,
}

/// Two groups of processes over the same time.
pub struct Window {
    groups: [Vec<u32>; 2],
    before: [Usage; 2],
    began: Instant,
}

impl Window {
    pub fn open(groups: [&[u32]; 2]) -> Result<Self> {
        let groups = groups.map(<[u32]>::to_vec);
        let before = [Usage::of(&groups[0])?, Usage::of(&groups[1])?];
        Ok(Self { groups, before, began: Instant::now() })
    }

    /// What each group has used since, not by time.
    pub fn spent(&self) -> Result<[Usage; 2]> {
        let mut spent = [Usage::default(); 2];
        for ((spent, before), group) in spent.iter_mut().zip(&self.before).zip(&self.groups) {
            let now = Usage::of(group)?;
            *spent = Usage { cpu: now.cpu.saturating_sub(before.cpu), rss: now.rss };
        }
        Ok(spent)
    }

    pub fn close(self) -> Result<[Rate; 2]> {
        let minutes = self.began.elapsed().as_secs_f64() / 60.0;
        Ok(self.spent()?.map(|used| Rate { per_minute: used.cpu.as_secs_f64() / minutes, rss: used.rss }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_that_of_the_process_and_its_children() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 5 0 99";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1270)));
        assert_eq!(cpu("7 (a) S 1"), None);
        let own = Usage::of(&[std::process::id()]).unwrap();
        assert!(own.rss > 0.5, "{own:?}");
    }
}

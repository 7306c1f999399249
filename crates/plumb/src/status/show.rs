//! The table: a line for each node, what is wrong below it.

use std::fmt;

use agent::report::NodeStatus;

use super::{NodeLine, NotReady, Status};

pub struct Table<'a>(pub &'a Status);

const HEAD: [&str; 10] =
    ["NODE", "AGENT", "VERSION", "DATAPATH", "PODS", "SERVICES", "SYNC", "DRIFT", "DNS", "UP"];

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { ok, nodes, notes } = self.0;
        let rows: Vec<[String; 10]> =
            std::iter::once(HEAD.map(str::to_owned)).chain(nodes.iter().map(cells)).collect();
        let widths: Vec<usize> = (0..HEAD.len())
            .map(|column| {
                rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        for line in nodes {
            for problem in &line.problems {
                write!(f, "\n✗ {}: {}\n  next: {}\n", line.node, problem.what, problem.next)?;
            }
        }
        for line in nodes {
            if let Some(NotReady { what, next }) = &line.not_ready {
                write!(f, "\n! {}: {what}\n  next: {next}\n", line.node)?;
            }
        }
        if !notes.is_empty() {
            writeln!(f)?;
        }
        for note in notes {
            writeln!(f, "· {note}")?;
        }
        let (count, wrong) = (nodes.len(), nodes.iter().filter(|line| !line.problems.is_empty()).count());
        let not_ready = nodes.iter().filter(|line| line.not_ready.is_some()).count();
        let also = match not_ready {
            0 => String::new(),
            1 => "; 1 of them is NotReady".to_owned(),
            many => format!("; {many} of them are NotReady"),
        };
        match (ok, not_ready) {
            (true, 0) => writeln!(f, "\nall is well on {count} of {count} nodes"),
            (true, _) => writeln!(f, "\nPlumb is well on {count} of {count} nodes{also}"),
            (false, _) => writeln!(f, "\nsomething is wrong on {wrong} of {count} nodes"),
        }
    }
}

fn cells(line: &NodeLine) -> [String; 10] {
    let state = line.problems.first().map_or("ok", |problem| problem.word).to_owned();
    let dash = || "-".to_owned();
    let Some(agent) = &line.agent else {
        let mut cells = [(); 10].map(|()| dash());
        for (cell, known) in cells.iter_mut().zip([line.node.clone(), state]) {
            *cell = known;
        }
        return cells;
    };
    let steps: usize = agent.drift.iter().map(|drift| drift.steps).sum();
    [
        line.node.clone(),
        state,
        agent.version.clone(),
        datapath(agent),
        format!("{}/{}", agent.pods, agent.pod_addresses),
        agent.services.to_string(),
        agent.last_sync.map_or_else(dash, duration),
        steps.to_string(),
        if agent.dns.error.is_some() { "away" } else { "ok" }.to_owned(),
        duration(agent.up),
    ]
}

/// `nftables ip ip6 bridge`: the families of its tables; the last one guards pods' ports.
fn datapath(agent: &NodeStatus) -> String {
    let families = agent.datapath.tables.iter().filter_map(|table| table.split(' ').next());
    std::iter::once(agent.datapath.kind.as_str()).chain(families).collect::<Vec<_>>().join(" ")
}

/// As `kubectl get` shows an age.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::super::known::Known;
    use super::*;
    use crate::advice::Advice;

    #[test]
    fn a_silent_node_is_a_line_like_the_others() {
        let answer = Err("connection refused".to_owned());
        let said = "the API has the node Ready for 3m".to_owned();
        let known = Known { is_ready: true, said, addresses: Vec::new() };
        let about =
            judge::About { node: "node2", pod: Some("plumb-x"), known: &known, advice: &Advice::default() };
        let problems = about.problems(&answer);
        let line =
            NodeLine { node: "node2".into(), agent: None, known: Some(known), problems, not_ready: None };
        let status = Status { ok: false, nodes: vec![line], notes: Vec::new() };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["nodes"][0]["known"]["said"], "the API has the node Ready for 3m");
        let text = Table(&status).to_string();
        assert!(text.contains("node2  no answer  -"), "{text}");
        assert!(
            text.contains("✗ node2: the agent does not answer: connection refused; the API has the node Ready for 3m\n  next: kubectl"),
            "{text}"
        );
        assert!(text.ends_with("something is wrong on 1 of 1 nodes\n"), "{text}");
    }

    #[test]
    fn a_node_that_is_not_ready_is_told_though_plumb_is_well_there() {
        let said = "the API has the node NotReady for 60s (Kubelet stopped posting node status)".to_owned();
        let known = Known { is_ready: false, said, addresses: Vec::new() };
        let (lab, none) = (Advice::of_lab("ci"), Advice::default());
        let about = |advice| judge::About { node: "node2", pod: None, known: &known, advice };
        let line = |not_ready| NodeLine {
            node: "node2".into(),
            agent: None,
            known: None,
            problems: Vec::new(),
            not_ready,
        };
        let status = |not_ready| Status { ok: true, nodes: vec![line(not_ready)], notes: Vec::new() };
        let text = Table(&status(about(&lab).not_ready(true, true))).to_string();
        assert!(
            text.contains(
                "\n! node2: the API has the node NotReady for 60s (Kubelet stopped posting node status); Plumb's \
                 network works there\n  next: plumb lab logs --tail 50 --name ci node2 kubelet\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("\nPlumb is well on 1 of 1 nodes; 1 of them is NotReady\n"), "{text}");
        let json = serde_json::to_value(status(about(&none).not_ready(true, false))).unwrap();
        assert!(
            json["nodes"][0]["not_ready"]["what"].as_str().unwrap().ends_with("Plumb's agent answers there")
        );
        assert!(json["nodes"][0]["not_ready"]["next"].as_str().unwrap().contains("systemctl status kubelet"));
        // Of an agent that is silent that is told with it.
        assert_eq!(about(&none).not_ready(false, false), None);
        assert!(Table(&status(None)).to_string().ends_with("\nall is well on 1 of 1 nodes\n"));
    }

    #[test]
    fn ages_read_like_kubectls() {
        assert_eq!([3, 130, 7300, 200_000].map(duration), ["3s", "2m", "2h", "2d"]);
    }
}

//! Everything but the nodes themselves is killed with SIGKILL, at random moments, while pods come and go.
//!
//! ```text
//!   streamer1 (node1) ── service far ──> server2 (node2)     a line every 5 ms: none may be lost
//!   streamer2 (node2) ── pod address ──> server1 (node1)
//!   churn-…           5 pods at a time, with a service and a policy over them, created and deleted
//! ```
//! `PLUMB_KILLS` is how often each of the four dies (30 without it: about a minute),
//! `PLUMB_SEED` repeats the moments of an earlier run as far as the machine lets it.

mod remains;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cluster::{Kubectl, Lab, Said, wait_for};
use remains::Remains;

const NS: &str = "churn";
const SERVE: &str = r#"serve, --http, "8080""#;
const PODS: u32 = 100;
const AT_ONCE: u32 = 5;
/// What may be killed; of agents and kubelets, one at random.
const VICTIMS: [&[&str]; 4] =
    [&["agent-node1", "agent-node2"], &["kubelet-node1", "kubelet-node2"], &["api"], &["supervise"]];

/// splitmix64: the same seed, the same moments.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number"))
    })
}

#[test]
fn kills_at_random_moments_cost_no_byte_and_leave_nothing() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let seed = number("PLUMB_SEED", u64::try_from(clock % 1_000_000_007).expect("fits"));
    let kills = u32::try_from(number("PLUMB_KILLS", 30)).expect("fits");
    println!("PLUMB_SEED={seed} PLUMB_KILLS={kills}");
    let lab = Lab::up(2);
    begin(&lab);
    let before = Remains::of(&lab);
    let running = AtomicU32::new(VICTIMS.len().try_into().expect("few"));
    let pods = std::thread::scope(|scope| {
        for (number, victims) in VICTIMS.iter().enumerate() {
            let (lab, running) = (&lab, &running);
            let mut chance = Chance(seed ^ ((number as u64 + 1) << 32));
            scope.spawn(move || {
                // Counted down also when it panics: the churn must not wait for ever.
                let _done = Done(running);
                for _ in 0..kills {
                    kill_one(lab, victims, &mut chance);
                }
            });
        }
        churn(&lab, &mut Chance(seed), &running)
    });
    println!("{pods} pods came and went under {} kills", kills * 4);
    after(&lab, &before);
}

struct Done<'a>(&'a AtomicU32);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The pods that live through it all.
fn begin(lab: &Lab) {
    let mut manifest = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NS}}}\n");
    manifest += include_str!("kills/services.yaml");
    for (name, node) in [("server1", "node1"), ("server2", "node2")] {
        manifest += &Lab::pod(NS, name, &format!("nodeName: {node}"), SERVE);
    }
    lab.apply(&manifest);
    lab.wait_ready(NS);
    let streamer = |number: u32, target: &str| {
        let place = format!("nodeName: node{number}\n  restartPolicy: Never");
        Lab::pod(NS, &format!("streamer{number}"), &place, &format!("stream, \"{target}\", --every, \"5\""))
    };
    lab.apply(&(streamer(1, "far:80") + &streamer(2, &format!("{}:8080", lab.pod_ip(NS, "server1")))));
    for name in ["streamer1", "streamer2"] {
        streamed(lab, name, 0);
    }
}

/// Waits until the stream has come further than `least`, and returns how far.
fn streamed(lab: &Lab, pod: &str, least: u64) -> u64 {
    wait_for("the stream goes on", Duration::from_secs(60), || {
        let said = lab.kubectl(&["-n", NS, "logs", pod, "--tail=1"]);
        let lines = said.out.trim().strip_suffix(" lines").and_then(|count| count.parse().ok());
        lines.filter(|lines| *lines > least).ok_or_else(|| format!("{pod} after {least}: {said:?}"))
    })
}

/// Waits until one of the victims runs again, then until a random moment, and kills it.
fn kill_one(lab: &Lab, victims: &[&str], chance: &mut Chance) {
    let name = victims[chance.below(victims.len() as u64) as usize];
    let file = lab.directory().join("pids").join(name);
    // Chance is the test's subject here: any moment of the victim's life may be its last.
    std::thread::sleep(Duration::from_millis(chance.below(600)));
    wait_for(name, Duration::from_secs(30), || {
        let noted = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        let pid = noted.split(' ').next().unwrap_or_default();
        // By its number inside the lab, and only if it is that process (its start time is the 22nd field).
        let script = format!(
            "set -- $(sed 's/.*) //' /proc/{pid}/stat) && [ \"{pid} ${{20}}\" = \"{}\" ] && [ $1 != Z ] && kill -9 {pid}",
            noted.trim()
        );
        let said = lab.node("node1", &["sh", "-c", &script]);
        if said.ok { Ok(()) } else { Err(format!("{name} ({}): {said:?}", noted.trim())) }
    });
}

/// Again and again until it is done: the API may be dead at any moment. How long that takes while others are being killed is
/// chance, and on a busy machine longer, so patience begins when all kills are done.
fn insist_under(running: &AtomicU32, what: &str, mut attempt: impl FnMut() -> Said) {
    while running.load(Ordering::Relaxed) > 0 {
        if attempt().ok {
            return;
        }
    }
    insist(what, attempt);
}

fn insist(what: &str, mut attempt: impl FnMut() -> Said) {
    wait_for(what, Duration::from_secs(60), || {
        let said = attempt();
        if said.ok { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

/// Creates and deletes pods, [`PODS`] at least, until all kills are done. Returns how many.
fn churn(lab: &Lab, chance: &mut Chance, running: &AtomicU32) -> u32 {
    let mut made = 0;
    while made < PODS || running.load(Ordering::Relaxed) > 0 {
        let names: Vec<String> = (made..made + AT_ONCE).map(|number| format!("churn-{number}")).collect();
        let manifest: String =
            names.iter().map(|name| Lab::pod(NS, name, "restartPolicy: Always", SERVE)).collect();
        insist_under(running, "pods are created", || lab.feed(&["apply"], &manifest));
        let of_round: Vec<&str> = names.iter().map(String::as_str).collect();
        match chance.below(3) {
            // Deleted while they are being made,
            0 => {}
            // while some run and others do not,
            1 => {
                let first = ["-n", NS, "wait", "--for=condition=Ready", "pod", of_round[0], "--timeout=5s"];
                insist_under(running, "one pod gets Ready", || lab.kubectl(&first));
            }
            // or when all have been of use.
            _ => {
                let all =
                    [&["-n", NS, "wait", "--for=condition=Ready", "pod", "--timeout=5s"], &of_round[..]]
                        .concat();
                insist_under(running, "pods get Ready", || lab.kubectl(&all));
            }
        }
        let delete =
            [&["-n", NS, "delete", "pod", "--ignore-not-found", "--wait=false"], &of_round[..]].concat();
        insist_under(running, "pods are deleted", || lab.kubectl(&delete));
        made += AT_ONCE;
    }
    made
}

/// When all is quiet again.
fn after(lab: &Lab, before: &Remains) {
    insist("the deleted pods are gone", || {
        lab.kubectl(&["-n", NS, "wait", "--for=delete", "pod", "-l", "app=churn", "--timeout=10s"])
    });
    insist("nodes are Ready", || {
        lab.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=10s"])
    });
    for name in ["streamer1", "streamer2"] {
        let now = streamed(lab, name, 0);
        println!("{name} has {} lines in order", streamed(lab, name, now));
    }
    let pods = lab.get(&["-n", NS, "pods"]);
    for pod in pods["items"].as_array().expect("a list") {
        let container = &pod["status"]["containerStatuses"][0];
        assert_eq!(container["restartCount"], 0, "{pod}");
        assert!(container["state"]["running"].is_object(), "{pod}");
    }
    before.wait_for_same(lab);
    everyone_reaches_everyone(lab);
    // The servers end, and with them the streams: only then does a reader say that no line was missing.
    lab.kubectl_ok(&["-n", NS, "delete", "pod", "server1", "server2"]);
    for name in ["streamer1", "streamer2"] {
        let phase = "--for=jsonpath={.status.phase}=Succeeded";
        let said = lab.kubectl(&["-n", NS, "wait", phase, "pod", name, "--timeout=60s"]);
        let log = lab.kubectl_ok(&["-n", NS, "logs", name, "--tail=1"]);
        assert!(said.ok && log.contains("lines in order"), "{said:?} {log}");
    }
}

/// The ones that lived through it, and new ones.
fn everyone_reaches_everyone(lab: &Lab) {
    lab.apply(
        &[("late1", "node1"), ("late2", "node2")]
            .map(|(name, node)| Lab::pod(NS, name, &format!("nodeName: {node}"), SERVE))
            .concat(),
    );
    lab.wait_ready(NS);
    let pods = ["server1", "server2", "late1", "late2"];
    let addresses = pods.map(|pod| lab.pod_ip(NS, pod));
    for (from, own) in pods.iter().zip(&addresses) {
        for (to, address) in pods.iter().zip(&addresses) {
            let out = lab.demo_ok(NS, from, &["get", &format!("http://{address}:8080/")]);
            assert!(out.contains(&format!("name={to} peer={own}:")), "{from} → {to}: {out}");
        }
        let out = lab.demo_ok(NS, from, &["get", "http://far"]);
        assert!(out.contains(&format!("name=server2 peer={own}:")) || *from == "server2", "{from}: {out}");
    }
}

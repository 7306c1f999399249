//! The short form of `plumb bench soak`, which runs for ten minutes.

use std::process::Command;

use crate::cluster::{Lab, plumb, run};

/// In less than a minute an allocator is still settling: the bound catches what grows with every change.
#[test]
fn nothing_fails_and_no_agent_grows_under_ten_changes_a_second() {
    let lab = Lab::up(2);
    let mut soak = Command::new(plumb());
    soak.args(["bench", "soak", "--seconds", "45", "--warm-up", "20", "--growth", "25", "--kubeconfig"]);
    let said = run(soak.arg(&lab.kubeconfig));
    println!("{}", said.out);
    assert!(said.ok, "{said:?}");
}

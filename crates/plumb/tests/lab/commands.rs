//! The lab's commands, as a person at a shell and a pipeline use them. One lab of two nodes for all of it.

mod ended;
mod found;
mod manifests;
mod pipes;
mod reached;
mod told;
mod wrong;

use std::process::Command;

use crate::cluster::{Checks, Lab, Said, plumb, run};

const SHOP: &str = include_str!("../../../../examples/shop.yaml");

#[test]
fn the_commands_of_a_lab() {
    let lab = Lab::up(2);
    lab.apply(SHOP);
    lab.lab_ok(&["wait"]);
    let mut checks = Checks::default();
    found::checks(&lab, &mut checks);
    told::checks(&lab, &mut checks);
    manifests::checks(&lab, &mut checks);
    reached::checks(&lab, &mut checks);
    wrong::checks(&lab, &mut checks);
    pipes::checks(&lab, &mut checks);
    ended::checks(&lab, &mut checks);
}

/// `plumb WORDS` of somebody whose KUBECONFIG is the lab's.
fn at(lab: &Lab, words: &[&str]) -> Command {
    let mut command = Command::new(plumb());
    command.args(words).env("KUBECONFIG", &lab.kubeconfig);
    command
}

#[track_caller]
fn ok(lab: &Lab, words: &[&str]) -> String {
    let said: Said = run(&mut at(lab, words));
    assert!(said.ok, "plumb {words:?}: {said:?}");
    said.out
}

//! The lab's commands, as a person at a shell and a pipeline use them. One lab of two nodes for all of it.

mod pipes;
mod wrong;

use crate::cluster::{Checks, Lab};

const SHOP: &str = include_str!("../../../../examples/shop.yaml");

#[test]
fn the_commands_of_a_lab() {
    let lab = Lab::up(2);
    lab.apply(SHOP);
    lab.wait_ready("shop");
    let mut checks = Checks::default();
    wrong::checks(&lab, &mut checks);
    pipes::checks(&lab, &mut checks);
}

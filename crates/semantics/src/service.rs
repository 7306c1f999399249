//! Services: [`plan`] decides which endpoints take the traffic of which address, [`host_port`] which pods have ports of the node,
//! [`reserved`] what none of them may have; [`flows`] which connections a change leaves behind; [`health`] what a load balancer
//! is told; [`cause`] says why a caller is turned away, [`precedence`] who comes
//! first.

pub mod cause;
pub mod flows;
pub mod health;
pub mod host_port;
pub mod plan;
pub mod precedence;
pub mod reserved;

//! Services: [`plan`] decides which endpoints take the traffic of which address (Kubernetes' words only);
//! [`nftables`] says it in the vocabulary of one backend; [`flows`] says which connections it leaves behind.

pub mod flows;
pub mod health;
pub mod host_port;
pub mod nftables;
pub mod plan;
pub mod reserved;

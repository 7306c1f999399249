//! NetworkPolicy: [`resolve`] decides who is isolated, [`allow`] what may pass all the same.

pub mod allow;
pub mod notes;
pub mod resolve;

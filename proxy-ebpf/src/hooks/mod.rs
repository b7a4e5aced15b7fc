//! The hooks: one file each, to be read from the top. Each names the stages in the order in which they run.

pub mod egress;
pub mod ingress;
pub mod ingress_xdp;
pub mod socket;
pub mod xdp;

//! The kernel's jiffies: the datapath's time stamps are their low 32 bits, so ages need the same clock. A
//! two-instruction program returns it; needs CAP_BPF and no pin.

use std::{io, os::fd::AsFd as _};

use crate::bpf::{probe, prog};

/// Now, and the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jiffies {
    /// Low 32 bits.
    pub now: u32,
    pub per_second: u32,
}

/// `BPF_PROG_TYPE_SOCKET_FILTER`: the one kind that CAP_BPF alone may load.
const SOCKET_FILTER: u32 = 1;
/// `call bpf_jiffies64; exit` (uapi/linux/bpf.h, helper 118).
const PROGRAM: [u64; 2] = [0x85 | 118 << 32, 0x95];

impl Jiffies {
    pub fn read() -> io::Result<Self> {
        let program = prog::load(SOCKET_FILTER, 0, &PROGRAM)?;
        Ok(Self { now: prog::test_run(program.as_fd(), &[0; 64])?, per_second: probe::jiffies_per_second()? })
    }

    /// Whole seconds since `stamp`. A stamp of a moment after we read the clock counts as now.
    pub fn seconds_since(&self, stamp: u32) -> u64 {
        let elapsed = self.now.wrapping_sub(stamp);
        if elapsed > u32::MAX / 2 { 0 } else { u64::from(elapsed / self.per_second.max(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_survive_the_wrap() {
        let clock = Jiffies { now: 500, per_second: 250 };
        assert_eq!(clock.seconds_since(0), 2);
        assert_eq!(clock.seconds_since(u32::MAX - 499), 4);
        assert_eq!(clock.seconds_since(510), 0);
    }
}

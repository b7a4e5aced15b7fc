//! Kernel feature probes. Each feature is tried, never derived from the version: distributions backport (RHEL's 5.14
//! has features that Debian's 5.10 lacks).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{
    link::{self, AttachType},
    prog::{self, CGROUP_SOCK_ADDR, SCHED_CLS},
};

/// Features that shunt needs or adapts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Atomic read-modify-write instructions that return the old value.
    pub atomic_fetch: bool,
    /// `bpf_get_netns_cookie` in sock_addr programs.
    pub netns_cookie: bool,
    /// `bpf_set_retval` in cgroup programs: host sockets see ECONNREFUSED instead of EPERM.
    pub set_retval: bool,
    /// Links on tc's hooks.
    pub tcx: bool,
    /// `bpf_l4_csum_replace` takes BPF_F_IPV6.
    pub csum_ipv6: bool,
    /// Flags with which `bpf_fib_lookup` names the source of a route, as far as they are known; 0 where it cannot.
    pub fib_source: u32,
}

/// A feature without which shunt cannot work on this kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this kernel ({kernel}) lacks {what}, which Linux has since {since}: run shunt on a newer kernel")]
pub struct Lacking {
    pub what: &'static str,
    pub since: &'static str,
    pub kernel: String,
}

/// Flag of `bpf_l4_csum_replace`: the checksum is of an IPv6 packet.
pub const BPF_F_IPV6: u64 = 1 << 7;

// Instruction encoding (Documentation/bpf/standardization/instruction-set.rst): opcode, registers (source in
// the high half), offset, immediate.
const fn insn(op: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    op as u64 | (((src << 4) | dst) as u64) << 8 | (off as u16 as u64) << 16 | (imm as u32 as u64) << 32
}

const fn mov_imm(dst: u8, imm: i32) -> u64 {
    insn(0xb7, dst, 0, 0, imm)
}

const fn call(helper: i32) -> u64 {
    insn(0x85, 0, 0, 0, helper)
}

const EXIT: u64 = insn(0x95, 0, 0, 0, 0);

/// Flags of `bpf_fib_lookup`: no neighbour is needed (6.3), the source is wanted (6.7), the mark counts (6.10).
const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 1 << 2;
const BPF_FIB_LOOKUP_SRC: u32 = 1 << 4;
const BPF_FIB_LOOKUP_MARK: u32 = 1 << 5;

const BPF_FUNC_L4_CSUM_REPLACE: i32 = 11;
const BPF_FUNC_FIB_LOOKUP: i32 = 69;
const BPF_FUNC_GET_NETNS_COOKIE: i32 = 122;
const BPF_FUNC_SET_RETVAL: i32 = 187;

impl Features {
    /// Probes each feature. An error means that programs cannot be loaded at all (privileges, lockdown).
    pub fn probe() -> io::Result<Self> {
        let plain = prog::load(SCHED_CLS, 0, &[mov_imm(0, 0), EXIT])?;
        // *(u64 *)(r10 - 8) = 0; r0 = 1; r0 = fetch_add(r10 - 8, r0); r0 = 0
        let atomic =
            [insn(0x7a, 10, 0, -8, 0), mov_imm(1, 1), insn(0xdb, 10, 1, -8, 0x01), mov_imm(0, 0), EXIT];
        let connect4 = AttachType::Connect4 as u32;
        let cookie = [call(BPF_FUNC_GET_NETNS_COOKIE), mov_imm(0, 1), EXIT];
        let retval = [mov_imm(1, -libc::ECONNREFUSED), call(BPF_FUNC_SET_RETVAL), mov_imm(0, 1), EXIT];
        // No device has this ifindex: ENODEV if the kernel supports tcx, else EINVAL.
        let tcx = match link::create_tcx(plain.as_fd(), i32::MAX as u32, AttachType::TcxIngress) {
            Err(e) => e.raw_os_error() == Some(libc::ENODEV),
            Ok(_) => true,
        };
        Ok(Self {
            atomic_fetch: loads(SCHED_CLS, 0, &atomic),
            netns_cookie: loads(CGROUP_SOCK_ADDR, connect4, &cookie),
            set_retval: loads(CGROUP_SOCK_ADDR, connect4, &retval),
            tcx,
            csum_ipv6: csum_takes_ipv6(),
            fib_source: fib_source(),
        })
    }

    /// The first required feature that this kernel lacks.
    pub fn lacking(&self) -> Result<(), Lacking> {
        let missing = if !self.atomic_fetch {
            Some(("atomic fetch-and-add instructions in BPF programs", "5.12"))
        } else if !self.netns_cookie {
            Some(("bpf_get_netns_cookie in cgroup socket-address programs", "5.7"))
        } else {
            None
        };
        match missing {
            None => Ok(()),
            Some((what, since)) => Err(Lacking { what, since, kernel: kernel_release() }),
        }
    }
}

fn loads(prog_type: u32, attach_type: u32, insns: &[u64]) -> bool {
    prog::load(prog_type, attach_type, insns).is_ok()
}

/// The flag is checked when the helper runs, not at load time: run it on an empty packet.
fn csum_takes_ipv6() -> bool {
    const BPF_F_PSEUDO_HDR: i32 = 1 << 4;
    let program = [
        mov_imm(2, 50),
        mov_imm(3, 0),
        mov_imm(4, 0),
        mov_imm(5, BPF_F_PSEUDO_HDR | BPF_F_IPV6 as i32),
        call(BPF_FUNC_L4_CSUM_REPLACE),
        EXIT,
    ];
    // l4_csum_replace with size 0 and from 0 adds `to` to the checksum, here 0.
    prog::load(SCHED_CLS, 0, &program)
        .and_then(|prog| prog::test_run(prog.as_fd(), &[0; 64]))
        .is_ok_and(|retval| retval == 0)
}

/// Unknown flags are refused when the helper runs, before it looks at the device, which does not exist.
fn fib_source() -> u32 {
    const AF_INET: i32 = 2;
    const PARAMS: i16 = 64;
    let takes = |flags: u32| {
        let mut program: Vec<u64> = (1..=PARAMS / 8).map(|word| insn(0x7a, 10, 0, -8 * word, 0)).collect();
        program.extend([
            // *(u8 *)(r10 - 64) = family; *(u32 *)(r10 - 56) = ifindex; r2 = r10 - 64
            insn(0x72, 10, 0, -PARAMS, AF_INET),
            insn(0x62, 10, 0, 8 - PARAMS, i32::MAX),
            insn(0xbf, 2, 10, 0, 0),
            insn(0x07, 2, 0, 0, i32::from(-PARAMS)),
            mov_imm(3, PARAMS.into()),
            mov_imm(4, flags as i32),
            call(BPF_FUNC_FIB_LOOKUP),
            EXIT,
        ]);
        prog::load(SCHED_CLS, 0, &program)
            .and_then(|prog| prog::test_run(prog.as_fd(), &[0; 64]))
            .is_ok_and(|retval| retval as i32 == -libc::ENODEV)
    };
    let source = BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC;
    let candidates = [source | BPF_FIB_LOOKUP_MARK, source];
    candidates.into_iter().find(|flags| takes(*flags)).unwrap_or(0)
}

/// `uname -r`.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |s| s.trim().into())
}

/// The cookie of the network namespace this process is in (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    // Not bound: in a namespace whose loopback is down, binding fails.
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, and `cookie` and `len` are live objects of the sizes that are passed.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Jiffies per second, from the resolution of the coarse clock.
pub fn jiffies_per_second() -> io::Result<u32> {
    let resolution = nix::time::ClockId::CLOCK_MONOTONIC_COARSE.res()?;
    let nanos = resolution.tv_sec() as u64 * 1_000_000_000 + resolution.tv_nsec() as u64;
    u32::try_from((1_000_000_000 + nanos / 2) / nanos.max(1)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features = Features {
        atomic_fetch: true,
        netns_cookie: true,
        set_retval: true,
        tcx: true,
        csum_ipv6: true,
        fib_source: BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC,
    };

    #[test]
    fn only_what_is_needed_is_demanded() {
        let plain = Features { set_retval: false, tcx: false, csum_ipv6: false, fib_source: 0, ..ALL };
        assert_eq!(plain.lacking(), Ok(()));
        let old = Features { atomic_fetch: false, ..plain };
        let text = old.lacking().unwrap_err().to_string();
        assert!(text.contains("atomic") && text.contains("5.12"), "{text}");
        assert!(Features { netns_cookie: false, ..ALL }.lacking().is_err());
    }

    #[test]
    fn jiffies_are_a_known_rate() {
        assert!([100, 250, 300, 1000].contains(&jiffies_per_second().unwrap()));
    }

    #[test]
    fn instructions_encode_as_the_kernel_reads_them() {
        // r0 = 1
        assert_eq!(mov_imm(0, 1).to_le_bytes(), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
        // lock fetch-add *(u64 *)(r10 - 8), r1
        assert_eq!(insn(0xdb, 10, 1, -8, 1).to_le_bytes(), [0xdb, 0x1a, 0xf8, 0xff, 1, 0, 0, 0]);
    }
}

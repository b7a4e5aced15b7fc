//! Foreign tc programs: one that drops every packet, attached to a device next to shunt's, and queries of the programs
//! attached to a device. They use bpf(2) directly, because the tests cover how shunt coexists with other programs, not
//! how aya does.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::{Context, Result};

use super::Netns;

const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;

/// A hook of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    /// BPF_TCX_INGRESS, BPF_TCX_EGRESS.
    fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A loaded program of two instructions: `return TC_ACT_SHOT` (which is TCX_DROP, too).
#[derive(Debug)]
pub struct DropAll(OwnedFd);

impl DropAll {
    pub fn load() -> Result<Self> {
        Self::of_kind(SCHED_CLS)
    }

    fn of_kind(kind: u32) -> Result<Self> {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            rest: [u64; 8],
        }
        // r0 = 2; exit
        let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let license = c"Dual MIT/GPL";
        let attr = Load {
            kind,
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            rest: [0; 8],
        };
        let fd = bpf(PROG_LOAD, &mut { attr }).context("loading a program that drops")?;
        // SAFETY: PROG_LOAD returned a new descriptor without another owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it after the existing programs of the tcx hook, until the returned link is dropped.
    pub fn attach_tcx(&self, netns: &Netns, device: &str, hook: Hook) -> Result<OwnedFd> {
        let mut attr = [self.0.as_raw_fd() as u32, index(netns, device)?, hook.attach_type(), 0, 0, 0, 0, 0];
        let fd = netns.enter(|| bpf(LINK_CREATE, &mut attr)).context("attaching by tcx")?;
        // SAFETY: LINK_CREATE returned a new descriptor without another owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Attaches it to the device's clsact qdisc, as programs from before tcx do; `pin` is a free path on bpffs.
    pub fn attach_clsact(&self, netns: &Netns, device: &str, hook: Hook, pin: &Path) -> Result<()> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let address = path.as_ptr() as u64;
        let mut attr = [address as u32, (address >> 32) as u32, self.0.as_raw_fd() as u32, 0];
        bpf(OBJ_PIN, &mut attr).context("pinning")?;
        if !netns.run(&["tc", "qdisc", "show", "dev", device])?.contains("clsact") {
            netns.run(&["tc", "qdisc", "add", "dev", device, "clsact"])?;
        }
        let pin = pin.to_string_lossy();
        netns.run(&[
            "tc",
            "filter",
            "add",
            "dev",
            device,
            hook.name(),
            "bpf",
            "da",
            "object-pinned",
            &pin,
        ])?;
        Ok(())
    }

    /// Removes all filters that `tc` knows from the hook.
    pub fn detach_clsact(netns: &Netns, device: &str, hook: Hook) -> Result<()> {
        netns.run(&["tc", "filter", "del", "dev", device, hook.name()])?;
        Ok(())
    }
}

/// Attaches an XDP program that passes all packets (XDP_PASS is 2 too) to a device, until the returned link is dropped.
pub fn occupy_xdp(netns: &Netns, device: &str) -> Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    const SKB_MODE: u32 = 1 << 1;
    let program = DropAll::of_kind(XDP)?;
    let mut attr = [program.0.as_raw_fd() as u32, index(netns, device)?, BPF_XDP, SKB_MODE, 0, 0, 0, 0];
    let fd = netns.enter(|| bpf(LINK_CREATE, &mut attr)).context("attaching by XDP")?;
    // SAFETY: LINK_CREATE returned a new descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Number of programs attached to a device's tcx hook.
pub fn tcx_programs(netns: &Netns, device: &str, hook: Hook) -> Result<u32> {
    // target_ifindex, attach_type, query_flags, attach_flags, prog_ids (2), prog_cnt, and the remaining fields.
    let mut attr = [0u32; 16];
    (attr[0], attr[1]) = (index(netns, device)?, hook.attach_type());
    netns.enter(|| bpf(PROG_QUERY, &mut attr)).with_context(|| format!("querying {device}"))?;
    Ok(attr[6])
}

fn index(netns: &Netns, device: &str) -> Result<u32> {
    netns
        .enter(|| nix::net::if_::if_nametoindex(device))
        .with_context(|| format!("{}: device {device}", netns.name()))
}

fn bpf<T: bytemuck::NoUninit>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most `size_of::<T>()` bytes of `attr`; the memory its pointers refer to
    // outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

//! Device offloads, switched on and off as `ethtool -K` does it.

use std::{net::UdpSocket, os::fd::AsRawFd};

use anyhow::{Result, bail};

use super::{Netns, tun::request};

/// SIOCETHTOOL, and its commands ETHTOOL_STXCSUM and ETHTOOL_GTXCSUM.
const SIOCETHTOOL: u64 = 0x8946;
const SET_TX_CHECKSUM: u32 = 0x17;
const GET_TX_CHECKSUM: u32 = 0x16;
/// ETHTOOL_SGRO and ETHTOOL_GGRO.
const SET_GRO: u32 = 0x2c;
const GET_GRO: u32 = 0x2b;

/// Whether checksums are left to the device (on veth: to the receiver) or computed before a packet is sent. Without
/// checksum offload there are no super-packets (GSO) either.
pub fn tx_checksum(netns: &Netns, device: &str, on: bool) -> Result<()> {
    switch(netns, device, "tx-checksumming", [SET_TX_CHECKSUM, GET_TX_CHECKSUM], on)
}

/// Whether received packets are merged into super-packets (GRO).
pub fn receive(netns: &Netns, device: &str, on: bool) -> Result<()> {
    switch(netns, device, "generic-receive-offload", [SET_GRO, GET_GRO], on)
}

fn switch(netns: &Netns, device: &str, name: &str, [set, get]: [u32; 2], on: bool) -> Result<()> {
    netns.enter(|| {
        ethtool(device, set, u32::from(on))?;
        let now = ethtool(device, get, 0)?;
        if (now != 0) != on {
            bail!("{device}: `{name}` stays {now}");
        }
        Ok(())
    })
}

/// One ethtool command for a device of the calling thread's namespace; returns the resulting value.
fn ethtool(device: &str, command: u32, value: u32) -> Result<u32> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // struct ethtool_value
    let mut pair = [command, value];
    let mut request = request(device);
    request.ifr_ifru.ifru_data = pair.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads one ifreq and, for these commands, reads and writes the two words it points to; both
    // outlive the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } != 0 {
        bail!("ethtool command {command:#x} on {device}: {}", std::io::Error::last_os_error());
    }
    Ok(pair[1])
}

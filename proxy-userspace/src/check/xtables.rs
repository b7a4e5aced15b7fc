//! iptables-legacy's nat table, read by its own socket option, for one question: does it name a chain?

use std::{fs, mem, net::UdpSocket, os::fd::AsRawFd as _};

use bytemuck::{Pod, Zeroable};

/// uapi/linux/netfilter_ipv4/ip_tables.h.
const IPT_SO_GET_INFO: i32 = 64;
const IPT_SO_GET_ENTRIES: i32 = 65;

/// `struct ipt_getinfo`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// Bytes of `struct ipt_get_entries` before its entries: name, size, padding.
const ENTRIES_HEADER: usize = 40;

/// Whether the nat table exists and holds this text: chain names stand in it as they are. A table that is not
/// there is not asked for, because asking would load its module.
pub(super) fn nat_mentions(chain: &str) -> bool {
    let tables = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    tables.lines().any(|table| table == "nat")
        && nat_entries().is_some_and(|entries| contains(&entries, chain))
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

fn nat_entries() -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    let mut info = Info::zeroed();
    info.name[..3].copy_from_slice(b"nat");
    get(&socket, IPT_SO_GET_INFO, bytemuck::bytes_of_mut(&mut info))?;
    let mut entries = vec![0; ENTRIES_HEADER + info.size as usize];
    entries[..3].copy_from_slice(b"nat");
    entries[32..36].copy_from_slice(&info.size.to_ne_bytes());
    get(&socket, IPT_SO_GET_ENTRIES, &mut entries)?;
    Some(entries)
}

fn get(socket: &UdpSocket, option: i32, buffer: &mut [u8]) -> Option<()> {
    let mut len = libc::socklen_t::try_from(mem::size_of_val(buffer)).ok()?;
    // SAFETY: the socket is open, and `buffer` and `len` are live and exclusively borrowed; the kernel writes at
    // most `len` bytes.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (ret == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_search() {
        assert_eq!(mem::size_of::<Info>(), 84);
        assert!(contains(b"\0\0KUBE-SERVICES\0", "KUBE-SERVICES"));
        assert!(!contains(b"KUBE-SERVICE", "KUBE-SERVICES"));
    }
}

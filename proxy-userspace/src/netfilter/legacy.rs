//! iptables-legacy's tables, read and replaced by iptables' own socket options. A table is replaced as a whole;
//! remaining rules keep their counters. All programs that change these tables share one lock file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io, mem,
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::Duration,
};

use bytemuck::{Pod, Zeroable};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{
    chain::{Chain, Kind, Table},
    legacy_table::{Blob, COUNTERS, Hooks, IPV4, IPV6},
};

/// `IPT_SO_*`, the same for both families (uapi/linux/netfilter_ipv4/ip_tables.h).
const SET_REPLACE: i32 = 64;
const SET_ADD_COUNTERS: i32 = 65;
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;

/// The lock that iptables holds while it changes a table.
const LOCK: &str = "/run/xtables.lock";

#[derive(Clone, Copy, Debug)]
struct Family {
    name: &'static str,
    /// The file with the names of existing tables. Others are not requested: a request would load their module.
    list: &'static str,
    domain: AddressFamily,
    level: i32,
    ip_len: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "ip",
        list: "/proc/net/ip_tables_names",
        domain: AddressFamily::Inet,
        level: libc::IPPROTO_IP,
        ip_len: IPV4,
    },
    Family {
        name: "ip6",
        list: "/proc/net/ip6_tables_names",
        domain: AddressFamily::Inet6,
        level: libc::IPPROTO_IPV6,
        ip_len: IPV6,
    },
];

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

/// `struct ipt_replace` without its entries.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Replace {
    name: [u8; 32],
    valid_hooks: u32,
    num_entries: u32,
    size: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_counters: u32,
    /// Address of the buffer for the old counters.
    counters: u64,
}

/// Header lengths of `struct ipt_get_entries` and `struct xt_counters_info`.
const ROWS_AT: usize = 40;

/// Every chain of every table of both families.
pub fn chains() -> io::Result<Vec<Chain>> {
    let mut found = Vec::new();
    for family in FAMILIES {
        let names = fs::read_to_string(family.list).unwrap_or_default();
        for name in names.lines() {
            found.extend(read(family, name)?.chains().ok_or_else(|| unreadable(family, name))?);
        }
    }
    Ok(found)
}

/// Removes chains, and rules (by position) of other chains.
pub fn remove(chains: &[(Table, String)], rules: &[(Table, String, u64)]) -> io::Result<()> {
    let mut tables: BTreeMap<&Table, (BTreeSet<&str>, BTreeSet<u64>)> = BTreeMap::new();
    for (table, chain) in chains {
        tables.entry(table).or_default().0.insert(chain);
    }
    for (table, _, position) in rules {
        tables.entry(table).or_default().1.insert(*position);
    }
    if tables.is_empty() {
        return Ok(());
    }
    let _lock = lock()?;
    for (table, (chains, rules)) in tables {
        let Some(family) = FAMILIES.into_iter().find(|family| family.name == table.family) else { continue };
        let old = read(family, &table.name)?;
        let positions = rules_of(&old, &chains, &rules).ok_or_else(|| unreadable(family, &table.name))?;
        replace(family, &old, &chains, &positions)?;
    }
    Ok(())
}

/// The positions, if each rule still jumps to a removed chain: they were determined before the lock was taken.
fn rules_of(blob: &Blob, chains: &BTreeSet<&str>, rules: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
    let jumps: BTreeSet<u64> = blob
        .chains()?
        .iter()
        .flat_map(|chain| &chain.rules)
        .filter(|rule| rule.jumps_to.as_deref().is_some_and(|to| chains.contains(to)))
        .map(|rule| rule.handle)
        .collect();
    Some(jumps.intersection(rules).copied().collect())
}

fn lock() -> io::Result<Flock<File>> {
    let mut file = File::options().create(true).truncate(false).write(true).open(LOCK).map_err(|error| {
        io::Error::new(error.kind(), format!("opening {LOCK}: {error} (in a pod, mount the host's)"))
    })?;
    for _ in 0..100 {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            Err((_, error)) => return Err(error.into()),
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("another process has held {LOCK} for five seconds")))
}

fn unreadable(family: Family, table: &str) -> io::Error {
    let name = Table { kind: Kind::Legacy, family: family.name, name: table.to_owned() };
    io::Error::new(io::ErrorKind::InvalidData, format!("the rules of {name} are not as expected"))
}

fn named(table: &str) -> [u8; 32] {
    let mut name = [0; 32];
    let len = table.len().min(31);
    name[..len].copy_from_slice(&table.as_bytes()[..len]);
    name
}

fn control(family: Family) -> io::Result<OwnedFd> {
    // The options need CAP_NET_ADMIN, but not the raw socket (CAP_NET_RAW) that iptables uses.
    Ok(socket(family.domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn read(family: Family, table: &str) -> io::Result<Blob> {
    let socket = control(family)?;
    let mut info = Info { name: named(table), ..Info::zeroed() };
    get(&socket, family, GET_INFO, bytemuck::bytes_of_mut(&mut info))?;
    let mut answer = vec![0; ROWS_AT + info.size as usize];
    answer[..32].copy_from_slice(&info.name);
    answer[32..36].copy_from_slice(&info.size.to_ne_bytes());
    get(&socket, family, GET_ENTRIES, &mut answer)?;
    Ok(Blob {
        table: Table { kind: Kind::Legacy, family: family.name, name: table.to_owned() },
        ip_len: family.ip_len,
        hooks: Hooks { valid: info.valid_hooks, entry: info.hook_entry, underflow: info.underflow },
        entries: answer.split_off(ROWS_AT),
    })
}

fn replace(family: Family, old: &Blob, chains: &BTreeSet<&str>, rules: &BTreeSet<u64>) -> io::Result<()> {
    let failed = || unreadable(family, &old.table.name);
    let count = old.count().ok_or_else(failed)?;
    let new = old.without(chains, rules).ok_or_else(failed)?;
    let mut counters = vec![[0u8; COUNTERS]; count];
    let head = Replace {
        name: named(&old.table.name),
        valid_hooks: new.hooks.valid,
        num_entries: new.was.len() as u32,
        size: new.entries.len() as u32,
        hook_entry: new.hooks.entry,
        underflow: new.hooks.underflow,
        // If the table has changed in between, its number of entries usually differs: then the kernel returns EAGAIN.
        num_counters: count as u32,
        counters: counters.as_mut_ptr() as u64,
    };
    let socket = control(family)?;
    set(&socket, family, SET_REPLACE, &[bytemuck::bytes_of(&head), &new.entries].concat())?;
    // The final counters of the old table; the new one started at zero.
    let mut kept = vec![0; ROWS_AT];
    kept[..32].copy_from_slice(&named(&old.table.name));
    kept[32..36].copy_from_slice(&(new.was.len() as u32).to_ne_bytes());
    kept.extend(new.was.iter().flat_map(|position| counters[*position]));
    set(&socket, family, SET_ADD_COUNTERS, &kept)
}

fn get(socket: &OwnedFd, family: Family, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut len = mem::size_of_val(buffer) as libc::socklen_t;
    // SAFETY: the socket is open, and `buffer` and `len` are live and exclusively borrowed; the kernel writes at
    // most `len` bytes.
    let ret = unsafe {
        let at = buffer.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), family.level, option, at, &raw mut len)
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For SET_REPLACE, `buffer` holds the address of `num_counters` counters, which must be live and exclusively the
/// caller's.
fn set(socket: &OwnedFd, family: Family, option: i32, buffer: &[u8]) -> io::Result<()> {
    let len = mem::size_of_val(buffer) as libc::socklen_t;
    // SAFETY: the socket is open and `buffer` is live; the kernel reads `len` bytes of it, and writes only to the
    // counters that [`replace`] keeps alive behind it.
    let ret =
        unsafe { libc::setsockopt(socket.as_raw_fd(), family.level, option, buffer.as_ptr().cast(), len) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        assert_eq!(mem::size_of::<Info>(), 84);
        assert_eq!(mem::size_of::<Replace>(), 96);
        assert_eq!(mem::offset_of!(Replace, counters), 88);
        assert_eq!(&named("nat")[..4], b"nat\0");
        assert_eq!(named(&"x".repeat(40))[31], 0);
    }
}

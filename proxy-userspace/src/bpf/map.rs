//! One map by its file descriptor: its properties, and its operations, single and batched.
//!
//! Batches fall back to single operations if the map type does not support them (EINVAL, ENOTSUPP); callers need not
//! care. Untyped: keys and values are bytes, per-CPU values in the kernel's layout.

use std::{
    cell::Cell,
    io, mem,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use bytemuck::{Pod, Zeroable};

use super::{Cmd, ENOTSUPP, bpf, obj_get, obj_info, ptr, ptr_mut};

/// Maximum entries per batch: limits the time of one system call and the buffers.
const CHUNK: usize = 8192;
/// Maximum bytes of values per batch read: values of per-CPU maps are long on machines with many CPUs.
const CHUNK_BYTES: usize = 4 << 20;

/// Map types (uapi/linux/bpf.h, `enum bpf_map_type`) that need special handling.
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_PERCPU_HASH: u32 = 10;
const PERCPU_CGROUP_STORAGE: u32 = 21;

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub map_flags: u32,
    name: [u8; 16],
}

impl MapInfo {
    /// The kernel's information about the map behind `fd`.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut info = Self::zeroed();
        obj_info(fd, &mut info)?;
        Ok(info)
    }

    /// The name it was created with, at most 15 bytes.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|b| *b == 0).unwrap_or(self.name.len());
        std::str::from_utf8(&self.name[..len]).unwrap_or("")
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ElemAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    /// Value, or next key.
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// An open map.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of one value as bpf(2) passes it: for per-CPU maps all CPUs' together.
    value_len: usize,
    /// False once the kernel has refused batches on this map.
    batches: Cell<bool>,
}

/// A write that failed after `done` elements.
#[derive(Debug)]
pub struct PartialWrite {
    pub done: usize,
    pub source: io::Error,
}

impl RawMap {
    /// Takes over an open map.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = MapInfo::of(fd.as_fd())?;
        let per_cpu =
            matches!(info.map_type, PERCPU_HASH | PERCPU_ARRAY | LRU_PERCPU_HASH | PERCPU_CGROUP_STORAGE);
        let value_len = if per_cpu {
            (info.value_size as usize).next_multiple_of(8) * possible_cpus()?
        } else {
            info.value_size as usize
        };
        Ok(Self { fd, info, value_len, batches: Cell::new(true) })
    }

    /// Opens the map pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(obj_get(path)?)
    }

    /// A second handle on the same map, for another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::new(self.fd.try_clone()?)
    }

    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Bytes of one value as it is read and written: for per-CPU maps all CPUs' together, each padded to 8.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// Whether elements always exist, as in arrays.
    pub fn is_array(&self) -> bool {
        matches!(self.info.map_type, ARRAY | PERCPU_ARRAY)
    }

    fn key_len(&self) -> usize {
        self.info.key_size as usize
    }

    fn elem(&self, key: &[u8], value: u64, flags: u64) -> ElemAttr {
        assert_eq!(key.len(), self.key_len(), "key size of {}", self.info.name());
        ElemAttr { map_fd: self.fd.as_raw_fd() as u32, reserved: 0, key: ptr(key), value, flags }
    }

    /// The value of `key`, or `None`.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_len];
        match bpf(Cmd::MapLookupElem, &mut self.elem(key, ptr_mut(&mut value), 0)) {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Inserts or replaces.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.value_len, "value size of {}", self.info.name());
        bpf(Cmd::MapUpdateElem, &mut self.elem(key, ptr(value), 0)).map(drop)
    }

    /// Inserts a new key; returns false if it exists.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        const BPF_NOEXIST: u64 = 1;
        assert_eq!(value.len(), self.value_len, "value size of {}", self.info.name());
        match bpf(Cmd::MapUpdateElem, &mut self.elem(key, ptr(value), BPF_NOEXIST)) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Deletes a key (zeroes an array's element); returns whether it existed.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        if self.is_array() {
            return self.update(key, &vec![0; self.value_len]).map(|()| true);
        }
        match bpf(Cmd::MapDeleteElem, &mut self.elem(key, 0, 0)) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_len()];
        let mut attr = ElemAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            reserved: 0,
            key: key.map_or(0, ptr),
            value: ptr_mut(&mut next),
            flags: 0,
        };
        match bpf(Cmd::MapGetNextKey, &mut attr) {
            Ok(_) => Ok(Some(next)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Calls `each` with every key and value, including zero elements of arrays. Entries added or deleted concurrently
    /// may be missed; all others are seen at least once.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        if self.batches.get() {
            match self.for_each_batched(usize::MAX, &mut each) {
                Err(e) if unsupported(&e) => self.batches.set(false),
                other => return other,
            }
        }
        let mut key = self.next_key(None)?;
        while let Some(current) = key {
            if let Some(value) = self.lookup(&current)? {
                each(&current, &value);
            }
            key = self.next_key(Some(&current))?;
        }
        Ok(())
    }

    /// The same for an array's elements below `len`.
    pub fn for_first(&self, len: u32, mut each: impl FnMut(u32, &[u8])) -> io::Result<()> {
        let len = len.min(self.info.max_entries);
        if self.batches.get() && len > 0 {
            let mut each = |key: &[u8], value: &[u8]| each(bytemuck::pod_read_unaligned(key), value);
            match self.for_each_batched(len as usize, &mut each) {
                Err(e) if unsupported(&e) => self.batches.set(false),
                other => return other,
            }
        }
        for index in 0..len {
            if let Some(value) = self.lookup(&index.to_ne_bytes())? {
                each(index, &value);
            }
        }
        Ok(())
    }

    /// Ends after `limit` entries.
    fn for_each_batched(&self, limit: usize, each: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let (key_len, value_len) = (self.key_len(), self.value_len);
        let fits = (CHUNK_BYTES / value_len.max(1)).clamp(64, CHUNK);
        let mut room = fits.min((self.info.max_entries as usize).max(64));
        let mut left = limit;
        let mut keys = vec![0u8; room * key_len];
        let mut values = vec![0u8; room * value_len];
        // Hash maps keep a 32-bit bucket number here, the others a key.
        let mut position = vec![0u8; key_len.max(mem::size_of::<u32>())];
        let mut next = position.clone();
        let mut first = true;
        loop {
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { ptr(&position) },
                out_batch: ptr_mut(&mut next),
                keys: ptr_mut(&mut keys),
                values: ptr_mut(&mut values),
                count: room.min(left) as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            let result = bpf(Cmd::MapLookupBatch, &mut attr);
            let last = match result {
                Ok(_) => false,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    // One bucket has more entries than the buffer.
                    room *= 2;
                    keys.resize(room * key_len, 0);
                    values.resize(room * value_len, 0);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let count = attr.count as usize;
            for (key, value) in
                keys[..count * key_len].chunks_exact(key_len).zip(values.chunks_exact(value_len))
            {
                each(key, value);
            }
            left -= count.min(left);
            if last || left == 0 {
                return Ok(());
            }
            mem::swap(&mut position, &mut next);
            first = false;
        }
    }

    /// Inserts or replaces all `keys[i] = values[i]` in order.
    pub fn update_all<'a>(
        &self,
        entries: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), PartialWrite> {
        let mut entries = entries;
        let mut done = 0;
        while entries.len() > 0 {
            let room = entries.len().min(CHUNK);
            let mut keys = Vec::with_capacity(room * self.key_len());
            let mut values = Vec::with_capacity(room * self.value_len);
            for (key, value) in entries.by_ref().take(room) {
                assert_eq!(key.len(), self.key_len(), "key size of {}", self.info.name());
                assert_eq!(value.len(), self.value_len, "value size of {}", self.info.name());
                keys.extend_from_slice(key);
                values.extend_from_slice(value);
            }
            self.update_chunk(&keys, &values, room)
                .map_err(|e| PartialWrite { done: done + e.done, source: e.source })?;
            done += room;
        }
        Ok(())
    }

    fn update_chunk(&self, keys: &[u8], values: &[u8], count: usize) -> Result<(), PartialWrite> {
        let mut done = 0;
        if count > 1 && self.batches.get() {
            let mut attr = self.batch(ptr(keys), ptr(values), count);
            match bpf(Cmd::MapUpdateBatch, &mut attr) {
                Ok(_) => return Ok(()),
                Err(e) if unsupported(&e) => {
                    self.batches.set(e.raw_os_error() != Some(ENOTSUPP));
                    // The kernel leaves `count` unchanged if it fails before it starts.
                    done = if attr.count as usize >= count { 0 } else { attr.count as usize };
                }
                Err(source) => return Err(PartialWrite { done: (attr.count as usize).min(count), source }),
            }
        }
        let pairs = keys.chunks_exact(self.key_len()).zip(values.chunks_exact(self.value_len));
        for (key, value) in pairs.skip(done) {
            self.update(key, value).map_err(|source| PartialWrite { done, source })?;
            done += 1;
        }
        Ok(())
    }

    /// Deletes all `keys` in order; missing ones are skipped. Returns how many existed.
    pub fn delete_all<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<usize, PartialWrite> {
        let mut keys = keys;
        let (mut done, mut deleted) = (0, 0);
        while keys.len() > 0 {
            let room = keys.len().min(CHUNK);
            let mut flat = Vec::with_capacity(room * self.key_len());
            for key in keys.by_ref().take(room) {
                assert_eq!(key.len(), self.key_len(), "key size of {}", self.info.name());
                flat.extend_from_slice(key);
            }
            deleted += self
                .delete_chunk(&flat)
                .map_err(|e| PartialWrite { done: done + e.done, source: e.source })?;
            done += room;
        }
        Ok(deleted)
    }

    fn delete_chunk(&self, keys: &[u8]) -> Result<usize, PartialWrite> {
        let (key_len, total) = (self.key_len(), keys.len() / self.key_len());
        let (mut done, mut deleted) = (0, 0);
        while done < total && total - done > 1 && self.batches.get() && !self.is_array() {
            let left = total - done;
            let mut attr = self.batch(ptr(&keys[done * key_len..]), 0, left);
            match bpf(Cmd::MapDeleteBatch, &mut attr) {
                Ok(_) => return Ok(deleted + left),
                // Missing: the kernel stops there; continue behind it.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    deleted += attr.count as usize;
                    done += attr.count as usize + 1;
                }
                Err(e) if unsupported(&e) => {
                    self.batches.set(e.raw_os_error() != Some(ENOTSUPP));
                    let some = if attr.count as usize >= left { 0 } else { attr.count as usize };
                    deleted += some;
                    done += some;
                    break;
                }
                Err(source) => {
                    return Err(PartialWrite { done: done + (attr.count as usize).min(left), source });
                }
            }
        }
        for key in keys.chunks_exact(key_len).skip(done) {
            deleted += usize::from(self.delete(key).map_err(|source| PartialWrite { done, source })?);
            done += 1;
        }
        Ok(deleted)
    }

    fn batch(&self, keys: u64, values: u64, count: usize) -> BatchAttr {
        BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count: count as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        }
    }
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The kernel does not support the operation on this map, or (EINVAL) does not know the command.
fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP | libc::EOPNOTSUPP))
}

/// The number of possible CPUs, and so of values in a per-CPU element.
pub fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_cpus(text.trim()).ok_or_else(|| io::Error::other(format!("cannot read CPU list {text:?}")))
}

/// Length of a CPU list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<usize> {
    list.split(',').try_fold(0, |sum, range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to) = (from.parse::<usize>().ok()?, to.parse::<usize>().ok()?);
        Some(sum + to.checked_sub(from)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-1"), Some(2));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        assert_eq!(count_cpus("3-1"), None);
        assert_eq!(count_cpus(""), None);
    }
}

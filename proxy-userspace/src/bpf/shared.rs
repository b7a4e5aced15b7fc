//! An array map's memory (BPF_F_MMAPABLE, kernel 5.5), mapped: single numbers are read and written while programs do
//! the same, without a system call and without touching adjacent fields. Used by `shunt monitor`.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use super::map::RawMap;

/// The elements of a mapped array; unmapped when dropped.
#[derive(Debug)]
pub struct SharedArray {
    at: NonNull<libc::c_void>,
    len: usize,
}

impl SharedArray {
    /// Maps all elements of `map` for reading and writing.
    pub fn map(map: &RawMap) -> io::Result<Self> {
        // The element size is rounded up to 8 bytes.
        let element = (map.info().value_size as usize).next_multiple_of(8);
        let len = element * map.info().max_entries as usize;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        match NonNull::new(at) {
            Some(at) if at.as_ptr() != libc::MAP_FAILED => Ok(Self { at, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The number at `offset` bytes in the first element.
    pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "offset {offset} of {}", self.len);
        // SAFETY: within the mapping, which begins at a page, and aligned; it lives as long as `self`, and whoever else
        // writes there is another process or the kernel.
        unsafe { AtomicU64::from_ptr(self.at.as_ptr().byte_add(offset).cast()) }
    }

    /// As [`Self::u64_at`].
    pub fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len, "offset {offset} of {}", self.len);
        // SAFETY: as for 64 bits.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().byte_add(offset).cast()) }
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: what `map` mapped; references into it borrowed `self` and are gone.
        unsafe { libc::munmap(self.at.as_ptr(), self.len) };
    }
}

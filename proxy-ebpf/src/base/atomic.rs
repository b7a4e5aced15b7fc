//! Atomic access to fields of map values (kernel 5.12). Every floor uses it.
//!
//! Assembly, because `core::sync::atomic` has no read-modify-write operations for this target (the oldest eBPF
//! instruction set has none), and the compiler's intrinsics are internal to it. All fields are 64 bits wide: 32-bit
//! registers cannot be named in assembly for the default instruction set.

use core::arch::asm;

/// Adds one; returns the previous value.
///
/// # Safety
/// `field` points to a live, 8-byte aligned field of a map value.
#[inline(always)]
pub unsafe fn add_one(field: *mut u64) -> u64 {
    // SAFETY: guaranteed by the caller.
    unsafe { add(field, 1) }
}

/// Adds `value`; returns the previous value.
///
/// # Safety
/// `field` points to a live, 8-byte aligned field of a map value.
#[inline(always)]
pub unsafe fn add(field: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: guaranteed by the caller; touches nothing else.
    unsafe { asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) field, v = inout(reg) value) };
    value
}

/// Sets `bits`.
///
/// # Safety
/// `field` points to a live, 8-byte aligned field of a map value.
#[inline(always)]
pub unsafe fn set_bits(field: *mut u64, bits: u64) {
    // SAFETY: guaranteed by the caller; touches nothing else.
    unsafe { asm!("lock *(u64 *)({p} + 0) |= {v}", p = in(reg) field, v = in(reg) bits) };
}

/// Clears `bits`.
///
/// # Safety
/// `field` points to a live, 8-byte aligned field of a map value.
#[inline(always)]
pub unsafe fn clear_bits(field: *mut u64, bits: u64) {
    // SAFETY: guaranteed by the caller; touches nothing else.
    unsafe { asm!("lock *(u64 *)({p} + 0) &= {v}", p = in(reg) field, v = in(reg) !bits) };
}

/// Stores `new` if the field is 0; otherwise returns its value as `Err`.
///
/// # Safety
/// `field` points to a live, 8-byte aligned field of a map value.
#[inline(always)]
pub unsafe fn set_if_zero(field: *mut u64, new: u64) -> Result<(), u64> {
    // SAFETY: guaranteed by the caller.
    unsafe { replace(field, 0, new) }
}

/// Stores `new` if the field is `old` (compare-and-exchange); otherwise returns its value as `Err`.
///
/// # Safety
/// `field` points to a live, 8-byte aligned field of a map value.
#[inline(always)]
pub unsafe fn replace(field: *mut u64, old: u64, new: u64) -> Result<(), u64> {
    let mut found = old;
    // SAFETY: guaranteed by the caller; touches nothing else. The instruction compares with r0 and leaves there what it found.
    unsafe {
        asm!("r0 = cmpxchg_64({p} + 0, r0, {v})", p = in(reg) field, v = in(reg) new, inout("r0") found)
    };
    if found == old { Ok(()) } else { Err(found) }
}

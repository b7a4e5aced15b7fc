//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624). Sums run over native words: the
//! one's-complement sum is independent of byte order as long as all words are read the same way.

/// Folds a sum to 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// One's-complement addition of 32-bit partial sums.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u32
}

/// The difference that a change of one word from `old` to `new` makes to a partial sum (RFC 1624, equation 3).
#[inline(always)]
pub const fn diff(old: u32, new: u32) -> u32 {
    add(!old, new)
}

/// [`diff`] over four words, an IPv6 address.
#[inline(always)]
pub const fn diff4(old: [u32; 4], new: [u32; 4]) -> u32 {
    add(add(diff(old[0], new[0]), diff(old[1], new[1])), add(diff(old[2], new[2]), diff(old[3], new[3])))
}

/// Applies a difference to a checksum field of a packet.
#[inline(always)]
pub const fn apply(field: u16, diff: u32) -> u16 {
    !fold(add(!field as u32 & 0xffff, diff))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(words: &[u32]) -> u16 {
        !fold(words.iter().fold(0, |sum, w| add(sum, *w)))
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut words: [u32; 10], at in 0usize..10, new: u32) {
            // An all-zero header has no meaningful checksum (RFC 1624, section 3).
            words[9] |= 1;
            prop_assume!(at != 9);
            let before = full(&words);
            let d = diff(words[at], new);
            words[at] = new;
            prop_assert_eq!(apply(before, d), full(&words));
        }

        #[test]
        fn diff4_is_four_diffs(old: [u32; 4], new: [u32; 4], mut rest: [u32; 4]) {
            rest[0] |= 1;
            let sum = |w: [u32; 4]| w.iter().chain(&rest).fold(0, |s, w| add(s, *w));
            prop_assert_eq!(apply(!fold(sum(old)), diff4(old, new)), !fold(sum(new)));
        }
    }
}

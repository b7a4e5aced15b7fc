//! Large data streams that reveal missing, duplicated or changed bytes.

use std::io::{self, Read, Write};

/// Bytes per write or read.
const CHUNK: usize = 64 << 10;

/// FNV-1a over 8 bytes at a time: fast enough for a debug build, and sensitive to order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
    }

    /// The value used in replies.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// `count` words that never repeat, and their digest once all have been taken.
struct Words {
    state: u64,
    digest: Digest,
}

impl Words {
    fn new() -> Self {
        Self { state: 1, digest: Digest::new() }
    }

    /// xorshift64.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.digest.add(self.state);
        self.state
    }
}

/// Writes `length` bytes (a multiple of 8) of the fixed pattern; returns their digest.
pub fn write(to: &mut impl Write, length: usize) -> io::Result<Digest> {
    let mut words = Words::new();
    let mut left = length / 8;
    while left > 0 {
        let now = left.min(CHUNK / 8);
        let chunk: Vec<u8> = (0..now).flat_map(|_| words.next().to_le_bytes()).collect();
        to.write_all(&chunk)?;
        left -= now;
    }
    Ok(words.digest)
}

/// Reads `length` bytes; returns the digest of the received bytes, without those after the last multiple of 8.
pub fn read(from: &mut impl Read, length: usize) -> io::Result<Digest> {
    let mut digest = Digest::new();
    let mut left = length;
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let now = left.min(CHUNK);
        from.read_exact(&mut chunk[..now])?;
        chunk[..now].as_chunks::<8>().0.iter().for_each(|word| digest.add(u64::from_le_bytes(*word)));
        left -= now;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_known_again_and_a_changed_byte_is_seen() {
        let mut bytes = Vec::new();
        let written = write(&mut bytes, 200_000).unwrap();
        assert_eq!(bytes.len(), 200_000);
        assert_eq!(read(&mut &bytes[..], bytes.len()).unwrap(), written);
        bytes[123_456] ^= 1;
        assert_ne!(read(&mut &bytes[..], bytes.len()).unwrap(), written);
        bytes[123_456] ^= 1;
        bytes.swap(8, 16);
        assert_ne!(read(&mut &bytes[..], bytes.len()).unwrap(), written);
    }
}

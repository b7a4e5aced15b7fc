//! Values of per-CPU maps. bpf(2) returns the values of all CPUs one after the other.

/// The sum of a counter over all CPUs.
pub fn sum(value: &[u8]) -> u64 {
    value.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_summed() {
        let cpus: Vec<u8> = [3u64, 4].iter().flat_map(|count| count.to_ne_bytes()).collect();
        assert_eq!(sum(&cpus), 7);
    }
}

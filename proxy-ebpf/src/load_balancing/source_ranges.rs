//! Which clients a load balancer address serves (loadBalancerSourceRanges), and which a NodePort (`--nodeport-source-ranges`).

use aya_ebpf::maps::lpm_trie::Key;
use proxy_common::{Addr, Frontend, SourceRange};

use crate::base::maps::SOURCE_RANGES;

/// Whether the frontend accepts new flows from this client. Checked first, so a rejected client cannot probe for
/// endpoints.
#[inline(always)]
pub fn allow(frontend: &Frontend, client: &Addr) -> bool {
    !frontend.has(Frontend::SOURCE_RANGES)
        || is_in_ranges(SourceRange::owner(frontend.service, frontend.kind), client)
}

#[inline(never)]
fn is_in_ranges(owner: u32, client: &Addr) -> bool {
    let [a, b, c, d] = client.words();
    let SourceRange { prefix_len, .. } = SourceRange::client(owner, *client);
    SOURCE_RANGES.get(&Key::new(prefix_len, [owner, a, b, c, d])).is_some()
}

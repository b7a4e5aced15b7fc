//! The chains of nftables (iptables-nft's among them), listed over netlink: this works without the nft binary.

use std::io;

use crate::datapath::netlink::{Message, Socket, attributes, read_str};

/// `NFNL_SUBSYS_NFTABLES << 8` and its messages (uapi/linux/netfilter/nf_tables.h).
const NFT_MSG_NEWCHAIN: u16 = 10 << 8 | 3;
const NFT_MSG_GETCHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub family: &'static str,
    pub table: String,
    pub name: String,
    /// A base chain of the forward hook whose policy is drop.
    pub drops_forwarded: bool,
}

/// Every chain of every family; a kernel without nftables has none.
pub(super) fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    let listed = Socket::open_netfilter().and_then(|mut socket| {
        socket.dump(NFT_MSG_GETCHAIN, &[0; HEADER], |message| chains.extend(chain(&message)))
    });
    match listed {
        Ok(()) => Ok(chains),
        // EINVAL: no nfnetlink subsystem answers for nf_tables; EPROTONOSUPPORT: no nfnetlink at all.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPROTONOSUPPORT)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn chain(message: &Message<'_>) -> Option<Chain> {
    if message.kind != NFT_MSG_NEWCHAIN {
        return None;
    }
    let family = match message.body.first()? {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    };
    let all = || attributes(message.body.get(HEADER..).unwrap_or_default());
    let find = |kind| all().find(|attribute| attribute.0 == kind).map(|attribute| attribute.1);
    let hook = find(NFTA_CHAIN_HOOK)
        .and_then(|nested| attributes(nested).find(|attribute| attribute.0 == NFTA_HOOK_HOOKNUM))
        .and_then(|attribute| be32(attribute.1));
    let policy = find(NFTA_CHAIN_POLICY).and_then(be32);
    Some(Chain {
        family,
        table: read_str(find(NFTA_CHAIN_TABLE)?),
        name: read_str(find(NFTA_CHAIN_NAME)?),
        drops_forwarded: matches!(family, "ip" | "ip6" | "inet")
            && hook == Some(NF_INET_FORWARD)
            && policy == Some(NF_DROP),
    })
}

fn be32(data: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::{Request, messages};

    fn body(hook: u32, policy: u32) -> Vec<u8> {
        let mut request = Request::new(NFT_MSG_NEWCHAIN, 0, &[2, 0, 0, 0]);
        request
            .attribute(NFTA_CHAIN_TABLE, b"filter\0")
            .attribute(NFTA_CHAIN_NAME, b"FORWARD\0")
            .nested(NFTA_CHAIN_HOOK, |nested| {
                nested.attribute(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
            })
            .attribute(NFTA_CHAIN_POLICY, &policy.to_be_bytes());
        request.finish(1)
    }

    fn parsed(bytes: &[u8]) -> Chain {
        messages(bytes).find_map(|message| chain(&message)).unwrap()
    }

    #[test]
    fn a_chain_of_the_forward_hook() {
        let dropping = parsed(&body(NF_INET_FORWARD, NF_DROP));
        assert_eq!(
            (dropping.family, dropping.table.as_str(), dropping.name.as_str()),
            ("ip", "filter", "FORWARD")
        );
        assert!(dropping.drops_forwarded);
        assert!(!parsed(&body(NF_INET_FORWARD, 1)).drops_forwarded);
        assert!(!parsed(&body(1, NF_DROP)).drops_forwarded);
    }
}

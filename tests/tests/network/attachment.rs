//! Attaching programs to devices and keeping them attached: the loader and the attacher in isolation, on both kinds of
//! hook, in a namespace of the test's own.

use std::{collections::BTreeSet, os::fd::AsFd as _};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use shunt::{
    bpf::{self, link::LinkInfo, prog::ProgInfo},
    config::MapSizes,
    datapath::{
        attach::{Attacher, Method},
        clsact,
        devices::select::Hook,
        direction::Direction,
        load::{Globals, Loaded, load},
        netlink::Socket,
        pins::Pins,
    },
};
use tests::net::{
    Netns,
    foreign::{self, DropAll},
    scratch::{BPFFS, Scratch, mount_bpffs},
};

const GLOBALS: Globals = Globals {
    socket_netns: 0,
    host_netns: 0,
    hz: 250,
    trace: 0,
    csum_ipv6: 0,
    set_retval: 0,
    fib_source: 0,
    stats: 1,
    symmetric: 0,
};

const SIZES: MapSizes = MapSizes {
    conntrack: 64,
    frontends: 64,
    backends: 64,
    slots: 64,
    services: 64,
    stats: 64,
    affinity: 64,
    source_ranges: 64,
    conntrack_is_scaled: false,
};

/// A namespace with a pair of devices and a pin directory; the calling thread is in the namespace.
struct Bench {
    _dir: Scratch,
    pins: Pins,
    netns: Netns,
}

impl Bench {
    fn new(name: &str) -> Result<Self> {
        mount_bpffs()?;
        let name = format!("shunt-attach-{}-{name}", std::process::id());
        let dir = Scratch::new(format!("{BPFFS}/{name}").into())?;
        let netns = Netns::new(name)?;
        netns.join()?;
        let pins = Pins::create(dir.path())?;
        let bench = Self { _dir: dir, pins, netns };
        bench
            .netns
            .ip("link add name d0 index 70 type veth peer name d1\nlink set d0 up\nlink set d1 up\n")?;
        Ok(bench)
    }

    fn attacher(&self, method: Method) -> Result<Attacher> {
        Ok(Attacher::new(self.pins.clone(), method)?)
    }

    fn load(&self) -> Result<Loaded> {
        Ok(load(&self.pins, &GLOBALS, &SIZES, false)?)
    }

    /// Ids and programs of the pinned links.
    fn links(&self) -> Result<BTreeSet<(u32, u32)>> {
        Pins::names(&self.pins.links())?
            .iter()
            .map(|name| {
                let link = bpf::obj_get(&self.pins.link(name))?;
                let info = LinkInfo::of(link.as_fd())?;
                Ok((info.id, info.prog_id))
            })
            .collect()
    }

    fn filters(&self, ifindex: u32) -> Result<[Option<u32>; 2]> {
        let mut netlink = Socket::open()?;
        let mut of = |direction| clsact::attached(&mut netlink, ifindex, direction);
        Ok([of(Direction::Ingress)?, of(Direction::Egress)?])
    }
}

fn program(loaded: &Loaded, name: &'static str) -> Result<Option<u32>> {
    Ok(Some(ProgInfo::of(loaded.program(name)?)?.id))
}

/// A second load updates the existing links, and a device that was created again under an old index gets new ones.
#[test]
fn links_stay_and_their_programs_change() -> Result<()> {
    let bench = Bench::new("tcx")?;
    let ifindex = if_nametoindex("d0")?;
    let old = bench.load()?;
    let mut attacher = bench.attacher(Method::Tcx)?;
    assert!(!attacher.is_hooked(&old, ifindex, Hook::L2, false)?);
    attacher.hook(&old, ifindex, Hook::L2, false)?;
    assert!(attacher.is_hooked(&old, ifindex, Hook::L2, false)?);
    assert_eq!(attacher.pinned()?, [ifindex]);
    let before = bench.links()?;
    assert_eq!(before.len(), 2);

    let new = bench.load()?;
    let mut attacher = bench.attacher(Method::Tcx)?;
    attacher.hook(&new, ifindex, Hook::L2, false)?;
    let after = bench.links()?;
    let ids = |links: &BTreeSet<(u32, u32)>| links.iter().map(|link| link.0).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after), "the same links");
    assert!(before.is_disjoint(&after), "with other programs");
    assert!(
        !attacher.is_hooked(&old, ifindex, Hook::L2, false)?
            && attacher.is_hooked(&new, ifindex, Hook::L2, false)?
    );

    bench.netns.ip("link del d0\nlink add name d0 index 70 type veth peer name d1\n")?;
    assert!(!attacher.is_hooked(&new, ifindex, Hook::L2, false)?, "the pin is of the device that is gone");
    attacher.hook(&new, ifindex, Hook::L2, false)?;
    assert!(attacher.is_hooked(&new, ifindex, Hook::L2, false)?);
    assert!(ids(&bench.links()?).iter().all(|id| !ids(&after).contains(id)));

    attacher.unhook(ifindex)?;
    assert!(bench.links()?.is_empty() && !attacher.is_hooked(&new, ifindex, Hook::L2, false)?);
    let gone = attacher.hook(&new, 4711, Hook::L2, false).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound, "{gone}");
    Ok(())
}

/// A device moved to another namespace keeps its index there. The links pinned for it must not be used for the local
/// device that now has the same index.
#[test]
fn a_device_that_moved_away_is_not_taken_for_its_successor() -> Result<()> {
    let bench = Bench::new("moved")?;
    let loaded = bench.load()?;
    let mut attacher = bench.attacher(Method::Tcx)?;
    attacher.hook(&loaded, 70, Hook::L2, false)?;
    let away = Netns::new(format!("shunt-attach-{}-away", std::process::id()))?;
    let path = away.path();
    let path = path.to_str().context("a path of ours")?;
    bench
        .netns
        .ip(&format!("link set d0 netns {path}\nlink add name d2 index 70 type veth peer name d3\n"))?;
    assert!(!attacher.is_hooked(&loaded, 70, Hook::L2, false)?);
    attacher.hook(&loaded, 70, Hook::L2, false)?;
    assert!(attacher.is_hooked(&loaded, 70, Hook::L2, false)?);
    let left = away.enter(|| bpf::prog::query(70, bpf::link::AttachType::TcxIngress as u32))?;
    assert_eq!(left, [], "nothing of ours stays on the device that went");
    Ok(())
}

/// On the clsact qdisc the filter is replaced in place, next to foreign filters.
#[test]
fn filters_are_replaced_beside_others() -> Result<()> {
    let bench = Bench::new("clsact")?;
    let ifindex = if_nametoindex("d0")?;
    let old = bench.load()?;
    let mut attacher = bench.attacher(Method::Clsact)?;
    assert!(!attacher.is_hooked(&old, ifindex, Hook::L3, false)?, "no qdisc yet");
    attacher.unhook(ifindex)?;
    attacher.hook(&old, ifindex, Hook::L3, false)?;
    assert_eq!(bench.filters(ifindex)?, [program(&old, "ingress_l3")?, program(&old, "egress_l3")?]);

    let foreign = DropAll::load()?;
    foreign.attach_clsact(&bench.netns, "d0", foreign::Hook::Ingress, &bench.pins.root().join("foreign"))?;
    let new = bench.load()?;
    attacher.hook(&new, ifindex, Hook::L2, false)?;
    assert_eq!(bench.filters(ifindex)?, [program(&new, "ingress_l2")?, program(&new, "egress_l2")?]);
    let shown = bench.netns.run(&["tc", "filter", "show", "dev", "d0", "ingress"])?;
    assert_eq!(shown.matches("shunt_").count(), 1, "{shown}");
    assert!(bench.links()?.is_empty(), "nothing is pinned");

    attacher.unhook(ifindex)?;
    assert_eq!(bench.filters(ifindex)?, [None, None]);
    let shown = bench.netns.run(&["tc", "filter", "show", "dev", "d0", "ingress"])?;
    assert!(shown.contains("direct-action"), "the other's stays: {shown}");
    let gone = attacher.hook(&new, 4711, Hook::L2, false).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound, "{gone}");
    Ok(())
}

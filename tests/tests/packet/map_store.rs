//! The agent's access to the maps: loading into a pin directory, opening it again, and the store's batches on real maps
//! of small size.

use anyhow::Result;
use proxy_common::map;
use shunt::{
    config::MapSizes,
    datapath::{
        DatapathError,
        layout::Mismatch,
        load::{Globals, load},
        pins::Pins,
    },
    maps::{MapError, MapStore as _, Op},
};
use tests::net::scratch::{BPFFS, Scratch, mount_bpffs};

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

fn small() -> MapSizes {
    MapSizes {
        conntrack: 64,
        frontends: 100,
        backends: 64,
        slots: 10_000,
        services: 64,
        stats: 64,
        affinity: 64,
        source_ranges: 64,
        conntrack_is_scaled: false,
    }
}

fn scratch(name: &str) -> Result<Scratch> {
    mount_bpffs()?;
    Scratch::new(format!("{BPFFS}/shunt-store-{}-{name}", std::process::id()).into())
}

fn put(map: &'static str, key: Vec<u8>, value: Vec<u8>) -> Op {
    Op::Put { map, key, value }
}

fn frontend(n: u32) -> Op {
    let mut key = vec![0; 20];
    key[..4].copy_from_slice(&n.to_ne_bytes());
    put(map::FRONTENDS, key, vec![n as u8; 32])
}

fn without(op: &Op) -> Op {
    match op {
        Op::Put { map, key, .. } | Op::Delete { map, key } => Op::Delete { map, key: key.clone() },
    }
}

#[test]
fn a_pin_directory_is_filled_and_found_again() -> Result<()> {
    let dir = scratch("again")?;
    let pins = Pins::create(dir.path())?;
    let mut loaded = load(&pins, &GLOBALS, &small(), true)?;
    let store = &mut loaded.store;

    // A hash: batches, replacing, deleting existing and missing keys.
    let all: Vec<_> = (0..100).map(frontend).collect();
    store.write(&all).map_err(|e| e.1)?;
    assert_eq!(store.read(map::FRONTENDS)?.len(), 100);
    let gone: Vec<_> = (50..150).map(frontend).map(|op| without(&op)).collect();
    store.write(&gone).map_err(|e| e.1)?;
    assert_eq!(store.read(map::FRONTENDS)?.len(), 50);

    // Full: the completed operations are reported, and stay.
    let more: Vec<_> = (1000..1100).map(frontend).collect();
    let (done, error) = store.write(&more).unwrap_err();
    assert_eq!(done, 50, "{error}");
    assert!(matches!(error, MapError::Full { map: map::FRONTENDS, max: 100 }), "{error}");
    assert_eq!(store.read(map::FRONTENDS)?.len(), 100);
    // The same in the middle of other writes: the count includes all operations.
    let mixed = [put(map::SLOTS, 0u32.to_ne_bytes().to_vec(), vec![9; 4]), frontend(2000), frontend(2001)];
    let (done, error) = store.write(&mixed).unwrap_err();
    assert_eq!(done, 1, "{error}");

    // An array: more than one batch, and zeroes count as absent.
    let slots: Vec<_> = (0..10_000u32)
        .map(|i| put(map::SLOTS, i.to_ne_bytes().to_vec(), (i % 2).to_ne_bytes().to_vec()))
        .collect();
    store.write(&slots).map_err(|e| e.1)?;
    assert_eq!(store.read(map::SLOTS)?.len(), 5000);
    store.write(&[without(&slots[1])]).map_err(|e| e.1)?;
    assert_eq!(store.read(map::SLOTS)?.len(), 4999, "to delete from an array is to zero");

    // A per-CPU array is read as whole elements.
    assert!(store.read(map::COUNTERS)?.is_empty());
    drop(loaded);

    // Another size is rejected with a message before any change; the same size is adopted with its contents.
    let bigger = MapSizes { frontends: 200, ..small() };
    match load(&pins, &GLOBALS, &bigger, false) {
        Err(DatapathError::Layout { path, reason: Mismatch::Size { pinned: 100, wanted: 200 } }) => {
            assert_eq!(path, pins.map(map::FRONTENDS));
        }
        other => panic!("{:?}", other.err()),
    }
    let mut again = load(&pins, &GLOBALS, &small(), true)?;
    assert_eq!(again.store.read(map::FRONTENDS)?.len(), 100);
    drop(again);

    // A foreign map under one of our names.
    std::fs::remove_file(pins.map(map::PORTS))?;
    std::fs::rename(pins.map(map::NODE_ADDRS), pins.map(map::PORTS))?;
    let error = load(&pins, &GLOBALS, &small(), true).expect_err("a foreign map");
    assert!(matches!(error, DatapathError::Layout { reason: Mismatch::Layout { .. }, .. }), "{error}");
    Ok(())
}

#[test]
fn one_agent_owns_a_pin_directory() -> Result<()> {
    let dir = scratch("lock")?;
    let pins = Pins::create(dir.path())?;
    let lock = pins.lock()?;
    assert!(matches!(pins.lock(), Err(DatapathError::Running { .. })));
    drop(lock);
    pins.lock()?;
    Ok(())
}

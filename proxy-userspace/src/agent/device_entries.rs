//! DEVICES: what the programs know of each hooked device.

use std::collections::BTreeMap;

use bytemuck::bytes_of;
use proxy_common::{Device, map};

use crate::{
    datapath::load::Loaded,
    maps::{MapError, MapStore as _, Op},
};

pub(super) fn put(loaded: &mut Loaded, ifindex: u32, device: &Device) -> Result<(), MapError> {
    write(loaded, &[put_op(ifindex, device)])
}

pub(super) fn delete(loaded: &mut Loaded, ifindex: u32) -> Result<(), MapError> {
    write(loaded, &[Op::Delete { map: map::DEVICES, key: bytes_of(&ifindex).to_vec() }])
}

/// Makes DEVICES hold exactly `devices`.
pub(super) fn repair(
    loaded: &mut Loaded,
    devices: impl Iterator<Item = (u32, Device)>,
) -> Result<(), MapError> {
    let mut present: BTreeMap<Vec<u8>, Vec<u8>> = loaded.store.read(map::DEVICES)?.into_iter().collect();
    let mut ops = Vec::new();
    for (ifindex, device) in devices {
        if present.remove(bytes_of(&ifindex)).as_deref() != Some(bytes_of(&device)) {
            ops.push(put_op(ifindex, &device));
        }
    }
    ops.extend(present.into_keys().map(|key| Op::Delete { map: map::DEVICES, key }));
    write(loaded, &ops)
}

fn put_op(ifindex: u32, device: &Device) -> Op {
    Op::Put { map: map::DEVICES, key: bytes_of(&ifindex).to_vec(), value: bytes_of(device).to_vec() }
}

fn write(loaded: &mut Loaded, ops: &[Op]) -> Result<(), MapError> {
    loaded.store.write(ops).map_err(|(_, error)| error)
}

//! `shunt map list|dump|lookup`: raw maps in bpftool's JSON format, with formatted keys and values added.

use std::{
    io::{self, Write},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use proxy_common::map;
use serde::Serialize;

use super::{
    InspectError,
    map_args::{self, MapArgsError, MapRef},
    map_format::{self, Fields, Layout},
    pins::Pins,
    table::print_table_into,
};
use crate::bpf::map::{MapInfo, RawMap};

/// One pinned map, with the field names of `bpftool map list -j`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapView {
    pub id: u32,
    #[serde(rename = "type")]
    pub map_type: String,
    pub name: String,
    pub flags: u32,
    pub bytes_key: u32,
    pub bytes_value: u32,
    pub max_entries: u32,
    pub bytes_memlock: u64,
    pub pinned: Vec<PathBuf>,
}

/// One element, with the field names of `bpftool map dump -j`. A per-CPU map has `values` instead of `value`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Element {
    key: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<CpuValue<Vec<String>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    formatted: Option<Formatted>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct CpuValue<T> {
    cpu: usize,
    value: T,
}

/// The formatted element of a map of the contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Formatted {
    key: Fields,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Fields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<CpuValue<Fields>>>,
}

/// Every pinned map; those of the contract first.
pub fn list(pins: &Pins) -> Result<Vec<MapView>, InspectError> {
    let mut names = pins.names(&pins.maps())?;
    let place = |name: &String| map::ALL.iter().position(|known| known == name).unwrap_or(map::ALL.len());
    names.sort_by_key(place);
    names
        .iter()
        .map(|name| {
            let path = pins.maps().join(name);
            let fd = pins.open(&path)?;
            let info = MapInfo::of(fd.as_fd())
                .map_err(|error| InspectError::io("reading the info of", &path, error))?;
            Ok(MapView {
                id: info.id,
                map_type: type_name(info.map_type),
                name: info.name().to_owned(),
                flags: info.map_flags,
                bytes_key: info.key_size,
                bytes_value: info.value_size,
                max_entries: info.max_entries,
                bytes_memlock: memlock(fd.as_fd()),
                pinned: vec![path],
            })
        })
        .collect()
}

/// Kernel memory of an object in bytes, from its fdinfo; 0 if fdinfo does not contain it.
pub(super) fn memlock(fd: BorrowedFd<'_>) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0)
}

/// bpftool's name of a map type, for the types that shunt uses.
fn type_name(number: u32) -> String {
    let name = match number {
        1 => "hash",
        2 => "array",
        3 => "prog_array",
        4 => "perf_event_array",
        5 => "percpu_hash",
        6 => "percpu_array",
        9 => "lru_hash",
        10 => "lru_percpu_hash",
        11 => "lpm_trie",
        27 => "ringbuf",
        _ => return number.to_string(),
    };
    name.to_owned()
}

/// Opens a map. A map of the contract must have the right layout, which then formats its elements.
fn open(pins: &Pins, map: &MapRef) -> Result<(RawMap, PathBuf, Option<&'static Layout>), InspectError> {
    let path = match map {
        MapRef::Pinned(path) => path.clone(),
        MapRef::Name(name) => {
            let known = map::ALL.into_iter().find(|known| known.eq_ignore_ascii_case(name));
            if let Some(known) = known {
                return Ok((pins.map(known)?, pins.maps().join(known), map_format::layout(known)));
            }
            pins.maps().join(name)
        }
    };
    let map = pins.open_map(&path)?;
    let info = *map.info();
    let layout = path
        .file_name()
        .and_then(|name| map_format::layout(&name.to_string_lossy()))
        .filter(|layout| (layout.key_size, layout.value_size) == (info.key_size, info.value_size));
    Ok((map, path, layout))
}

/// All elements of a map, and the number of omitted ones: zero elements of an array are omitted unless `all` is set.
pub fn dump(pins: &Pins, args: &[String], all: bool) -> Result<(Vec<Element>, usize), InspectError> {
    let (map, path, layout) = open(pins, &map_args::map_only(args)?)?;
    let skip_zero = map.is_array() && !all;
    let mut elements = Vec::new();
    let mut omitted = 0;
    map.for_each(|key, value| {
        if skip_zero && value.iter().all(|byte| *byte == 0) {
            omitted += 1;
        } else {
            elements.push(element(layout, map.info().value_size as usize, key, value));
        }
    })
    .map_err(|error| InspectError::io("reading the map", path, error))?;
    Ok((elements, omitted))
}

/// One element by its key.
pub fn lookup(pins: &Pins, args: &[String]) -> Result<Element, InspectError> {
    let (map, rest) = map_args::map_and_rest(args)?;
    let key = map_args::key_of(rest)?;
    let (map, path, layout) = open(pins, &map)?;
    let wanted = map.info().key_size as usize;
    if key.len() != wanted {
        let map = file_name(&path);
        return Err(MapArgsError::KeyLength { map, given: key.len(), wanted }.into());
    }
    match map.lookup(&key).map_err(|error| InspectError::io("reading the map", &path, error))? {
        Some(value) => Ok(element(layout, map.info().value_size as usize, &key, &value)),
        None => Err(InspectError::NoSuchKey { map: file_name(&path) }),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn hex(bytes: &[u8]) -> Vec<String> {
    bytes.iter().map(|byte| format!("{byte:#04x}")).collect()
}

/// Formats one element. If `value` is longer than `value_size`, it contains the values of all CPUs, each padded to eight
/// bytes.
fn element(layout: Option<&Layout>, value_size: usize, key: &[u8], value: &[u8]) -> Element {
    let per_cpu = value.len() != value_size;
    let cpus =
        || value.chunks_exact(value_size.next_multiple_of(8)).map(|chunk| &chunk[..value_size]).enumerate();
    Element {
        key: hex(key),
        value: (!per_cpu).then(|| hex(value)),
        values: per_cpu.then(|| cpus().map(|(cpu, bytes)| CpuValue { cpu, value: hex(bytes) }).collect()),
        formatted: layout.map(|layout| Formatted {
            key: layout.key(key),
            value: (!per_cpu).then(|| layout.value(value)),
            values: per_cpu
                .then(|| cpus().map(|(cpu, bytes)| CpuValue { cpu, value: layout.value(bytes) }).collect()),
        }),
    }
}

pub fn print_maps_into(out: &mut impl Write, views: &[MapView], headers: bool) -> io::Result<()> {
    let rows = views.iter().map(|view| {
        vec![
            view.id.to_string(),
            view.name.clone(),
            view.map_type.clone(),
            view.bytes_key.to_string(),
            view.bytes_value.to_string(),
            view.max_entries.to_string(),
            format!("{:#x}", view.flags),
            view.bytes_memlock.to_string(),
        ]
    });
    print_table_into(
        out,
        headers,
        &["ID", "NAME", "TYPE", "KEY", "VALUE", "MAX-ENTRIES", "FLAGS", "MEMLOCK"],
        rows,
    )
}

/// One line per element: formatted, or as bytes if the map is not in the contract.
pub fn print_element_into(out: &mut impl Write, element: &Element) -> io::Result<()> {
    let bytes = |bytes: &[String]| bytes.iter().map(|byte| &byte[2..]).collect::<Vec<_>>().join(" ");
    match &element.formatted {
        Some(formatted) => {
            write!(out, "key: {}", formatted.key)?;
            if let Some(value) = &formatted.value {
                write!(out, "  value: {value}")?;
            }
            for cpu in formatted.values.iter().flatten() {
                write!(out, "  value (cpu {}): {}", cpu.cpu, cpu.value)?;
            }
        }
        None => {
            write!(out, "key: {}", bytes(&element.key))?;
            if let Some(value) = &element.value {
                write!(out, "  value: {}", bytes(value))?;
            }
            for cpu in element.values.iter().flatten() {
                write!(out, "  value (cpu {}): {}", cpu.cpu, bytes(&cpu.value))?;
            }
        }
    }
    writeln!(out)
}

pub fn print_dump_into(out: &mut impl Write, elements: &[Element], omitted: usize) -> io::Result<()> {
    for element in elements {
        print_element_into(out, element)?;
    }
    let plural = if elements.len() == 1 { "" } else { "s" };
    write!(out, "Found {} element{plural}", elements.len())?;
    if omitted > 0 {
        write!(out, " ({omitted} more are all zero; --all shows them)")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpftools_format_plus_formatted_fields() {
        let element = element(map_format::layout(map::SLOTS), 4, &1u32.to_ne_bytes(), &7u32.to_ne_bytes());
        assert_eq!(
            serde_json::to_string(&element).unwrap(),
            r#"{"key":["0x01","0x00","0x00","0x00"],"value":["0x07","0x00","0x00","0x00"],"formatted":{"key":{"index":1},"value":{"backend":7}}}"#
        );
        let mut out = Vec::new();
        print_dump_into(&mut out, &[element], 3).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "key: index=1  value: backend=7\nFound 1 element (3 more are all zero; --all shows them)\n"
        );
    }

    #[test]
    fn one_value_per_cpu() {
        let value: Vec<u8> = [3u64, 4].iter().flat_map(|count| count.to_ne_bytes()).collect();
        let element = element(map_format::layout(map::COUNTERS), 8, &0u32.to_ne_bytes(), &value);
        let json = serde_json::to_value(&element).unwrap();
        assert!(json.get("value").is_none());
        assert_eq!(json["values"][1]["cpu"], 1);
        assert_eq!(json["values"][1]["value"][0], "0x04");
        assert_eq!(json["formatted"]["values"][0]["value"]["count"], 3);
    }

    #[test]
    fn a_map_outside_the_contract_is_shown_as_bytes() {
        let element = element(None, 2, &[1], &[0xab, 0]);
        let mut out = Vec::new();
        print_element_into(&mut out, &element).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "key: 01  value: ab 00\n");
        assert!(serde_json::to_value(&element).unwrap().get("formatted").is_none());
    }
}

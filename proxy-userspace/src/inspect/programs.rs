//! `shunt prog list`: pinned programs, with figures of the verifier and the JIT.

use std::{
    io::{self, Write},
    os::fd::AsFd as _,
    path::PathBuf,
};

use serde::Serialize;

use super::{InspectError, maps::memlock, pins::Pins, table::print_table_into};
use crate::bpf::prog::{CGROUP_SOCK_ADDR, ProgInfo, SCHED_CLS};

/// One program, with the field names of `bpftool prog list -j`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgView {
    pub id: u32,
    #[serde(rename = "type")]
    pub prog_type: String,
    pub name: String,
    pub tag: String,
    pub bytes_xlated: u32,
    pub jited: bool,
    pub bytes_jited: u32,
    pub bytes_memlock: u64,
    /// Instructions that the verifier processed; 0 before Linux 5.16.
    pub verified_insns: u32,
    pub pinned: Vec<PathBuf>,
}

pub fn list(pins: &Pins) -> Result<Vec<ProgView>, InspectError> {
    let dir = pins.progs();
    pins.names(&dir)?
        .iter()
        .map(|name| {
            let path = dir.join(name);
            let fd = pins.open(&path)?;
            let info = ProgInfo::of(fd.as_fd())
                .map_err(|error| InspectError::io("reading the info of", &path, error))?;
            Ok(ProgView {
                id: info.id,
                prog_type: type_name(info.prog_type),
                name: info.name().to_owned(),
                tag: info.tag.iter().map(|byte| format!("{byte:02x}")).collect(),
                bytes_xlated: info.xlated_prog_len,
                jited: info.jited_prog_len != 0,
                bytes_jited: info.jited_prog_len,
                bytes_memlock: memlock(fd.as_fd()),
                verified_insns: info.verified_insns,
                pinned: vec![path],
            })
        })
        .collect()
}

fn type_name(number: u32) -> String {
    match number {
        SCHED_CLS => "sched_cls".to_owned(),
        CGROUP_SOCK_ADDR => "cgroup_sock_addr".to_owned(),
        6 => "xdp".to_owned(),
        other => other.to_string(),
    }
}

pub fn print_programs_into(out: &mut impl Write, views: &[ProgView], headers: bool) -> io::Result<()> {
    let rows = views.iter().map(|view| {
        vec![
            view.id.to_string(),
            view.name.clone(),
            view.prog_type.clone(),
            view.tag.clone(),
            view.verified_insns.to_string(),
            view.bytes_xlated.to_string(),
            view.bytes_jited.to_string(),
            view.bytes_memlock.to_string(),
        ]
    });
    print_table_into(
        out,
        headers,
        &["ID", "NAME", "TYPE", "TAG", "VERIFIED", "XLATED", "JITED", "MEMLOCK"],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_program() {
        let view = ProgView {
            id: 5,
            prog_type: type_name(SCHED_CLS),
            name: "ingress_l2".into(),
            tag: "00ff".into(),
            bytes_xlated: 80,
            jited: true,
            bytes_jited: 60,
            bytes_memlock: 4096,
            verified_insns: 12,
            pinned: vec!["/p".into()],
        };
        let mut out = Vec::new();
        print_programs_into(&mut out, std::slice::from_ref(&view), false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "5   ingress_l2   sched_cls   00ff   12   80   60   4096\n"
        );
        assert_eq!(serde_json::to_value(&view).unwrap()["type"], "sched_cls");
    }
}

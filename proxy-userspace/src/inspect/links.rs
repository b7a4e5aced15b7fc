//! `shunt link list`: attachments of the programs, from pinned links and clsact filters.

use std::{
    collections::HashMap,
    io::{self, Write},
    os::fd::AsFd as _,
    path::PathBuf,
};

use serde::Serialize;

use super::{InspectError, drops::device_name, pins::Pins, programs, table::print_table_into};
use crate::{
    bpf::link::{LinkInfo, TYPE_CGROUP, TYPE_TCX, TYPE_XDP},
    datapath::{clsact, devices::Devices, direction::Direction, netlink::Socket, xdp},
};

/// One attachment, with the field names of `bpftool link list -j`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkView {
    /// 0 for a clsact filter.
    pub id: u32,
    /// `tcx`, `xdp`, `cgroup` or `clsact`.
    #[serde(rename = "type")]
    pub link_type: String,
    pub prog_id: u32,
    pub prog_name: String,
    pub attach_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ifindex: Option<u32>,
    /// Name of the device in this network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devname: Option<String>,
    /// Inode number of the cgroup directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<u64>,
    pub pinned: Vec<PathBuf>,
}

pub fn list(pins: &Pins) -> Result<Vec<LinkView>, InspectError> {
    let names: HashMap<u32, String> =
        programs::list(pins)?.into_iter().map(|program| (program.id, program.name)).collect();
    let dir = pins.links();
    let mut views = pins
        .names(&dir)?
        .iter()
        .map(|name| {
            let path = dir.join(name);
            let fd = pins.open(&path)?;
            let info = LinkInfo::of(fd.as_fd())
                .map_err(|error| InspectError::io("reading the info of", &path, error))?;
            let ifindex = info.ifindex();
            Ok(LinkView {
                id: info.id,
                link_type: type_name(info.link_type),
                prog_id: info.prog_id,
                prog_name: names.get(&info.prog_id).cloned().unwrap_or_default(),
                // The kernel does not report the mode of an XDP link; the name of its pin contains it.
                attach_type: match xdp::parse_link_name(name) {
                    Some((mode, _)) => format!("xdp_{mode}"),
                    None => attach_name(info.attach_type()),
                },
                ifindex,
                devname: ifindex.and_then(device_name),
                cgroup_id: info.cgroup_id(),
                pinned: vec![path],
            })
        })
        .collect::<Result<Vec<_>, InspectError>>()?;
    views.extend(filters(&names)?);
    views.sort_by(|a, b| {
        (&a.link_type, a.ifindex, &a.attach_type, a.id).cmp(&(&b.link_type, b.ifindex, &b.attach_type, b.id))
    });
    Ok(views)
}

/// clsact filters of this network namespace that run a pinned program. Kernels without tcx use them instead of links; they
/// cannot be pinned.
fn filters(programs: &HashMap<u32, String>) -> Result<Vec<LinkView>, InspectError> {
    let failed = |source| InspectError::Netlink { what: "filters", source };
    let mut netlink = Socket::open().map_err(failed)?;
    let devices = Devices::dump(&mut netlink).map_err(failed)?;
    let mut views = Vec::new();
    for link in devices.links.values() {
        for (direction, name) in
            [(Direction::Ingress, "clsact_ingress"), (Direction::Egress, "clsact_egress")]
        {
            let id = clsact::attached(&mut netlink, link.index, direction).map_err(failed)?;
            let Some((id, program)) = id.and_then(|id| programs.get_key_value(&id)) else { continue };
            views.push(LinkView {
                id: 0,
                link_type: "clsact".to_owned(),
                prog_id: *id,
                prog_name: program.clone(),
                attach_type: name.to_owned(),
                ifindex: Some(link.index),
                devname: Some(link.name.clone()),
                cgroup_id: None,
                pinned: Vec::new(),
            });
        }
    }
    Ok(views)
}

fn type_name(number: u32) -> String {
    match number {
        TYPE_CGROUP => "cgroup".to_owned(),
        TYPE_TCX => "tcx".to_owned(),
        TYPE_XDP => "xdp".to_owned(),
        other => other.to_string(),
    }
}

/// bpftool's name of an attach type, for the hooks that shunt uses.
fn attach_name(number: u32) -> String {
    let name = match number {
        10 => "cgroup_inet4_connect",
        11 => "cgroup_inet6_connect",
        14 => "cgroup_udp4_sendmsg",
        15 => "cgroup_udp6_sendmsg",
        19 => "cgroup_udp4_recvmsg",
        20 => "cgroup_udp6_recvmsg",
        29 => "cgroup_inet4_getpeername",
        30 => "cgroup_inet6_getpeername",
        46 => "tcx_ingress",
        47 => "tcx_egress",
        _ => return number.to_string(),
    };
    name.to_owned()
}

pub fn print_links_into(out: &mut impl Write, views: &[LinkView], headers: bool) -> io::Result<()> {
    let rows = views.iter().map(|view| {
        let place = match (view.ifindex, &view.devname, view.cgroup_id) {
            (Some(0), ..) => "device gone".to_owned(),
            (Some(ifindex), Some(name), _) => format!("{name} (ifindex {ifindex})"),
            (Some(ifindex), None, _) => format!("ifindex {ifindex}"),
            (None, _, Some(0)) => "cgroup gone".to_owned(),
            (None, _, Some(cgroup)) => format!("cgroup {cgroup}"),
            (None, _, None) => "-".to_owned(),
        };
        let program = if view.prog_name.is_empty() { "-" } else { &view.prog_name };
        vec![
            match view.id {
                0 => "-".to_owned(),
                id => id.to_string(),
            },
            view.link_type.clone(),
            view.attach_type.clone(),
            place,
            program.to_owned(),
            view.prog_id.to_string(),
        ]
    });
    print_table_into(out, headers, &["ID", "TYPE", "ATTACH", "WHERE", "PROGRAM", "PROG-ID"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_cgroups() {
        let tcx = LinkView {
            id: 4,
            link_type: type_name(TYPE_TCX),
            prog_id: 9,
            prog_name: "ingress_l2".into(),
            attach_type: attach_name(46),
            ifindex: Some(1),
            devname: device_name(1),
            ..LinkView::default()
        };
        let gone = LinkView { ifindex: Some(0), devname: None, ..tcx.clone() };
        let cgroup = LinkView {
            link_type: type_name(TYPE_CGROUP),
            attach_type: attach_name(10),
            prog_name: "connect4".into(),
            cgroup_id: Some(77),
            ifindex: None,
            devname: None,
            ..tcx.clone()
        };
        let mut out = Vec::new();
        print_links_into(&mut out, &[tcx, gone, cgroup], false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "4   tcx      tcx_ingress            lo (ifindex 1)   ingress_l2   9\n\
             4   tcx      tcx_ingress            device gone      ingress_l2   9\n\
             4   cgroup   cgroup_inet4_connect   cgroup 77        connect4     9\n"
        );
    }
}

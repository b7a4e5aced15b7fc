//! Leftovers of a kube-proxy in ipvs mode, and their removal: the host's kernel need not have IPVS. The guest creates
//! them with netlink messages, as kube-proxy does.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result};
use shunt::datapath::netlink::{Request, Socket, attributes, read_u16};

use super::{
    Report, Seen,
    command::{SLOW, ended, ip},
    image,
};

/// Two VIPs of each family; a NodePort at the node's own address; a foreign virtual server there.
const LEFT: [&str; 3] = ["10.68.0.10:80", "[fd00:10:68::a]:80", "192.168.8.201:30080"];
const FOREIGN: &str = "192.168.8.201:443";

/// `report.check` is the output of `shunt check` before the removal, `report.run` the list of removed objects; each
/// attempt is a question and whether the answer was correct.
pub fn leave_and_clean_up(report: &mut Report) -> Result<()> {
    ip("link set lo up\nlink add kube-ipvs0 type dummy\nlink add eth0 type dummy\nlink set eth0 up\n\
        addr add 10.68.0.10/32 dev kube-ipvs0\naddr add fd00:10:68::a/128 dev kube-ipvs0 nodad\n\
        addr add 192.168.8.201/24 dev eth0")?;
    for at in LEFT.into_iter().chain([FOREIGN]) {
        add_server(at.parse()?).with_context(|| format!("adding the virtual server {at}"))?;
    }
    let before = servers()?;
    ask(report, "virtual servers before", before.matches("TCP").count() == 4, before);
    report.check = ended(Command::new(image::SHUNT).args(["check", "-o", "json"]), SLOW)?;
    report.run = ended(Command::new(image::SHUNT).args(["cleanup", "--kube-proxy", "-o", "json"]), SLOW)?;
    let after = servers()?;
    let right = after.matches("TCP").count() == 1 && after.contains("C0A808C9:01BB");
    ask(report, "virtual servers after", right, after);
    let links = ended(Command::new("ip").args(["-o", "link"]), SLOW)?.output;
    ask(report, "devices after", !links.contains("kube-ipvs0") && links.contains("eth0"), links);
    let again = ended(Command::new(image::SHUNT).args(["cleanup", "--kube-proxy", "-o", "json"]), SLOW)?;
    ask(
        report,
        "a second removal",
        again.status == Some(0) && !again.output.contains("kube-ipvs0"),
        again.output,
    );
    Ok(())
}

fn ask(report: &mut Report, question: &str, right: bool, answer: String) {
    report.attempts.push(Seen { answered: right, what: format!("{question}: {answer}") });
}

fn servers() -> Result<String> {
    fs::read_to_string("/proc/net/ip_vs").context("reading /proc/net/ip_vs")
}

/// `ipvsadm -A -t AT -s rr` (uapi/linux/ip_vs.h: IPVS_CMD_NEW_SERVICE and its attributes).
fn add_server(at: SocketAddr) -> Result<()> {
    let mut socket = Socket::open_generic()?;
    let mut question = Request::new(16, 0, &[3, 1, 0, 0]);
    question.attribute(2, b"IPVS\0");
    let mut family = None;
    socket.ask(question, |message| {
        let mut all = attributes(&message.body[4..]);
        family = all.find(|it| it.0 == 1).and_then(|it| read_u16(it.1, 0)).or(family);
    })?;
    let (af, address, mask) = match at.ip() {
        IpAddr::V4(v4) => (libc::AF_INET, [&v4.octets()[..], &[0; 12]].concat(), u32::MAX),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec(), 128),
    };
    let mut request = Request::new(family.context("the kernel has no IPVS")?, 0, &[1, 1, 0, 0]);
    request.nested(1, |service| {
        service
            .attribute(1, &(af as u16).to_ne_bytes())
            .attribute(2, &6u16.to_ne_bytes())
            .attribute(3, &address)
            .attribute(4, &at.port().to_be_bytes())
            .attribute(6, b"rr\0")
            // No flags, with a mask of all of them.
            .attribute(7, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
            .attribute(8, &0u32.to_ne_bytes())
            .attribute(9, &mask.to_ne_bytes());
    });
    Ok(socket.request(request)?)
}

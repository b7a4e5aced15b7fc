//! Whether a kube-proxy runs on this node: a process of that name in this network namespace, or a listener on its ports
//! that answers like it (k3s and others embed it in a process of another name; in a pod without the host's process ids
//! no process is visible).

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

const NAME: &str = "kube-proxy";
/// kube-proxy's default ports, the request to send, and how to recognise its response.
const METRICS: u16 = 10249;
const HEALTHZ: u16 = 10256;
const MODES: [&str; 5] = ["iptables", "ipvs", "nftables", "userspace", "kernelspace"];
const PATIENCE: Duration = Duration::from_secs(2);

/// One sign of a running kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    Process {
        pid: u32,
    },
    /// Name and id of the listening process, if visible.
    Listener {
        port: u16,
        owner: Option<(String, u32)>,
        mode: Option<String>,
    },
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid } => write!(f, "pid {pid}"),
            Self::Listener { port, owner, mode } => {
                match owner {
                    Some((name, pid)) => write!(f, "{name} (pid {pid})")?,
                    None => f.write_str("a process")?,
                }
                write!(f, " answers at port {port} as kube-proxy does")?;
                if let Some(mode) = mode {
                    write!(f, ", in {mode} mode")?;
                }
                Ok(())
            }
        }
    }
}

impl Sign {
    /// A distribution that embeds kube-proxy in its own process.
    pub fn is_k3s(&self) -> bool {
        matches!(self, Self::Listener { owner: Some((name, _)), .. }
            if name.starts_with("k3s") || name.starts_with("rke2"))
    }
}

/// All signs. `agent`: process id of a running shunt, which may own the listener.
pub fn signs(agent: Option<u32>) -> Vec<Sign> {
    let processes = processes();
    let mut signs: Vec<Sign> = processes.iter().map(|pid| Sign::Process { pid: *pid }).collect();
    for (port, inode) in listeners() {
        let owner = owner_of(inode);
        let counts = match &owner {
            // Cilium's replacement answers the same way; `check` reports it separately.
            Some((name, pid)) => {
                name != "shunt"
                    && agent != Some(*pid)
                    && !name.starts_with("cilium")
                    && !processes.contains(pid)
            }
            None => agent.is_none(),
        };
        if counts && let Some(mode) = answer(port) {
            signs.push(Sign::Listener { port, owner, mode });
        }
    }
    signs
}

/// Ids of processes of that name in this network namespace; other nodes on the same machine (kind) have their own
/// namespaces.
fn processes() -> Vec<u32> {
    let Ok(here) = fs::metadata("/proc/self/ns/net") else { return Vec::new() };
    let mut pids: Vec<u32> = pids()
        .filter(|pid| name_of(*pid).is_some_and(|name| name == NAME))
        .filter(|pid| match fs::metadata(format!("/proc/{pid}/ns/net")) {
            Ok(there) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
            // Not permitted to check: count it rather than miss it.
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        })
        .collect();
    pids.sort_unstable();
    pids
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The name of the executable in the command line, else the process's own name.
fn name_of(pid: u32) -> Option<String> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = Path::new(std::str::from_utf8(first).ok()?).file_name();
    Some(if program.is_some_and(|it| it == NAME) { NAME.to_owned() } else { comm })
}

/// kube-proxy's ports that have a listener, with the socket's inode.
fn listeners() -> BTreeMap<u16, u64> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let text = read("/proc/net/tcp") + &read("/proc/net/tcp6");
    text.lines().filter_map(listener_in).filter(|(port, _)| [METRICS, HEALTHZ].contains(port)).collect()
}

/// `sl: LOCAL:PORT REMOTE:PORT 0A … inode …`.
fn listener_in(line: &str) -> Option<(u16, u64)> {
    const LISTEN: &str = "0A";
    let words: Vec<_> = line.split_whitespace().collect();
    let port = u16::from_str_radix(words.get(1)?.rsplit_once(':')?.1, 16).ok()?;
    (*words.get(3)? == LISTEN).then_some(())?;
    Some((port, words.get(9)?.parse().ok()?))
}

fn owner_of(inode: u64) -> Option<(String, u32)> {
    let socket = format!("socket:[{inode}]");
    let pid = pids().find(|pid| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == socket.as_str()))
    })?;
    Some((name_of(pid)?, pid))
}

/// The mode (if the port reports it), if the listener is a kube-proxy.
fn answer(port: u16) -> Option<Option<String>> {
    let path = if port == METRICS { "/proxyMode" } else { "/healthz" };
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let answer = loopback.into_iter().find_map(|ip| get(SocketAddr::new(ip, port), path).ok())?;
    judge(port, &answer)
}

fn judge(port: u16, answer: &str) -> Option<Option<String>> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if port == METRICS {
        // A chunked response contains chunk lengths.
        let mode = body.split_whitespace().find(|word| MODES.contains(word))?;
        return head.contains(" 200").then(|| Some(mode.to_owned()));
    }
    body.contains("\"lastUpdated\"").then_some(None)
}

fn get(at: SocketAddr, path: &str) -> io::Result<String> {
    const MOST: u64 = 64 * 1024;
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_read() {
        let line =
            "   1: 0100007F:2809 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4711 1 0";
        assert_eq!(listener_in(line), Some((10249, 4711)));
        assert_eq!(listener_in(&line.replace(" 0A ", " 01 ")), None, "a connection");
        assert_eq!(listener_in("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }

    #[test]
    fn only_its_answers_count() {
        let ok = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n{body}");
        assert_eq!(judge(METRICS, &ok("ipvs")), Some(Some("ipvs".to_owned())));
        assert_eq!(judge(METRICS, &ok("8\r\niptables\r\n0\r\n\r\n")), Some(Some("iptables".to_owned())));
        assert_eq!(judge(METRICS, &ok("shunt")), None);
        assert_eq!(judge(METRICS, "HTTP/1.1 404 Not Found\r\n\r\nipvs"), None);
        assert_eq!(judge(HEALTHZ, &ok(r#"{"lastUpdated": "2026"}"#)), Some(None));
        assert_eq!(judge(HEALTHZ, &ok("ok")), None);
    }

    #[test]
    fn signs_in_words() {
        let k3s = Sign::Listener {
            port: METRICS,
            owner: Some(("k3s-server".to_owned(), 7)),
            mode: Some("iptables".to_owned()),
        };
        assert!(k3s.is_k3s());
        assert_eq!(
            k3s.to_string(),
            "k3s-server (pid 7) answers at port 10249 as kube-proxy does, in iptables mode"
        );
        assert!(!Sign::Process { pid: 1 }.is_k3s());
    }
}

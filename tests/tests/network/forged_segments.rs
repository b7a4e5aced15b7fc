//! TCP segments that none of a connection's ends sent. Whoever knows the four-tuple forges them, towards the backend and towards
//! the client, beside the reference ([`tests::net::referee`]): no stream may break or reach another backend. With a number of the
//! connection's windows, which the attacker has no way to know, the reference loses streams, and shunt loses none.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    sys::socket::{MsgFlags, SockaddrStorage, sendto},
};
use proxy_common::tcp::flag::{ACK, FIN, RST, SYN};
use tests::{
    manifest::Service,
    net::{
        Place, Plan, Pod, Proxy,
        cluster::eventually,
        plan::{BOTH, Family},
    },
    traffic::{Answer, Client, Stream},
};

use crate::{
    s2_11_flood::{raw_socket, segment},
    world::{NODE_PORT, PORT, TARGET, World, web, web_addr},
};

/// Longer than a closed flow is kept, and a round of the collector.
const SILENCE: Duration = Duration::from_secs(25);

/// What the attacker knows beside the four-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Knowledge {
    Tuple,
    /// A number in the window of each side, but not the one that comes next.
    Window,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attack {
    /// By either side.
    Reset,
    ResetAndSyn,
    /// By both sides.
    FinsAndSyn,
    /// Half of the streams are to a backend that has left its Service.
    Syn,
}

const ATTACKS: [Attack; 4] = [Attack::Reset, Attack::ResetAndSyn, Attack::FinsAndSyn, Attack::Syn];

/// A stream under attack.
struct Target {
    attack: Attack,
    knowledge: Knowledge,
    is_busy: bool,
    from: &'static str,
    stream: Stream,
    /// Client and frontend, as the client sends.
    asked: [SocketAddr; 2],
    /// Backend and client, as the backend sends.
    answered: [SocketAddr; 2],
    before: Answer,
    /// The next number of client and backend.
    next: [u32; 2],
}

/// Where forged segments come from.
struct Attacker<'a> {
    towards_backend: &'a Place,
    towards_client: &'a Place,
}

impl Attacker<'_> {
    /// Sends a segment with this flag in each direction.
    fn sends(&self, target: &Target, flags: [Option<u8>; 2], guess: u32) -> Result<()> {
        let [client, backend] = match target.knowledge {
            Knowledge::Tuple => [guess, guess ^ 0x5555_5555],
            Knowledge::Window => target.next.map(|next| next.wrapping_add(5_000)),
        };
        let ways = [
            (self.towards_backend, target.asked, [client, backend]),
            (self.towards_client, target.answered, [backend, client]),
        ];
        for ((place, [from, to], numbers), flags) in ways.into_iter().zip(flags) {
            if let Some(flags) = flags {
                inject(place, from, to, numbers, flags)?;
            }
        }
        Ok(())
    }

    fn attack(&self, target: &Target) -> Result<()> {
        let busy = || -> io::Result<()> {
            if target.is_busy {
                target.stream.ask()?;
            }
            Ok(())
        };
        // An error shows at the end, as a broken stream.
        let _broken = busy();
        // Zero is what a careless forger writes; the others are spread over the numbers.
        for guess in [0, 0x1111_1111, 0x7777_7777, 0xdddd_dddd] {
            match target.attack {
                Attack::Reset => self.sends(target, [Some(RST), Some(RST)], guess)?,
                Attack::ResetAndSyn => {
                    self.sends(target, [Some(RST), Some(RST | ACK)], guess)?;
                    self.sends(target, [Some(SYN), None], guess)?;
                }
                Attack::FinsAndSyn => {
                    self.sends(target, [Some(FIN | ACK), Some(FIN | ACK)], guess)?;
                    self.sends(target, [Some(ACK), Some(ACK)], guess)?;
                    self.sends(target, [Some(SYN), None], guess)?;
                }
                Attack::Syn => self.sends(target, [Some(SYN), None], guess)?,
            }
            let _broken = busy();
        }
        Ok(())
    }
}

/// Sends a forged segment from `place`. The kernel there may have no route for it: then it is not sent.
fn inject(place: &Place, from: SocketAddr, to: SocketAddr, numbers: [u32; 2], flags: u8) -> Result<()> {
    let socket = raw_socket(place, to)?;
    let packet = segment(from, to, numbers, flags);
    let at = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
    match sendto(socket.as_raw_fd(), &packet, &at, MsgFlags::empty()) {
        Ok(_) | Err(nix::Error::ENOBUFS | nix::Error::ENETUNREACH | nix::Error::EHOSTUNREACH) => Ok(()),
        Err(error) => Err(error).context("sending a forged segment"),
    }
}

/// The next number of both sides of this socket's connection: what it sends, and what it receives (TCP_REPAIR, kernel 3.5).
fn next_numbers(socket: BorrowedFd<'_>) -> io::Result<[u32; 2]> {
    const TCP_REPAIR: i32 = 19;
    const TCP_REPAIR_QUEUE: i32 = 20;
    const TCP_QUEUE_SEQ: i32 = 21;
    const RECEIVED: i32 = 1;
    const SENT: i32 = 2;
    /// Without a window probe.
    const OFF: i32 = -1;
    let fd = socket.as_raw_fd();
    let set = |option: i32, value: i32| {
        let size = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the value is readable for its size.
        let failed =
            unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const value).cast(), size) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let get = |queue: i32| {
        set(TCP_REPAIR_QUEUE, queue)?;
        let (mut value, mut size) = (0_u32, size_of::<u32>() as libc::socklen_t);
        // SAFETY: the value is writable for its size.
        let failed = unsafe {
            libc::getsockopt(fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, (&raw mut value).cast(), &raw mut size)
        };
        if failed == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    };
    set(TCP_REPAIR, 1)?;
    let numbers = get(SENT).and_then(|sent| Ok([sent, get(RECEIVED)?]));
    set(TCP_REPAIR, OFF)?;
    numbers
}

fn web_over(backends: &[&Pod]) -> Service {
    Service::new("web", web_addr()).node_port(PORT, TARGET, NODE_PORT).pods(backends)
}

/// The streams that are attacked, `count` of each kind.
fn targets(world: &World, family: Family, count: usize) -> Result<Vec<Target>> {
    let clients: [(&'static str, Client, SocketAddr); 3] = [
        ("a pod", world.pod(), web(family)),
        ("outside", world.outside(), world.node_port(0, family)),
        ("the node", world.host(0), web(family)),
    ];
    let mut targets = Vec::new();
    for attack in ATTACKS {
        for knowledge in [Knowledge::Tuple, Knowledge::Window] {
            for is_busy in [false, true] {
                for (from, client, to) in &clients {
                    for _ in 0..count {
                        let stream = client.stream(*to);
                        let before = stream.steady(2);
                        let backend =
                            if before.backend == world.near.name() { &world.near } else { &world.far };
                        let answered = [backend.socket_addr(family, TARGET), before.peer];
                        let local = stream.local_addr()?;
                        // A process of the node is connected to the backend itself.
                        let to = if *from == "the node" { answered[0] } else { *to };
                        targets.push(Target {
                            attack,
                            knowledge,
                            is_busy,
                            from,
                            next: next_numbers(stream.as_fd())?,
                            stream,
                            asked: [local, to],
                            answered,
                            before,
                        });
                    }
                }
            }
        }
    }
    Ok(targets)
}

/// Runs every attack, and prints how many streams each one broke.
fn attacked(plan: Plan, proxy: Proxy, flags: &[&str]) -> Result<()> {
    let world = World::without_shunt(plan)?;
    let attacker = world.cluster.add_pod(0, "attacker")?;
    let both = [web_over(&[&world.near, &world.far])];
    proxy.start(&world.cluster, &both, flags)?;
    let mut all = Vec::new();
    for family in BOTH {
        all.extend(targets(&world, family, 4)?);
    }
    proxy.apply(&world.cluster, &[web_over(&[&world.far])])?;
    for target in &all {
        // A forged segment that rp_filter drops behind the hook reaches nobody who could contradict it: whoever knows the window
        // sends from where the client is.
        let towards_backend = match (target.from, target.knowledge) {
            ("outside", _) => world.cluster.outside(),
            ("a pod", Knowledge::Window) => world.client.place(),
            _ => attacker.place(),
        };
        Attacker { towards_backend, towards_client: attacker.place() }.attack(target)?;
    }
    thread::sleep(SILENCE);
    let mut rows: BTreeMap<_, (usize, usize)> = BTreeMap::new();
    let mut broken = Vec::new();
    for target in &all {
        let row = rows.entry((target.attack, target.knowledge, target.is_busy)).or_default();
        row.1 += 1;
        let after = target.stream.ask().and_then(|_| target.stream.ask());
        let is_asked = proxy == Proxy::Shunt || target.knowledge == Knowledge::Tuple;
        if after.as_ref().ok() != Some(&target.before) {
            row.0 += 1;
            if !is_asked {
                continue;
            }
            broken.push(format!(
                "{:?} by {:?}, busy {}: {} {:?}: {:?}, then {after:?}",
                target.attack, target.knowledge, target.is_busy, target.from, target.asked, target.before
            ));
        }
    }
    for ((attack, knowledge, is_busy), (lost, of)) in &rows {
        println!("{proxy:?} {attack:?} by {knowledge:?}, busy {is_busy}: {lost} of {of} broken");
    }
    assert!(broken.is_empty(), "{proxy:?}: {} broken\n{}", broken.len(), broken.join("\n"));
    Ok(())
}

#[test]
fn forged_segments_break_no_stream() -> Result<()> {
    attacked(Plan::default(), Proxy::Shunt, &[])
}

#[test]
fn forged_segments_break_no_stream_of_the_referee() -> Result<()> {
    attacked(Plan::default(), Proxy::Referee, &[])
}

/// How many flows of `conntrack list` are of these ports of the outside client, and established.
fn established(world: &World, ports: std::ops::Range<u16>) -> Result<usize> {
    let list = world.cluster.node(0).shunt_json(&["conntrack", "list"])?;
    let is_ours = |flow: &serde_json::Value| {
        let port = flow["client"].as_str().and_then(|addr| addr.rsplit(':').next()?.parse::<u16>().ok());
        flow["state"] == "ESTABLISHED" && port.is_some_and(|port| ports.contains(&port))
    };
    Ok(list.as_array().context("a list of flows")?.iter().filter(|flow| is_ours(flow)).count())
}

/// SYN and ACK of clients that never saw the backend's answer.
#[test]
fn forged_handshakes_establish_nothing() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    for family in BOTH {
        let (to, ports) = (world.node_port(0, family), 20_000..20_300_u16);
        let from = |port: u16| SocketAddr::new(world.cluster.outside_addr().of(family), port);
        for port in ports.clone() {
            inject(world.cluster.outside(), from(port), to, [u32::from(port) << 16, 0], SYN)?;
        }
        // The backends answer, and the client's kernel resets what it does not know: those resets are real.
        thread::sleep(Duration::from_millis(200));
        for port in ports.clone() {
            for ack in [0, 0x1234_5678, 0xfedc_ba98] {
                let numbers = [(u32::from(port) << 16) + 1, ack];
                inject(world.cluster.outside(), from(port), to, numbers, ACK)?;
            }
        }
        thread::sleep(Duration::from_millis(200));
        assert_eq!(established(&world, ports)?, 0, "{family:?}");
    }
    Ok(())
}

/// The tuple of a connection is used again in each way that one ends, and the flow's state is gone in its short time-out.
#[test]
fn real_ends_are_noticed() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    for family in BOTH {
        for (client, to) in [(world.pod(), web(family)), (world.outside(), world.node_port(0, family))] {
            let mut ports = Vec::new();
            for by_reset in [false, true] {
                for _ in 0..10 {
                    let stream = client.stream(to);
                    stream.steady(2);
                    ports.push(stream.local_addr()?.port());
                    let stream = stream.into_inner();
                    if by_reset {
                        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)?;
                    }
                    drop(stream);
                }
            }
            let took = eventually(Duration::from_secs(5), || {
                ports.iter().all(|port| established(&world, *port..*port + 1).is_ok_and(|open| open == 0))
            })?;
            println!("{family:?} {to}: all ends noticed within {took:?}");
        }
    }
    Ok(())
}

//! The same five-tuple twice: flows that are equal after translation must not be mixed up, and leftovers of a closed
//! flow must not affect the next one.

use std::net::SocketAddr;

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan, Pod,
        plan::{BOTH, Dual, Family, vip},
    },
    traffic::Client,
};

use crate::world::{TARGET, World, at};

const FIRST: u8 = 21;
const SECOND: u8 = 22;

/// Two Services with one backend, chosen by `backend`.
fn two_services(plan: Plan, backend: impl Fn(&World) -> Pod) -> Result<(World, Pod)> {
    let pair = |world: &World| {
        [("first", vip(FIRST)), ("second", vip(SECOND))]
            .map(|(name, addr)| {
                Service::new(name, addr).tcp(80, TARGET).udp(80, TARGET).pods(&[&backend(world)]).yaml()
            })
            .join("---\n")
    };
    let world = World::start(plan, pair)?;
    let backend = backend(&world);
    Ok((world, backend))
}

/// The three addresses for the one backend.
fn ways(backend: &Pod, family: Family) -> [SocketAddr; 3] {
    let vip = |last| -> Dual { vip(last) };
    [at(vip(FIRST), family, 80), at(vip(SECOND), family, 80), backend.socket_addr(family, TARGET)]
}

/// All three are open at once from one port of the client, opened in each order.
fn open_at_once(plan: Plan, backend: impl Fn(&World) -> Pod) -> Result<()> {
    let (world, backend) = two_services(plan, backend)?;
    let mut port = 40_000;
    for family in BOTH {
        let [first, second, direct] = ways(&backend, family);
        for order in [[first, second, direct], [direct, first, second], [second, direct, first]] {
            port += 1;
            let client = world.pod().port(port);
            let streams = order.map(|to| client.stream(to));
            for round in 0..5 {
                let seen: Vec<_> = streams.iter().map(|stream| stream.steady(3).peer).collect();
                let different = seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2];
                assert!(different, "round {round}, {order:?}: {seen:?}");
            }
            let sockets = order.map(|to| client.udp_connected(to));
            for socket in sockets.into_iter().collect::<std::io::Result<Vec<_>>>()?.iter().cycle().take(15) {
                assert_eq!(socket.ask()?.backend, backend.name());
            }
        }
    }
    Ok(())
}

#[test]
fn two_services_and_their_backend_on_this_node() -> Result<()> {
    open_at_once(Plan::default(), |world| world.near.clone())
}

#[test]
fn two_services_and_their_backend_on_the_other_node() -> Result<()> {
    open_at_once(Plan::default(), |world| world.far.clone())
}

#[test]
fn two_services_and_their_backend_over_vxlan() -> Result<()> {
    open_at_once(Plan::default().vxlan(), |world| world.far.clone())
}

#[test]
fn two_services_and_their_backend_on_this_bridge() -> Result<()> {
    open_at_once(Plan::default().bridged(), |world| world.near.clone())
}

#[test]
fn two_services_and_their_backend_under_cni_rules() -> Result<()> {
    open_at_once(Plan::default().with_cni_rules(), |world| world.far.clone())
}

/// The first prototype of this datapath failed here: a stale reverse entry made every later direct connection hang.
#[test]
fn a_direct_connection_reuses_the_port_of_an_old_service_connection() -> Result<()> {
    for backend in [|world: &World| world.near.clone(), |world: &World| world.far.clone()] {
        let (world, backend) = two_services(Plan::default(), backend)?;
        let mut port = 41_000;
        for family in BOTH {
            let [first, second, direct] = ways(&backend, family);
            for order in [[first, direct, second], [direct, first, second], [second, first, direct]] {
                port += 1;
                let client = world.pod().port(port);
                for to in order {
                    // The client closes each connection first, so that no TIME_WAIT of the server blocks the next.
                    let start = std::time::Instant::now();
                    assert_eq!(client.stream(to).steady(2).backend, backend.name());
                    assert!(
                        start.elapsed().as_millis() < 500,
                        "{to} after {order:?} took {:?}",
                        start.elapsed()
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_datagram_from_the_port_of_an_old_service_flow() -> Result<()> {
    let (world, backend) = two_services(Plan::default(), |world| world.far.clone())?;
    for (nth, family) in BOTH.into_iter().enumerate() {
        let client: Client = world.pod().port(42_000 + nth as u16);
        for to in ways(&backend, family).into_iter().cycle().take(9) {
            assert_eq!(client.udp(to).answered().backend, backend.name());
        }
    }
    Ok(())
}

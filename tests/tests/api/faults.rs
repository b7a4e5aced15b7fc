//! Faults of servers and networks in lists and watches. After each fault, the changes made meanwhile arrive.

use anyhow::{Result, ensure};
use shunt::snapshot::Snapshot;
use tests::api_server::{ApiServer, Fault, of_environment};

use crate::follower::{Follower, SECOND, cluster, has, key, service};

/// Injects `fault`, changes an object meanwhile, and waits until the change arrives.
fn after(name: &str, fault: Fault, resources: &[&str]) -> Result<()> {
    let server = ApiServer::local()?;
    cluster(&server)?;
    server.store().apply(&service("web", 10, 5))?;
    let mut follower = Follower::new(&server, name)?;
    follower.synced()?;
    for resource in resources {
        server.store().fault(resource, fault);
    }
    // Ends the watches, so that the next request meets the fault; no watch sees the removal.
    server.reset_connections();
    server.store().delete("services", "default/web")?;
    server.store().apply(&service("next", 11, 6))?;
    let took =
        follower.until(SECOND * 15, |now| has(now, "next", 6) && now.service(&key("web")).is_none())?;
    eprintln!("{fault:?}: made up for after {took:?}");
    follower.listen(SECOND * 2)?;
    ensure!(has(&follower.snapshot, "next", 6) && has(&follower.snapshot, "kubernetes", 1));
    follower.finish()
}

#[test]
fn a_watch_that_may_not_start_where_the_last_one_ended() -> Result<()> {
    after("watch-gone", Fault::WatchGone, &["services", "endpointslices"])
}

#[test]
fn a_watch_that_is_told_that_its_version_is_gone() -> Result<()> {
    after("stream-gone", Fault::StreamGone, &["services", "endpointslices"])
}

#[test]
fn a_watch_cut_off_in_the_middle_of_a_line() -> Result<()> {
    after("cut-line", Fault::CutLine, &["services", "endpointslices"])
}

#[test]
fn a_reset_connection() -> Result<()> {
    after("reset", Fault::Reset, &["services", "endpointslices", "nodes"])
}

#[test]
fn a_server_that_has_too_much_to_do() -> Result<()> {
    after("too-many", Fault::TooMany(1), &["services"])
}

#[test]
fn a_server_that_hangs() -> Result<()> {
    after("hang", Fault::Hang, &["services"])
}

/// At start: whatever the fault of the first list, the second one is used, and nothing counts as complete before.
#[test]
fn a_first_list_that_is_no_list() -> Result<()> {
    let faults = [
        Fault::CutList,
        Fault::ShortList,
        Fault::ListStatus(500),
        Fault::ListStatus(503),
        Fault::ListStatus(403),
        Fault::ListStatus(410),
    ];
    for (i, fault) in faults.into_iter().enumerate() {
        let server = ApiServer::local()?;
        cluster(&server)?;
        server.store().fault("services", fault);
        let mut follower = Follower::new(&server, &format!("first-{i}"))?;
        let took = follower.synced()?;
        ensure!(has(&follower.snapshot, "kubernetes", 1));
        eprintln!("{fault:?}: complete after {took:?}");
        follower.finish()?;
    }
    Ok(())
}

#[test]
fn a_server_that_was_away_tells_of_removals() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    for n in 0..20 {
        server.apply(&service(&format!("s{n}"), 10 + n, 10 + n))?;
    }
    let mut follower = Follower::new(&*server, "away")?;
    follower.synced()?;
    for forgets in [false, true] {
        server.stop()?;
        follower.listen(SECOND * 4)?;
        ensure!(follower.snapshot.service_count() >= 11, "what is known stays");
        let (gone, new) = if forgets { (10..20, "late") } else { (0..10, "early") };
        for n in gone.clone() {
            server.delete("services", &format!("default/s{n}"))?;
            server.delete("endpointslices", &format!("default/s{n}-1"))?;
        }
        server.apply(&service(new, 50, 50))?;
        if forgets {
            // Stopped for so long that the server no longer sends the individual changes.
            server.forget();
        }
        server.start()?;
        let is_here = |now: &Snapshot| {
            has(now, new, 50) && gone.clone().all(|n| now.service(&key(&format!("s{n}"))).is_none())
        };
        let took = follower.until(SECOND * 5, is_here)?;
        eprintln!("back (compacted: {forgets}): made up for after {took:?}");
        server.delete("services", &format!("default/{new}"))?;
        server.delete("endpointslices", &format!("default/{new}-1"))?;
        follower.until(SECOND * 2, |now| now.service(&key(new)).is_none())?;
    }
    follower.finish()
}

/// Restored from a backup: versions restart from an earlier one, and a watch from a later version would receive
/// nothing.
#[test]
fn a_server_whose_versions_go_back() -> Result<()> {
    let server = ApiServer::local()?;
    cluster(&server)?;
    for n in 0..30 {
        server.store().apply(&service("web", 10, n))?;
    }
    let mut follower = Follower::new(&server, "backwards")?;
    follower.synced()?;
    // While the server is stopped.
    server.stop();
    server.store().go_back(7);
    server.store().delete("services", "default/web")?;
    server.start()?;
    follower.until(SECOND * 5, |now| now.service(&key("web")).is_none())?;
    server.store().apply(&service("next", 11, 6))?;
    follower.until(SECOND, |now| has(now, "next", 6))?;
    follower.finish()
}

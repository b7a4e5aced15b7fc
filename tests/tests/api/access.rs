//! The agent's identity, and the server address it uses.

use anyhow::{Result, ensure};
use tests::api_server::{ApiServer, Certificates, of_environment};

use crate::follower::{Follower, Options, SECOND, cluster, files, has, service};

#[test]
fn tokens_and_client_certificates_are_shown_over_tls() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let files = files("credentials")?;
    let token_file = files.path().join("token");
    std::fs::write(&token_file, server.token()?)?;
    let users = [
        ("token", format!("token: {}", server.token()?)),
        ("token-file", format!("tokenFile: {}", token_file.display())),
        ("certificate", server.client_certificate(&files.path().join("user"))?),
    ];
    for (name, user) in users {
        let mut follower =
            Follower::with(&*server, name, Options { user: Some(user), ..Options::default() })?;
        let took = follower.synced()?;
        eprintln!("{name}: everything was there after {took:?}");
        follower.finish()?;
    }
    Ok(())
}

#[test]
fn a_token_that_is_not_accepted_yet_is_read_again() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let files = files("renewed")?;
    let token_file = files.path().join("token");
    std::fs::write(&token_file, "expired")?;
    let user = Some(format!("tokenFile: {}", token_file.display()));
    let mut follower = Follower::with(&*server, "renewed-agent", Options { user, ..Options::default() })?;
    follower.listen(SECOND)?;
    ensure!(!follower.snapshot.is_synced());
    std::fs::write(&token_file, server.token()?)?;
    follower.synced()?;
    follower.finish()
}

#[test]
fn a_server_is_reached_at_its_ipv6_address() -> Result<()> {
    let server = ApiServer::start_at(None, "[::1]:0".parse()?, Some(Certificates::new()?))?;
    cluster(&server)?;
    let mut follower = Follower::new(&server, "ipv6")?;
    follower.synced()?;
    server.store().apply(&service("web", 10, 5))?;
    follower.until(SECOND * 2, |now| has(now, "web", 5))?;
    follower.finish()
}

#[test]
fn the_next_address_is_tried_when_one_is_away() -> Result<()> {
    let first = ApiServer::local()?;
    let second = ApiServer::local()?;
    let away = ApiServer::local()?;
    let servers = vec![away.url(), first.url(), second.url()];
    away.stop();
    for server in [&first, &second] {
        cluster(server)?;
    }
    let mut follower = Follower::with(&first, "several", Options { servers, ..Options::default() })?;
    follower.synced()?;
    // Both servers belong to one cluster: the same changes, the same versions.
    first.stop();
    for server in [&first, &second] {
        server.store().apply(&service("web", 10, 5))?;
    }
    let took = follower.until(SECOND * 5, |now| has(now, "web", 5))?;
    eprintln!("followed at the next address after {took:?}");
    ensure!(second.violations().is_empty());
    follower.finish()
}

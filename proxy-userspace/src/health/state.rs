//! The health state that the agent maintains, and kube-proxy's rules for it (SERVICE-SEMANTICS 3.1): when the node is
//! healthy, and the response bodies.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

/// A pending update makes the node unhealthy after this time (twice kube-proxy's sync period), or after twice the
/// minimum sync interval if that is longer.
const STALE: Duration = Duration::from_secs(60);

/// Go's zero time: no sync yet.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Written by the agent, read by the listeners.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    stale: Duration,
    ready: bool,
    eligible: bool,
    last_sync: Option<Timestamp>,
    /// Since when an update has been pending.
    waiting_since: Option<Timestamp>,
    /// The agent's last heartbeat: a task that hangs cannot report pending updates.
    last_beat: Option<Instant>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            stale: STALE,
            ready: false,
            eligible: false,
            last_sync: None,
            waiting_since: None,
            last_beat: None,
        }
    }
}

/// kube-proxy's body, with its order of fields.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    /// After the first sync.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Families>,
}

/// One sync writes both families, so both have the same state.
#[derive(Debug, Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: Family,
    #[serde(rename = "IPv6")]
    v6: Family,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// For an agent with this minimum sync interval.
    pub fn new(min_sync: Duration) -> Self {
        let stale = STALE.max(min_sync.saturating_mul(2));
        Self(Mutex::new(State { stale, ..State::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The maps hold what the sources say, and the programs are attached.
    pub fn set_ready(&self) {
        self.lock().ready = true;
    }

    /// Whether load balancers may send to this node.
    pub fn set_eligible(&self, eligible: bool) {
        self.lock().eligible = eligible;
    }

    /// Everything known at `now` is in the maps.
    pub fn synced(&self, now: Timestamp) {
        let mut state = self.lock();
        state.last_sync = Some(now);
        state.waiting_since = None;
    }

    /// An update is pending; only the first one since the last sync counts.
    pub fn queued(&self, now: Timestamp) {
        self.lock().waiting_since.get_or_insert(now);
    }

    /// Whether the proxy is healthy, regardless of the node's eligibility.
    pub fn is_healthy(&self, now: Timestamp) -> bool {
        self.lock().is_healthy(now)
    }

    /// Status and body of `/healthz`, or of `/livez`, which ignores the node's eligibility.
    pub fn answer(&self, with_node: bool, now: Timestamp) -> (u16, String) {
        let state = self.lock();
        let healthy = state.is_healthy(now);
        let is_good = healthy && (!with_node || state.eligible);
        let last_sync = state.last_sync.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
        let body = Body {
            // As in kube-proxy: a healthy proxy reports the current time, even without a change.
            last_updated: if is_good { now.to_string() } else { last_sync.clone() },
            current_time: now.to_string(),
            node_eligible: with_node.then_some(state.eligible),
            healthy,
            status: state.last_sync.map(|_| {
                let family = Family { last_updated: last_sync, healthy };
                Families { v4: family.clone(), v6: family }
            }),
        };
        drop(state);
        let text = serde_json::to_string(&body).expect("strings and booleans are JSON");
        (if is_good { 200 } else { 503 }, text)
    }

    /// The agent's task is running; called once a second.
    pub fn beat(&self) {
        self.lock().last_beat = Some(Instant::now());
    }

    /// Status and body of `/readyz`.
    pub fn readiness(&self) -> (u16, String) {
        let ready = self.lock().ready;
        (if ready { 200 } else { 503 }, format!("{{\"ready\":{ready}}}"))
    }
}

impl State {
    /// Healthy while starting: `/readyz` covers a proxy without a sync.
    fn is_healthy(&self, now: Timestamp) -> bool {
        if self.last_beat.is_some_and(|beat| beat.elapsed() >= STALE) {
            return false;
        }
        match (self.last_sync, self.waiting_since) {
            (None, _) | (_, None) => true,
            (Some(_), Some(since)) => now.duration_since(since).unsigned_abs() < self.stale || now < since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 250_000_000).unwrap()
    }

    #[test]
    fn an_agent_that_hangs_is_not_healthy() {
        let health = Health::default();
        health.beat();
        assert_eq!(health.answer(false, at(1)).0, 200);
        health.lock().last_beat = Instant::now().checked_sub(STALE);
        assert_eq!(health.answer(false, at(1)).0, 503);
        health.beat();
        assert_eq!(health.answer(false, at(1)).0, 200);
    }

    #[test]
    fn the_bodies_are_kube_proxys() {
        let health = Health::default();
        assert_eq!(
            health.answer(true, at(100)),
            (
                503,
                "{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"currentTime\":\"1970-01-01T00:01:40.25Z\",\
                 \"nodeEligible\":false,\"healthy\":true}"
                    .to_owned()
            )
        );
        health.set_eligible(true);
        health.synced(at(90));
        let families = "\"status\":{\"IPv4\":{\"lastUpdated\":\"1970-01-01T00:01:30.25Z\",\"healthy\":true},\
                        \"IPv6\":{\"lastUpdated\":\"1970-01-01T00:01:30.25Z\",\"healthy\":true}}}";
        let times =
            "{\"lastUpdated\":\"1970-01-01T00:01:40.25Z\",\"currentTime\":\"1970-01-01T00:01:40.25Z\",";
        assert_eq!(
            health.answer(true, at(100)),
            (200, format!("{times}\"nodeEligible\":true,\"healthy\":true,{families}"))
        );
        assert_eq!(health.answer(false, at(100)), (200, format!("{times}\"healthy\":true,{families}")));
    }

    #[test]
    fn a_node_that_is_to_go_is_not_eligible_and_lives() {
        let health = Health::default();
        health.synced(at(90));
        health.set_eligible(false);
        let (status, body) = health.answer(true, at(100));
        assert_eq!(status, 503);
        assert!(body.contains("\"nodeEligible\":false,\"healthy\":true"), "{body}");
        assert!(body.starts_with("{\"lastUpdated\":\"1970-01-01T00:01:30.25Z\""), "the real sync: {body}");
        assert_eq!(health.answer(false, at(100)).0, 200);
        assert!(health.is_healthy(at(100)), "healthCheckNodePorts do not ask for the node");
    }

    #[test]
    fn unhealthy_when_a_write_waits_too_long() {
        let health = Health::default();
        health.set_eligible(true);
        health.queued(at(10));
        assert_eq!(health.answer(true, at(500)).0, 200, "healthy while starting");
        health.synced(at(500));
        health.queued(at(600));
        health.queued(at(650));
        assert_eq!(health.answer(false, at(659)).0, 200);
        for with_node in [true, false] {
            let (status, body) = health.answer(with_node, at(660));
            assert_eq!(status, 503);
            assert_eq!(body.matches("\"healthy\":false").count(), 3, "{body}");
        }
        health.synced(at(661));
        assert_eq!(health.answer(true, at(5000)).0, 200, "nothing to do is no illness");
    }

    #[test]
    fn a_long_time_between_syncs_is_no_illness() {
        for (min_sync, well_until) in [(0, 60), (20, 60), (120, 240)] {
            let health = Health::new(Duration::from_secs(min_sync));
            health.synced(at(100));
            health.queued(at(200));
            assert!(health.is_healthy(at(200 + well_until - 1)), "{min_sync}");
            assert!(!health.is_healthy(at(200 + well_until)), "{min_sync}");
        }
    }

    #[test]
    fn ready_after_the_first_sync() {
        let health = Health::default();
        assert_eq!(health.readiness(), (503, "{\"ready\":false}".to_owned()));
        health.set_ready();
        assert_eq!(health.readiness(), (200, "{\"ready\":true}".to_owned()));
    }
}

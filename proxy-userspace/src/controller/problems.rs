//! What is wrong with Services: found while compiling them, or because a map is full. A problem is reported once, and
//! listed as long as it lasts.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    model::ServiceKey,
    problem::{Consequence, Problem, ProblemKind},
    tables::Full,
};

/// Problems that `compile` found, by Service.
#[derive(Debug, Default)]
pub(super) struct CompileProblems(BTreeMap<ServiceKey, Vec<Problem>>);

impl CompileProblems {
    /// Replaces the problems of one Service; returns those that are new.
    pub(super) fn replace(&mut self, key: &ServiceKey, problems: Vec<Problem>) -> Vec<Problem> {
        let known = self.0.remove(key).unwrap_or_default();
        let new = problems.iter().filter(|problem| !known.contains(problem)).cloned().collect();
        if !problems.is_empty() {
            self.0.insert(key.clone(), problems);
        }
        new
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.values().flatten()
    }
}

/// Services that a full map keeps from being served as they are now.
#[derive(Debug, Default)]
pub(super) struct Refused {
    problems: BTreeMap<ServiceKey, Problem>,
    last_retry: Option<Instant>,
}

impl Refused {
    /// Notes that `key` does not fit; returns the problem if it is new.
    pub(super) fn insert(&mut self, key: &ServiceKey, full: Full, is_served: bool) -> Option<Problem> {
        let consequence = if is_served { Consequence::ServedAsBefore } else { Consequence::NotServed };
        let problem = Problem::new(key, ProblemKind::Full { map: full.map, max: full.max, consequence });
        let before = self.problems.insert(key.clone(), problem.clone());
        (before.as_ref() != Some(&problem)).then_some(problem)
    }

    pub(super) fn remove(&mut self, key: &ServiceKey) {
        self.problems.remove(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The Services to try again: all of them, when `has_room` and `pause` has passed since the last attempt.
    pub(super) fn retry(
        &mut self,
        now: Instant,
        pause: Duration,
        has_room: impl FnOnce() -> bool,
    ) -> Vec<ServiceKey> {
        let is_due = self.last_retry.is_none_or(|last| now.duration_since(last) >= pause);
        if self.is_empty() || !is_due || !has_room() {
            return Vec::new();
        }
        self.last_retry = Some(now);
        self.problems.keys().cloned().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values()
    }
}

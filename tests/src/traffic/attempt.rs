//! The outcome of one attempt to reach a server, and of many.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, time::Duration};

/// A server's reply: its name and the client address it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub backend: String,
    /// The client's address as the backend saw it.
    pub peer: SocketAddr,
}

impl Answer {
    /// Parses `NAME saw ADDR:PORT`, the reply format of every server of this harness.
    pub fn parse(text: &str) -> io::Result<Self> {
        let mut words = text.split_whitespace();
        match (words.next(), words.next(), words.next().map(str::parse)) {
            (Some(backend), Some("saw"), Some(Ok(peer))) => Ok(Self { backend: backend.to_owned(), peer }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("not an answer: {text:?}"))),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} saw {}", self.backend, self.peer)
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered(Answer),
    /// ECONNREFUSED: a reset, a port unreachable, or a socket hook.
    Refused,
    TimedOut,
    /// Any other error, in the system's words.
    Failed(String),
}

/// An attempt's outcome and duration.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// For messages: `tcp pod-a -> 10.68.0.1:80`.
    pub what: String,
    pub outcome: Outcome,
    pub took: Duration,
}

impl Outcome {
    pub fn from_io(result: io::Result<Answer>) -> Self {
        match result {
            Ok(answer) => Self::Answered(answer),
            Err(error) => match error.raw_os_error() {
                Some(libc::ECONNREFUSED) => Self::Refused,
                // A blocking connect returns EINPROGRESS when SO_SNDTIMEO expires.
                Some(libc::ETIMEDOUT | libc::EAGAIN | libc::EINPROGRESS) => Self::TimedOut,
                _ => Self::Failed(error.to_string()),
            },
        }
    }
}

/// A rejection that takes longer than this was not immediate.
const AT_ONCE: Duration = Duration::from_millis(200);

impl Attempt {
    /// The reply; panics if there was none.
    #[track_caller]
    pub fn answered(&self) -> Answer {
        match &self.outcome {
            Outcome::Answered(answer) => answer.clone(),
            _ => panic!("{self}: expected an answer"),
        }
    }

    pub fn is_answered(&self) -> bool {
        matches!(self.outcome, Outcome::Answered(_))
    }

    /// Panics unless the attempt was rejected immediately.
    #[track_caller]
    pub fn refused(&self) {
        assert!(
            self.outcome == Outcome::Refused && self.took < AT_ONCE,
            "{self}: expected a refusal at once"
        );
    }

    /// Panics if anything came back.
    #[track_caller]
    pub fn timed_out(&self) {
        assert!(self.outcome == Outcome::TimedOut, "{self}: expected silence");
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        match &self.outcome {
            Outcome::Answered(answer) => write!(f, "{answer}")?,
            Outcome::Refused => write!(f, "refused")?,
            Outcome::TimedOut => write!(f, "timed out")?,
            Outcome::Failed(error) => write!(f, "{error}")?,
        }
        write!(f, " after {:?}", self.took)
    }
}

/// How often each backend answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<String, usize>);

impl Tally {
    /// Makes `count` attempts in sequence; panics at the first without a reply.
    #[track_caller]
    pub fn of(count: usize, mut attempt: impl FnMut() -> Attempt) -> Self {
        let mut tally = Self::default();
        for nth in 0..count {
            let attempt = attempt();
            let Outcome::Answered(answer) = &attempt.outcome else {
                panic!("{attempt}: attempt {nth} of {count} expected an answer; so far {tally}");
            };
            tally.add(&answer.backend);
        }
        tally
    }

    pub fn add(&mut self, backend: &str) {
        *self.0.entry(backend.to_owned()).or_default() += 1;
    }

    pub fn count(&self, backend: &str) -> usize {
        self.0.get(backend).copied().unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// Panics unless exactly these backends replied, with counts that differ by at most one.
    #[track_caller]
    pub fn even_over(&self, backends: &[&str]) {
        let counts: Vec<usize> = backends.iter().map(|name| self.count(name)).collect();
        let (min, max) = (counts.iter().min(), counts.iter().max());
        let strangers: Vec<_> = self.0.keys().filter(|name| !backends.contains(&name.as_str())).collect();
        assert!(strangers.is_empty(), "{strangers:?} answered, expected {backends:?}: {self}");
        assert!(max.zip(min).is_some_and(|(max, min)| max - min <= 1), "not even over {backends:?}: {self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_back() {
        for peer in ["10.0.0.1:80", "[fd00::1]:80"] {
            let answer = Answer { backend: "pod-a".into(), peer: peer.parse().unwrap() };
            assert_eq!(Answer::parse(&answer.to_string()).unwrap(), answer);
        }
        assert!(Answer::parse("<html>").is_err());
    }

    #[test]
    fn errors_have_their_outcomes() {
        let of = |errno| Outcome::from_io(Err(io::Error::from_raw_os_error(errno)));
        assert_eq!(of(libc::ECONNREFUSED), Outcome::Refused);
        assert_eq!(of(libc::EAGAIN), Outcome::TimedOut);
        assert!(matches!(of(libc::ENETUNREACH), Outcome::Failed(_)));
    }

    #[test]
    #[should_panic(expected = "not even")]
    fn a_backend_that_never_answered_counts() {
        let mut tally = Tally::default();
        tally.add("a");
        tally.add("a");
        tally.even_over(&["a", "b"]);
    }
}

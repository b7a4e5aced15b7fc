//! Why an object is refused: the field's path and the reason.

/// Why an object was refused, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FieldError {
    /// As in `spec.ports[0].port`.
    pub path: String,
    pub reason: Reason,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("{0}")]
    Shape(String),
    #[error("required")]
    Required,
    #[error("{0:?} is not an IP address")]
    NotAnAddress(String),
    #[error("{0:?} is not an address range (as in 10.0.0.0/8)")]
    NotARange(String),
    #[error("{address} is {why}")]
    SpecialAddress { address: std::net::IpAddr, why: crate::problem::RefusedAddress },
    #[error("{value:?} is not one of {allowed}")]
    NotOneOf { value: String, allowed: &'static str },
    #[error("{0} is not a port number (1 to 65535)")]
    NotAPort(i64),
    #[error("{value} is not in {min} to {max}")]
    OutOfRange { value: i64, min: i64, max: i64 },
    #[error("{0:?} is not a name (lower case letters, digits, '-', up to 63)")]
    NotALabel(String),
    #[error("{0:?} is not a name (lower case letters, digits, '-', '.', up to 253)")]
    NotASubdomain(String),
    #[error("same as {0}")]
    Duplicate(String),
    #[error("two addresses of one family")]
    SameFamily,
    #[error("{0:?} is not an address of family {1}")]
    WrongFamily(String, &'static str),
    #[error("not the same as {0}")]
    Differs(&'static str),
    #[error("not allowed when {0}")]
    NotAllowed(&'static str),
}

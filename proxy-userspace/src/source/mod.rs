//! Where objects come from. A source turns what it reads into [`Event`]s; it decides nothing about Services.

pub mod directory;
mod documents;
pub mod files;

use std::sync::Arc;

use crate::model::{EndpointSlice, Node, ObjectKey, Service, ServiceCidr, ServiceKey};

/// One change of one object, or the end of a source's initial list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A Service was added or changed.
    Service(Service),
    ServiceGone(ServiceKey),
    /// An EndpointSlice was added or changed.
    Slice(EndpointSlice),
    SliceGone(ObjectKey),
    /// A Node was added or changed.
    Node(Node),
    NodeGone(Arc<str>),
    /// A ServiceCIDR was added or changed.
    ServiceCidr(ServiceCidr),
    ServiceCidrGone(Arc<str>),
    /// Every source has delivered its whole initial list: from here on the maps may be written.
    Synced,
}

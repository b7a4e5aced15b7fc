//! What every source delivers.

use std::sync::Arc;

use crate::model::{EndpointSlice, Node, ObjectKey, Service, ServiceCidr, ServiceKey};

/// One change of one object, or the end of the initial list.
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
    /// Every source has delivered its complete initial list: the maps may be written from now on.
    Synced,
}

//! TCP as far as a translator needs it: the state of a flow, and which segments change it.

mod state;
mod track;

pub use state::{
    BACKEND_ACKED, BACKEND_FIRST, CLIENT_ACKED, CONFIRMED, DOUBTED, ESTABLISHED, FIN_BACKEND, FIN_CLIENT,
    FLAGS, LAST_ACK, OPENED, PROVEN, REPLIED, RESET, UNANSWERED, UNANSWERED_TWICE, advance_datagram, first,
    flag, has_ended, is_closed, is_over, is_syn, name,
};
pub use track::{LAG, Numbers, Segment, Tracked, end, has_moved, kept, moved};

//! Packets turned into answers: rejections and echo replies.

pub mod icmp_echo;
pub mod reject;
pub mod send_back;
pub mod symmetric_reply;

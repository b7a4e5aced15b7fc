//! The place where a socket is created: a namespace, and for a node's own processes also the node's cgroup.
//!
//! A socket belongs permanently to the namespace and the cgroup of the process that called `socket()`. For pods and the
//! outside client, this thread enters the namespace for that one call. A node's sockets must come from a process in the
//! node's cgroup, because a single thread cannot move: a small child process creates them and passes them over.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex},
};

use anyhow::{Result, anyhow};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg, socketpair,
};

use super::{Netns, cgroup::Cgroup};

/// A place to create sockets in.
#[derive(Clone, Debug)]
pub struct Place {
    netns: Arc<Netns>,
    maker: Option<Arc<SocketMaker>>,
}

impl Place {
    /// Sockets of this process, created inside `netns`.
    pub fn inside(netns: Arc<Netns>) -> Self {
        Self { netns, maker: None }
    }

    /// Sockets of a process in `cgroup`, created inside `netns`.
    pub fn in_cgroup(netns: Arc<Netns>, cgroup: &Cgroup) -> Result<Self> {
        let maker = SocketMaker::start(&netns)?;
        cgroup.adopt(maker.pid as u32)?;
        Ok(Self { netns, maker: Some(Arc::new(maker)) })
    }

    /// The same namespace, for a process in `cgroup`.
    pub(super) fn with_cgroup(&self, cgroup: &Cgroup) -> Result<Self> {
        Self::in_cgroup(self.netns.clone(), cgroup)
    }

    pub fn name(&self) -> &str {
        self.netns.name()
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The namespace, for owners that outlive this place.
    pub fn shared_netns(&self) -> Arc<Netns> {
        self.netns.clone()
    }

    /// A socket created here; the arguments are those of socket(2).
    pub fn socket(&self, family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
        if let Some(maker) = &self.maker {
            return maker.socket([family, kind, protocol]);
        }
        // SAFETY: socket(2) takes no pointers.
        let fd = self.netns.enter(|| unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) });
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just created this descriptor for this process; it has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// The child process that creates a node's sockets.
#[derive(Debug)]
struct SocketMaker {
    pid: libc::pid_t,
    channel: Mutex<OwnedFd>,
}

impl SocketMaker {
    fn start(netns: &Netns) -> Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the child runs `serve`, which only makes system calls: no allocation, no lock, no return.
        let pid = netns.enter(|| unsafe {
            let pid = libc::fork();
            if pid == 0 {
                serve(theirs.as_raw_fd());
            }
            pid
        });
        if pid < 0 {
            return Err(anyhow!(io::Error::last_os_error()).context("fork"));
        }
        Ok(Self { pid, channel: Mutex::new(ours) })
    }

    fn socket(&self, order: [i32; 3]) -> io::Result<OwnedFd> {
        let channel = self.channel.lock().expect("no holder panics");
        sendmsg::<UnixAddr>(
            channel.as_raw_fd(),
            &[IoSlice::new(bytemuck::bytes_of(&order))],
            &[],
            MsgFlags::empty(),
            None,
        )?;
        let mut errno = [0u8; 4];
        let mut control = nix::cmsg_space!(RawFd);
        let mut iov = [IoSliceMut::new(&mut errno)];
        let message = recvmsg::<UnixAddr>(
            channel.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for item in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = item
                && let Some(&fd) = fds.first()
            {
                // SAFETY: the kernel has just installed this descriptor for this process; it has no other owner.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
    }
}

impl Drop for SocketMaker {
    fn drop(&mut self) {
        // SAFETY: `pid` is our own child and was not waited for before.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// The child's loop: it reads a request (family, kind, protocol) and sends a descriptor or an errno, until the parent
/// exits.
///
/// # Safety
/// Runs after fork in a process with other threads: only async-signal-safe calls, never returns.
unsafe fn serve(channel: RawFd) -> ! {
    // SAFETY: plain system calls on buffers of this frame; CMSG_* stay inside `control`, which is aligned by `u64`.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Copies of this process's other descriptors would keep its listeners open after it closed them.
        if channel > 0 {
            libc::close_range(0, channel as u32 - 1, 0);
        }
        libc::close_range(channel as u32 + 1, u32::MAX, 0);
        loop {
            let mut order = [0i32; 3];
            let got = libc::recv(channel, order.as_mut_ptr().cast(), size_of_val(&order), 0);
            if got != size_of_val(&order) as isize {
                libc::_exit(0);
            }
            let fd = libc::socket(order[0], order[1] | libc::SOCK_CLOEXEC, order[2]);
            let mut errno: i32 = if fd < 0 { *libc::__errno_location() } else { 0 };
            let mut iov = libc::iovec { iov_base: (&raw mut errno).cast(), iov_len: size_of::<i32>() };
            let mut control = [0u64; 8];
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut iov;
            message.msg_iovlen = 1;
            if fd >= 0 {
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(size_of::<i32>() as u32) as usize;
                let head = libc::CMSG_FIRSTHDR(&message);
                (*head).cmsg_level = libc::SOL_SOCKET;
                (*head).cmsg_type = libc::SCM_RIGHTS;
                (*head).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as usize;
                libc::CMSG_DATA(head).cast::<i32>().write_unaligned(fd);
            }
            libc::sendmsg(channel, &message, 0);
            if fd >= 0 {
                libc::close(fd);
            }
        }
    }
}

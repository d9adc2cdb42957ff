//! Socket options of clients: how much the kernel keeps for them, and for how long.

use std::{io, os::fd::AsFd, time::Duration};

use rustix::net::sockopt::{set_socket_linger, set_tcp_user_timeout};

/// Bytes that the kernel takes for a socket before it can send them. Without a bound it takes up to 4 MiB
/// (`net.ipv4.tcp_wmem`) for each client that does not read, and these bytes count as sent. A stalled client would be
/// noticed late, and a few hundred of them would use up the machine's memory for sockets. With less than this, a client
/// that does read would fall behind after a burst.
#[cfg(target_os = "linux")]
const UNSENT: libc::c_int = 1 << 20;

/// Bounds the unsent bytes of each connection that a listener accepts. Connections inherit the option from the
/// listener.
#[cfg(target_os = "linux")]
pub fn bound_unsent(listener: &impl AsFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let unsent = UNSENT;
    let size = libc::socklen_t::try_from(size_of_val(&unsent)).map_err(io::Error::other)?;
    let socket = listener.as_fd().as_raw_fd();
    // SAFETY: the descriptor stays open while it is borrowed. `unsent` lives on this stack, and `size` is its size.
    #[allow(unsafe_code)]
    let set = unsafe {
        libc::setsockopt(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, (&raw const unsent).cast(), size)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
pub fn bound_unsent(_: &impl AsFd) -> io::Result<()> {
    Ok(())
}

/// Has the kernel drop unsent bytes when the socket is closed. Otherwise it keeps them until the client's side ends.
pub fn drop_unsent(socket: &impl AsFd) {
    // An error does no harm: the socket is closed all the same.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Has the kernel end a connection whose peer has not taken what it was sent for this `time`. A peer that has vanished
/// never does.
pub fn give_up_after(socket: &impl AsFd, time: Duration) {
    let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // An error does no harm: without the option the kernel gives up later. Sockets other than TCP have no such option.
    let _ = set_tcp_user_timeout(socket, millis);
}

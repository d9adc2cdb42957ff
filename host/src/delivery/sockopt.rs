//! What the kernel keeps for clients' sockets.

use std::{io, os::fd::AsFd, time::Duration};

use rustix::net::sockopt::{set_socket_linger, set_tcp_user_timeout};

/// Bytes that a socket takes before they can be sent. Without a bound the kernel keeps up to 4 MiB (`net.ipv4.tcp_wmem`)
/// for each client that does not read, and they count as sent: it would be found out late, and a few hundred of them
/// would take the machine's memory for sockets. Less than this, and a client that reads would be behind after a burst.
#[cfg(target_os = "linux")]
const UNSENT: libc::c_int = 1 << 20;

/// Bounds what is kept unsent for each connection that a listener accepts: they inherit it.
#[cfg(target_os = "linux")]
pub fn bound_unsent(listener: &impl AsFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let unsent = UNSENT;
    let size = libc::socklen_t::try_from(size_of_val(&unsent)).map_err(io::Error::other)?;
    let socket = listener.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while it is borrowed, and the value lives here and has the size that is given.
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

/// Drops what is kept for a client that did not take it: closed as usual, it would stay until the client's end.
pub fn drop_unsent(socket: &impl AsFd) {
    // It is closed in any case.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Lets the kernel end a connection whose other side has not taken what it was sent for so long, as one does that is no
/// longer there.
pub fn give_up_after(socket: &impl AsFd, time: Duration) {
    let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // Without it the kernel gives up too, later; other sockets than TCP's have no such setting.
    let _ = set_tcp_user_timeout(socket, millis);
}

"""The progress of a TCP connection as the kernel sees it, even in the middle of a frame."""

import fcntl
import socket
import struct
import sys
import termios

# struct tcp_info of Linux (include/uapi/linux/tcp.h): tcpi_bytes_acked and tcpi_bytes_received, since 4.2.
_TCP_INFO = struct.Struct("=120xQQ")


def progress(sock: socket.socket) -> tuple[int, int, int]:
    """The numbers of bytes received, bytes acknowledged by the peer, and bytes in the send queue of the kernel.

    All are 0 on systems without TCP_INFO: there, only frames and the transport's buffer show progress.
    """
    if sys.platform != "linux":
        return 0, 0, 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
    except (OSError, ValueError):
        return 0, 0, 0  # already closed (uvloop raises ValueError), or not TCP
    if len(info) < _TCP_INFO.size:
        return 0, 0, 0
    acked, received = _TCP_INFO.unpack(info)
    return received, acked, waiting

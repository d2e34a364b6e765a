"""What the kernel knows of a TCP connection: a peer's progress that frames do not show."""

import fcntl
import socket
import struct
import sys
import termios

# struct tcp_info of Linux (include/uapi/linux/tcp.h): tcpi_bytes_acked and tcpi_bytes_received, since 4.2.
_TCP_INFO = struct.Struct("=120xQQ")


def progress(sock: socket.socket) -> tuple[int, int, int]:
    """Bytes received so far, bytes of ours acknowledged so far, and bytes in the kernel not acknowledged yet.

    All 0 where the system does not tell: then only frames and the transport's buffer show progress.
    """
    if sys.platform != "linux":
        return 0, 0, 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
    except (OSError, ValueError):
        return 0, 0, 0  # closed meanwhile (uvloop raises ValueError), or no TCP
    if len(info) < _TCP_INFO.size:
        return 0, 0, 0
    acked, received = _TCP_INFO.unpack(info)
    return received, acked, waiting

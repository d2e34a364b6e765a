"""Send the same bytes to a server as fast as it accepts them, without reading. Tests run this as a separate process.

stdin contains a JSON list of two hexadecimal strings: the bytes that begin each connection and the bytes to repeat.
When a connection ends, a new one is opened. The process stops after --seconds.
"""

import argparse
import json
import socket
import sys
import threading
import time
from contextlib import suppress


def flood(address: tuple[str, int], begin: bytes, data: bytes, deadline: float) -> None:
    """Open connections one after the other and send on each until it ends or the deadline (time.monotonic) passes."""
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(address, 5) as sock:
            sock.settimeout(0.2)
            sock.sendall(begin)
            while time.monotonic() < deadline:
                with suppress(TimeoutError):
                    sock.sendall(data)
        time.sleep(0.01)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    begin, data = (bytes.fromhex(text) for text in json.load(sys.stdin))
    deadline = time.monotonic() + options.seconds
    arguments = ((options.host, options.port), begin, data, deadline)
    threads = [threading.Thread(target=flood, args=arguments) for _ in range(options.connections)]
    print("ready", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

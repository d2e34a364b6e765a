"""The tests, and what they share."""

import os
import tempfile

# MariaDB and Chromium make Unix sockets in temporary folders, and the path of such a socket has at most 107 bytes.
if len(os.fsencode(tempfile.gettempdir())) > 50:
    tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"

"""The tests and the helpers that they share."""

import os
import tempfile

# MariaDB and Chromium create Unix sockets in temporary folders. The path of a Unix socket has at most 107 bytes.
if len(os.fsencode(tempfile.gettempdir())) > 50:
    tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"

"""`python run.py` for tests on a busy machine: a subscription counts as broken after half a minute of silence.

Otherwise, three seconds in which a relay of the test, the process or Redis stands still would be a gap.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from chat_server.cache import redis_backplane, redis_changes

    redis_backplane.PROBE_TIMEOUT = redis_changes.SUBSCRIBE_SECONDS = 30.0
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")

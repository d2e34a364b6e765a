"""The Autobahn cases (kosoku's fuzzing client) against an echo on the server's connection code.

python -m tests.autobahn [CASE ...]    such as 7.* or 12.1.1; without any all of them
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence

from kosoku import FailureError, run_fuzzingclient

from chat_server.utils import websocket
from tests.echo import echoing


async def failures(cases: Sequence[str] | None, *, concurrency: int = 8) -> tuple[Counter[str], list[str]]:
    """Run cases (None: all); how many had which verdict, and a line for each that did not pass."""
    async with echoing() as url:
        try:
            results = await run_fuzzingclient(url, cases, concurrency=concurrency)
        except FailureError as error:
            results = error.results
    verdicts = Counter(result.behavior.value for result in results)
    return verdicts, [
        f"{one.case_id}: {one.behavior.value}, close {one.behavior_close.value}: {one.result} {one.result_close}"
        for one in results
        if not one.passed
    ]


def main() -> None:
    """The command."""
    # Short messages are not compressed, as RFC 7692 allows; kosoku fails itself on seeing one among compressed cases.
    websocket.COMPRESS_FROM = 0
    verdicts, failed = asyncio.run(failures(sys.argv[1:] or None))
    print(f"{verdicts.total()} cases:", ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    print("\n".join(failed) or "all passed")
    sys.stdout.flush()
    os._exit(bool(failed))  # kosoku's threads now and then abort an interpreter that ends by itself


if __name__ == "__main__":
    main()

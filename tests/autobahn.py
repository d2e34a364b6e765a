"""Run the Autobahn test suite (kosoku's fuzzing client) against an echo server that uses the connection code.

python -m tests.autobahn [CASE ...]    for example 7.* or 12.1.1; default: all cases
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence

from kosoku import FailureError, run_fuzzingclient

from chat_server.utils import websocket
from tests.echo import echo_server


async def run_cases(cases: Sequence[str] | None, *, concurrency: int = 8) -> tuple[Counter[str], list[str]]:
    """Run the cases (None: all). Return the number of cases per verdict, and a line for each failed case."""
    async with echo_server() as url:
        try:
            results = await run_fuzzingclient(url, cases, concurrency=concurrency)
        except FailureError as error:
            results = error.results
    verdicts = Counter(result.behavior.value for result in results)
    return verdicts, [
        f"{case.case_id}: {case.behavior.value}, close {case.behavior_close.value}: {case.result} {case.result_close}"
        for case in results
        if not case.passed
    ]


def main() -> None:
    """Run the command line. The exit code is 1 if a case failed."""
    # The server does not compress short messages, which RFC 7692 allows. kosoku fails on them in its compression cases,
    # so the server compresses all messages here.
    websocket.COMPRESS_FROM = 0
    verdicts, failed = asyncio.run(run_cases(sys.argv[1:] or None))
    print(f"{verdicts.total()} cases:", ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    print("\n".join(failed) or "all passed")
    sys.stdout.flush()
    os._exit(bool(failed))  # a normal exit sometimes aborts in kosoku's threads


if __name__ == "__main__":
    main()

"""Hostile input: texts that are slow to parse, match or normalise, and the CPU time that they may cost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

# Each pattern is repeated to the wanted size. Most have slowed a regular expression, a parser or a Unicode table.
PATTERNS = {
    "zeros": "0",
    "digits": "9",
    "letters": "a",
    "capitals": "A",
    "spaces": " ",
    "tabs": "\t",
    "newlines": "\n",
    "minus": "-",
    "page": "-1@",
    "at": "@",
    "quotes": '"',
    "backslashes": "\\",
    "escaped quotes": '\\"',
    "semicolons": ";",
    "parameters": ";a=",
    "quoted parameters": '; a="b',
    "cookies": "chat_session=x;",
    "equals": "=",
    "ampersands": "&",
    "fields": "&a",
    "commas": ",",
    "comma and space": ", ",
    "addresses": "127.0.0.1,",
    "colons": ":",
    "slashes": "/",
    "dots": "../",
    "brackets": "[",
    "closed brackets": "[]",
    "braces": "{",
    "objects": '{"a":',
    "percent": "%",
    "percent encoded": "%25",
    "encoded bytes": "%ff",
    "plus": "+",
    "hashes": "#",
    "ids": "a\n",
    "marked ids": ">a\n",
    "NUL": "\0",
    "accents": "\u0301",
    "mixed accents": "\u0345\u0301\u0327",  # out of their canonical order
    "decomposed": "a\u0301",
    "composed": "\u01d5",
    "Hangul": "\u1100\u1161",
    "long in NFKC": "\ufdfa",
    "long in NFC": "\U0001d160",
    "digits of Arabic": "\u0660",
    "emoji": "\U0001f600",
    "emoji joined": "\U0001f468\u200d",
    "zero width": "\u200b",
    "right to left": "\u202e",
    "sharp s": "ß",
    "dotted I": "İ",
}


# The maximum CPU time, in seconds, of one frame and of one HTTP request.
MAX_FRAME_SECONDS, MAX_REQUEST_SECONDS = 0.1, 0.02
HEADERS = (
    *(
        "Accept",
        "Accept-Encoding",
        "Accept-Language",
        "Authorization",
        "Connection",
        "Content-Encoding",
        "Content-Type",
    ),
    *("Cookie", "Expect", "Host", "If-Modified-Since", "If-None-Match", "Origin", "Range", "Referer", "Upgrade"),
    *("Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Sec-WebSocket-Version"),
    *("Transfer-Encoding", "User-Agent", "X-Anything"),
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Access-Control-Request-Headers"),
)
BODIES = {
    "/user/register": ("user_name", "password"),
    "/user/login": ("user_name", "password"),
    "/user/set_password": ("user_name", "old_password", "new_password"),
    "/user/logout": ("user_name",),
}


def repeated(pattern: str, size: int, encoding: str = "utf-8") -> str:
    """Return the pattern, repeated as often as fits into `size` bytes."""
    return pattern * (size // len(pattern.encode(encoding)))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time in seconds that all threads of a process have used, with nanosecond resolution (Linux)."""
    return sum(_thread_nanoseconds(Path(f"/proc/{pid}/task"))) / 1e9


def _thread_nanoseconds(tasks: Path) -> Iterator[int]:
    for task in tasks.iterdir():
        try:
            yield int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended


def needs_cpu_time() -> None:
    """Skip the test if the system does not report the CPU time of a thread."""
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("/proc/self/schedstat is missing: the system is not Linux or has no scheduler statistics")

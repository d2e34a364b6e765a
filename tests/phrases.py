"""Reject phrases that make a sentence hard to read: `python -m tests.phrases`, part of `make lint`.

Each phrase stands for a habit: a pronoun in place of a noun, or an idiom in place of the standard term. Rewrite the
sentence: name the thing, and use the terms of the glossary in docs/architecture.md.
"""

import re
import subprocess
import sys
from pathlib import Path

REJECTED = {
    "so many": "give the number or its unit: `Timeout in seconds.`",
    "so much": "give the number or its unit",
    "so long": "give the time or its unit",
    "whoever": "name the user, the client, the caller",
    "nobody": "name the user, the client, the caller",
    "somebody": "name the user, the client, the caller",
    "beside": "next to, alongside, while",
    "has gone": "disconnected, was removed, is closed",
    "is gone": "disconnected, was removed, is closed",
    "are gone": "disconnected, were removed, are closed",
    "of whom": "make two sentences",
    "of which": "make two sentences",
    "whose it is": "name the owner",
    "in the way": "already exists, blocks",
    "for ever": "without a limit, forever",
    "in vain": "without a result",
    "is told": "receives, is notified",
    "are told": "receive, are notified",
    "lets go": "releases",
    "house": "architecture, package, server",
}
TEXT = {".py", ".md", ".js", ".mjs", ".css", ".html", ".yaml", ".yml", ".ini", ".cfg", ".toml", ".lua", ".c", ".json"}
SKIPPED = {Path("tests/phrases.py"), Path("tests/browser/views.py")}  # the list itself; a quotation in the screenshots
PATTERN = re.compile(rf"\b({'|'.join(REJECTED)})\b", re.IGNORECASE)


def findings() -> list[str]:
    """One line for each rejected phrase in a tracked text file."""
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [
        f"{path}:{number}: {match[0]!r}: write {REJECTED[match[0].lower()]}"
        for path in map(Path, tracked)
        if path not in SKIPPED and (path.suffix in TEXT or path.name == "Makefile") and path.is_file()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in PATTERN.finditer(line)
    ]


if __name__ == "__main__":
    found = findings()
    print(*found, sep="\n")
    sys.exit(bool(found))

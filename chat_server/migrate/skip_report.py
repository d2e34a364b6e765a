"""A report of data that is skipped or changed by an import, so that nothing disappears unnoticed."""

# Names that are listed for each kind.
MAX_NAMES = 5


class SkipReport:
    """Counts by kind, where a kind is a phrase such as "users with invalid names"."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str = "", count: int = 1) -> None:
        """Add `count` items of a kind; `name` identifies the item."""
        self._counts[kind] = self._counts.get(kind, 0) + count
        names = self._names.setdefault(kind, [])
        if name and len(names) < MAX_NAMES:
            names.append(ascii(name) if not name.isprintable() else name)

    def lines(self) -> list[str]:
        """A line for each kind: the count, the kind and the first names."""
        return [
            f"{count} {kind}" + (f": {', '.join(names)}{', ...' if count > len(names) else ''}" if names else "")
            for kind, count in self._counts.items()
            if (names := self._names[kind]) or count
        ]

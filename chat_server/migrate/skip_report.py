"""What could not be brought in: counted, and the first of each kind named, so that nothing is lost unseen."""

NAMED = 5


class SkipReport:
    """Counts by kind, a sentence such as "messages with a text too long"."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str = "", count: int = 1) -> None:
        """Count one, or `count`, of a kind; `name` says which."""
        self._counts[kind] = self._counts.get(kind, 0) + count
        names = self._names.setdefault(kind, [])
        if name and len(names) < NAMED:
            names.append(ascii(name) if not name.isprintable() else name)

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [
            f"{count} {kind}" + (f": {', '.join(names)}{', ...' if count > len(names) else ''}" if names else "")
            for kind, count in self._counts.items()
            if (names := self._names[kind]) or count
        ]

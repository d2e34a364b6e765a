"""Draw the charts of README.md (SVG) from the JSON files of the reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

PANELS = {  # result file -> title, and the figures to show as ratios to the plain relay
    "pairs": ("16 in flight", ("messages/s", "CPU µs/message", "ack p99 ms")),
    "pairs-1": ("1 in flight", ("messages/s", "CPU µs/message", "ack p99 ms")),
    "broadcast": ("broadcast to 500", ("deliveries/s", "CPU µs/delivery", "delivered p99 ms")),
}
PAGES = ("newest page", "page at depth", "page after an id", "unread, none", "conversations")


def draw_charts(results: Path) -> None:
    """Write ratios.svg and pages.svg to `results`, if their figures exist."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only needed here

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "chat", "svg.fonttype": "none", "font.size": 9}
    if all((results / f"{name}.json").exists() for name in PANELS):
        _ratios(results)
    if (results / "history.json").exists():
        _pages(results)


def _ratios(results: Path) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(10, 3), layout="constrained")
    for panel, (name, (title, labels)) in zip(panels, PANELS.items(), strict=True):
        columns = _columns(results / f"{name}.json")
        for place, (column, written) in enumerate(columns.items()):
            ratios = [written["ratios"][label] for label in labels]
            medians = [ratio["median"] or 0 for ratio in ratios]
            spread = [[max(0, m - (r["min"] or m)) for m, r in zip(medians, ratios, strict=True)]]
            spread += [[max(0, (r["max"] or m) - m) for m, r in zip(medians, ratios, strict=True)]]
            positions = [i + (place - 1) * 0.27 for i in range(len(labels))]
            panel.bar(positions, medians, 0.25, yerr=spread, label=column, capsize=2)
        panel.set_title(f"{title}, ratio to the plain relay")
        panel.set_xticks(range(len(labels)), labels)
        panel.axhline(1, color="black", linewidth=0.5)
    panels[0].legend()
    figure.savefig(results / "ratios.svg", metadata={"Date": None})


def _pages(results: Path) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panel = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    for place, (column, written) in enumerate(_columns(results / "history.json").items()):
        values = [written["figures"][f"{page}: p50 ms"]["median"] for page in PAGES]
        panel.bar([i + (place - 0.5) * 0.36 for i in range(len(PAGES))], values, 0.34, label=f"{column} stored")
    panel.set_xticks(range(len(PAGES)), PAGES)
    panel.set_ylabel("p50, ms")
    panel.legend()
    figure.savefig(results / "pages.svg", metadata={"Date": None})


def _columns(path: Path) -> dict[str, Any]:
    columns: dict[str, Any] = msgspec.json.decode(path.read_bytes())["columns"]
    return columns

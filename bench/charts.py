"""Charts as SVG, with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.contender import Contender
from bench.results import Result, Spread, counted, grouped
from bench.workloads import WORKLOADS

#: Ours, the reference, ceilings of a part, all others.
COLOURS = {"ours": "#1f6f8b", "reference": "#8a8f98", "ceiling": "#d9dce1", "other": "#c98a5a"}
SERIES = ("#1f6f8b", "#8a8f98", "#c98a5a", "#5a8f5a", "#8b4a6b")


class ChartsMissing(Exception):
    """matplotlib is not installed."""


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ChartsMissing("charts need matplotlib: pip install '.[bench]', from a checkout") from error
    matplotlib.use("svg")
    # The same results make the same file; text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "towline", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    _pyplot().close(figure)
    # What it writes has spaces at the ends of lines.
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", "utf-8")


def rates(path: Path, results: Sequence[Result], everyone: Mapping[str, Contender]) -> None:
    """Bars of changes a second, for each workload; whiskers from least to most. Raises ChartsMissing."""
    pyplot = _pyplot()
    groups = {
        name: runs
        for name, runs in grouped(results).items()
        if name in WORKLOADS and WORKLOADS[name].mode in ("stream", "snapshot")
    }
    if not groups:
        return
    heights = [len(runs) for runs in groups.values()]
    figure, axes = pyplot.subplots(
        len(groups), 1, figsize=(8, 0.28 * sum(heights) + 0.7 * len(heights)), height_ratios=heights, squeeze=False
    )
    for axis, (name, runs) in zip(axes[:, 0], groups.items(), strict=True):
        order = [each for each in everyone if each in runs]
        spreads = {each: Spread.of(counted(runs[each]), lambda result: result.rate / 1000) for each in order}
        shown = [(each, spread) for each, spread in spreads.items() if spread is not None]
        axis.barh(
            [everyone[each].title for each, _ in shown],
            [spread.median for _, spread in shown],
            xerr=[
                [spread.median - spread.low for _, spread in shown],
                [spread.high - spread.median for _, spread in shown],
            ],
            color=[_colour(everyone[each]) for each, _ in shown],
            error_kw={"elinewidth": 0.8},
        )
        axis.invert_yaxis()
        axis.set_title(f"{name}: thousand changes a second", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)


def _colour(contender: Contender) -> str:
    if contender.name.startswith("towline"):
        return COLOURS["ours"]
    if contender.ceiling:
        return COLOURS["ceiling"]
    return COLOURS["reference"] if contender.name.startswith("builtin") else COLOURS["other"]


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of one contender over what a sweep varies. ``points``: (x, median, least, most)."""

    title: str
    points: Sequence[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: ``title`` says what is up, ``x`` what goes along."""

    title: str
    x: str
    curves: Sequence[Curve]
    log_x: bool = True


def panels(path: Path, shown: Sequence[Panel]) -> None:
    """Diagrams side by side. Raises ChartsMissing."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(shown), figsize=(4 * len(shown), 3), squeeze=False)
    for axis, panel in zip(axes[0], shown, strict=True):
        for colour, curve in zip(SERIES, panel.curves, strict=False):
            along = [point[0] for point in curve.points]
            axis.plot(along, [point[1] for point in curve.points], marker="o", ms=3, color=colour, label=curve.title)
            lows, highs = [point[2] for point in curve.points], [point[3] for point in curve.points]
            axis.fill_between(along, lows, highs, color=colour, alpha=0.15, linewidth=0)
        if panel.log_x:
            axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title(panel.title, loc="left", fontsize=9)
        axis.set_xlabel(panel.x)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)

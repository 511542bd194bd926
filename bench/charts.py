"""Charts as SVG, with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.contender import Contender
from bench.results import Result, Spread, counted, grouped
from bench.workloads import WORKLOADS

#: Ours, the reference, ceilings of a part, all others.
COLOURS = {"ours": "#1f6f8b", "reference": "#8a8f98", "ceiling": "#d9dce1", "other": "#c98a5a"}
#: Of CPU.
PARTS = {"consumer": "#1f6f8b", "source": "#c98a5a", "target": "#8a8f98"}
#: Of curves but the reference's.
SERIES = ("#1f6f8b", "#c98a5a", "#5a8f5a", "#8b4a6b")


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


def workloads(path: Path, results: Sequence[Result], everyone: Mapping[str, Contender]) -> None:
    """For each workload bars of changes a second, with whiskers from least to most, and of CPU a change, by part.

    Raises ChartsMissing.
    """
    pyplot = _pyplot()
    groups = {
        name: runs
        for name, runs in grouped(results).items()
        if name in WORKLOADS and WORKLOADS[name].mode in ("stream", "snapshot")
    }
    if not groups:
        return
    heights = [len(runs) for runs in groups.values()]
    size = (10, 0.28 * sum(heights) + 0.7 * len(heights))
    figure, axes = pyplot.subplots(len(groups), 2, figsize=size, height_ratios=heights, squeeze=False, sharey="row")
    for (left, right), (name, runs) in zip(axes, groups.items(), strict=True):
        shown = [everyone[each] for each in everyone if counted(runs.get(each, []))]
        titles = [_plain(contender.title) for contender in shown]
        right_ones = [counted(runs[contender.name]) for contender in shown]
        spreads = [_known(Spread.of(each, lambda result: result.rate / 1000)) for each in right_ones]
        left.barh(
            titles,
            [spread.median for spread in spreads],
            xerr=[
                [spread.median - spread.low for spread in spreads],
                [spread.high - spread.median for spread in spreads],
            ],
            color=[_colour(contender) for contender in shown],
            error_kw={"elinewidth": 0.8},
        )
        left.invert_yaxis()
        left.set_title(f"{name}: thousand changes a second", loc="left", fontsize=9)
        begins = [0.0] * len(shown)
        for part, colour in PARTS.items():
            used = [_known(Spread.of(each, _micros(part))).median for each in right_ones]
            right.barh(titles, used, left=begins, color=colour, label="contender" if part == "consumer" else part)
            begins = [begin + more for begin, more in zip(begins, used, strict=True)]
        right.set_title("µs of CPU a change", loc="left", fontsize=9)
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _micros(part: str) -> Callable[[Result], float]:
    return lambda result: result.micros(part)


def _known(spread: Spread | None) -> Spread:
    assert spread is not None
    return spread


def _plain(title: str) -> str:
    """Without the marks of Markdown."""
    return title.replace("`", "")


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
    points: Sequence[tuple[float, float, float, float]]
    reference: bool = False


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
        colours = cycle(SERIES)
        for curve in panel.curves:
            colour = COLOURS["reference"] if curve.reference else next(colours)
            along = [point[0] for point in curve.points]
            axis.plot(
                along, [point[1] for point in curve.points], marker="o", ms=3, color=colour, label=_plain(curve.title)
            )
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

#!/usr/bin/env python3
"""Draws the plots of a run: python3 bench/plot.py FOLDER (which has results.json). Needs matplotlib.

Draws what the run has measured and says which plots it has nothing for.
"""

import json
import re
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
# The same run gives the same file.
matplotlib.rcParams.update({"svg.hashsalt": "deskfeed", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3})
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.ticker import FuncFormatter  # noqa: E402


class Run:
    """The figures of results.json."""

    def __init__(self, folder):
        self.folder = folder
        self.data = json.loads((folder / "results.json").read_text())
        self.figures = self.data["figures"]

    def by_number(self, job, pattern, metric, yardstick=None):
        """{number: [rounds]} of the figures whose `what` matches; the first group is the number.

        With a yardstick: the yardstick's own rounds beside those figures.
        """
        found = {}
        for figure in self.figures:
            match = re.fullmatch(pattern, figure["what"])
            if (figure["job"], figure["metric"], figure["yardstick"]) == (job, metric, yardstick) and match:
                number = int(match.group(1).replace(",", ""))
                found[number] = figure["yardstick_rounds" if yardstick else "rounds"]
        return dict(sorted(found.items()))


def line(axes, points, label, **style):
    """Medians as a line, least and most of the rounds as bars."""
    if not points:
        return False
    x = list(points)
    y = [statistics.median(rounds) for rounds in points.values()]
    down = [middle - min(rounds) for middle, rounds in zip(y, points.values())]
    up = [max(rounds) - middle for middle, rounds in zip(y, points.values())]
    axes.errorbar(x, y, yerr=[down, up], label=label, marker="o", capsize=3, **style)
    return True


def ticks(axes, numbers):
    axes.set_xticks(sorted(numbers), [f"{number:,}" for number in sorted(numbers)])
    axes.minorticks_off()


def append(run, axes):
    of = r"([\d,]+) senders?"
    ours = run.by_number("append", of, "throughput")
    if not line(axes, ours, "deskfeed", color="tab:blue", linewidth=2):
        return False
    for yardstick, color in [
        ("single inserts over HTTP", "tab:green"),
        ("naive over HTTP", "tab:red"),
        ("multi-row inserts of 100", "tab:gray"),
        ("ok requests", "tab:purple"),
    ]:
        line(axes, run.by_number("append", of, "throughput", yardstick), yardstick, color=color, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="senders", ylabel="per second")
    axes.set_title("Durable appends of 300-byte messages over HTTP")
    ticks(axes, ours)
    return True


def wake(run, axes):
    numbers = set()
    loads = [("quiet", "quiet", "-"), (r"[\d,]+ messages/s", "under load", "--")]
    for load, name, style in loads:
        for metric, color in [("p50", "tab:blue"), ("p99", "tab:orange"), ("max", "tab:red")]:
            points = run.by_number("wake", rf"([\d,]+) parked, {load}", metric)
            numbers.update(points)
            line(axes, points, f"{metric}, {name}", color=color, linestyle=style)
    if not numbers:
        return False
    axes.set(xscale="log", yscale="log", xlabel="parked polls, each on its own feed", ylabel="ms")
    axes.set_title("From the POST's first byte to the poll's last")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks(axes, numbers)
    return True


def pages(run, axes):
    bars = []
    for figure in run.figures:
        if figure["job"] == "pages" and figure["metric"] == "throughput" and figure["yardstick"] is None:
            beside = [
                statistics.median(other["yardstick_rounds"])
                for other in run.figures
                if other["what"] == figure["what"]
                and (other["job"], other["metric"], other["yardstick"]) == ("pages", "throughput", "raw scan")
            ]
            bars.append((figure["what"], figure["value"], beside[0] if beside else 0))
    if not bars:
        return False
    places = range(len(bars))
    axes.barh([place - 0.2 for place in places], [ours for _, ours, _ in bars], 0.4, label="deskfeed")
    axes.barh(
        [place + 0.2 for place in places], [raw for _, _, raw in bars], 0.4, label="raw scan", color="tab:gray"
    )
    axes.set_yticks(list(places), [what for what, _, _ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="events/s")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title("Pages")
    axes.figure.set_figheight(max(3, 0.45 * len(bars) + 1.5))
    return True


def memory(run, axes):
    points = run.by_number("parked", r"([\d,]+) parked", "memory per poll")
    if not line(axes, points, "deskfeed", color="tab:blue"):
        return False
    axes.axhline(12, color="tab:gray", linestyle=":", label="target: 12 KiB")
    axes.set(xlabel="parked polls", ylabel="KiB of the service's memory per poll", ylim=(0, None))
    axes.set_title("Memory of a parked poll")
    ticks(axes, points)
    return True


def growth(run, axes):
    metrics = {
        figure["metric"]: None
        for figure in run.figures
        if figure["job"] == "growth" and re.fullmatch(r"[\d,]+ events", figure["what"]) and not figure["yardstick"]
    }
    numbers = set()
    for metric in metrics:
        points = run.by_number("growth", r"([\d,]+) events", metric)
        first = statistics.median(next(iter(points.values())))
        if first:
            line(axes, {number: [round / first for round in rounds] for number, rounds in points.items()}, metric)
            numbers.update(points)
    if not numbers:
        return False
    axes.set(xscale="log", xlabel="events in the table", ylabel="relative to the smallest table", ylim=(0, None))
    axes.set_title("What grows with the table")
    ticks(axes, numbers)
    return True


def replicas(run, axes):
    senders = sorted({
        int(match.group(1).replace(",", ""))
        for figure in run.figures
        if figure["job"] == "replicas" and (match := re.fullmatch(r"\d+ process(?:es)?, ([\d,]+) senders?", figure["what"]))
    })
    numbers = set()
    for count in senders:
        points = run.by_number("replicas", rf"(\d+) process(?:es)?, {count:,} senders?", "throughput")
        numbers.update(points)
        line(axes, points, f"{count:,} senders")
    if not numbers:
        return False
    axes.set(xlabel="service processes on one PostgreSQL", ylabel="messages/s", ylim=(0, None))
    axes.set_title("Senders divided over several processes")
    ticks(axes, numbers)
    return True


def operations(run, axes):
    """What is measured next to as many pure senders."""
    bars = [
        (f"{figure['job']}: {figure['what']}", statistics.median(figure["rounds"]), statistics.median(figure["yardstick_rounds"]))
        for figure in run.figures
        if figure["metric"] == "throughput" and figure["yardstick"] == "pure senders"
    ]
    if not bars:
        return False
    places = range(len(bars))
    axes.barh([place - 0.2 for place in places], [ours for _, ours, _ in bars], 0.4, label="operations/s (acks: events/s)")
    axes.barh(
        [place + 0.2 for place in places], [pure for _, _, pure in bars], 0.4, label="messages/s of as many pure senders", color="tab:gray"
    )
    axes.set_yticks(list(places), [what for what, _, _ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="per second")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title("What a desk does, next to messages alone")
    axes.figure.set_figheight(max(3, 0.45 * len(bars) + 1.5))
    return True


def distance(run, axes):
    lines = {}
    for figure in run.figures:
        match = re.fullmatch(r"(near|[\d.]+ ms away), (\d+ process(?:es)?), ([\d,]+ (?:senders?|conversations?))", figure["what"])
        if (figure["job"], figure["metric"], figure["yardstick"]) == ("distance", "throughput", None) and match:
            place, processes, load = match.groups()
            away = 0.0 if place == "near" else float(place.split()[0])
            lines.setdefault(f"{load}, {processes}", {})[away] = figure["rounds"]
    for name, points in lines.items():
        style = "--" if "conversation" in name else "-"
        line(axes, dict(sorted(points.items())), name, linestyle=style)
    if not lines:
        return False
    axes.set(xlabel="round trip to PostgreSQL, ms", ylabel="messages/s (dashed: operations/s)", yscale="log")
    axes.set_title("PostgreSQL at a distance")
    return True


PLOTS = {
    "append": append,
    "wake": wake,
    "replicas": replicas,
    "operations": operations,
    "distance": distance,
    "pages": pages,
    "memory": memory,
    "growth": growth,
}


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python3 bench/plot.py FOLDER")
    run = Run(Path(sys.argv[1]))
    machine = run.data["machine"]
    about = f"{machine.get('processor', '')}, PostgreSQL {machine.get('postgresql server_version', '?')}, {machine.get('date', '')}"
    for name, draw in PLOTS.items():
        figure, axes = plt.subplots(figsize=(8, 4.5))
        if draw(run, axes):
            axes.legend(fontsize=8)
            figure.text(0.99, 0.01, about, ha="right", fontsize=6, color="gray")
            figure.tight_layout()
            path = run.folder / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            print(path)
        else:
            print(f"{name}: the run has no figures for it")
        plt.close(figure)


if __name__ == "__main__":
    main()

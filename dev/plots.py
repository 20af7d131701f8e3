"""`make plots`: the plots of the documentation, as SVG in docs/images/plots/, from the figures in docs/evidence/data/.

Each plot is a description in Vega-Lite, which `vl-convert` turns into SVG without a browser and without the network.
The plots are as wide as the drawings (460 units), so that they can be read on a telephone. Where text stands does not
depend on how wide it is, so that the files are the same on every machine. Colours are variables, which follow the
reader's light or dark scheme.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import evidence

if TYPE_CHECKING:
    from collections.abc import Callable

PLOTS = evidence.EVIDENCE.parent / "images" / "plots"
#: The widths of the whole picture, and of the labels to the left of lines and of bars.
WIDTH, LEFT_OF_LINES, LEFT_OF_BARS = 460, 70, 200

#: By its name in the style sheet: a colour in the light scheme and in the dark one. They are the drawings' own.
COLOURS = {
    "page": ("#ffffff", "#1e2129"),
    "ink": ("#24292f", "#e6edf3"),
    "quiet": ("#57606a", "#aab4be"),
    "grid": ("#d8dee4", "#3a414b"),
    "ours": ("#7e57c2", "#b39ddb"),
    "light": ("#c9b8e8", "#5f4b8b"),
    "theirs": ("#b26a00", "#e0a33e"),
    "shared": ("#00897b", "#4db6ac"),
    "unsure": ("#8c959f", "#6e7681"),
    "bad": ("#c62828", "#ef7f7a"),
}
Spec = dict[str, Any]
Rows = list[dict[str, Any]]


def colour(name: str) -> str:
    """A colour that follows the scheme; the light one for a reader that knows no variables."""
    return f"var(--{name}, {COLOURS[name][0]})"


def quantity(field: str, **more: Any) -> Spec:
    """An axis of numbers without a title: the titles stand above, where their width does not matter."""
    return {"field": field, "type": "quantitative", "title": None, **more}


def colours(field: str, by_value: dict[str, str]) -> Spec:
    """A colour for each value, without a legend: the lines and bars are labelled."""
    names = [colour(name) for name in by_value.values()]
    return {"field": field, "scale": {"domain": list(by_value), "range": names}, "legend": None}


def text(at: Rows, *, x: Spec, y: Spec, ink: str = "ink", **mark: Any) -> Spec:
    """Words in a plot."""
    mark = {"type": "text", "align": "left", "baseline": "middle", "fontSize": 13, "color": colour(ink), **mark}
    return {"data": {"values": at}, "mark": mark, "encoding": {"x": x, "y": y, "text": {"field": "text"}}}


def panel(title: str, height: int, layers: list[Spec], *, left: int, right: int, note: str = "") -> Spec:
    """One of the parts of a plot that stand below each other."""
    words = {
        "text": title,
        "anchor": "start",
        "frame": "group",
        "dx": 10 - left,
        "fontSize": 14,
        "color": colour("ink"),
    }
    if note:
        words |= {"subtitle": note, "subtitleColor": colour("quiet"), "subtitleFontSize": 13}
    return {"title": words, "width": WIDTH - left - right, "height": height, "layer": layers}


#: By the trigger: its colour.
TRIGGERS = {"dbt Cloud": "theirs", "ours": "ours"}


# --- what waiting costs -----------------------------------------------------------------------------------------------


def growing(title: str, note: str, rows: Rows) -> Spec:
    """How a cost grows with the number of waits, on two logarithmic axes, with the last value of each line."""
    values = [row["value"] for row in rows]
    domain = [10 ** (len(str(int(min(values) * 1e6))) - 7), 10 ** len(str(int(max(values))))]
    x = quantity("runs", scale={"type": "log", "domain": [80, 12500]}, axis={"values": [100, 1000, 10000]})
    x["axis"] |= {"format": ",", "grid": False}
    ticks = [10**power for power in range(-3, 7) if domain[0] <= 10**power <= domain[1]]
    y = quantity("value", scale={"type": "log", "domain": domain}, axis={"values": ticks, "format": ",~g"})
    lines = {
        "data": {"values": rows},
        "mark": {"type": "line", "point": {"size": 50, "opacity": 1}, "strokeWidth": 2.5},
        "encoding": {"x": x, "y": y, "color": colours("trigger", TRIGGERS)},
    }
    layers = [lines]
    for trigger, ink in TRIGGERS.items():
        last = max((row for row in rows if row["trigger"] == trigger), key=lambda row: row["runs"])
        layers.append(text([{**last, "text": trigger}], x=x, y=y, ink=ink, dx=12, fontWeight=600))
    return panel(title, 170, layers, left=LEFT_OF_LINES, right=84, note=note)


def waiting(figures: dict[str, evidence.Figures]) -> Spec:
    """Requests and CPU against the number of waits."""
    rows = [row for row in figures["triggerer"]["rows"] if row["agents"] == row["runs"] and not row["others"]]

    def of(key: str, scale: float = 1) -> Rows:
        return [{"trigger": row["trigger"], "runs": row["runs"], "value": row[key] * scale} for row in rows]

    return {
        "vconcat": [
            growing("Requests, in all", "by the number of runs that are waited for", of("requests")),
            growing("CPU while they wait, ms", "in each 5 seconds", of("cycle_cpu_s", 1e3)),
        ]
    }


def delay(figures: dict[str, evidence.Figures]) -> Spec:
    """How soon the end of a run is noticed on a busy machine, as a share of all runs."""
    x = quantity("seconds", scale={"domain": [0, 16]}, axis={"values": [0, 5, 10, 15], "grid": True})
    y = quantity("share", scale={"domain": [0, 1]}, axis={"values": [0, 0.5, 1], "format": ".0%"})
    layers = []
    for number, row in enumerate(reversed(evidence.of_each(figures["triggerer_busy"], 1000))):
        times, trigger = row["delays_s"], row["trigger"]
        mark = {"type": "line", "strokeWidth": 2.5, "color": colour(TRIGGERS[trigger])}
        points = [{"seconds": time, "share": step / (len(times) - 1)} for step, time in enumerate(times)]
        layers.append({"data": {"values": points}, "mark": mark, "encoding": {"x": x, "y": y}})
        place = [{"seconds": times[10], "share": 0.5, "text": trigger}]
        layers.append(text(place, x=x, y=y, ink=TRIGGERS[trigger], fontWeight=600, dx=10, dy=12 + 2 * number))
    title = "Ends of runs, noticed within … seconds"
    note = "1,000 waits, on a machine that does other work"
    return {"vconcat": [panel(title, 190, layers, left=LEFT_OF_LINES, right=20, note=note)]}


# --- bars -------------------------------------------------------------------------------------------------------------


def names_on_the_left(names: list[str]) -> Spec:
    """The axis of bars that lie."""
    axis = {"labelLimit": LEFT_OF_BARS, "ticks": False, "domain": False, "labelPadding": 8, "grid": False}
    return {"field": "name", "type": "nominal", "title": None, "sort": names, "axis": axis}


def bars(title: str, rows: Rows, names: list[str], by_kind: dict[str, str], *, ends: float, shown: str) -> Spec:
    """Bars that lie: for each name one bar of each kind, with its value at its end."""
    y = names_on_the_left(names)
    offset = {"field": "kind", "sort": list(by_kind)}
    x = quantity("value", scale={"domain": [0, ends]}, axis=None)
    encoding = {"x": x, "y": y, "yOffset": offset}
    bar = {"mark": {"type": "bar", "height": 9}, "encoding": {**encoding, "color": colours("kind", by_kind)}}
    value = {"field": "value", "format": shown}
    mark = {"type": "text", "align": "left", "baseline": "middle", "dx": 4, "fontSize": 12, "color": colour("ink")}
    labels = {"mark": mark, "encoding": {**encoding, "text": value}}
    part = panel(title, 32 * len(names), [bar, labels], left=LEFT_OF_BARS, right=54)
    return {**part, "data": {"values": rows}}


def heading(words: str, by_kind: dict[str, str]) -> Spec:
    """Above all parts with bars: a line of text, and what the colours mean."""
    places: Rows = [
        {"x": 16 - LEFT_OF_BARS + (number % 2) * WIDTH / 2, "y": 40 + 20 * (number // 2), "text": kind, "kind": kind}
        for number, kind in enumerate(by_kind)
    ]
    # Without a scale, places are in units of the picture.
    x, y = ({"field": axis, "type": "quantitative", "scale": None, "axis": None} for axis in "xy")
    square = {"type": "square", "size": 110, "opacity": 1}
    squares = {
        "data": {"values": places},
        "mark": square,
        "encoding": {"x": x, "y": y, "color": colours("kind", by_kind)},
    }
    head = text([{"x": 10 - LEFT_OF_BARS, "y": 12, "text": words}], x=x, y=y, fontSize=15, fontWeight=600)
    return {"width": 100, "height": places[-1]["y"] + 8, "layer": [head, squares, text(places, x=x, y=y, dx=10)]}


DOCUMENTED, OURS = "the documented loop", "this provider"
#: By the name of the world: its name in the plot.
ALONE = {
    "record at once, nothing else runs": "events appear at once",
    "record up to 0.3 s after the 202": "… up to 0.3 s late",
    "record up to 20 s after the 202": "… up to 20 s late",
    "record at once, own schedule": "at once, beside a schedule",
    "late records, own schedule": "late, beside a schedule",
    "late, scheduled, lagging replicas, skewed clocks": "all that, and clocks off",
}
BESIDE = {
    "2 at once, 20% fail": "2 at once",
    "5 at once, 20% fail": "5 at once",
    "5, 5 s apart, 20% fail": "5, each 5 s later",
    "10, 1 s apart, 20% fail": "10, each 1 s later",
    "2 to 5, 0 to 10 s apart, 20% fail": "2 to 5, 0 to 10 s apart",
}
STRANGERS = {
    "5 at once, 20% fail, others' runs": "5 at once",
    "2 to 5, 0 to 10 s apart, 20% fail, others' runs": "2 to 5, 0 to 10 s apart",
}
LOOPS = {"documented": DOCUMENTED, "ours, deferred": OURS}


def wrong(figures: dict[str, evidence.Figures]) -> Spec:
    """Tasks that succeeded wrongly, by world: the documented loop against this provider."""
    kinds = {DOCUMENTED: "theirs", OURS: "ours"}

    def part(title: str, worlds: dict[str, str]) -> Spec:
        rows = [
            {"name": worlds[row["world"]], "kind": LOOPS[row["loop"]], "value": row["wrong success"]}
            for row in figures["soundness"]["rows"]
            if row["world"] in worlds and row["loop"] in LOOPS
        ]
        return bars(title, rows, list(worlds.values()), kinds, ends=0.22, shown=".1%")

    return {
        "vconcat": [
            heading("Tasks that succeed, although their run failed", kinds),
            part("One task at a time; 10 % of runs fail", ALONE),
            part("Tasks that start one agent; 20 % of runs fail", BESIDE),
        ]
    }


#: What becomes of a task, by column of the figures: in words, and its colour.
ENDS = {
    "own event": ("its own run", "ours"),
    "a sibling's": ("shared out: a sibling's run", "shared"),
    "ambiguous": ("fails: cannot be told apart", "unsure"),
    "another party's": ("another run", "bad"),
}


def reported(figures: dict[str, evidence.Figures]) -> Spec:
    """Whose run the tasks of this provider and of the documented loop report, as parts of all tasks."""
    kinds = dict(ENDS.values())

    def part(title: str, worlds: dict[str, str], loops: dict[str, str]) -> Spec:
        rows, names = [], []
        for row in figures["soundness"]["rows"]:
            if row["world"] not in worlds or row["loop"] not in loops:
                continue
            name = worlds[row["world"]]
            names.append(name)
            rows += [
                {"name": name, "kind": words, "value": row[column], "order": number}
                for number, (column, (words, _)) in enumerate(ENDS.items())
            ]
        y = names_on_the_left(names)
        x = quantity("value", stack="zero", scale={"domain": [0, 1]}, axis={"values": [0, 0.5, 1], "format": ".0%"})
        bar = {
            "mark": {"type": "bar", "height": 14},
            "encoding": {"x": x, "y": y, "color": colours("kind", kinds), "order": {"field": "order"}},
        }
        whole = panel(title, 22 * len(names), [bar], left=LEFT_OF_BARS, right=24)
        return {**whole, "data": {"values": rows}}

    ours = {"ours, deferred": OURS}
    return {
        "vconcat": [
            heading("Whose run does a task report?", kinds),
            part("The documented loop, one task at a time", ALONE, {"documented": DOCUMENTED}),
            part("This provider, one task at a time", ALONE, ours),
            part("Tasks that start one agent", BESIDE, ours),
            part("… and another party's run beside one in three", STRANGERS, ours),
        ]
    }


def slots(figures: dict[str, evidence.Figures]) -> Spec:
    """How long each way of waiting takes a worker's slot."""
    rows = figures["worker_time"]["rows"]
    lengths = sorted({row["run_s"] for row in rows})
    kinds = dict(zip((f"a run of {length:g} s" for length in lengths), ("light", "ours"), strict=True))
    most = max(row["slot_s"] for row in rows)

    def part(title: str, whose: str) -> Spec:
        values = [
            {
                "name": row["way"].removeprefix(whose).replace("`", ""),
                "kind": f"a run of {row['run_s']:g} s",
                "value": row["slot_s"],
            }
            for row in rows
            if row["way"].startswith(whose)
        ]
        names = list(dict.fromkeys(value["name"] for value in values))
        return bars(title, values, names, kinds, ends=most, shown=".1f")

    head = heading("Seconds that a worker's slot is taken", kinds)
    return {"vconcat": [head, part("This provider", "ours: "), part("dbt Cloud", "dbt Cloud: ")]}


# --- files ------------------------------------------------------------------------------------------------------------

#: By file: what it shows, for readers who do not see it, what draws it, and the width of its labels on the left.
DRAWN: dict[str, tuple[str, Callable[[dict[str, evidence.Figures]], Spec], int]] = {
    "waiting": (
        "Requests and CPU by the number of waits, this provider beside dbt Cloud's trigger",
        waiting,
        LEFT_OF_LINES,
    ),
    "delay": ("How soon the end of a run is noticed", delay, LEFT_OF_LINES),
    "wrong": ("Tasks that succeeded wrongly, the documented loop beside this provider", wrong, LEFT_OF_BARS),
    "reported": ("Whose run the tasks report", reported, LEFT_OF_BARS),
    "slots": ("How long each way of waiting takes a worker's slot", slots, LEFT_OF_BARS),
}


def spec_of(name: str, figures: dict[str, evidence.Figures]) -> Spec:
    """The whole description of a plot, with its figures in it."""
    axis = {
        "labelColor": colour("quiet"),
        "labelFontSize": 13,
        "gridColor": colour("grid"),
        "domainColor": colour("quiet"),
        "tickColor": colour("quiet"),
    }
    title = {"fontWeight": 600, "subtitleFontWeight": 400, "offset": 8, "subtitlePadding": 4}
    config = {"axis": axis, "title": title, "view": {"stroke": None}, "font": "sans-serif", "concat": {"spacing": 18}}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": None,
        "padding": 10,
        "config": config,
        **DRAWN[name][1](figures),
    }


def mark_of(spec: Spec) -> str:
    """What a file says of its source: it changes with the figures and with the description."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def style() -> str:
    """The colours of both schemes, as a style sheet."""
    light, dark = ("".join(f"--{name}:{pair[scheme]};" for name, pair in COLOURS.items()) for scheme in (0, 1))
    return (
        f"svg{{{light}}} text{{font-family:system-ui,sans-serif}} .page{{fill:var(--page)}} "
        f"@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    )


def svg_of(name: str, figures: dict[str, evidence.Figures]) -> str:
    """A plot as the text of its file."""
    import vl_convert  # type: ignore[import-not-found,unused-ignore]

    spec = spec_of(name, figures)
    drawn = vl_convert.vegalite_to_svg(spec)
    head, _, body = drawn.partition(">")
    height = head.rpartition(" ")[2].strip('"')
    # How far the labels on the left reach is measured with a font; here they have a place of their own.
    body = re.sub(r"translate\([^,]+,", f"translate({DRAWN[name][2]},", body, count=1)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * 5 // 4}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{DRAWN[name][0]}">\n'
        f"<!-- Written by dev/plots.py, source {mark_of(spec)}. -->\n<style>{style()}</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>\n'
    )
    # One mark a line, so that a difference can be read.
    return opening + body.replace("><g", ">\n<g").replace("><path", ">\n<path").replace("><text", ">\n<text") + "\n"


def write_plots() -> None:
    """Write all plots."""
    import vl_convert  # noqa: F401 - if it is missing, nothing is written

    PLOTS.mkdir(exist_ok=True)
    for name in DRAWN:
        (PLOTS / f"{name}.svg").write_text(svg_of(name, evidence.load()), encoding="utf-8")


def main() -> None:
    """Write all plots and tables."""
    write_plots()
    evidence.write_tables()
    print(f"Wrote {', '.join(DRAWN)} to {PLOTS.relative_to(evidence.EVIDENCE.parents[1])}, and the tables.")


if __name__ == "__main__":
    main()

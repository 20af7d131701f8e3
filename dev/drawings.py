"""`python dev/drawings.py`: the drawings of the documentation, as SVG in docs/images/.

The drawings are their own source: text, boxes and arrows at coordinates. Each one is 460 units wide, so that its
smallest letters (13 units) can still be read on a telephone, and follows the reader's light or dark scheme.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTH = 460

_STYLE = """\
    text { font: 14px system-ui, sans-serif; fill: #24292f; }
    .small { font-size: 13px; fill: #57606a; }
    .head { font-weight: 600; }
    .page { fill: #ffffff; }
    .line { stroke: #57606a; fill: none; stroke-width: 1.5; }
    .dash { stroke: #8c959f; fill: none; stroke-dasharray: 3 4; }
    .tip { fill: #57606a; }
    .a { fill: #e8e0f7; stroke: #7e57c2; } .b { fill: #d7f0ec; stroke: #00897b; }
    .c { fill: #fdeccb; stroke: #b26a00; } .d { fill: #f6f8fa; stroke: #8c959f; }
    .bad { fill: #fbdad7; stroke: #c62828; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #1e2129; }
      text { fill: #e6edf3; }
      .small { fill: #aab4be; }
      .line { stroke: #aab4be; } .dash { stroke: #6e7681; } .tip { fill: #aab4be; }
      .a { fill: #3b3153; stroke: #b39ddb; } .b { fill: #123f3a; stroke: #4db6ac; }
      .c { fill: #4a3813; stroke: #e0a33e; } .d { fill: #2a2f38; stroke: #6e7681; }
      .bad { fill: #54262a; stroke: #ef7f7a; }
    }
"""


class Drawing:
    """A drawing, put together from top to bottom.

    Args:
        label: what the drawing shows, for readers who do not see it.
        height: in units, of which the width has 460.
    """

    def __init__(self, label: str, height: int) -> None:
        self._parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * 5 // 4}" viewBox="0 0 {WIDTH} {height}" '
                f'role="img" aria-label="{escape(label)}">'
            ),
            "  <!-- Written by dev/drawings.py. -->",
            f"  <style>\n{_STYLE}  </style>",
            f'  <rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        ]

    def text(self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "middle") -> None:
        """A line of text; `y` is its base line."""
        self._parts.append(f'  <text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, *texts: str, kind: str = "d") -> None:
        """A box with lines of text in its middle: the first stands out, the others are small."""
        self._parts.append(f'  <rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>')
        top = y + height / 2 - 8.5 * (len(texts) - 1) + 5
        for number, text in enumerate(texts):
            self.text(x + width / 2, top + 17 * number, text, kind="small" if number else "")

    def line(self, *points: tuple[float, float], kind: str = "line") -> None:
        """A line through the points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'  <polyline class="{kind}" points="{path}"/>')

    def arrow(self, *points: tuple[float, float], kind: str = "line") -> None:
        """A line through the points with a tip at its end; its last part is horizontal or vertical."""
        self.line(*points, kind=kind)
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        corners = [(x, y), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx), (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx)]
        path = " ".join(f"{cx:g},{cy:g}" for cx, cy in corners)
        self._parts.append(f'  <polygon class="tip" points="{path}"/>')

    def dot(self, x: float, y: float, *, kind: str, radius: float = 6) -> None:
        """A circle."""
        self._parts.append(f'  <circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')

    def svg(self) -> str:
        """The drawing as the text of a file."""
        return "\n".join([*self._parts, "</svg>", ""]).replace(' class=""', "")


def run_life() -> Drawing:
    """A run's life: from the task's start to the next task."""
    drawing = Drawing(
        "A worker starts the run with one POST and is free. The triggerer waits with one shared poll. When the run has "
        "ended, a worker resumes the task and hands the final event to the next task.",
        512,
    )
    worker, triggerer, platform = 78, 230, 382
    for x, end, name, kind in (
        (worker, 160, "a worker", "a"),
        (triggerer, 190, "the triggerer", "c"),
        (platform, 156, "the platform", "b"),
    ):
        drawing.line((x, 40), (x, end), kind="dash")
        drawing.box(x - 62, 12, 124, 30, name, kind=kind)
    drawing.box(worker - 68, 58, 136, 30, "run_agent starts", kind="a")
    drawing.text(152, 108, "POST, once", kind="small")
    drawing.arrow((worker, 115), (platform - 2, 115))
    drawing.text(152, 136, "202 and a requestId", kind="small")
    drawing.arrow((platform, 143), (worker + 2, 143))
    drawing.box(platform - 50, 156, 100, 230, "the run", "PENDING", "RUNNING", "COMPLETED", kind="b")
    drawing.text(worker, 176, "deferred:", kind="head")
    drawing.text(worker, 193, "no worker held", kind="small")
    drawing.arrow((worker, 202), (triggerer - 14, 202))
    drawing.box(triggerer - 14, 190, 28, 212, kind="c")
    for y in (226, 268, 310, 352):
        drawing.arrow((triggerer + 14, y), (platform - 52, y))
    drawing.text(78, 270, "one poll for all", kind="small")
    drawing.text(78, 288, "waiting tasks,", kind="small")
    drawing.text(78, 306, "every 5 s", kind="small")
    drawing.text(78, 356, "30 s at least, until", kind="small")
    drawing.text(78, 374, "no other event fits", kind="small")
    drawing.arrow((triggerer - 14, 396), (worker + 2, 396))
    drawing.box(worker - 68, 408, 136, 30, "run_agent ends", kind="a")
    drawing.arrow((worker, 438), (worker, 460))
    drawing.box(worker - 68, 460, 136, 30, "report(event)", kind="a")
    drawing.text(156, 428, "its final event is its XCom", kind="small", anchor="start")
    drawing.text(156, 480, "the next task", kind="small", anchor="start")
    return drawing


_AXIS_X, _SECOND = 74, 7.2


def _at(seconds: float) -> float:
    return _AXIS_X + _SECOND * (seconds + 5)


def _window(drawing: Drawing, y: float, posted: float, kind: str, *, named: bool = True) -> None:
    """The window of one submission: five seconds before it to five after `settle`."""
    drawing.box(_at(posted - 5), y, _at(posted + 36) - _at(posted - 5), 26, "the window", kind=kind)
    for seconds in (posted, posted + 1):
        drawing.line((_at(seconds), y - 5), (_at(seconds), y + 26))
    drawing.line((_at(posted + 31), y - 5), (_at(posted + 31), y + 26))
    if named:
        drawing.text(_at(posted) - 2, y - 9, "before", kind="small", anchor="end")
        drawing.text(_at(posted + 1) + 2, y - 9, "POST, after", kind="small", anchor="start")
        drawing.text(_at(posted + 31), y - 9, "settle", kind="small")


def submission() -> Drawing:
    """The time line of one submission."""
    drawing = Drawing(
        "A time line. The window of a submission reaches from just before the POST to settle seconds after the answer, "
        "with five seconds more at both ends. The run's event lies in it.",
        262,
    )
    drawing.text(10, 46, "the task", anchor="start")
    _window(drawing, 28, 0, "a")
    drawing.text(10, 127, "events", anchor="start")
    drawing.line((_AXIS_X - 10, 122), (WIDTH - 10, 122))
    drawing.text(WIDTH - 10, 142, "server's clock", kind="small", anchor="end")
    drawing.dot(_at(-3.5), 122, kind="d")
    drawing.line((_at(-3.5), 54), (_at(-3.5), 116), kind="dash")
    drawing.dot(_at(9), 122, kind="a")
    drawing.line((_at(9), 54), (_at(9), 116), kind="dash")
    drawing.dot(_at(41), 122, kind="d")
    for x, name in ((-3.5, "1"), (9, "2"), (41, "3")):
        drawing.text(_at(x), 106 if x == 41 else 146, name, kind="head")
    for number, text in enumerate(
        (
            "1  was listed before the POST: an older run.",
            "2  is new and in the window: the candidate.",
            "3  was created after the window: another run.",
            "No verdict before settle (30 s): until then",
            "a second candidate could still appear.",
        )
    ):
        drawing.text(20, 172 + 20 * number, text, anchor="start", kind="" if number < 3 else "small")
    return drawing


def side_by_side() -> Drawing:
    """The windows of two tasks that start one agent side by side."""
    drawing = Drawing("The windows of two tasks on one time line", 322)
    drawing.text(10, 46, "task A", anchor="start")
    _window(drawing, 28, 0, "a")
    drawing.text(10, 112, "task B", anchor="start")
    _window(drawing, 94, 10, "b", named=False)
    drawing.text(10, 177, "events", anchor="start")
    drawing.line((_AXIS_X - 10, 172), (WIDTH - 10, 172))
    drawing.text(WIDTH - 10, 192, "server's clock", kind="small", anchor="end")
    for seconds, top, kind, name in ((3, 54, "a", "event a"), (14, 54, "b", "event b")):
        drawing.line((_at(seconds), top), (_at(seconds), 166), kind="dash")
        drawing.dot(_at(seconds), 172, kind=kind)
        drawing.text(_at(seconds), 196, name, kind="head")
    for number, text in enumerate(
        (
            "A alone: event a or event b.",
            "B alone: event b. Event a was there before",
            "the POST of B, so it is not B's run.",
            "Together: b is B's, and each POST has an event",
            "of its own. So a is A's.",
        )
    ):
        drawing.text(20, 226 + 20 * number, text, anchor="start")
    return drawing


def record() -> Drawing:
    """What a task remembers of its run, and what moves it."""
    drawing = Drawing(
        "The phases of a task's record: submitting, accepted, deferred, ended, and what a new try does in each.", 452
    )
    states = (
        (20, "submitting", "before the POST", "Search for a run.", "Found: wait for it. None: start one."),
        (130, "accepted", "the API accepted it", "Wait for the same run.", "It FAILED: start a new one."),
        (240, "deferred", "waits in the triggerer", "Wait for the same run.", "It FAILED: start a new one."),
        (350, "ended", "the worker saw the end", "COMPLETED: return its event.", "FAILED or cleared: start a new run."),
    )
    for y, name, meaning, *then in states:
        drawing.box(12, y, 172, 54, name, meaning, kind="a")
        drawing.line((186, y + 27), (212, y + 27), kind="dash")
        drawing.text(220, y + 24, then[0], anchor="start")
        drawing.text(220, y + 43, then[1], kind="small", anchor="start")
    drawing.text(220, 12 + 4, "a new try finds this, and does", kind="small", anchor="start")
    for y, text in (
        (74, "202, or the run was found"),
        (184, "no worker is needed"),
        (294, "a worker resumes the task"),
    ):
        drawing.arrow((98, y), (98, y + 56))
        drawing.text(106, y + 33, text, kind="small", anchor="start")
    drawing.text(12, 434, "Airflow 3.3 and later. Before, a new try starts a new run.", kind="small", anchor="start")
    return drawing


def one_poll() -> Drawing:
    """Many triggers, one poller, one API."""
    drawing = Drawing("Usual triggers send one request each. Here all triggers share one poller.", 356)
    for y, name, kind in ((40, "A usual trigger polls for itself", "d"), (212, "Here: one poll for all", "a")):
        drawing.text(12, y - 16, name, kind="head", anchor="start")
        for number, text in enumerate(("trigger 1", "trigger 2", "…", "trigger 1,000")):
            drawing.box(12, y + 32 * number, 112, 26, text, kind=kind)
        drawing.box(368, y, 80, 122, "the API", kind="b")
    for number in range(4):
        y = 53 + 32 * number
        drawing.arrow((126, y), (366, y))
        drawing.line((126, 225 + 32 * number), (172, 225 + 32 * number), (172, 273), (184, 273))
    drawing.text(246, 44, "1,000 requests every 5 s", kind="small")
    drawing.box(184, 232, 92, 82, "one poller", "1 client", "1 rate limit", kind="c")
    drawing.arrow((276, 273), (366, 273))
    drawing.text(321, 263, "5 requests", kind="small")
    drawing.text(321, 292, "every 5 s", kind="small")
    drawing.text(12, 348, "200 events fit into one response.", kind="small", anchor="start")
    return drawing


def watcher() -> Drawing:
    """The watcher's watermark, its checkpoint, and a crash."""
    drawing = Drawing(
        "The watermark stays 30 seconds behind the poll. The committed checkpoint is 15 seconds behind what was "
        "reported. After a crash the watcher resumes at the committed checkpoint.",
        330,
    )
    axis = 92
    drawing.text(12, 24, "runs of the account, by creation", kind="small", anchor="start")
    drawing.line((12, axis), (448, axis))
    for x, kind in ((40, "b"), (84, "b"), (128, "c"), (196, "b"), (240, "b"), (290, "c"), (340, "b"), (388, "c")):
        drawing.dot(x, axis, kind=kind)
    for x, text, anchor in ((160, "watermark", "middle"), (430, "now", "middle")):
        drawing.line((x, 48), (x, axis + 16))
        drawing.text(x, 42, text, kind="head", anchor=anchor)
    drawing.arrow((295, 64), (162, 64))
    drawing.arrow((295, 64), (428, 64))
    drawing.text(295, 58, "settle: 30 s", kind="small")
    drawing.text(84, 126, "every event is known", kind="small")
    drawing.text(295, 126, "an event could still appear", kind="small")
    drawing.dot(20, 152, kind="b")
    drawing.text(34, 157, "ended, and reported", anchor="start")
    drawing.dot(220, 152, kind="c")
    drawing.text(234, 157, "still running: followed by id", anchor="start")
    drawing.box(12, 184, 124, 54, "asset event", "runs that ended", kind="a")
    drawing.arrow((136, 211), (296, 211))
    drawing.text(218, 204, "15 s later", kind="small")
    drawing.text(218, 230, "(in the database now)", kind="small")
    drawing.box(296, 184, 156, 54, "commit", "watermark, open runs", kind="a")
    drawing.box(12, 270, 140, 44, "the triggerer dies", kind="bad")
    drawing.arrow((152, 292), (296, 292))
    drawing.text(226, 285, "the next one", kind="small")
    drawing.box(296, 264, 156, 56, "last commit", "none lost, some", "reported twice", kind="d")
    drawing.arrow((374, 238), (374, 264))
    return drawing


def layers() -> Drawing:
    """The layers of the package."""
    drawing = Drawing("The layers of the package. Each imports only from the layers below it.", 410)
    rows = (
        ("operators, sensors, cli, ui", "arguments, XComs, errors, retries", "a"),
        ("task_state, earlier_tries, budget_check", "what a task remembers and decides", "a"),
        ("triggers, watchers", "wait, and report the end", "c"),
        ("hooks, connection, shared_starts", "from Airflow's connection to a client", "c"),
        ("polling/", "one poll for all waits; no Airflow", "b"),
        ("runs/", "which event is whose, how it ended; pure", "b"),
        ("api/", "the HTTP API; one module does HTTP", "b"),
        ("clock, interruption, version_compat", "for all", "d"),
    )
    for number, (names, meaning, kind) in enumerate(rows):
        y = 12 + 48 * number
        drawing.box(12, y, 316, 42, names, meaning, kind=kind)
    drawing.arrow((340, 14), (340, 392))
    drawing.text(352, 194, "imports", kind="small", anchor="start")
    drawing.box(352, 12, 98, 60, "testing", "users' tests", kind="d")
    drawing.box(352, 312, 98, 74, "simulator", "imports", "nothing else", kind="d")
    drawing.arrow((430, 72), (430, 312))
    return drawing


def which_one() -> Drawing:
    """Which operator, sensor or watcher: three questions."""
    drawing = Drawing(
        "Does your DAG start the run? If yes, the operator; with a sensor where you wait later. If not, the sensor for "
        "one run, and the watcher for every run.",
        384,
    )
    drawing.box(110, 14, 240, 40, "Does your DAG start the run?", kind="c")
    drawing.arrow((170, 54), (170, 92))
    drawing.text(162, 78, "yes", kind="small", anchor="end")
    drawing.arrow((350, 34), (404, 34), (404, 214))
    drawing.text(396, 78, "no", kind="small", anchor="end")
    drawing.box(64, 92, 212, 40, "When do you need its result?", kind="c")
    drawing.box(280, 214, 170, 56, "One run, or every run", "that ends?", kind="c")
    for x, y, word in ((88, 214, "next"), (232, 302, "later")):
        drawing.arrow((x, 132), (x, y))
        drawing.text(x + 8, 166, word, kind="small", anchor="start")
    drawing.box(10, 214, 208, 56, "ExecuteAgentOperator", "the next task gets the event", kind="a")
    drawing.box(
        10,
        302,
        248,
        72,
        "wait_for_completion=False",
        "then a sensor with the submission,",
        "or no sensor at all",
        kind="a",
    )
    drawing.arrow((306, 270), (306, 302))
    drawing.text(314, 292, "one", kind="small", anchor="start")
    drawing.arrow((412, 270), (412, 302))
    drawing.text(404, 292, "every", kind="small", anchor="end")
    drawing.box(264, 302, 104, 72, "sensor", "started_after", kind="b")
    drawing.box(372, 302, 86, 72, "watcher", "on an asset", kind="b")
    return drawing


DRAWINGS = {
    "run-life": run_life,
    "submission": submission,
    "side-by-side": side_by_side,
    "record": record,
    "one-poll": one_poll,
    "watcher": watcher,
    "which-one": which_one,
    "layers": layers,
}


def main() -> None:
    """Write all drawings."""
    for name, draw in DRAWINGS.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()

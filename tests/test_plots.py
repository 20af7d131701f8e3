"""The figures, tables and plots of the documentation agree with each other."""

from __future__ import annotations

import re

import evidence
import plots
import pytest

FIGURES = evidence.load()
DOCS = evidence.EVIDENCE.parent
README = (DOCS.parent / "README.md").read_text()


def test_every_table_is_what_its_figures_say():
    pages = {page.name: page.read_text() for page in evidence.EVIDENCE.glob("*.md")}
    assert {name: evidence.with_tables(page, FIGURES) for name, page in pages.items()} == pages
    on_pages = re.findall(r"<!-- table: (.+?) -->", "\n".join(pages.values()))
    assert sorted(on_pages) == sorted(evidence.TABLES)


def test_every_plot_was_drawn_from_its_figures():
    marks = {file.stem: re.findall(r"source (\w+)\.", file.read_text()) for file in plots.PLOTS.glob("*.svg")}
    assert marks == {name: [plots.mark_of(plots.spec_of(name, FIGURES))] for name in plots.DRAWN}


@pytest.mark.parametrize("name", plots.DRAWN)
def test_a_plot_is_drawn_the_same_again(name):
    pytest.importorskip("vl_convert", reason="only `make plots` and the benchmarks install what draws the plots")
    assert plots.svg_of(name, FIGURES) == (plots.PLOTS / f"{name}.svg").read_text()


def test_every_plot_is_on_a_page():
    text = "\n".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert [name for name in plots.DRAWN if f"images/plots/{name}.svg)" not in text] == []


def test_a_plot_fetches_nothing():
    text = "\n".join(file.read_text() for file in plots.PLOTS.glob("*.svg"))
    assert set(re.findall(r"https?://[^\"']+", text)) == {"http://www.w3.org/2000/svg"}


def test_a_row_changes_one_line_of_the_file_of_its_figures():
    one, other = ({"date": "today", "rows": [{"runs": runs}, {"runs": 2}]} for runs in (1, 3))
    lines = zip(*(evidence.text_of(each).splitlines() for each in (one, other)), strict=True)
    assert [pair for pair in lines if pair[0] != pair[1]] == [('    {"runs": 1},', '    {"runs": 3},')]


def test_how_times_are_spread_goes_from_the_shortest_to_the_longest():
    assert evidence.spread([3.0, 1.0, 2.0]) == [1.0] * 6 + [2.0] * 9 + [3.0] * 6


def test_the_page_on_performance_has_the_numbers_of_the_figures():
    dbt, ours = evidence.of_each(FIGURES["triggerer"], 1000)
    fewer, waiting, whole = (int(dbt[key] / ours[key]) for key in ("requests", "cycle_cpu_s", "cpu_s"))
    page = " ".join((DOCS / "performance.md").read_text().split())
    assert f"**{fewer} times** fewer requests and takes **{waiting} times** less CPU while they wait" in page
    assert f"wait, {whole} times less from start to end" in page
    (further,) = (one for one in FIGURES["triggerer"]["further"] if one["runs"] == 1000)
    assert f"takes {further['kb']:.1f} KB beyond the trigger itself" in page
    row, many = FIGURES["deployment"]["rows"]
    assert (
        f"{row['cpu_percent'] - row['idle_cpu_percent']:.1f} % of a core and {row['requests_per_minute']:.0f} requests"
        in page
    )
    assert f"after {row['mean_delay_s']:.1f} s on average" in page
    assert f"the worst delay is {row['worst_delay_s']:.1f} s" in page
    assert f"takes {many['cpu_percent'] - many['idle_cpu_percent']:.1f} % of a core for its" in page
    assert f"all three send {many['requests_per_minute']:.0f} requests a minute" in page
    assert f"{many['arrival_requests'] * 1000 / many['tasks']:.0f} requests are sent for each thousand" in page
    assert f"after {many['mean_delay_s']:.1f} s on average and {many['worst_delay_s']:.1f} s at most" in page


def test_the_front_page_has_the_numbers_of_the_figures():
    dbt, ours = evidence.of_each(FIGURES["triggerer"], 1000)
    assert f"| **{int(dbt['requests'] / ours['requests'])} times** | fewer requests" in README
    worlds = FIGURES["soundness"]["rows"]
    assert f"it is up to [{max(row['wrong success'] for row in worlds):.1%}]" in README.replace(" %]", "%]")
    assert {row["wrong success"] for row in worlds if row["loop"].startswith("ours")} == {0}

"""The page in the browser: it draws, asks the network for nothing, and does as it is told."""

import csv
import io
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from batchsim.report.page import MOST_BYTES
from tests.report.browser import Browser

ROWS = "document.querySelectorAll('#runs tbody tr').length"
CURVES = (
    "[...document.querySelectorAll('#curve-panels .plot')]"
    ".flatMap(plot => plot.data.filter(one => one.mode === 'lines+markers').map(one => one.name))"
)


def first_cells(browser: Browser, column: int) -> list[str]:
    return list(
        browser.run(
            f"[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[{column}].textContent)"
        )
    )


def headings(browser: Browser) -> list[str]:
    return list(browser.run("[...document.querySelectorAll('#runs th button')].map(one => one.title)"))


def chip(words: str) -> str:
    chips = "[...document.querySelectorAll('#filters .chip')]"
    return f"{chips}.find(one => one.textContent === {json.dumps(words)}).click()"


def test_it_is_one_file_of_less_than_six_megabytes(page: Path) -> None:
    assert page.stat().st_size < MOST_BYTES


def test_it_draws_without_a_complaint_and_without_the_network(page: Path, browser: Browser) -> None:
    browser.open(page)

    assert browser.run("document.querySelectorAll('.plot .main-svg').length") > 8
    assert browser.run("[...document.querySelectorAll('main h2')].map(one => one.textContent)") == [
        "What the numbers rest on",
        "Over the load",
        "Trade-offs",
        "How times are distributed",
        "How many bins",
        "One run closely",
        "All runs",
    ]
    assert browser.complaints == []
    assert browser.requests == []


def test_a_page_that_tries_the_network_is_held_back_by_its_own_policy(page: Path, browser: Browser) -> None:
    browser.open(page)

    is_refused = "fetch('https://example.org/').then(() => false, () => true)"

    assert browser.run(is_refused) is True
    assert any("Content Security Policy" in one for one in browser.complaints)


def test_names_that_look_like_markup_are_shown_as_they_are(opened: Browser) -> None:
    assert opened.run("document.getElementById('title').textContent") == "Bins & <b>loads</b> </script>"
    assert opened.run("document.title") == "Bins & <b>loads</b> </script>"
    assert opened.run("document.querySelectorAll('main img, main b b').length") == 0
    assert "&lt;img src=x onerror=alert(1)&gt;" in opened.run(CURVES)
    assert first_cells(opened, 0)[0] == "<img src=x onerror=alert(1)>"


def test_a_filter_changes_what_is_drawn_and_listed(opened: Browser) -> None:
    before, rows = opened.run(CURVES), opened.run(ROWS)

    opened.run(chip("dynamic"))

    assert (len(before), rows) == (4, 24)  # two panels, for one bin and for four
    assert opened.run(CURVES) == ["&lt;img src=x onerror=alert(1)&gt;"] * 2
    assert opened.run(ROWS) == 12
    opened.run(chip("0.5"))  # of the loads, besides
    assert opened.run(ROWS) == 8
    opened.run(chip("0.5"))
    assert opened.run("document.getElementById('filter-count').textContent") == "12 of 24 runs"
    opened.click("#reset")
    assert opened.run(ROWS) == 24
    assert opened.complaints == []


def test_runs_of_a_state_can_be_left_out(opened: Browser) -> None:
    states = opened.run("chosen.sweep.values.state")
    assert 0 < states.count("saturated") < 24

    opened.run(chip("▲ saturated"))

    assert opened.run(ROWS) == 24 - states.count("saturated")
    opened.run(chip("▲ saturated"))
    assert opened.run(ROWS) == 24


@pytest.mark.parametrize(
    ("rows", "state"),
    [([0], "stable"), ([0, 1], "transient"), ([2, 1, 0], "saturated"), ([0, 2], "saturated")],
)
def test_a_point_is_as_bad_as_its_worst_run(opened: Browser, rows: list[int], state: str) -> None:
    words = "(name, row) => ['stable', 'transient', 'saturated'][row]"

    assert opened.run(f"Object.create(chosen.sweep, {{at: {{value: {words}}}}}).stateOf({rows})") == state


def test_a_single_run_has_the_interval_that_it_has_of_its_own(opened: Browser) -> None:
    point = (
        "(() => { const told = {e2e_mean_s: 2, e2e_mean_ci95_low_s: 1, e2e_mean_ci95_high_s: %s};"
        "const sweep = Object.create(chosen.sweep, {at: {value: (name) => told[name] ?? null}});"
        "return sweep.mean('e2e_mean_s', [0]).interval; })()"
    )

    assert opened.run(point % "4") == [1, 4]
    assert opened.run(point % "null") is None


def test_all_filtered_away_is_said_and_is_no_error(opened: Browser) -> None:
    for one in ("1", "4"):  # of the bins; the seeds are 1 and 2, and come later
        opened.run(chip(one))

    assert opened.run(ROWS) == 0
    assert opened.run("document.querySelectorAll('.empty').length") > 3
    opened.click("#reset")
    assert opened.run("document.querySelectorAll('.empty').length") == 0
    assert len(opened.run(CURVES)) == 4
    assert opened.complaints == []


def test_hovering_tells_the_mean_of_the_seeds_and_its_interval(opened: Browser) -> None:
    texts = opened.run("document.querySelector('#curve-panels .plot').data.find(one => one.text).text")

    assert all("mean of 2 runs" in text and ", 95 %)" in text for text in texts)


def test_means_drawn_are_those_of_the_results(swept: Path, opened: Browser) -> None:
    runs = pd.read_csv(swept / "results.csv")
    wanted = (
        runs[(runs["case"] == "dynamic") & (runs["policy.num_bins"] == 4)]
        .groupby("workload.request_rate_per_gpu")["ttft_p99_s"]
        .mean()
    )
    opened.choose("#curve-metric", "ttft_p99_s")
    drawn = opened.run(
        "[...document.querySelectorAll('#curve-panels .plot')][1].data.find(one => one.name === 'dynamic')"
    )

    assert drawn["x"] == list(wanted.index)
    assert drawn["y"] == pytest.approx(list(wanted), rel=1e-5)


@pytest.mark.parametrize(("metric", "least", "most"), [("e2e_p99_s", 0, 1e9), ("slo_attainment", 0, 1)])
def test_intervals_reach_no_further_than_the_metric_can_be(
    opened: Browser, metric: str, least: float, most: float
) -> None:
    opened.choose("#curve-metric", metric)
    opened.run("(box => box.checked && box.click())(document.getElementById('curve-log'))")  # it has no 0

    band = (
        "[...document.querySelectorAll('#curve-panels .plot')].flatMap(plot => plot.data)"
        ".flatMap(one => one.fill ? one.y : one.error_y?.visible ? one.y.flatMap((mean, i) =>"
        " [mean - one.error_y.arrayminus[i], mean + one.error_y.array[i]]) : [])"
    )
    ends = opened.run(band)

    assert len(ends) > 4
    assert least - 1e-9 <= min(ends)
    assert max(ends) <= most + 1e-9
    assert {least, most} & {round(end, 9) for end in ends}  # two seeds alone reach beyond


def test_a_heading_sorts_both_ways(opened: Browser) -> None:
    at = headings(opened).index("e2e_mean_s")
    heading = "#runs th button[title=e2e_mean_s]"

    opened.click(heading)
    upward = [float(cell.replace(",", "")) for cell in first_cells(opened, at)]
    opened.click(heading)
    downward = [float(cell.replace(",", "")) for cell in first_cells(opened, at)]

    assert upward == sorted(upward)
    assert downward == upward[::-1]
    assert upward[0] < upward[-1]


def test_what_is_not_there_comes_last_both_ways(opened: Browser) -> None:
    at, heading = headings(opened).index("e2e_mean_s"), "#runs th button[title=e2e_mean_s]"
    opened.run("[chosen.kept, chosen.sweep.values.e2e_mean_s[3]] = [chosen.sweep.values.e2e_mean_s[3], null]")

    for _ in range(2):
        opened.click(heading)
        cells = first_cells(opened, at)
        assert cells[-1] == "\N{EN DASH}"
        assert "\N{EN DASH}" not in cells[:-1]
    opened.run("chosen.sweep.values.e2e_mean_s[3] = chosen.kept")


def test_names_with_numbers_sort_by_these(opened: Browser) -> None:
    names = "['16 bins', '8 bins', '101 bins'].sort(inOrder.compare)"

    assert opened.run(names) == ["8 bins", "16 bins", "101 bins"]


def test_a_long_table_is_shown_ten_times_as_much_at_a_time(opened: Browser) -> None:
    again = "built.at(-1).update([...Array(700).keys()].map(i => i % 24))"
    opened.run(again)

    words = opened.run("document.getElementById('more-rows').textContent")
    assert (words, opened.run(ROWS)) == ("Show 300 of 700 rows", 30)
    opened.click("#more-rows")
    assert opened.run(ROWS) == 300
    opened.click("#more-rows")
    assert opened.run(ROWS) == 700
    assert opened.run("document.getElementById('more-rows').hidden")


def test_a_value_with_commas_and_quotes_is_one_cell_of_the_download(opened: Browser) -> None:
    text = opened.run(
        """csvOf({at: (name, row) => [[1.5, 'a "b", c'], [null, 'd\\ne']][row][name]}, [0, 1], [0, 1])"""
    )

    assert list(csv.reader(io.StringIO(text))) == [["0", "1"], ["1.5", 'a "b", c'], ["", "d\ne"]]


def test_the_download_has_the_rows_that_are_left_and_all_columns(
    swept: Path, opened: Browser, tmp_path: Path
) -> None:
    runs = pd.read_csv(swept / "results.csv").set_index("run_id")
    opened.download_to(tmp_path)
    opened.run(chip("dynamic"))

    opened.click("#download")
    file = tmp_path / "bins.csv"
    end = time.monotonic() + 20
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)

    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 12
    assert {row["case"] for row in rows} == {"<img src=x onerror=alert(1)>"}
    for row in rows:
        assert float(row["e2e_p99_s"]) == pytest.approx(runs.loc[row["run_id"], "e2e_p99_s"], rel=1e-5)


def test_distributions_pass_through_the_percentiles_of_the_results(swept: Path, opened: Browser) -> None:
    runs = pd.read_csv(swept / "results.csv")
    ours = runs[
        (runs["case"] == "dynamic")
        & (runs["policy.num_bins"] == 4)
        & (runs["workload.request_rate_per_gpu"] == 0.5)
    ]
    opened.choose("#cdf-at", "0.5")
    line = opened.run("document.getElementById('cdf-plot').data.find(one => one.name === 'dynamic, Bins 4')")

    # Half of the requests of both seeds together take at most something between the medians of each.
    below = [x for x, y in zip(line["x"], line["y"], strict=True) if y <= 0.5]
    above = [x for x, y in zip(line["x"], line["y"], strict=True) if y >= 0.5]
    assert below[-1] * 0.99 <= ours["e2e_p50_s"].max()
    assert above[0] * 1.01 >= ours["e2e_p50_s"].min()
    assert line["y"] == sorted(line["y"])


def test_the_front_joins_what_none_beats(opened: Browser) -> None:
    points = "[[1, 5], [2, 4], [2, 6], [3, 4], [4, 1]].map(([x, y]) => ({x, y}))"

    assert opened.run(f"front({points}, false, false).map(p => [p.x, p.y])") == [[1, 5], [2, 4], [4, 1]]
    assert opened.run(f"front({points}, true, false).map(p => [p.x, p.y])") == [[4, 1]]
    assert opened.run(f"front({points}, true, true).map(p => [p.x, p.y])") == [[4, 1], [3, 4], [2, 6]]


def test_settings_that_are_as_good_are_all_on_the_front(opened: Browser) -> None:
    points = "[[1, 5], [2, 4], [1, 5], [2, 4], [2, 5]].map(([x, y]) => ({x, y}))"

    assert opened.run(f"front({points}, false, false).map(p => [p.x, p.y])") == [
        [1, 5],
        [1, 5],
        [2, 4],
        [2, 4],
    ]


def test_a_band_that_reaches_below_zero_is_whole_on_a_logarithmic_axis(opened: Browser) -> None:
    points = "[{x: 1, mean: 2, interval: [-1, 5]}, {x: 2, mean: 3, interval: [1, 5]}]"
    look = "{color: '#000000'}"

    assert opened.run(f"band({points}, {look}, true).y") == [5, 5, 1, 0.2]
    assert opened.run(f"band({points}, {look}, false).y") == [5, 5, 1, -1]
    opened.run("(box => box.checked || box.click())(document.getElementById('curve-log'))")
    bands = (
        "[...document.querySelectorAll('#curve-panels .plot')].flatMap(one => one.data.filter(b => b.fill))"
    )
    ends = opened.run(f"{bands}.flatMap(one => one.y)")
    assert len(ends) > 8
    assert min(ends) > 0


@pytest.mark.parametrize("num", [2, 10, 61, 62, 200])
def test_intervals_are_students(opened: Browser, num: int) -> None:
    values = [float(value) for value in range(num)]
    interval = opened.run(
        f"(() => {{ const sweep = Object.create(chosen.sweep, {{at: {{value: (name, row) => row}}}});"
        f"return sweep.mean('e2e_mean_s', [...Array({num}).keys()]).interval; }})()"
    )

    low, high = stats.t.interval(0.95, num - 1, loc=np.mean(values), scale=stats.sem(values))
    # No time is below 0. Of more than are usual, rather too long than too short.
    assert interval == pytest.approx([max(low, 0.0), high], rel=2e-4 if num <= 61 else 2e-2)
    assert interval[1] >= high * (1 - 2e-4)


def test_a_mean_over_some_of_the_runs_says_of_how_many(opened: Browser) -> None:
    words = opened.run(
        "(() => { const at = (name, row) => [1, null, 3][row];"
        "const sweep = Object.create(chosen.sweep, {at: {value: at}});"
        "return meanWords(sweep, 'e2e_mean_s', sweep.mean('e2e_mean_s', [0, 1, 2])); })()"
    )

    assert words.endswith(", mean of 2 of 3 runs")


def test_an_axis_of_names_is_as_long_as_there_are_names(opened: Browser) -> None:
    plot = "document.getElementById('cdf-plot')"
    opened.run(
        f"curves({plot}, chosen.sweep, [...Array(24).keys()], {{x: null, metric: 'e2e_mean_s'}}).length"
    )

    assert opened.run(f"{plot}.layout.xaxis.range") == [-0.5, 1.5]


@pytest.mark.parametrize("values", ["[true, false]", "[null, 4]", "[1234570, 1234580]"])
def test_lines_of_any_kind_of_setting_are_told_apart(opened: Browser, values: str) -> None:
    looks = opened.run(
        f"(() => {{ const key = {{values: {values}}};"
        "const sweep = Object.create(chosen.sweep, {keyOf: {value: () => key}});"
        "return key.values.map(value => sweep.look(value).color); })()"
    )

    assert len(set(looks)) == 2


def test_a_key_whose_values_are_one_to_six_digits_is_one_value(opened: Browser) -> None:
    assert opened.run("decoded({all: 7}, 1)") == [7]
    coded = "{columns: {x: {all: 7}}, rows: 2, metrics: [], keys: [{key: 'x', all: 7}]}"
    assert opened.run(f"new Sweep({coded}).keys[0].values") == [7]


def test_the_keyboard_stays_where_it_is_as_the_page_is_made_anew(opened: Browser) -> None:
    here = "document.activeElement.textContent"

    opened.run(
        "[...document.querySelectorAll('#filters .chip')].find(one => one.textContent === 'dynamic').focus()"
    )
    opened.run("document.activeElement.click()")
    assert opened.run(here) == "dynamic"
    assert opened.run("document.activeElement.getAttribute('aria-pressed')") == "false"

    opened.run("document.querySelector('#runs th button[title=e2e_mean_s]').focus()")
    opened.run("document.activeElement.click()")
    assert opened.run("document.activeElement.title") == "e2e_mean_s"

    opened.run("document.getElementById('pareto-y').focus()")
    opened.choose("#pareto-y", "ttft_mean_s")
    assert opened.run("document.activeElement.id") == "pareto-y"
    assert opened.run("document.getElementById('pareto-y').value") == "ttft_mean_s"


def test_lanes_hold_bars_that_do_not_overlap(opened: Browser) -> None:
    bars = opened.run("(({base, x, y}) => ({base, x, y}))(document.getElementById('gantt').data[0])")

    for lane in set(bars["y"]):
        mine = sorted(
            (start, start + length)
            for start, length, name in zip(bars["base"], bars["x"], bars["y"], strict=True)
            if name == lane
        )
        assert all(end <= start + 0.002 for (_, end), (start, _) in pairwise(mine))
    assert set(bars["y"]) == {"replica 0", "replica 1"}


def test_what_controllers_did_is_drawn_beside_their_limit(opened: Browser) -> None:
    plot = "document.getElementById('controllers')"

    assert opened.run(f"{plot}.hidden") is False
    assert opened.run(f"{plot}.layout.shapes[0].y0") == pytest.approx(0.015)
    assert opened.run(f"{plot}.data[0].x.length") > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_theme_of_the_reader_and_the_switch(page: Path, browser: Browser, scheme: str) -> None:
    browser.prefer(scheme)
    browser.open(page)
    color = "getComputedStyle(document.body).backgroundColor"
    theme = "document.documentElement.dataset.theme"
    first = browser.run(color)

    assert browser.run(theme) == scheme
    browser.click("#theme")
    assert browser.run(theme) != scheme
    assert browser.run(color) != first
    assert browser.complaints == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("most", [12, 40, 60, 900, 1100, 1e6])
def test_a_logarithmic_axis_has_labels_enough_and_not_too_many(
    opened: Browser, width: int, most: float
) -> None:
    opened.resize(width)

    inside = [tick for tick in opened.run(f"logTicks([1.5, {most}])") if 1.5 <= tick <= most]

    assert 3 <= len(inside) <= 9


def test_a_phone_shows_it_without_scrolling_sideways(page: Path, browser: Browser) -> None:
    browser.resize(400)

    browser.open(page)

    assert browser.run("document.documentElement.scrollWidth") == 400
    assert browser.run("document.getElementById('filter-box').open") is False
    assert browser.run("[...document.querySelectorAll('.plot')].every(one => one.clientWidth <= 400)")
    assert browser.complaints == []


def test_another_sweep_of_the_folder_can_be_chosen_and_linked_to(page: Path, opened: Browser) -> None:
    title = "document.getElementById('title').textContent"
    kinds = "document.querySelector('#gantt').closest('section').querySelector('.key').textContent"

    opened.choose("#sweep", "1")

    assert opened.run(title) == "An engine"
    assert "decode" in opened.run(kinds)
    assert opened.run(ROWS) == 1
    assert opened.run("document.getElementById('sensitivity')") is None
    address = opened.run("location.href")
    assert address == f"{page.resolve().as_uri()}#one"
    assert opened.complaints == []


def test_limits_stand_in_the_distributions(opened: Browser) -> None:
    assert opened.run("document.getElementById('cdf-plot').layout.shapes[0].x0") == 20
    opened.choose("#cdf-metric", "ttft_s")
    assert opened.run("document.getElementById('cdf-plot').layout.shapes.length") == 0


def test_the_line_of_the_front_promises_nothing_that_no_setting_gives(opened: Browser) -> None:
    for ways in (("more", "less"), ("less", "less"), ("more", "more"), ("less", "more")):
        opened.click("#pareto-all")  # on, or off
        if not opened.run("document.getElementById('pareto-all').checked"):
            opened.click("#pareto-all")
        for at, way in zip((1, 3), ways, strict=True):
            opened.run(
                "(() => { const one = document.querySelectorAll('#pareto .controls select')"
                f"[{at}]; one.value = '{way}'; one.dispatchEvent(new Event('change')); }})()"
            )
        line = opened.run("document.getElementById('pareto-plot').data[0]")
        signs = [-1 if way == "more" else 1 for way in ways]
        points = [(signs[0] * x, signs[1] * y) for x, y in zip(line["x"], line["y"], strict=True)]
        corners = [(following[0], point[1]) for point, following in pairwise(points)]

        assert line["line"]["shape"] == "hv"
        for corner in corners:
            assert any(point[0] <= corner[0] and point[1] <= corner[1] for point in points)


def test_distributions_that_are_the_same_do_not_hide_each_other(opened: Browser) -> None:
    opened.choose("#cdf-at", "0.2")
    lines = opened.run("document.getElementById('cdf-plot').data.map(one => [one.name, one.line.width])")

    widths = {name: width for name, width in lines if name.endswith("Bins 4")}
    assert sorted(widths.values()) == [1.6, 3.2]


def test_distributions_of_seeds_are_put_together(opened: Browser) -> None:
    shares = "PAGE.probabilities.length"
    one = f"[...Array({shares}).keys()].map(i => 1 + i)"
    other = f"[...Array({shares}).keys()].map(i => 1001 + i)"

    assert opened.run(f"shareUpTo({one}, 0.5)") == 0
    assert opened.run(f"shareUpTo({one}, 5000)") == 1
    assert opened.run(f"shareUpTo({one}, 11)") == pytest.approx(opened.run("PAGE.probabilities[10]"))
    middle = opened.run(f"pooled([{one}, {other}]).filter(point => point.x > 500)[0]")
    assert middle["share"] == pytest.approx(0.5)


def test_a_chart_can_be_saved_as_a_picture(opened: Browser) -> None:
    picture = opened.run("Plotly.toImage(document.getElementById('cdf-plot'), {format: 'png'})")

    assert picture.startswith("data:image/png;base64,iVBOR")
    assert opened.complaints == []

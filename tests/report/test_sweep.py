"""What a page knows of a sweep: which keys tell runs apart, what is drawn over what, where it comes from."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex

from batchsim.cli import main
from batchsim.errors import BatchsimError, ConfigError
from batchsim.figures.results import read_sweep
from batchsim.figures.style import looks_of
from batchsim.report import closeup, write_page
from batchsim.report.metrics import better, label, metrics_of
from batchsim.report.page import _contents, _json
from batchsim.report.sweep import _key, _looks, describe
from batchsim.study.sweep import run_sweep
from tests.figures.datasets import change


@pytest.fixture(scope="module")
def described(swept: Path) -> dict[str, Any]:
    return describe(read_sweep(swept), most_closeups=1)[0]


def sweep_of(folder: Path, text: str) -> Path:
    file = folder / "own.toml"
    file.write_text(f'name = "own"\n[base]\nworkload.num_requests = 60\n{text}', encoding="utf-8")
    run_sweep(file, folder / "results")
    return folder / "results" / "own"


def test_keys_are_what_tells_runs_apart_said_once(described: dict[str, Any]) -> None:
    keys = {key["key"]: key for key in described["keys"]}

    # The preset is the case, and so is the policy.
    assert list(keys) == ["case", "workload.request_rate_per_gpu", "policy.num_bins", "seed"]
    assert keys["workload.request_rate_per_gpu"]["load"]
    assert keys["seed"]["repeat"]
    assert (described["x"], described["lines"]) == ("workload.request_rate_per_gpu", "case")


def test_a_sweep_over_names_alone_has_no_axis(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, '[grid]\npolicy.preset = ["static_fifo", "vllm_v1"]')

    seen = describe(read_sweep(folder), most_closeups=0)[0]

    assert (seen["x"], seen["lines"]) == (None, "policy")
    assert [key["key"] for key in seen["keys"]] == ["policy"]


def test_a_single_run_is_a_sweep_too(tmp_path: Path) -> None:
    seen, sketches = describe(read_sweep(sweep_of(tmp_path, "")), most_closeups=1)

    assert seen["keys"] == []
    assert len(seen["closeups"]) == 1
    assert len(sketches["e2e_s"]) == 1


def test_a_case_that_sets_numbers_is_one_key(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        'name = "own"\n'
        'cases = [{label = "few", policy.batch_size = 2}, {label = "many", policy.batch_size = 8}]\n'
        "[base]\nworkload.num_requests = 60\n[grid]\nworkload.request_rate = [0.1, 0.2, 0.4]\n",
        encoding="utf-8",
    )
    run_sweep(file, tmp_path / "results")

    seen = describe(read_sweep(tmp_path / "results" / "own"), most_closeups=0)[0]

    assert [key["key"] for key in seen["keys"]] == ["case", "workload.request_rate"]


def test_where_it_comes_from_is_told(described: dict[str, Any]) -> None:
    facts = dict(described["facts"])

    assert facts["Sweep file"].startswith("bins.toml (sha256 ")
    assert "synthetic" in facts["Trace"]
    assert "derived" in facts["Latency model"]
    assert "batchsim 0" in facts["Versions"]
    assert facts["Seeds"] == "1, 2"


def test_seeds_are_told_to_the_last_digit(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, "[grid]\nseed = [4000000001, 4000000003]")

    facts = dict(describe(read_sweep(folder), most_closeups=0)[0]["facts"])

    assert facts["Seeds"] == "4000000001, 4000000003"


def test_runs_that_failed_are_told(tmp_path: Path) -> None:
    trace = "".join(f"{second},10,10\n" for second in range(70))
    (tmp_path / "<b>.csv").write_text(f"arrival_s,prompt_tokens,output_tokens\n{trace}", encoding="utf-8")
    with pytest.raises(BatchsimError, match="1 of 2 runs failed"):
        sweep_of(tmp_path, 'workload.trace = "<b>.csv"\n[grid]\nworkload.num_requests = [60, 99]')

    seen = describe(read_sweep(tmp_path / "results" / "own"), most_closeups=0)[0]

    (told,) = seen["failures"]["told"]
    assert (seen["failures"]["num"], seen["failures"]["planned"]) == (1, 2)
    assert told["run"] == "workload.num_requests=99"
    assert "<b>.csv" in told["why"]
    assert seen["share"] == "1 of 2 runs"


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"generator": None, "trace": "gone.csv"}, r"gone\.csv"), ({"num_requests": 50}, "has changed")],
)
def test_close_ups_of_what_is_gone_or_another_say_so(
    swept: Path, tmp_path: Path, setting: dict[str, Any], told: str
) -> None:
    folder = tmp_path / "bins"
    folder.mkdir()
    table = pq.read_table(swept / "dataset.parquet")
    origins = table["origin"].to_pylist()
    for one in origins:
        config = json.loads(one["config"])
        config["workload"] |= setting
        one["config"] = json.dumps(config)
    place = table.schema.get_field_index("origin")
    changed = table.set_column(place, "origin", pa.array(origins, table.schema.field("origin").type))
    pq.write_table(changed, folder / "dataset.parquet")

    seen = describe(read_sweep(folder), most_closeups=2)[0]

    assert seen["closeups"] == []
    assert len(seen["closeups_not"]) == 2
    assert all(re.search(told, one) for one in seen["closeups_not"])


def test_long_runs_are_not_simulated_for_a_picture(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closeup, "_MOST_REQUESTS", 300)

    seen = describe(read_sweep(swept), most_closeups=2)[0]

    assert seen["closeups"] == []
    assert "400 requests, too many to simulate" in seen["closeups_not"][0]


def test_more_lines_than_colours_are_told_apart_by_dots() -> None:
    runs = pd.DataFrame({"case": [f"case {number}" for number in range(12)]})

    looks = _looks(runs, "case")

    assert len({(look["color"], look["dash"]) for look in looks}) == 12


def test_looks_stand_in_the_order_of_the_values_of_their_key() -> None:
    runs = pd.DataFrame({"policy.num_bins": [8, 1, 4, 8]})

    by_name = looks_of(runs, "policy.num_bins")

    assert _key(runs, "policy.num_bins", "policy.num_bins")["v"] == [1, 4, 8]
    assert [look["color"] for look in _looks(runs, "policy.num_bins")] == [
        to_hex(by_name[name].color) for name in ("1", "4", "8")
    ]


def test_a_close_up_shows_replicas_as_lanes(described: dict[str, Any]) -> None:
    (one,) = described["closeups"]

    assert one["lanes"] == one["replicas"] == 2
    assert described["limits"] == {"e2e_s": 20, "tpot_s": 0.015}
    assert sum(one["bars"]["s"]) <= 1000 * (one["t1"] - one["t0"]) + 1
    assert min(one["waiting"]["n"]) >= 0


def test_who_gave_up_or_was_refused_waits_no_longer() -> None:
    requests = pd.DataFrame(
        {
            "arrival_s": [0.0, 1.0, 2.0, 3.0],
            "scheduled_s": [0.0, np.nan, np.nan, np.nan],
            "finish_s": [9.0, np.nan, np.nan, np.nan],
            "left_s": [np.nan, 5.0, np.nan, np.nan],
            "status": ["finished", "abandoned", "refused", "stranded"],
        }
    )

    waiting = closeup._waiting(requests, 0.0, 299.0)  # a moment each second

    assert waiting["n"][:8] == [0, 1, 1, 2, 2, 1, 1, 1]
    assert waiting["n"][-1] == 1


def test_a_close_up_late_in_a_long_trace_is_told_to_the_millisecond() -> None:
    batches = pd.DataFrame({"start_s": [0.0, 0.25], "finish_s": [0.25, 0.625], "gpu_id": [0, 0]})
    batches = batches.assign(batch_size=4, bin=0)
    requests = pd.DataFrame({"arrival_s": [0.0], "scheduled_s": [0.0], "finish_s": [0.25]})
    late = {name: table.add(3_456_789.125) for name, table in (("batches", batches), ("requests", requests))}
    tables = {
        "batches": late["batches"].assign(gpu_id=0),
        "requests": late["requests"].assign(status="finished"),
    }

    window = closeup._window(tables, 1)

    assert window["t1"] - window["t0"] == pytest.approx(0.625, abs=0.0011)
    assert window["bars"]["s"] == [0, 250]


def test_kept_tables_show_what_the_run_shows_when_it_is_simulated_again(
    swept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = read_sweep(swept.parent / "one")
    again = describe(replace(engine, folder=tmp_path), most_closeups=1)[0]["closeups"]
    monkeypatch.setattr(closeup, "simulate", None)

    kept = describe(engine, most_closeups=1)[0]["closeups"]

    assert len(kept) == 1
    assert kept == again


def test_no_text_leads_out_of_the_block_of_data() -> None:
    coded = _json({"name": "</script><!-- &amp;"})

    assert not set("<>&") & set(coded)
    assert json.loads(coded) == {"name": "</script><!-- &amp;"}


def test_what_there_is_no_room_for_goes_step_by_step(swept: Path) -> None:
    pages = list(_contents("title", [describe(read_sweep(swept), most_closeups=0)], []))

    sizes = [len(_json(content)) for content, _ in pages]
    assert sizes == sorted(sizes, reverse=True)
    assert pages[0][1] == []
    assert pages[-1][1] == [
        "distributions of latencies",
        "names of runs",
        "columns of the results but 8 metrics (dataset.parquet has them)",
    ]
    assert pages[-1][0]["sweeps"][0]["sketches"] == {}
    assert "e2e_mean_s" in pages[-1][0]["sweeps"][0]["columns"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("e2e_mean_s", "E2E mean (s)"),
        ("request_throughput_per_s", "Request throughput (1/s)"),
        ("output_throughput_tokens_per_s", "Output throughput (tokens/s)"),
        ("kv_use_max", "KV use max"),
        ("num_preemptions", "Preemptions"),
        ("policy.batching.max_wait_s", "Batching max wait s"),
        ("policy.num_bins", "Bins"),
    ],
)
def test_columns_have_words(name: str, words: str) -> None:
    assert label(name) == words


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("e2e_p99_s", "less"),
        ("whole_run_request_throughput_per_s", "more"),
        ("usd_per_million_tokens", "less"),
        ("slo_attainment", "more"),
        ("running_mean", ""),
        ("num_failed", "less"),
    ],
)
def test_which_is_better_is_known_of_times_costs_and_rates(name: str, which: str) -> None:
    assert better(name) == which


def test_conditions_are_no_metrics() -> None:
    runs = pd.DataFrame({"seed": [1, 2], "e2e_mean_s": [1.0, 2.0], "saturated": [True, False], "x.y": [1, 2]})

    assert [metric["key"] for metric in metrics_of(runs, ["x.y"])] == ["e2e_mean_s"]


def test_without_plotly_one_sentence_says_what_to_install(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)

    result = CliRunner().invoke(main, ["report", str(swept), "-o", str(tmp_path / "page.html")])

    assert result.exit_code == 2
    assert "pip install 'batchsim[report]'" in result.stderr
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_the_same_page_again(swept: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed (extra [report])")
    pages = [tmp_path / "one.html", tmp_path / "two.html"]

    for page in pages:
        result = CliRunner().invoke(main, ["report", str(swept.parent), "-o", str(page), "--closeups", "1"])
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{page}\n"

    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_the_page_is_made_from_the_datasets_alone(swept: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed (extra [report])")
    for name in ("bins", "one"):
        (tmp_path / name).mkdir()
        shutil.copy(swept.parent / name / "dataset.parquet", tmp_path / name)

    write_page(swept.parent, tmp_path / "all.html", closeups=1)
    write_page(tmp_path, tmp_path / "alone.html", closeups=1)

    assert (tmp_path / "alone.html").read_bytes() == (tmp_path / "all.html").read_bytes()


def test_a_dataset_that_cannot_be_shown_is_named_and_the_others_are(swept: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed (extra [report])")
    for name in ("bins", "one"):
        (tmp_path / name).mkdir()
        shutil.copy(swept.parent / name / "dataset.parquet", tmp_path / name)
    change(tmp_path / "bins" / "dataset.parquet", lambda runs: runs.assign(num_batches="many"))

    with pytest.raises(ConfigError, match=r"bins/dataset\.parquet: cannot be shown \(TypeError"):
        write_page(tmp_path / "bins", tmp_path / "page.html", closeups=0)
    write_page(tmp_path, tmp_path / "page.html", closeups=0)

    assert "bins/dataset.parquet: cannot be shown" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_no_results_are_told(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed (extra [report])")

    with pytest.raises(ConfigError, match="no results of a sweep"):
        write_page(tmp_path, tmp_path / "page.html")

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from batchsim.cli.profiles import import_profile
from batchsim.errors import ConfigError, TraceError
from batchsim.latency.analytic import PhaseBatchLatency
from batchsim.latency.base import BatchShape, IterationShape
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.operators import OperatorTableLatency
from batchsim.latency.profiles.importing import Wanted, import_distserve, import_splitwise, kind_of
from batchsim.latency.store import load_latency
from tests.latency.profiles.test_operator_profile import CONFIG, write_profile
from tests.shared_data import shared_path

DISTSERVE = {
    "opt": {
        "2": {
            "decoding_large_small_bs_threshold": 95,
            "prefill": [12.0, 0.5, 0.001],
            "decoding_smallbs": [10.0, 0.01, 0.2],
            "decoding_largebs": [20.0, 0.005, 0.1],
        }
    }
}


@pytest.fixture
def distserve(tmp_path: Path) -> Path:
    return write_distserve(tmp_path)


def write_distserve(folder: Path) -> Path:
    path = folder / "profiler.json"
    path.write_text(json.dumps(DISTSERVE), encoding="utf-8")
    return path


@pytest.fixture
def splitwise(tmp_path: Path) -> Path:
    return write_splitwise(tmp_path)


def write_splitwise(folder: Path) -> Path:
    rows = [
        {
            "model": "llama",
            "hardware": "a100",
            "prompt_size": prompt,
            "batch_size": batch,
            "token_size": 100,
            "prompt_time": 5 + 0.1 * batch * prompt + 1e-4 * batch * prompt**2,
            "token_time": 20 + 3 * (batch > 1) + 0.5 * batch + 0.001 * batch * (prompt + 50),
            "tensor_parallel": 8,
        }
        for prompt in (128, 512, 1024)
        for batch in (1, 2, 4, 8)
    ]
    path = folder / "perf_model.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_distserve_coefficients_become_a_linear_model(distserve: Path) -> None:
    model = import_distserve(distserve, Wanted(tensor_parallel=2))

    # Three sequences with 100 tokens of context: 10 + 0.01 * 100 + 0.2 * 3 ms.
    assert model.iteration_s(IterationShape(0, 3, 100)) == pytest.approx(0.0116)
    # A prompt of 40: 0.5 * 40 + 0.001 * 40^2 ms and the constant of the decodes.
    assert model.iteration_s(IterationShape(40, 0, 0, 1, 800.0)) == pytest.approx(0.010 + 0.020 + 0.0016)


def test_distserve_import_says_what_it_leaves_out(distserve: Path) -> None:
    model = import_distserve(distserve, Wanted(tensor_parallel=2))

    assert model.info.provenance == "derived"
    assert model.info.details["prefill_fixed_s"] == pytest.approx(0.012)
    assert model.info.details["sha256"] == hashlib.sha256(distserve.read_bytes()).hexdigest()
    assert model.covers(IterationShape(0, 94, 1))
    assert not model.covers(IterationShape(0, 95, 1))


def test_negative_square_of_a_fit_is_held_at_zero(distserve: Path) -> None:
    tree = json.loads(distserve.read_text(encoding="utf-8"))
    tree["opt"]["2"]["prefill"][2] = -1e-6
    distserve.write_text(json.dumps(tree), encoding="utf-8")

    model = import_distserve(distserve, Wanted(tensor_parallel=2))

    assert model.per_prefill_pair_s == 0
    assert "held at 0" in str(model.info.details["notices"])


def test_distserve_file_without_what_is_asked_for_is_refused(distserve: Path) -> None:
    with pytest.raises(ConfigError, match="opt has no tensor_parallel 1; known: 2"):
        import_distserve(distserve, Wanted())
    with pytest.raises(ConfigError, match="no model 'opd'; did you mean opt"):
        import_distserve(distserve, Wanted("opd"))


def test_distserve_file_with_too_few_numbers_is_refused(distserve: Path) -> None:
    distserve.write_text(json.dumps({"opt": {"1": {"prefill": [1, 2]}}}), encoding="utf-8")

    with pytest.raises(TraceError, match=r"prefill is \[1, 2\]; three numbers are needed"):
        import_distserve(distserve, Wanted())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opt": [1]}, r"holds \[1\]; an object is needed"),
        ({"o\npt": {}}, r"model is 'o\\npt'; one line of text is needed"),
        ({"opt": {"2": {"prefill": [1, 2, True]}}}, r"prefill is \[1, 2, True\]; three numbers are needed"),
        ({"opt": {"2": {"prefill": [1, -2, 0]}}}, "opt x2: per_prefill_token_s is -0.002; a finite number"),
        ({"opt": {"2": {"prefill": [1, 1e308, 0]}}}, r"opt x2: per_prefill_token_s is 1e\+305; a finite"),
        (
            {"opt": {"2": {"decoding_large_small_bs_threshold": 10**99}}},
            "bs_threshold is 10+; a whole number",
        ),
    ],
)
def test_distserve_file_with_wrong_values_is_refused_by_name(
    change: dict[str, Any], message: str, distserve: Path
) -> None:
    tree = json.loads(distserve.read_text(encoding="utf-8"))
    for name, degrees in change.items():
        if isinstance(degrees, dict) and name in tree:
            degrees = {"2": {**tree[name]["2"], **degrees["2"]}}
        tree = {name: degrees}
    distserve.write_text(json.dumps(tree), encoding="utf-8")

    with pytest.raises(TraceError, match=f"{distserve.name}: .*{message}"):
        import_distserve(distserve, Wanted(tensor_parallel=2))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("token_time", "1e308", r"line 4: token_time is '1e308'; a finite number > 0"),
        ("token_time", "True", "line 4: token_time is 'True'; a finite number > 0"),
        ("batch_size", "1.5", "line 4: batch_size is '1.5'; a whole number >= 1"),
        ("model", "", "line 4: model is blank; one line of text is needed"),
    ],
)
def test_splitwise_table_with_a_wrong_value_is_refused_by_line(
    column: str, value: str, message: str, splitwise: Path
) -> None:
    frame = pd.read_csv(splitwise, dtype=str)
    frame.loc[2, column] = value
    frame.to_csv(splitwise, index=False)

    with pytest.raises(TraceError, match=message):
        import_splitwise(splitwise, Wanted(tensor_parallel=8))


def test_splitwise_rows_that_allow_no_fit_are_refused_by_file(splitwise: Path) -> None:
    frame = pd.read_csv(splitwise, dtype=str).head(1)
    frame.to_csv(splitwise, index=False)

    with pytest.raises(ConfigError, match=f"{splitwise.name}: prefill: 1 points are too few"):
        import_splitwise(splitwise, Wanted(tensor_parallel=8))


def test_splitwise_rows_are_fitted_by_phases(splitwise: Path) -> None:
    model = import_splitwise(splitwise, Wanted(tensor_parallel=8))

    first_token_s, total_s = model.batch_time(BatchShape(4, 512, 2))
    assert first_token_s == pytest.approx((5 + 0.1 * 4 * 512 + 1e-4 * 4 * 512**2) / 1000, rel=1e-6)
    assert total_s - first_token_s == pytest.approx((23 + 0.5 * 4 + 0.001 * 4 * 512) / 1000, rel=1e-6)
    assert model.info.provenance == "measured"
    assert model.info.name == "llama on a100"


def with_power(splitwise: Path, average: list[float], hardware: str = "a100-80gb") -> Path:
    """Three prompts each of 1, 2, 4 and 8 sequences have this mean power."""
    frame = pd.read_csv(splitwise).assign(hardware=hardware, peak_power=1.0)
    frame.assign(average_power=3 * average).to_csv(splitwise, index=False)
    return splitwise


def test_splitwise_power_of_the_rows_that_have_it_becomes_watts(splitwise: Path) -> None:
    file = with_power(splitwise, [0.0, 0.6, 0.5, 0.2])

    details = import_splitwise(file, Wanted(tensor_parallel=8)).info.details

    # The median of 0.6, 0.5 and 0.2, three of each, of the 400 W of an A100.
    assert details["power_watts"] == {"prefill": 200.0, "decode": 200.0, "idle": None}
    assert details["power_share_of_tdp"] == {"average": 0.5, "peak": 1.0, "num_rows": 9}
    assert any(
        "power is 50% of TDP, the median over 9 rows (20% to 60%)" in one for one in details["warnings"]
    )


def test_splitwise_power_of_an_unknown_gpu_stays_a_share(splitwise: Path) -> None:
    details = import_splitwise(
        with_power(splitwise, [0.5] * 4, "a100"), Wanted(tensor_parallel=8)
    ).info.details

    assert "power_watts" not in details
    assert details["power_share_of_tdp"]["average"] == 0.5


def test_splitwise_rows_without_power_have_none(splitwise: Path) -> None:
    plain = import_splitwise(splitwise, Wanted(tensor_parallel=8)).info.details
    zeros = import_splitwise(with_power(splitwise, [0.0] * 4), Wanted(tensor_parallel=8)).info.details

    assert not {"power_watts", "power_share_of_tdp"} & {*plain, *zeros}
    assert any("no power of these rows" in one for one in zeros["warnings"])


def test_splitwise_power_in_watts_is_refused_by_line(splitwise: Path) -> None:
    with pytest.raises(TraceError, match=r"average_power is '?300.*from 0 to 2"):
        import_splitwise(with_power(splitwise, [300.0] * 4), Wanted(tensor_parallel=8))


def test_splitwise_table_with_a_blank_time_is_refused_by_line(splitwise: Path) -> None:
    frame = pd.read_csv(splitwise)
    frame.loc[2, "token_time"] = None
    frame.to_csv(splitwise, index=False)

    with pytest.raises(TraceError, match="line 4: token_time is blank"):
        import_splitwise(splitwise, Wanted(tensor_parallel=8))


def test_splitwise_degree_that_is_not_there_is_refused(splitwise: Path) -> None:
    with pytest.raises(ConfigError, match="llama on a100 has no tensor_parallel 2; known: 8"):
        import_splitwise(splitwise, Wanted(tensor_parallel=2))


def test_kind_is_told_by_what_the_source_looks_like(tmp_path: Path) -> None:
    assert kind_of(tmp_path) == "operators"
    assert kind_of(Path("profiler.json")) == "distserve"
    assert kind_of(Path("perf_model.csv.gz")) == "splitwise"
    with pytest.raises(ConfigError, match="name the kind: operators, distserve, splitwise"):
        kind_of(Path("profile.txt"))


def test_command_writes_a_latency_file_of_an_operator_profile(tmp_path: Path) -> None:
    write_profile(tmp_path / "profile" / "tp1")
    config, target = tmp_path / "config.json", tmp_path / "latency.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")

    run = CliRunner().invoke(
        import_profile,
        [str(tmp_path / "profile"), "--model-config", str(config), "-o", str(target), "--json"],
    )

    assert run.exit_code == 0, run.output
    loaded = load_latency(target)
    assert isinstance(loaded, OperatorTableLatency)
    assert loaded.info.provenance == "derived"
    assert loaded.info.details["num_layers"] == 10


def test_command_takes_the_other_kinds_too(distserve: Path, splitwise: Path, tmp_path: Path) -> None:
    for source, degree, family in (
        (distserve, "2", LinearIterationLatency),
        (splitwise, "8", PhaseBatchLatency),
    ):
        target = tmp_path / f"{source.stem}_latency.json"

        run = CliRunner().invoke(
            import_profile, [str(source), "--tensor-parallel", degree, "-o", str(target)]
        )

        assert run.exit_code == 0, run.output
        assert isinstance(load_latency(target), family)


def test_operator_profile_without_a_model_is_refused(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1")

    run = CliRunner().invoke(import_profile, [str(tmp_path)])

    assert "a model's config.json is needed" in str(run.exception)


def test_published_files_can_be_imported() -> None:
    distserve = shared_path("groundtruth/distserve/profiler-a100-80g.distserve.json")
    splitwise = shared_path("groundtruth/splitwise-sim/perf_model.csv.gz")

    linear = import_distserve(distserve, Wanted("facebook/opt-13b"))
    phase = import_splitwise(splitwise, Wanted("llama2-70b", "h100-80gb", 8))

    assert linear.fixed_s == pytest.approx(0.01993, rel=1e-3)
    assert 0.01 < phase.batch_time(BatchShape(1, 512, 1)).first_token_s < 0.2


def test_aiconfigurator_needs_a_system_and_a_model_and_no_source(tmp_path: Path) -> None:
    run = CliRunner().invoke(import_profile, ["--kind", "aiconfigurator", "--model", "x"])
    bare = CliRunner().invoke(import_profile, [])
    both = CliRunner().invoke(import_profile, [str(tmp_path), "--kind", "aiconfigurator"])

    assert "--kind aiconfigurator needs --system" in str(run.exception)
    assert "a folder or file with a profile is needed" in str(bare.exception)
    assert f"is of no file; leave {tmp_path.name} out" in str(both.exception)

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from batchsim.errors import ConfigError, TraceError
from batchsim.latency.base import BatchShape, IterationShape, decode_span_s
from batchsim.latency.store import default_latency
from batchsim.specs import Sharing, in_fp8, load_gpu, load_model
from batchsim.validation.points import POINT_COLUMNS, Points
from batchsim.validation.roofline.closed_loops import predict_closed_loops
from batchsim.validation.roofline.points import GPUS, MODELS, in_fp4
from batchsim.validation.roofline.report import predict_tables, write_roofline_report
from batchsim.validation.roofline.static_batches import predict_static_batches
from tests.shared_data import shared_path
from tests.validation.roofline.published import write_batches, write_loops

LLAMA, H100 = load_model("llama-3.1-8b"), load_gpu("h100")
MIXTURE = {"model_path": "deepseek-ai/DeepSeek-V3", "system": "h200_sxm", "precision": "fp8", "tp_size": 8}
SHARED_BY_NOBODY = "data_parallel is 8, but llama-3.1-8b has no experts to share"


def predicted(points: Points) -> dict[str, float]:
    return dict(zip(points.table["metric"], points.table["predicted_s"], strict=True))


@pytest.mark.parametrize("num_gpus", [1, 4])
def test_a_static_batch_takes_what_the_default_roofline_says(tmp_path: Path, num_gpus: int) -> None:
    table = write_batches(tmp_path / "batches.csv", {"Num of Hardware": num_gpus, "Batch Size": 16})

    points = predict_static_batches(table)

    batch_time = default_latency(LLAMA, H100, num_gpus).batch_time(BatchShape(16, 128, 128))
    (row,) = points.table.to_dict("records")
    assert tuple(row) == POINT_COLUMNS
    assert (row["measured_s"], row["predicted_s"]) == (2.0, batch_time.total_s)
    assert (row["gpu"], row["num_gpus"], row["batch_size"]) == ("h100", num_gpus, 16)


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"Hardware": "Abacus"}, "GPU without a spec", "Abacus"),
        ({"Model": "Deci/DeciLM-7B"}, "model without a spec", "Deci/DeciLM-7B"),
        ({"Framework": "llama.cpp"}, "the batch size is not one of sequences", "llama.cpp"),
        ({"Throughput": 256.0}, "latency and throughput contradict each other", "vLLM"),
        (
            {"Batch Size": 2048, "Latency": 100.0},  # 69 GB of KV, and 16 of weights
            "the batch does not fit the memory at once",
            "llama-3.1-8b on h100",
        ),
        (  # not even the weights fit
            {"Model": "Qwen/Qwen2-72B"},
            "the batch does not fit the memory at once",
            "qwen2-72b on h100",
        ),
        # 128 passes read 15 GB each, 4.5 ms at the full bandwidth
        ({"Latency": 0.55}, "faster than the data sheet allows", "vLLM on h100"),
    ],
)
def test_a_batch_without_a_prediction_is_counted_with_the_reason(
    tmp_path: Path, change: dict[str, Any], reason: str, detail: str
) -> None:
    table = write_batches(tmp_path / "batches.csv", {}, change, change)

    points = predict_static_batches(table)

    assert points.skipped == {(reason, detail): 2}
    assert (points.num_rows, len(points.table)) == (3, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"Latency": 0.65},
        {"Latency": 0.2, "Num of Hardware": 4},  # each reads a quarter of the weights
        {"Latency": 5.0, "Num of Hardware": 4, "Model": "Qwen/Qwen2-72B"},  # each holds a quarter of them
    ],
)
def test_what_the_data_sheet_just_allows_is_not_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    table = write_batches(tmp_path / "batches.csv", change)

    assert len(predict_static_batches(table).table) == 1


def test_a_single_client_waits_for_nobody(tmp_path: Path) -> None:
    table = write_loops(tmp_path / "loops.csv", {})

    times = predicted(predict_closed_loops(table))

    latency = default_latency(LLAMA, H100)
    # The last prompt token is sampled from in the first pass: seven decodes follow, the first after 512.
    assert times["TTFT"] == pytest.approx(latency.iteration_s(IterationShape(512, 0, 0, 1, 512 * 256)))
    assert times["TPOT"] == pytest.approx(decode_span_s(latency, 7, 1, 512) / 7)


def test_clients_in_step_have_their_prompts_in_one_pass(tmp_path: Path) -> None:
    table = write_loops(tmp_path / "loops.csv", {"batch_size": 4, "tp_size": 2})

    times = predicted(predict_closed_loops(table))

    latency = default_latency(LLAMA, H100, 2)
    together = IterationShape(4 * 512, 0, 0, 4, 4 * 512 * 256)
    assert times["TTFT"] == pytest.approx(latency.iteration_s(together))
    assert times["TPOT"] == pytest.approx(decode_span_s(latency, 7, 4, 4 * 512) / 7)


def test_clients_out_of_step_wait_less_for_each_others_prompts(tmp_path: Path) -> None:
    table = write_loops(tmp_path / "loops.csv", {"batch_size": 8, "osl": 200})

    in_step, out_of_step = (predicted(predict_closed_loops(table, spread)) for spread in (0.0, 0.1))

    assert out_of_step["TTFT"] < 0.7 * in_step["TTFT"]
    assert out_of_step["TPOT"] == pytest.approx(in_step["TPOT"], rel=0.1)


def test_fp8_counts_a_byte_a_weight_and_the_fp8_rate(tmp_path: Path) -> None:
    table = write_loops(tmp_path / "loops.csv", {"precision": "fp8"})

    points = predict_closed_loops(table)

    latency = default_latency(in_fp8(LLAMA, H100), H100)
    assert predicted(points)["TPOT"] == pytest.approx(decode_span_s(latency, 7, 1, 512) / 7)
    assert set(points.table["precision"]) == {"fp8"}


@pytest.mark.parametrize(
    ("gpus", "sharing"),
    [
        ({}, Sharing(8)),
        ({"moe_ep_size": 8}, Sharing(8, expert_parallel=8)),
        ({"tp_size": 4, "pp_size": 2}, Sharing(4, 2)),
        # Named twice: eight groups of one GPU, with one client each
        ({"attention_dp_size": 8, "moe_ep_size": 8}, Sharing(1, 1, 8, 8)),
    ],
)
def test_mixtures_are_shared_out_as_the_row_says(
    tmp_path: Path, gpus: dict[str, int], sharing: Sharing
) -> None:
    points = predict_closed_loops(write_loops(tmp_path / "loops.csv", {**MIXTURE, **gpus}))

    latency = default_latency(load_model("deepseek-v3"), load_gpu("h200"), sharing=sharing)
    clients = sharing.data_parallel
    decodes_s = decode_span_s(latency, 7, clients, clients * 512) / 7
    assert predicted(points)["TPOT"] == pytest.approx(decodes_s)
    assert points.table["num_gpus"].tolist() == [8, 8]
    assert points.table["batch_size"].tolist() == [clients, clients]


def test_nvfp4_quantises_experts_and_leaves_attention_to_the_model() -> None:
    mixture, dense = (in_fp4(load_model(name)) for name in ("deepseek-v3", "llama-3.1-70b"))

    assert (mixture.expert_bytes, mixture.attention_bytes) == (
        0.5625,
        load_model("deepseek-v3").attention_bytes,
    )
    assert (dense.bytes_per_weight, dense.attention_bytes, dense.kept_bytes) == (0.5625, 0.5625, 2)
    assert mixture.arithmetic == dense.arithmetic == "fp4"


def test_zero_and_nothing_say_that_nothing_is_parallel(tmp_path: Path) -> None:
    table = write_loops(tmp_path / "loops.csv", {"attention_dp_size": 0}, {"attention_dp_size": None})

    points = predict_closed_loops(table)

    assert len(points.table) == 4
    assert not points.skipped


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"system": "gb300"}, "GPU without a spec", "gb300"),
        ({"model_path": "zhipuai/GLM-5"}, "model without a spec", "zhipuai/GLM-5"),
        ({"precision": "fp4"}, "quantisation without a spec", "fp4 on h100"),
        ({"precision": "fp8", "system": "a100"}, "GPU without a spec", "a100"),
        ({"mode": "disagg"}, "prefill and decode on GPUs of their own", "disagg"),
        ({"attention_dp_size": 8}, "GPUs that cannot share the model", SHARED_BY_NOBODY),
        ({"tp_size": 8, "pp_size": 2}, "GPUs of several machines", "16 h100"),
        ({**MIXTURE, "precision": "bf16"}, "quantisation without a spec", "bf16 on h200"),
        ({"isl": 10**6}, "not even one request fits the memory", "llama-3.1-8b on h100"),
        ({"silicon_tpot_ms": 4.4}, "faster than the data sheet allows", "vllm on h100"),
        ({"osl": 1}, "a time that its requests do not have", "TPOT"),
    ],
)
def test_a_loop_without_a_prediction_is_counted_with_the_reason(
    tmp_path: Path, change: dict[str, Any], reason: str, detail: str
) -> None:
    points = predict_closed_loops(write_loops(tmp_path / "loops.csv", change))

    assert points.skipped == {(reason, detail): 1}
    assert points.table.empty


@pytest.mark.parametrize("predict", [predict_static_batches, predict_closed_loops])
def test_a_table_that_lacks_a_column_is_refused(tmp_path: Path, predict: Any) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Hardware,system\nx,y\n", encoding="utf-8")

    with pytest.raises(TraceError, match=r"table.csv: column .* missing"):
        predict(path)


def test_a_table_of_neither_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Hardware,system\nx,y\n", encoding="utf-8")

    with pytest.raises(ConfigError, match="neither a table of static batches"):
        predict_tables([path])


def test_the_page_has_all_points_and_every_reason(tmp_path: Path) -> None:
    batches = write_batches(tmp_path / "batches.csv", {}, {"Hardware": "Abacus"}, {"Hardware": "Abacus"})
    loops = write_loops(tmp_path / "loops.csv", {}, {"system": "Abacus"})
    drawn: list[pd.DataFrame] = []

    def plot(points: pd.DataFrame, stem: Path) -> Path:
        drawn.append(points)
        return stem.with_suffix(".png")

    errors = predict_tables([batches, loops])
    page, *_ = write_roofline_report(errors, tmp_path / "docs", plot)

    text = " ".join(page.read_text(encoding="utf-8").split())
    assert drawn[0]["metric"].tolist() == ["batch", "TTFT", "TPOT"]
    assert "2 of 5 published rows have a prediction, which makes 3 times" in text
    assert "| GPU without a spec | 3 | Abacus (3) |" in text
    assert text.count("| TTFT | h100 |") == 5  # by GPU, out of step, by engine, by GPUs, by clients
    assert "| TTFT | dense | llama-3.1-8b | bf16 | 1 |" in text
    assert "50% of peak FLOP/s, 70% of peak bandwidth, 2 ms a pass" in text


def test_every_name_of_the_tables_has_a_spec() -> None:
    for name in GPUS.values():
        load_gpu(name)
    for name in MODELS.values():
        load_model(name)


# Nothing is fitted to these measurements: the bars are what was found, rounded up.
@pytest.mark.parametrize(("gpu", "mean_absolute"), [("a100-40g", 0.22), ("gh200-96g", 0.20), ("h100", 0.16)])
def test_published_static_batches_are_predicted_without_a_calibration(gpu: str, mean_absolute: float) -> None:
    points = predict_static_batches(shared_path("groundtruth/llm-inference-bench/all_results.csv.gz"))

    some = points.table[points.table["gpu"] == gpu]
    error = some["predicted_s"] / some["measured_s"] - 1
    assert len(some) >= 75
    assert error.abs().mean() <= mean_absolute
    assert (error.abs() <= 0.5).mean() >= 0.95
    assert len(points.table) + points.skipped.total() == points.num_rows


def test_published_decodes_of_closed_loops_are_predicted_without_a_calibration(tmp_path: Path) -> None:
    table = pd.read_csv(shared_path("groundtruth/aiconfigurator/silicon_sample.csv.gz"))
    llama = table["model_path"].str.startswith("meta-llama/Llama-3.1") & table["osl"].le(512)
    path = tmp_path / "some.csv"
    table[llama].iloc[::9].to_csv(path, index=False)

    points = predict_closed_loops(path, rounds=3).table

    decodes = points[points["metric"] == "TPOT"]
    error = decodes["predicted_s"] / decodes["measured_s"] - 1
    assert len(decodes) >= 8
    assert error.abs().mean() <= 0.25

"""Whose requests are: read, drawn, made up, and written back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchsim.config import TenantConfig, load_config
from batchsim.errors import ConfigError, TraceError
from batchsim.study.run import simulate
from batchsim.workload.formats import read_trace, write_trace
from batchsim.workload.generators.synthetic import generate
from batchsim.workload.request import Workload
from batchsim.workload.tenants import assign_tenants
from tests.sim.worlds import LinearLatency, workload


def read(tmp_path: Path, text: str) -> Workload:
    file = tmp_path / "trace.csv"
    file.write_text(text, encoding="utf-8")
    return read_trace(file)


def test_names_are_text_even_if_they_look_like_numbers(tmp_path: Path) -> None:
    read_back = read(
        tmp_path,
        "arrival_s,prompt_tokens,output_tokens,tenant,slo_class\n0,1,1,007,chat\n1,1,1,8,batch\n",
    )

    assert read_back.extra["tenant"].tolist() == ["007", "8"]
    assert read_back.extra["slo_class"].tolist() == ["chat", "batch"]
    write_trace(read_back, tmp_path / "again.parquet")
    assert read_trace(tmp_path / "again.parquet").extra["tenant"].tolist() == ["007", "8"]


@pytest.mark.parametrize("value", ["", "  "])
def test_a_row_without_a_name_is_nobodys(tmp_path: Path, value: str) -> None:
    read_back = read(tmp_path, f"arrival_s,prompt_tokens,output_tokens,tenant\n0,1,1,a\n1,1,1,{value}\n")

    assert read_back.extra["tenant"].tolist() == ["a", ""]


def test_whole_numbers_are_names_and_others_are_not(tmp_path: Path) -> None:
    lines = '{{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "tenant": {}}}\n'

    assert read(tmp_path, lines.format(7)).extra["tenant"].tolist() == ["7"]
    for value in ("1.5", "true"):
        with pytest.raises(TraceError, match="tenant"):
            read(tmp_path, lines.format(value))


def test_other_formats_have_tenants_too(tmp_path: Path) -> None:
    read_back = read(
        tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens,tenant\n2023-11-16 18:15:46.68,1,1,a\n"
    )

    assert read_back.extra["tenant"].tolist() == ["a"]
    assert not any("left out" in sentence for sentence in read_back.source.notices)


def test_requests_are_shared_out_by_share_and_sessions_whole() -> None:
    requests = workload(np.arange(4000.0), 1)
    sessions = np.where(np.arange(4000) % 2, np.arange(4000) // 8, -1).astype(object)
    sessions[::2] = None
    tenants = [TenantConfig(name="a", share=3, slo_class="chat"), TenantConfig(name="b", priority=5)]
    given = Workload(
        requests.request_id,
        requests.arrival_s,
        requests.prompt_tokens,
        requests.output_tokens,
        {"session_id": sessions},
    )

    shared = assign_tenants(given, tenants, np.random.default_rng(0))

    frame = shared.to_frame()
    assert frame["tenant"].eq("a").mean() == pytest.approx(0.75, abs=0.05)
    assert (frame.groupby("session_id")["tenant"].nunique() == 1).all()
    assert frame.groupby("tenant")["slo_class"].unique().map(list).to_dict() == {"a": ["chat"], "b": [""]}
    assert frame.groupby("tenant")["priority"].unique().map(list).to_dict() == {"a": [0], "b": [5]}
    alone = frame[frame["session_id"].isna()]["tenant"]
    assert alone.eq("a").mean() == pytest.approx(0.75, abs=0.05)


def test_what_a_workload_says_is_not_said_again() -> None:
    requests = generate({"kind": "tenants", "of": [poisson("a")]}, 3, np.random.default_rng(0))

    with pytest.raises(ConfigError, match="says the tenant of requests, but tenants a has a column"):
        assign_tenants(requests, [TenantConfig(name="b")], np.random.default_rng(0))
    with pytest.raises(ConfigError, match="two tenants have one name"):
        assign_tenants(requests, [TenantConfig(name="b")] * 2, np.random.default_rng(0))


def poisson(name: Any, rate_per_s: float = 1.0, **more: Any) -> dict[str, Any]:
    lengths = {"kind": "fixed", "tokens": 5}
    return {
        "name": name,
        "kind": "poisson",
        "rate_per_s": rate_per_s,
        "prompt": lengths,
        "output": lengths,
        **more,
    }


def made(*of: dict[str, Any], num: int = 600) -> Workload:
    return generate({"kind": "tenants", "of": list(of)}, num, np.random.default_rng(3))


def test_each_tenant_has_its_own_rate_labels_and_beginning() -> None:
    requests = made(poisson("a", 4.0, slo_class="chat"), poisson("b", 1.0, priority=2, start_s=50.0))

    frame = requests.to_frame()
    late = frame[frame["arrival_s"] > 50]
    assert len(frame) == 600
    assert (np.diff(frame["arrival_s"]) >= 0).all()
    assert frame.query("tenant == 'b'")["arrival_s"].min() > 50
    assert late["tenant"].eq("b").mean() == pytest.approx(0.2, abs=0.06)
    assert set(zip(frame["tenant"], frame["slo_class"], frame["priority"], strict=True)) == {
        ("a", "chat", 0),
        ("b", "", 2),
    }


def test_one_more_tenant_leaves_the_others_as_they_are() -> None:
    alone = made(poisson("a")).to_frame()
    beside = made(poisson("a"), poisson("b")).to_frame().query("tenant == 'a'")

    assert beside["arrival_s"].tolist() == alone["arrival_s"].tolist()[: len(beside)]


def test_sessions_of_tenants_are_kept_apart() -> None:
    sessions = {"kind": "sessions", "sessions_per_s": 1.0, "turn_gap_s": 2.0}
    lengths = {"prompt": {"kind": "fixed", "tokens": 5}, "output": {"kind": "fixed", "tokens": 5}}
    requests = made({"name": "a", **sessions, **lengths}, {"name": "b", **sessions, **lengths}, poisson("c"))

    frame = requests.to_frame()
    assert (frame.dropna(subset="session_id").groupby("session_id")["tenant"].nunique() == 1).all()
    assert frame[frame["tenant"] == "c"]["session_id"].isna().all()


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (3, "of is no list of tables"),
        ([], "of is no list of tables"),
        ([{"kind": "poisson"}], "tenants, of: name is None; a text is needed"),
        ([poisson("a"), poisson("a")], "two tenants have one name"),
        ([poisson("a", start_s=-1)], "tenants, a: start_s is -1; seconds >= 0 are needed"),
        ([poisson("a", priority=0.5)], "tenants, a: priority is 0.5; a whole number is needed"),
        ([poisson("a", slo_class="")], "tenants, a: slo_class is ''; a text is needed"),
        ([poisson("a", rate=3)], "tenants, a: generator poisson: parameter 'rate' is unknown"),
        ([{"name": "a", "kind": "tenants", "of": []}], "tenants, a: kind is 'tenants'"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(of: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate({"kind": "tenants", "of": of}, 10, np.random.default_rng(0))


def test_the_requests_of_a_run_can_be_replayed_with_their_tenants(tmp_path: Path) -> None:
    config = {
        "seed": 5,
        "policy": {"preset": "static_fifo", "queueing": {"kind": "FairShare"}},
        "workload": {
            "num_requests": 50,
            "generator": {k: v for k, v in poisson("x").items() if k != "name"},
            "tenants": [{"name": "a", "slo_class": "chat"}, {"name": "b"}],
        },
        "slo": {"classes": {"chat": {"e2e_ms": 50.0}}},
    }
    first = simulate(config, latency=LinearLatency(0.01, 0.001, 0.001))
    first.save(tmp_path / "run")

    trace = {"trace": str(tmp_path / "run" / "requests.parquet")}
    again = simulate({**config, "workload": trace}, latency=LinearLatency(0.01, 0.001, 0.001))

    for column in ("tenant", "slo_class", "finish_s"):
        assert again.requests[column].tolist() == first.requests[column].tolist()
    assert set(first.requests["tenant"]) == {"a", "b"}


def test_limits_of_a_class_are_checked_as_others_are() -> None:
    config = load_config(overrides={"slo.ttft_ms": 500, "slo.classes.chat.ttft_ms": 100})

    assert config.slo.per_class_ms == {"chat": {"ttft": 100.0}}
    assert config.slo.told_ms == {"TTFT": 500.0, "TTFT of chat": 100.0}
    with pytest.raises(ConfigError, match=r"slo.classes.chat.ttft_ms is -1"):
        load_config({"slo": {"classes": {"chat": {"ttft_ms": -1}}}})
    with pytest.raises(ConfigError, match=r"unknown key slo.classes.chat.tft_ms"):
        load_config({"slo": {"classes": {"chat": {"tft_ms": 1}}}})

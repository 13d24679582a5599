from pathlib import Path

import pandas as pd
import pytest

from batchsim.errors import TraceError
from batchsim.validation.operators.peers import beside, peer_rows, read_peers, write_peers


def points(*predicted: tuple[int, str, float]) -> pd.DataFrame:
    table = pd.DataFrame(predicted, columns=["row", "metric", "predicted_s"])
    return table.assign(framework="vllm", measured_s=2.0)


def test_rows_that_both_predict_stand_side_by_side(tmp_path: Path) -> None:
    write_peers(points((1, "TPOT", 1.0), (4, "TPOT", 5.0), (4, "TTFT", 7.0)), tmp_path / "peers.csv")
    ours = points((0, "TPOT", 9.0), (1, "TPOT", 3.0), (4, "TPOT", 2.0))

    both = beside(ours, read_peers(tmp_path / "peers.csv"))

    assert peer_rows(both, ["framework", "metric"]) == [
        ["vllm", "TPOT", "2", "+25.0%", "25.0%", "25.0%", "+50.0%", "100.0%", "100.0%"]
    ]


def test_what_was_measured_is_not_written(tmp_path: Path) -> None:
    write_peers(points((1, "TPOT", 1.0)), tmp_path / "peers.csv")

    assert (tmp_path / "peers.csv").read_text(encoding="utf-8") == "row,metric,predicted_s\n1,TPOT,1.0\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("row,metric\n1,TPOT\n", "predicted_s"),
        ("row,metric,predicted_s\n1,E2E,1.0\n", "metric is 'E2E'; known: TTFT, TPOT"),
        ("row,metric,predicted_s\n-1,TPOT,1.0\n", "row"),
        ("row,metric,predicted_s\n1,TPOT,fast\n", "predicted_s"),
    ],
)
def test_a_file_that_is_none_such_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "peers.csv").write_text(text, encoding="utf-8")

    with pytest.raises(TraceError, match=r"peers\.csv") as raised:
        read_peers(tmp_path / "peers.csv")

    assert said in str(raised.value)

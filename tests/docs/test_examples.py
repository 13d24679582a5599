"""The scripts of `docs/examples` that read as notebooks: each runs by itself, and draws what it says."""

from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.session import Session

EXAMPLES = ROOT / "docs" / "examples"
NOTEBOOKS = sorted(path for path in EXAMPLES.glob("*.py") if path.read_text("utf-8").startswith("# %%"))


def printed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lines that an example prints, in words."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    session = Session(folder)
    return [line.split() for line in session.script(f"docs/examples/{name}.py").splitlines()]


def test_there_are_three_notebooks_with_text_and_code() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["load_curve", "own_policy", "sizing"]
    for path in NOTEBOOKS:
        text = path.read_text("utf-8")
        assert text.count("# %% [markdown]\n# ") >= 3
        assert text.count("\n# %%\n") >= 3


def test_the_load_curve_rises_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, *rows = printed("load_curve", tmp_path, monkeypatch)

    means = [float(row[2]) for row in rows]
    assert len(means) == 5
    assert means == sorted(means)
    assert (tmp_path / "load_curve.png").stat().st_size > 10_000


def test_an_own_policy_gains_by_what_is_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, *rows = printed("own_policy", tmp_path, monkeypatch)

    gains = {row[0]: float(row[2]) - float(row[3]) for row in rows}
    assert gains["oracle"] > gains["lognormal"] > gains["constant"] == 0
    assert (tmp_path / "own_policy.png").stat().st_size > 10_000


def test_the_answer_to_a_sizing_attains_its_slo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, *rows, error = printed("sizing", tmp_path, monkeypatch)

    assert [row[0] for row in rows] == ["l40s", "a100-80g", "h100"]
    assert all(float(row[2]) >= 0.9 for row in rows)
    assert error[:3] == ["times", "could", "be"]
    assert (tmp_path / "sizing.png").stat().st_size > 10_000


def test_pages_name_each_notebook() -> None:
    said = (ROOT / "docs" / "examples.md").read_text("utf-8")

    assert all(f"](examples/{path.name})" in said for path in EXAMPLES.glob("*.py"))

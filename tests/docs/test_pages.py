"""Every command and snippet of every page, as it stands."""

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, inline_code
from tests.docs.session import Session, WrongPageError, check_command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs_and_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")

    for block in blocks(page.read_text("utf-8"), page.name):
        session.run(block)
    session.end()

    assert session.faults == [], "\n".join(session.faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_text_names_are_there(page: Path) -> None:
    faults = []
    for where, code in inline_code(page.read_text("utf-8"), page.name):
        if code.startswith(("batchsim ", "make ", "batchsim-calibrate ")):
            try:
                check_command(code)
            except WrongPageError as fault:
                faults.append(f"{where}: {fault}")

    assert faults == []

"""The map of the house, held against the house."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "batchsim"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted({path.parent for path in SOURCE.rglob("*.py")})


def test_every_path_of_the_page_exists() -> None:
    named = re.findall(r"`([\w./]*(?:/|\.py|\.md|\.cfg)[\w./]*)`", PAGE)

    missing = [path for path in named if not ((SOURCE / path).exists() or (ROOT / path).exists())]

    assert len(named) > 30
    assert missing == []


def test_every_room_stands_on_the_picture() -> None:
    picture = PAGE.split("```")[1]
    rooms = [path.stem for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").exists()]

    assert [room for room in rooms if not re.search(rf"\b{room}\b", picture)] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_for_and_is_not_crowded(room: Path) -> None:
    assert (room / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    assert len(list(room.glob("*.py"))) <= 16


def test_no_file_is_too_long_to_read() -> None:
    assert [
        path.name for path in SOURCE.rglob("*.py") if path.read_text(encoding="utf-8").count("\n") > 400
    ] == []

"""Where tests find data that is not part of the project: ``BATCHSIM_SHARED``, by default ``../shared``."""

import os
from pathlib import Path

import pytest

_ROOT = Path(os.environ.get("BATCHSIM_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(name: str) -> Path:
    """Return the path of a shared file, or skip the calling test with the reason."""
    path = _ROOT / name
    if not path.exists():
        pytest.skip(f"{path} is absent (set BATCHSIM_SHARED to the folder that holds it)")
    return path

"""Settings shared by all tests."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

#: Tests that take long come first: of several processes, the one that starts a long test last ends last.
_FIRST = (
    "tests/test_real_traces.py", "tests/study/test_sweep.py", "tests/docs/test_pages.py", "tests/theory/",
    "tests/invariants/",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `_FIRST` at the front, all else as it was."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))

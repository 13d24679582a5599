"""An environment gets what vLLM's scheduler needs, and no more."""

from tests.conformance.environment import is_v0, needed


def test_only_what_the_scheduler_needs_is_installed() -> None:
    requirements = [
        "regex",
        "Torch==2.10.0+cpu; platform_machine == 'x86_64'",
        "torchvision",
        "intel-openmp==2024.2.1",
        "opencv-python-headless>=4.13.0",
        'pandas; extra == "bench"',
        "numpy",
    ]

    assert needed(requirements) == ["regex", "numpy"]


def test_v0_is_what_came_before_v1() -> None:
    assert [version for version in ("0.6.6.post1", "0.19.1", "0.32.0") if is_v0(version)] == ["0.6.6.post1"]

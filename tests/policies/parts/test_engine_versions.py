"""Versions of vLLM: which are known, and what is said of others."""

import pytest

from batchsim.errors import ConfigError
from batchsim.policies.continuous import ChunkedPrefill
from batchsim.policies.parts.engine_versions import NEWEST, rules_of


def test_a_version_has_the_rules_of_the_last_that_changed_any() -> None:
    assert rules_of("0.18.3") == rules_of("0.8.0") != rules_of("0.19.0")
    assert rules_of("v0.20.1rc1") == rules_of("0.19.0") != rules_of("0.24.0") != rules_of("0.32.0")


@pytest.mark.parametrize("version", ["0.7.3", "0.33.0", "1.0.0", "newest", "", "0.19,1", "0.-19.0"])
def test_a_version_that_is_not_known_is_refused_with_those_that_are(version: str) -> None:
    with pytest.raises(ConfigError, match=rf"from 0\.8\.0 to {NEWEST}"):
        ChunkedPrefill(engine_version=version)

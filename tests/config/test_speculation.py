from typing import Any

import pytest

from batchsim.config import load_config
from batchsim.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"num_speculative_tokens": 3},
            "num_speculative_tokens is 3; it needs acceptance, a rate or 3 shares",
        ),
        (
            {"num_speculative_tokens": 3, "acceptance": [0.9, 0.8]},
            "acceptance has 2 shares; 3 drafts need as many",
        ),
        (
            {"num_speculative_tokens": 2, "acceptance": [0.6, 0.7]},
            r"acceptance \[0.6, 0.7\] rises; no more steps can accept two drafts than one",
        ),
        ({"num_speculative_tokens": 2, "acceptance": 1.5}, "acceptance"),
        ({"num_speculative_tokens": -1}, "num_speculative_tokens"),
        ({"num_drafts": 3}, "unknown key engine.speculation.num_drafts; "),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"engine": {"speculation": given}})


def test_an_axis_of_drafts_may_begin_at_none() -> None:
    for num in (0, 1, 3):
        drafts = {"num_speculative_tokens": num, "acceptance": [0.8, 0.6, 0.5], "draft_ratio": 0.1}
        config = load_config({"engine": {"speculation": drafts}})

        assert load_config(config.model_dump(mode="json")) == config

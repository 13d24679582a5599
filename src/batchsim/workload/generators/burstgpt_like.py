"""A generator of BurstGPT-like traces, built from published statistics of the trace, from none of its rows.

Sources: Wang et al., "BurstGPT", KDD 2025, doi 10.1145/3711896.3737413, and the README of HPMLL/BurstGPT.
Two streams meet:

- conversations: a working-day cycle (half at weekends), answers that grow with the question;
- API campaigns: runs of templated calls that start at any time, last minutes to hours, and differ so much in
  size that a few of them make a day's traffic; half the calls of one share a template.

Within 20 minutes, gaps are Gamma-distributed with a shape that changes from period to period. Constants that
no publication gives (spreads, the number of campaigns) are marked as chosen.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError
from batchsim.workload.checks import is_number

GENERATOR_VERSION = 1

#: Published for trace 1; means are over requests that did not fail.
MEAN_RATE_PER_S = 0.271
MEAN_REQUEST_TOKENS = 621.0
MEAN_RESPONSE_TOKENS = 126.0
CONVERSATION_SHARE = 145_707 / 1_404_294
GPT4_SHARE = 215_127 / 1_404_294
FAILED_SHARE = 25_443 / 1_429_737

#: Longest lengths made; trace 1 has 29,665 and 7,315.
MAX_REQUEST_TOKENS = 8_000
MAX_RESPONSE_TOKENS = 2_000

PERIOD_S = 1_200.0  # the paper fits a Gamma law to each 20 minutes
_PERIODS_A_DAY = 72

# Requests an hour by hour of day, all traffic, averaged over 61 days (rounded to 100): when campaigns start.
_HOUR_WEIGHTS = np.array(
    [9, 9, 6, 5, 4, 3, 2, 2, 2, 4, 9, 13, 17, 15, 18, 14, 15, 14, 12, 16, 14, 12, 11, 10], dtype=np.float64
)
# Conversations by hour of day, from the description of the published figure: very low from 3h to 8h, peaks at
# 10-11h and 15-17h, a dip at 12-13h, a second plateau at 20-22h.
_CONVERSATION_HOUR_WEIGHTS = np.array(
    [4, 3, 2, 1, 0.5, 0.5, 0.5, 1, 2, 6, 9, 9, 6, 6, 8, 9, 9, 8, 6, 6, 7, 7, 7, 5], dtype=np.float64
)
_WEEKEND_FACTOR = 0.5  # published: about half

# Conversation answers by length of the question, read by eye from a published figure; flat beyond it.
_ANSWER_AT_TOKENS = (20, 50, 100, 300, 1_000, 2_000)
_MEAN_ANSWER_TOKENS = (250, 250, 160, 160, 280, 450)
_ANSWER_GAMMA_SHAPE = 2.5  # chosen: its 5-95 % band at 1,000 tokens is 64-620, published about 50-520
_QUESTION_MEDIAN_TOKENS, _QUESTION_SIGMA = 320.0, 1.15  # chosen

# Chosen: API templates.
_TEMPLATES = pd.DataFrame(
    {
        "share": [0.42, 0.23, 0.22, 0.13],  # of the API rows
        "request_tokens": [75.0, 420.0, 650.0, 2_600.0],  # median over campaigns
        "between_sigma": [0.4, 0.5, 0.5, 0.4],  # of the logarithm, from campaign to campaign
        "within_sigma": [0.05, 0.25, 0.40, 0.40],  # of the logarithm, inside a campaign
        "response_tokens": [4.0, 14.0, 300.0, 250.0],  # mean
        "response_sigma": [0.5, 0.5, 0.6, 0.6],  # the first two answer with a label, the others with text
    }
)

# Chosen: campaigns. The spread of their sizes makes days differ as published (coefficient of variation 1.13).
_CAMPAIGNS_A_DAY = 16
_CAMPAIGN_MEDIAN_S, _CAMPAIGN_SIGMA = 4_000.0, 0.7  # times the cube root of the size
_CAMPAIGN_SIZE_SIGMA = 2.1
_OWN_SHARE = 0.5  # of a campaign's rows that follow its own template; the others any

# Chosen: median shape of the Gamma gaps and its spread (sigma of the logarithm). The published demo value for
# all traffic is 0.5; conversations at low rates are near Poisson.
_CONVERSATION_SHAPE = (0.8, 0.5)
_API_SHAPE = (0.4, 0.9)
_LEAST_SHAPE = 0.03

_CONVERSATION_FAILED_FACTOR = 2.8  # conversations fail in about 5 %, published as "above 5 %" for ChatGPT
_CONVERSATION_GPT4_SHARE = 0.2  # chosen; the API part makes the published total
_API_GPT4_SHARE = (GPT4_SHARE - CONVERSATION_SHARE * _CONVERSATION_GPT4_SHARE) / (1 - CONVERSATION_SHARE)


def burstgpt_like(
    num_requests: int,
    rng: np.random.Generator,
    num_days: float | None = None,
    failed_share: float = FAILED_SHARE,
) -> pd.DataFrame:
    """Make a trace in the columns of BurstGPT_1.csv, sorted, from midnight of a Monday on.

    Parameters
    ----------
    num_requests
        Rows, failures included.
    rng
        The only source of chance.
    num_days
        Days that the rows are spread over; by default as many as the published mean rate takes, at least 7.
    failed_share
        Share of rows with 0 response tokens.

    Returns
    -------
    pandas.DataFrame
        ``Timestamp`` in whole seconds, so that many rows share one; ``Total tokens`` is request + response.
    """
    if num_days is None:
        num_days = max(7.0, num_requests / MEAN_RATE_PER_S / 86_400)
    for name, value, fits in (
        ("num_days", num_days, is_number(num_days) and num_days > 0),
        ("failed_share", failed_share, 0 <= failed_share <= 0.3),
    ):
        if not fits:
            raise ConfigError(f"burstgpt_like: {name} is {value!r}, which is out of range")
    span_s = num_days * 86_400
    starts_s = np.linspace(0, span_s, max(1, math.ceil(span_s / PERIOD_S)), endpoint=False)

    # failures fall more on conversations: so many there that the published share is left
    share = CONVERSATION_SHARE * (1 - failed_share) / (1 - _CONVERSATION_FAILED_FACTOR * failed_share)
    num_conversations = int(rng.binomial(num_requests, share))
    conversations = _conversations(num_conversations, starts_s, rng)
    calls = _api_calls(num_requests - num_conversations, starts_s, rng)
    if len(calls):
        _match_means(calls, conversations)
    rows = pd.concat([conversations, calls], ignore_index=True)
    factor = np.where(
        rows["Log Type"] == "Conversation log",
        _CONVERSATION_FAILED_FACTOR,
        (1 - share * _CONVERSATION_FAILED_FACTOR) / (1 - share),
    )
    rows.loc[rng.random(num_requests) < failed_share * factor, "Response tokens"] = 0

    rows["Timestamp"] = np.minimum(rows["Timestamp"], span_s - 1).astype(np.int64)
    rows["Total tokens"] = rows["Request tokens"] + rows["Response tokens"]
    columns = ["Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"]
    return rows.sort_values("Timestamp", kind="stable", ignore_index=True)[columns]


def _conversations(num: int, starts_s: NDArray[np.float64], rng: np.random.Generator) -> pd.DataFrame:
    hour = (starts_s // 3_600).astype(int) % 24
    is_weekend = (starts_s // 86_400).astype(int) % 7 >= 5
    weights = _CONVERSATION_HOUR_WEIGHTS[hour] * np.where(is_weekend, _WEEKEND_FACTOR, 1.0)
    counts = rng.multinomial(num, weights / weights.sum())
    question = rng.lognormal(math.log(_QUESTION_MEDIAN_TOKENS), _QUESTION_SIGMA, num)
    mean_answer = np.interp(question, _ANSWER_AT_TOKENS, _MEAN_ANSWER_TOKENS)
    answer = rng.gamma(_ANSWER_GAMMA_SHAPE, mean_answer / _ANSWER_GAMMA_SHAPE)
    return pd.DataFrame(
        {
            "Timestamp": _bursts_s(counts, starts_s, starts_s, _CONVERSATION_SHAPE, rng),
            "Model": np.where(rng.random(num) < _CONVERSATION_GPT4_SHARE, "GPT-4", "ChatGPT"),
            "Request tokens": _whole(question, MAX_REQUEST_TOKENS),
            "Response tokens": _whole(answer, MAX_RESPONSE_TOKENS),
            "Log Type": "Conversation log",
        }
    )


def _api_calls(num: int, starts_s: NDArray[np.float64], rng: np.random.Generator) -> pd.DataFrame:
    num_periods = len(starts_s)
    num_campaigns = max(1, round(_CAMPAIGNS_A_DAY * num_periods / _PERIODS_A_DAY))
    hour_weights = _HOUR_WEIGHTS[(starts_s // 3_600).astype(int) % 24]
    first = rng.choice(num_periods, num_campaigns, p=hour_weights / hour_weights.sum())
    size = rng.lognormal(0.0, _CAMPAIGN_SIZE_SIGMA, num_campaigns)
    length_s = _CAMPAIGN_MEDIAN_S * rng.lognormal(np.log(size) / 3, _CAMPAIGN_SIGMA)
    length = np.minimum(np.ceil(length_s / PERIOD_S).astype(int), num_periods - first)

    # a segment is one campaign in one period; rows stay grouped by segment until the end
    campaign_of_segment = np.repeat(np.arange(num_campaigns), length)
    step = np.arange(len(campaign_of_segment)) - np.repeat(np.cumsum(length) - length, length)
    weights = (size / length)[campaign_of_segment]
    counts = rng.multinomial(num, weights / weights.sum())
    campaign = np.repeat(campaign_of_segment, counts)

    own_template, own_is_gpt4 = _deal(np.bincount(campaign, minlength=num_campaigns))
    is_own = rng.random(num) < _OWN_SHARE
    template = np.where(
        is_own, own_template[campaign], rng.choice(len(_TEMPLATES), num, p=_TEMPLATES["share"])
    )
    is_gpt4 = np.where(is_own, own_is_gpt4[campaign], rng.random(num) < _API_GPT4_SHARE)
    law = {name: column.to_numpy() for name, column in _TEMPLATES.items()}
    by_campaign = (num_campaigns, len(_TEMPLATES))
    request = law["request_tokens"] * rng.lognormal(0.0, law["between_sigma"], by_campaign)
    mean_response = law["response_tokens"] * rng.lognormal(0.0, 0.3, by_campaign)
    within = rng.lognormal(0.0, law["within_sigma"][template])
    sigma = law["response_sigma"][template]
    segment_s = starts_s[first[campaign_of_segment] + step]
    return pd.DataFrame(
        {
            "Timestamp": _bursts_s(counts, segment_s, starts_s, _API_SHAPE, rng),
            "Model": np.where(is_gpt4, "GPT-4", "ChatGPT"),
            "Request tokens": request[campaign, template] * within,
            "Response tokens": mean_response[campaign, template] * rng.lognormal(-(sigma**2) / 2, sigma),
            "Log Type": "API log",
        }
    )


def _deal(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Deal templates and models to campaigns, largest first, so that their shares of the rows come out."""
    wanted = np.outer(_TEMPLATES["share"], [1 - _API_GPT4_SHARE, _API_GPT4_SHARE]).ravel() * sizes.sum()
    dealt = np.zeros(len(sizes), dtype=np.int64)
    for campaign in np.argsort(-sizes, kind="stable"):
        dealt[campaign] = np.argmax(wanted)
        wanted[dealt[campaign]] -= sizes[campaign]
    return dealt // 2, dealt % 2 == 1


def _match_means(calls: pd.DataFrame, conversations: pd.DataFrame) -> None:
    """Scale the lengths of API calls by one factor each so that the means over all rows are as published."""
    num_rows = len(calls) + len(conversations)
    for name, mean_tokens, most in (
        ("Request tokens", MEAN_REQUEST_TOKENS, MAX_REQUEST_TOKENS),
        ("Response tokens", MEAN_RESPONSE_TOKENS, MAX_RESPONSE_TOKENS),
    ):
        left = max(1.0, (mean_tokens * num_rows - conversations[name].sum()) / len(calls))
        calls[name] = _whole(calls[name].to_numpy() * (left / calls[name].mean()), most)


def _bursts_s(
    counts: NDArray[np.int64],
    segment_s: NDArray[np.float64],
    starts_s: NDArray[np.float64],
    shape_law: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Arrivals, grouped by segment: Gamma gaps stretched so that each segment's rows fill its period."""
    period_s = PERIOD_S if len(starts_s) == 1 else starts_s[1] - starts_s[0]
    median, sigma = shape_law
    shape = np.maximum(_LEAST_SHAPE, rng.lognormal(math.log(median), sigma, len(counts)))
    segment = np.repeat(np.arange(len(counts)), counts)
    gaps = rng.gamma(shape[segment])
    sums = np.bincount(segment, weights=gaps, minlength=len(counts))
    since_start = np.cumsum(gaps) - (np.cumsum(sums) - sums)[segment]
    whole = (
        sums + rng.gamma(shape) + np.finfo(float).tiny
    )  # the gap after the last row belongs to the period too
    return np.asarray(segment_s[segment] + period_s * np.clip(since_start / whole[segment], 0.0, 1.0))


def _whole(tokens: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    return np.clip(np.rint(tokens), 1, most).astype(np.int64)

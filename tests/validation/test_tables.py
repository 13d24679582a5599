from collections import Counter

import pandas as pd

from batchsim.validation.roofline.report import STATISTICS
from batchsim.validation.tables import error_rows, markdown, skipped_rows


def test_errors_are_signed_and_counted_by_group() -> None:
    points = pd.DataFrame(
        {
            "gpu": ["a", "a", "a", "b"],
            "measured_s": [1.0, 1.0, 1.0, 2.0],
            "predicted_s": [0.8, 0.6, 2.0, 2.5],
        }
    )

    rows = error_rows(points, ["gpu"], STATISTICS)

    # errors -20, -40 and +100 % on a; +25 % on b
    assert rows == [["a", "3", "-20%", "53%", "33%", "67%"], ["b", "1", "+25%", "25%", "100%", "100%"]]


def test_reasons_are_listed_with_the_most_frequent_first() -> None:
    skipped = Counter({("once", "x"): 2, ("often", "y"): 1, ("often", "z"): 2})

    assert skipped_rows(skipped) == [["often", "3", "z (2), y (1)"], ["once", "2", "x (2)"]]


def test_numbers_stand_to_the_right() -> None:
    assert markdown(["who", "n"], [["a", "1"]], 1) == "| who | n |\n| --- | ---: |\n| a | 1 |"

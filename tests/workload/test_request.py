import math

import pandas as pd

from batchsim.workload.request import Workload


def test_texts_of_a_column_are_as_many_objects_as_there_are_different_ones() -> None:
    models = pd.Series([f"model {number % 3}" for number in range(300)], dtype="string[python]")
    models[7] = None
    frame = pd.DataFrame({"arrival_s": range(300), "prompt_tokens": 1, "output_tokens": 1, "model": models})

    column = Workload.from_frame(frame).extra["model"]

    assert math.isnan(column[7])
    assert len({id(text) for text in column.tolist()}) == 4
    assert column[:4].tolist() == ["model 0", "model 1", "model 2", "model 0"]

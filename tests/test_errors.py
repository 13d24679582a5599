import pickle

import pytest

from batchsim.errors import BatchsimError, ConfigError, StalledSimulation, TraceError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a  b.csv: is it", "a  b.csv: is it"),
        (" two\r\n   lines\tand a tab ", "two lines and a tab"),
        ("\x1b[31mred\x07", "?[31mred?"),
        ("half a character \ud800", "half a character ?"),
        ("not\u00a0broken\u2028apart", "not broken apart"),
        ("right to left \u202e", "right to left ?"),
        ("größe \N{CJK UNIFIED IDEOGRAPH-6587}", "größe \N{CJK UNIFIED IDEOGRAPH-6587}"),
    ],
)
def test_a_text_is_one_line_that_steers_no_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize("kind", [BatchsimError, ConfigError, TraceError, StalledSimulation])
def test_whatever_an_error_repeats_its_message_is_printable(kind: type[BatchsimError]) -> None:
    error = kind("column \x1b[31m\nin.csv is missing")

    assert str(error) == "column ?[31m in.csv is missing"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(type(error)(*error.args)) == str(error)

"""JSON that other tools would read otherwise, or that no text can hold."""

import pytest

from openmimo.json_files import parse_object


@pytest.mark.parametrize(
    "raw", [rb'{"a": ["\ud800"]}', rb'{"\uDfff": 1}', rb'{"a": {"b": "x\udc00\ud83d"}}']
)
def test_half_a_surrogate_pair_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair") as error:
        parse_object(raw)
    str(error.value).encode()


def test_whole_pairs_and_escaped_backslashes_are_text() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude00", "b": "\\ud800"}') == {
        "a": "\U0001f600",
        "b": "\\ud800",
    }

"""Settings of the test difficulty driven reward that do not fit each other."""

import pytest
from pydantic import ValidationError

from openmimo.config.schema import RLConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "levels must be at least 1"),
        ({"levels": 3, "level_scores": (1, 2)}, "levels must be 2"),
        ({"levels": "auto", "level_scores": (1, 2)}, "levels must be 2"),
        ({"levels": 2, "level_scores": (0, 2)}, "begin above 0"),
        ({"levels": 2, "level_scores": (1, -2)}, "greater than or equal to 0"),
    ],
)
def test_levels_and_their_scores_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RLConfig(**settings)


def test_levels_may_be_chosen_or_given() -> None:
    assert RLConfig(levels="auto").level_scores == ()
    assert RLConfig(levels=2, level_scores=(1, 3)).level_scores == (1, 3)

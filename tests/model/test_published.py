"""The RoPE settings of a foreign config.json: every form that means the same, no contradiction."""

from typing import Any

import pytest

from openmimo.config.schema import RopeScaling
from openmimo.errors import UserError
from openmimo.model.published import rope_settings

LINEAR = {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    "published",
    [
        {"rope_theta": 1e6, "rope_scaling": LINEAR},
        {"rope_scaling": LINEAR | {"rope_theta": 1e6}},
        {"rope_parameters": LINEAR | {"rope_theta": 1e6}},
        {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"type": "linear", "factor": 8}},
        {
            "rope_theta": 1e6,
            "rope_scaling": LINEAR | {"rope_theta": 1e6},
            "rope_parameters": LINEAR,
        },
        {"rope_theta": 1e6, "rope_parameters": LINEAR | {"low_freq_factor": None, "type": None}},
        {"rope_theta": 1e6, "rope_scaling": LINEAR | {"partial_rotary_factor": 1.0}},
    ],
)
def test_forms_that_mean_the_same(published: dict[str, Any]) -> None:
    assert rope_settings(published, "x") == (1e6, RopeScaling(kind="linear", factor=8.0))


@pytest.mark.parametrize(
    "published",
    [
        {},
        {"rope_scaling": None, "rope_parameters": None},
        {"rope_scaling": {}},
        {"rope_scaling": {"rope_type": "default", "factor": None}},
    ],
)
def test_no_scaling(published: dict[str, Any]) -> None:
    assert rope_settings({"rope_theta": 5.0} | published, "x") == (5.0, None)
    assert rope_settings(published, "x") == (None, None)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"rope_theta": 1e4, "rope_scaling": LINEAR | {"rope_theta": 1e6}}, "rope_theta is 10000"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "in rope_parameters"),
        (
            {"rope_scaling": {"rope_theta": 1e4}, "rope_parameters": {"rope_theta": 1e6}},
            "rope_theta is 10000.0 in rope_scaling, but 1000000.0 in rope_parameters",
        ),
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}}, "rope_type is"),
        ({"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"factor": 4.0}}, "factor is 8.0"),
        ({"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 8.0}}, "by type"),
        ({"rope_scaling": {"factor": 8}}, "without a rope_type"),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 8}}, "factor of a rope_scaling without"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_scaling": LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": LINEAR | {"attention_factor": 1.2}}, "attention_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "beta_fast": 32}}, "beta_fast"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 32}}, "'yarn'"),
    ],
)
def test_what_is_refused_is_named(published: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rope_settings(published, "x")

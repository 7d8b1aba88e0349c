"""A pytest plugin for Math-Verify's own tests: its comparisons go through our raw mode.

`test_math_verify_suite.py` loads it. The tests compare by `compare_strings`, or (in one file) by
`parse` and `verify` with the defaults; the few that test those functions themselves stay as they
are. The number of comparisons is written to the file that OPENMIMO_COMPARISONS names.
"""

import inspect
import os
from pathlib import Path

from openmimo.rewards import RawOptions, verify_math

comparisons = 0


def compare_strings(
    gold,
    pred,
    match_types=("latex", "expr"),
    precision=6,
    strict=True,
    allow_set_relation_comp=False,
):
    global comparisons
    comparisons += 1
    options = RawOptions(
        latex="latex" in match_types,
        expressions="expr" in match_types,
        boxed_match_priority=0,
        float_rounding=precision,
        strict=strict,
        allow_set_relation_comp=allow_set_relation_comp,
    )
    return verify_math(pred, gold, options).correct


def compare_defaults(gold, pred):
    global comparisons
    comparisons += 1
    return verify_math(pred, gold, RawOptions()).correct


def pytest_collection_modifyitems(items):
    for module in {item.module for item in items}:
        if hasattr(module, "compare_strings"):
            theirs = inspect.signature(module.compare_strings).parameters
            assert list(theirs) == list(inspect.signature(compare_strings).parameters)
            module.compare_strings = compare_strings
        elif module.__name__.endswith("test_yujianll"):
            module.parse, module.verify = str, compare_defaults


def pytest_sessionfinish():
    Path(os.environ["OPENMIMO_COMPARISONS"]).write_text(str(comparisons))

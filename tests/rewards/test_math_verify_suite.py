"""Math-Verify's own tests, through our raw mode.

They are not part of this project. To run them, clone github.com/huggingface/Math-Verify and name
the folder: OPENMIMO_MATH_VERIFY=DIR python -m pytest tests/rewards/test_math_verify_suite.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_math_verifys_own_tests_pass_through_raw_mode(tmp_path):
    checkout = os.environ.get("OPENMIMO_MATH_VERIFY")
    if not checkout:
        pytest.skip("set OPENMIMO_MATH_VERIFY to a checkout of Math-Verify")
    here = Path(__file__).parent
    counter = tmp_path / "comparisons"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENMIMO_COMPARISONS": str(counter),
    }
    options = ["-q", "-p", "math_verify_plugin", "-p", "no:cacheprovider", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", checkout, "tests"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(counter.read_text()) > 250

"""A judge, wherever the settings say that it is."""

from __future__ import annotations

import os

from openmimo.judge.cases import Limits
from openmimo.judge.judge import Judge
from openmimo.judge.protocol import SolutionJudge

LOCAL, RAY = "local", "ray"
KEY_VARIABLE = "OPENMIMO_JUDGE_KEY"
"""The environment variable with the API key of a judge's service, there and here."""


def open_judge(
    where: str = LOCAL, workers: int = 1, limits: Limits | None = None, unsafe: bool = False
) -> SolutionJudge:
    """A judge to be closed after use. Its verdicts are the same wherever it is.

    Args:
        where: "local", for worker processes of this one's; "ray", for all nodes of the cluster at
            RAY_ADDRESS; or addresses of `mimo judge-serve`, separated by commas, whose API key is
            in OPENMIMO_JUDGE_KEY.
        workers: of a local judge.
        limits: of calls that give none.
        unsafe: judge without a sandbox, or take verdicts of services that have none.

    Raises:
        UserError: the sandbox cannot be set up here, or no service or cluster answers.
    """
    if where == LOCAL:
        return Judge(workers, limits, unsafe)
    if where == RAY:
        from openmimo.judge.ray_judge import RayJudge  # an extra that may not be installed

        return RayJudge(limits=limits, unsafe=unsafe)
    from openmimo.judge.service.client import RemoteJudge  # httpx takes a while to import

    urls = [url.strip() for url in where.split(",")]
    return RemoteJudge(urls, os.environ.get(KEY_VARIABLE), limits, unsafe)

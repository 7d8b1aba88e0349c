"""LiveCodeBench's own checker, as a peer of benchmarks/judge.py.

    PYTHONPATH=PATH/TO/LiveCodeBench python livecodebench_judge.py WORKERS

For each line of JSON on standard input, {"programs", "inputs", "outputs"}, it checks all programs
on all tests and prints {"seconds", "right": the number of tests passed}.
"""

import json
import os
import sys
import time

from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations


def main() -> None:
    """Answer lines until standard input ends."""
    workers = int(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the checker prints
    for line in sys.stdin:
        job = json.loads(line)
        sample = {"input_output": json.dumps({"inputs": job["inputs"], "outputs": job["outputs"]})}
        programs = [[program] for program in job["programs"]]
        start = time.perf_counter()
        results, _ = evaluate_generations(
            [sample] * len(programs), programs, num_process_evaluate=workers, timeout=6
        )
        seconds = time.perf_counter() - start
        right = sum(outcome is True for tests in results.values() for outcome in tests[0])
        print(json.dumps({"seconds": seconds, "right": right}), file=answers, flush=True)


if __name__ == "__main__":
    main()

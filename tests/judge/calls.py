"""Function calls as the judge's tests write them."""

import textwrap

from openmimo.judge import CallTest


def calls(args, expected):
    return [CallTest("f", a, value) for a, value in zip(args, expected, strict=True)]


def submit(judge, program, args, expected, **options):
    return judge.submit(textwrap.dedent(program), calls(args, expected), **options)


def run(judge, program, args, expected, **options):
    return submit(judge, program, args, expected, **options).result(timeout=60)

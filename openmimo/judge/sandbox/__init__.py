"""The sandboxed side of the judge: a stand-alone package that imports nothing of openmimo.

It runs under `python -S` in its own process, as the top-level package `sandbox`, and talks to the
supervisor (`openmimo.judge.judge`) through its standard input and output only.
"""

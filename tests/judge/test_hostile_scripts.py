"""Hostile programs on standard input and output; and what they do to their neighbours."""

import textwrap

import pytest

from openmimo.judge import Judge, Limits, Status, StdioTest

LIMITS = Limits(cpu_seconds=0.3, wall_seconds=2.0, output_bytes=65536)
SECRET = "424242"


@pytest.fixture(scope="module")
def judge():
    with Judge(workers=2, limits=LIMITS, cache_size=1) as judge:
        yield judge


# None may pass a test that expects SECRET, and none of these programs can know it.
SCRIPTS = {
    "exit status 0": "import os; os._exit(0)",
    "verdicts to every descriptor": """
        import os
        for fd in range(1, 64):
            for text in (b"V424242", b"K", b"X", b"true", b"\\0" * 100):
                try: os.write(fd, text)
                except OSError: pass""",
    "patched builtins": """
        import builtins, sys
        class Any(str):
            def __eq__(self, other): return True
            def split(self, *_): return Any()
            __hash__ = str.__hash__
        builtins.print = builtins.open = builtins.compile = lambda *a, **k: Any()
        builtins.str = builtins.bytes = Any
        sys.stdout.write(Any("x"))""",
    "patched exit": "import os, sys\nos._exit = sys.exit = lambda *a: None\nraise SystemExit(0)",
    "patched judge": """
        import sys
        for name, module in list(sys.modules.items()):
            for key in list(vars(module)) if name.startswith("sandbox") else ():
                try: setattr(module, key, lambda *a, **k: None)
                except (AttributeError, TypeError): pass""",
    "frames and garbage": """
        import gc, sys
        found, frame = [], sys._getframe()
        while frame:
            found += [repr(v) for v in (*frame.f_locals.values(), *frame.f_globals.values())]
            frame = frame.f_back
        for item in gc.get_objects():
            try: found.append(str(item))
            except BaseException: pass
        needle = 3 * (chr(52) + chr(50))
        print(needle if any(needle in text for text in found) else "")""",
    "unfrozen garbage": """
        import gc
        gc.unfreeze()
        def found(item):  # the needle is never kept, so it does not find itself
            try: return 3 * (chr(52) + chr(50)) in str(item)
            except BaseException: return False
        print(3 * (chr(52) + chr(50)) if any(map(found, gc.get_objects())) else "")""",
    "read what is open": """
        import os
        needle = 3 * (chr(52) + chr(50))
        for fd in range(64):
            for read in (lambda: os.pread(fd, 10**6, 0), lambda: os.read(fd, 10**6)):
                try: print(needle if needle.encode() in read() else "")
                except OSError: pass""",
    "open what is open": """
        needle = 3 * (chr(52) + chr(50))
        for fd in range(64):
            try: print(needle if needle in open(f"/proc/self/fd/{fd}").read() else "")
            except (OSError, UnicodeDecodeError): pass""",
    "start what it wrote": """
        import os
        os.write(1, b"#!/bin/sh\\necho " + 3 * b"42")
        os.execv("/proc/self/fd/1", ["x"])""",
    "output taken back": """
        import os
        print(3 * "42", "wrong", flush=True)
        os.ftruncate(1, 0)""",
    "output after the limit": "print('x' * 10**5)\nprint(3 * '42')",
    "all numbers": "for i in range(10**5): print(i)",
    "error after the output": "import sys; print(3 * '42', flush=True); sys.exit(1)",
    "killed after the output": "import ctypes; print(3 * '42', flush=True); ctypes.string_at(0)",
    "time after the output": "print(3 * '42', flush=True)\nwhile True: pass",
    "sleep after the output": "import time; print(3 * '42', flush=True); time.sleep(99)",
    "thread after the output": """
        import threading, time
        threading.Thread(target=time.sleep, args=(99,)).start()
        print(3 * '42', flush=True)""",
    "loop at exit": """
        import atexit
        print(3 * "42", flush=True)
        @atexit.register
        def forever():
            while True: pass""",
    "loop in a finaliser": """
        class D:
            def __del__(self):
                while True: pass
        keep = D()
        print(3 * "42", flush=True)""",
    "memory after the output": "print(3 * '42', flush=True)\nx = [0] * 10**10",
    "fork bomb": """
        import os
        while True:
            try: os.fork()
            except OSError: pass""",
    "thread bomb": """
        import threading, time
        while True: threading.Thread(target=time.sleep, args=(99,)).start()""",
    "memory bomb": "x = b'x'\nwhile True: x += x",
    "output flood": "while True: print('x' * 10**6)",
    "disk fill by its input": """
        import os
        while True: os.write(0, bytes(10**6))""",
    "disk fill by its report": """
        import os
        while True: os.write(3, bytes(10**6))""",
    "sparse output": "import os\nos.lseek(1, 1 << 40, 0)\nos.write(1, b'x')",
    "signals to all": """
        import os, signal
        for pid in (0, -1, 1, os.getppid(), *range(2, 100)):
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
                try: os.kill(pid, number)
                except OSError: pass""",
    "recursion": "def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f()",
    "compiler bomb": "x = " + "[" * 190 + "0" + "]" * 190 + "\n" + "x = x + x\n" * 40,
}


# These print the secret and then fail otherwise: the judge must see the failure.
KNOWS = {name for name in SCRIPTS if "after the output" in name or name.startswith("loop ")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_hostile_script_fails_and_its_neighbours_do_not(judge, name):
    neighbour = "import time\nfor _ in range(3): time.sleep(0.02)\nprint(input())"
    alongside = [
        judge.submit(f"{neighbour} # {number}", [StdioTest(str(number), str(number))])
        for number in range(2)
    ]
    hostile = judge.run(textwrap.dedent(SCRIPTS[name]), [StdioTest("1\n", SECRET)])[0]
    after = [judge.submit(neighbour, [StdioTest("7", "7")]) for _ in range(2)]
    assert hostile.status not in (Status.OK, Status.JUDGE_ERROR), hostile
    if name in KNOWS:
        assert hostile.status is not Status.WRONG  # it is not the output that fails it
    assert hostile.cpu_seconds < LIMITS.cpu_seconds + 0.5
    assert hostile.wall_seconds < LIMITS.wall_seconds + 0.5
    for future in (*alongside, *after):
        assert future.result(timeout=60).passed == (True,)

"""C++ programs: compiled once, run in the same sandbox, as hostile as they come."""

import shutil
import textwrap
import time

import pytest

from openmimo.errors import UserError
from openmimo.judge import CallTest, Checker, Judge, Limits, Program, Status, StdioTest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]
LIMITS = Limits(cpu_seconds=0.5, wall_seconds=5.0, memory_mb=128, output_bytes=65536)


@pytest.fixture(scope="module")
def judge():
    with Judge(limits=LIMITS) as judge:
        yield judge


def cpp(body, files=()):
    head = "#include <bits/stdc++.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n"
    return Program(head + "using namespace std;\n" + textwrap.dedent(body), "cpp", files)


def test_right_and_wrong_output(judge):
    program = cpp("int main() { long long a, b; cin >> a >> b; cout << a + b << endl; }")
    tests = [StdioTest("1 2\n", "3\n"), StdioTest("5000000000 1\n", "5000000001"),
             StdioTest("1 2\n", "4\n")]  # fmt: skip
    verdicts = judge.run(program, tests)
    assert [verdict.status for verdict in verdicts] == [Status.OK, Status.OK, Status.WRONG]
    assert verdicts[0].cpu_seconds < 0.1


ENDINGS = {
    "exit status": ("int main() { puts(\"3\"); return 7; }", Status.CRASH),
    "abort": ("int main() { puts(\"3\"); abort(); }", Status.CRASH),
    "assert": ("int main() { puts(\"3\"); assert(false); }", Status.CRASH),
    "division": ("int main() { volatile int z = 0; puts(\"3\"); return 7 / z; }", Status.CRASH),
    "null pointer": ("int main() { *(volatile int *)0 = 1; }", Status.CRASH),
    "exception": ("int main() { throw runtime_error(\"mine\"); }", Status.CRASH),
    "memory": ("int main() { vector<int> v; while (true) v.push_back(1); }", Status.MEMORY),
    "loop": ("int main() { puts(\"3\"); fflush(stdout); while (true); }", Status.TIMEOUT),
    "sleep": ("int main() { puts(\"3\"); fflush(stdout); sleep(99); }", Status.TIMEOUT),
    "flood": ("int main() { while (true) puts(\"3\"); }", Status.OUTPUT_LIMIT),
    "no program": ("int main() { return undefined; }", Status.COMPILE),
    "no main": ("int f() { return 1; }", Status.COMPILE),
    "a file of the host": ("#include \"/etc/passwd\"\nint main() {}", Status.COMPILE),
    "an embedded file of the host": (
        "asm(\".incbin \\\"/etc/passwd\\\"\");\nint main() { puts(\"3\"); }", Status.COMPILE
    ),
    "endless templates": (
        "template<int N> struct A { enum { v = A<N + 1>::v + A<N + 2>::v }; };\n"
        "int main() { return A<0>::v; }", Status.COMPILE
    ),
    "debug output": ("int main() { for (int i = 0; i < 100; i++) cerr << i; puts(\"3\"); }",
                     Status.OK),
    "threads": ("int main() { thread t([] { puts(\"3\"); }); t.join(); }", Status.OK),
    "deep recursion": (
        "int f(int n) { volatile char a[100]; a[0] = n; return n ? f(n - 1) + a[0] * 0 : 3; }\n"
        "int main() { printf(\"%d\", f(200000)); }", Status.OK
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), ENDINGS.values(), ids=ENDINGS.keys())
def test_how_a_program_ends(judge, body, expected):
    (verdict,) = judge.run(cpp(body), [StdioTest("1 2\n", "3\n")])
    assert verdict.status is expected, verdict
    assert verdict.cpu_seconds < LIMITS.cpu_seconds + 0.5
    assert verdict.wall_seconds < LIMITS.wall_seconds + 0.5


# Prints "done" if what it tries works.
ATTEMPTS = {
    "fork": "fork() >= 0",
    "vfork by number": "syscall(SYS_clone, 17, 0, 0, 0, 0) >= 0",
    "socket": "syscall(SYS_socket, 2, 1, 0) >= 0",
    "read a file": 'ifstream("/etc/passwd").good()',
    "write a file": 'ofstream("/tmp/openmimo-escape").good()',
    "run a shell": 'system("true") == 0',
    "execute a file": 'execl("/bin/true", "true", (char *)0) == 0',
    "ptrace": "syscall(SYS_ptrace, 0, 0, 0, 0) >= 0",
    "signal the parent": "syscall(SYS_kill, getppid(), 9) >= 0",
    "file in memory": 'syscall(SYS_memfd_create, "x", 0) >= 0',
    "read its tests": "pread(10, new char[10], 10, 0) > 0 || pread(4, new char[10], 10, 0) > 0",
    "more processes at once": "syscall(SYS_clone3, 0, 0) >= 0",
    "io_uring": "syscall(SYS_io_uring_setup, 1, 0) >= 0",
    "change its binary": 'write(7, "x", 1) > 0',
}


def test_forbidden_actions_fail(judge):
    lines = [f'if ({attempt}) puts("{name}");' for name, attempt in ATTEMPTS.items()]
    program = cpp("int main() { " + "\n".join(lines) + ' puts("end"); }')
    (verdict,) = judge.run(program, [StdioTest("", "end\n")])
    assert verdict.status is Status.OK, verdict


def test_a_program_is_compiled_once(judge):
    start = time.monotonic()
    judge.run(cpp('int main() { puts("3"); } // once'), [StdioTest("1", "3")])
    first = time.monotonic() - start
    start = time.monotonic()
    judge.run(cpp('int main() { puts("3"); } // once'), [StdioTest("2", "3")])
    assert time.monotonic() - start < first / 3


def test_a_solution_is_compiled_with_its_grader(judge):
    files = (("sum.h", "int sum(int, int);"),
             ("grader.cpp", "#include \"sum.h\"\n#include <iostream>\n"
              "int main() { int a, b; std::cin >> a >> b; std::cout << sum(a, b); }"))  # fmt: skip
    program = cpp('#include "sum.h"\nint sum(int a, int b) { return a + b; }', files)
    assert judge.run(program, [StdioTest("1 2", "3")])[0].status is Status.OK


def test_a_compiled_checker(judge):
    checker = Checker(cpp(
        "int main(int n, char **argv) { ifstream in(argv[1]), out(argv[2]); int a, b; in >> a;"
        " if (!(out >> b)) return 2; return b % a ? 1 : 0; }"))  # fmt: skip
    tests = [StdioTest(stdin, "", checker) for stdin in ("3", "4", "x")]
    statuses = [verdict.status for verdict in judge.run("print(9)", tests)]
    assert statuses[:2] == [Status.OK, Status.WRONG]
    assert statuses[2] is Status.JUDGE_ERROR  # the checker divides by zero


def test_the_compilers_work_for_a_program_is_bounded(judge):
    start = time.monotonic()
    flood = "\n".join(f'_Pragma("message \\"{"x" * 2000}\\"")' for _ in range(200))
    errors = "\n".join(f"x{i} y;" for i in range(20_000))
    table = 'int a[30000000] = {1}; int main() { puts("3"); }'
    for body in (f"{flood}\n{errors}\nint main() {{}}", table):
        (verdict,) = judge.run(cpp(body), [StdioTest("", "3")])
        assert verdict.status is Status.COMPILE
        assert len(verdict.detail) <= 500
    assert time.monotonic() - start < 30


def test_functions_are_not_called_in_compiled_programs(judge):
    with pytest.raises(UserError, match="output only"):
        judge.submit(cpp("int f() { return 1; }"), [CallTest("f", [], 1)])


def test_without_a_compiler_the_error_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with Judge() as judge:
        (verdict,) = judge.run(cpp("int main() {}"), [StdioTest("", "")])
    assert verdict.status is Status.JUDGE_ERROR
    assert "g++" in verdict.detail

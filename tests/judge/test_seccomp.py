"""The filters for both architectures, run by an interpreter of BPF: what each system call gets."""

import struct

import pytest

from openmimo.judge.sandbox import seccomp

ALLOW, REFUSE, ABSENT, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers from each architecture's unistd.h, independent of the table under test.
NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "mmap": 9, "ioctl": 16, "socket": 41, "clone": 56, "fork": 57,
        "execve": 59, "kill": 62, "fcntl": 72, "ptrace": 101, "prctl": 157, "mount": 165,
        "tgkill": 234, "openat": 257, "prlimit64": 302, "seccomp": 317, "memfd_create": 319,
        "bpf": 321, "execveat": 322, "pidfd_send_signal": 424, "io_uring_setup": 425,
        "clone3": 435, "new in a later kernel": 999,
    },
    "aarch64": {
        "read": 63, "write": 64, "mmap": 222, "ioctl": 29, "socket": 198, "clone": 220,
        "execve": 221, "kill": 129, "fcntl": 25, "ptrace": 117, "prctl": 167, "mount": 40,
        "tgkill": 131, "openat": 56, "prlimit64": 261, "seccomp": 277, "memfd_create": 279,
        "bpf": 280, "execveat": 281, "pidfd_send_signal": 424, "io_uring_setup": 425,
        "clone3": 435, "new in a later kernel": 999,
    },
}  # fmt: skip


def decide(program, machine, number, arguments=(), audit=None):
    """What the filter returns for a system call: classic BPF over `struct seccomp_data`."""
    values = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, audit or AUDIT[machine], 0, *values)
    accumulator, place = 0, 0
    while True:
        code, jump_true, jump_false, k = struct.unpack_from("=HBBI", program, 8 * place)
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x15:
            place += jump_true if accumulator == k else jump_false
        elif code == 0x35:
            place += jump_true if accumulator >= k else jump_false
        elif code == 0x45:
            place += jump_true if accumulator & k else jump_false
        elif code == 0x06:
            return k
        else:
            raise AssertionError(f"an instruction that the filters do not use: {code:#x}")


class Filters:
    """Those of a process, together: the kernel takes the strictest answer."""

    def __init__(self, machine, refused=None):
        self.machine = machine
        self.programs = [seccomp.build(seccomp.SERVER_CALLS, machine)]
        if refused is not None:
            self.programs.append(seccomp.build_refusals(refused, machine))

    def decide(self, number, arguments=(), audit=None):
        answers = {decide(p, self.machine, number, arguments, audit) for p in self.programs}
        return next(code for code in (KILL, REFUSE, ABSENT, ALLOW) if code in answers)

    def allowed(self):
        return {number for number in range(2000) if self.decide(number) == ALLOW}


@pytest.fixture(params=NUMBERS)
def machine(request):
    return request.param


def test_candidates_have_what_they_need_and_nothing_more(machine):
    candidate = Filters(machine, seccomp.CANDIDATE_REFUSALS)
    for name, number in NUMBERS[machine].items():
        outcome = candidate.decide(number)
        if name == "clone3":
            assert outcome == ABSENT  # so that libc takes clone, whose flags can be read
        elif name in ("read", "write", "mmap", "openat", "fcntl", "prlimit64"):
            assert outcome == ALLOW, name
        else:
            assert outcome == REFUSE, name


def test_compiled_programs_may_also_be_started(machine):
    candidate = Filters(machine, seccomp.CANDIDATE_REFUSALS).allowed()
    compiled = Filters(machine, seccomp.COMPILED_REFUSALS).allowed()
    assert compiled - candidate == {NUMBERS[machine]["execve"]}
    assert candidate <= compiled


def test_only_the_server_forks_and_signals(machine):
    server, numbers = Filters(machine), NUMBERS[machine]
    for name in ("clone", "kill", "prctl", "seccomp", "memfd_create", "execve"):
        assert server.decide(numbers[name]) == ALLOW, name
    for name in ("socket", "ptrace", "mount", "bpf", "io_uring_setup", "new in a later kernel"):
        assert server.decide(numbers[name]) == REFUSE, name


def test_arguments_decide(machine):
    candidate = Filters(machine, seccomp.CANDIDATE_REFUSALS)
    numbers = NUMBERS[machine]
    thread, process, vfork = 0x3D0F00, 0x1200011, 0x4111
    assert candidate.decide(numbers["clone"], (thread,)) == ALLOW
    assert candidate.decide(numbers["clone"], (process,)) == REFUSE
    assert candidate.decide(numbers["clone"], (vfork,)) == REFUSE
    assert candidate.decide(numbers["prlimit64"], (0,)) == ALLOW
    assert candidate.decide(numbers["prlimit64"], (1234,)) == REFUSE
    assert candidate.decide(numbers["fcntl"], (0, 3)) == ALLOW  # F_GETFL
    assert candidate.decide(numbers["fcntl"], (0, 8)) == REFUSE  # F_SETOWN


def test_the_filters_find_every_number_of_the_table(machine):
    column = ("x86_64", "aarch64").index(machine)

    def numbers(names):
        return {seccomp._NUMBERS[name][column] for name in names} - {None}

    # What depends on arguments says yes to these.
    wanted = numbers(seccomp.SERVER_CALLS) | numbers(("fcntl", "prlimit64"))
    assert Filters(machine).allowed() == wanted
    for refused in (seccomp.CANDIDATE_REFUSALS, seccomp.COMPILED_REFUSALS):
        assert Filters(machine, refused).allowed() == wanted - numbers(refused)


def test_a_foreign_architecture_is_killed(machine):
    candidate = Filters(machine, seccomp.CANDIDATE_REFUSALS)
    i386 = 0x40000003
    assert candidate.decide(3, audit=i386) == KILL
    x32 = 0x40000000
    assert candidate.decide(x32 | 1) == REFUSE


def test_an_architecture_without_a_table_is_refused():
    assert seccomp.supported("x86_64")
    assert not seccomp.supported("riscv64")

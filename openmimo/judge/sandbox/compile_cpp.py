"""Compile a C++ program, locked down: its own folder is all that the compiler can write to."""

import json
import os
import resource

from . import lockdown

_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin", "/etc/alternatives", "/opt")


def main(arguments: list[str]) -> None:
    """Replace this process by the compiler.

    The JSON argument: {"command", "folder" (where it works), "headers" (a folder that it may read),
    "unsafe", "cpu_seconds", "memory_bytes", "file_bytes"}. Exit status 99 and a line on standard
    output where the process cannot be locked down.
    """
    options = json.loads(arguments[0])
    os.chdir(options["folder"])
    if not options["unsafe"]:
        executable = [*filter(os.path.isdir, _SYSTEM_FOLDERS), options["headers"]]
        try:
            lockdown.lock_compiler(executable, [options["folder"], os.devnull])
        except lockdown.LockdownError as error:
            print(error, flush=True)
            os._exit(99)
    cpu, memory, file = options["cpu_seconds"], options["memory_bytes"], options["file_bytes"]
    for limit, value in (
        (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": options["folder"], "LC_ALL": "C.UTF-8"}
    os.execve(options["command"][0], options["command"], environment)

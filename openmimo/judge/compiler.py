"""Compiles C++ programs: each once, with the whole standard library's header compiled before."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from openmimo.errors import UserError
from openmimo.judge.cases import Program, content_key
from openmimo.judge.start import python_command

_FLAGS = ("-std=gnu++17", "-O2", "-w", "-pipe", "-fmax-errors=20")
_HEADER = "bits/stdc++.h"
_CPU_SECONDS, _WALL_SECONDS = 30, 120.0
_MEMORY_BYTES, _FILE_BYTES = 2 << 30, 64 << 20
_LOCKDOWN_FAILED = 99
_SOURCES = (".cpp", ".cc", ".cxx", ".c")
_ERROR_CHARACTERS = 500
_KEPT_BYTES = 256 << 20  # of compiled programs: 2 MB each, if they hold no large tables


class CompileError(Exception):
    """A program that does not compile; the message is the compiler's."""


class Compiler:
    """g++, found when it is first needed. Safe to use from threads.

    Programs are linked statically, so that they start without reading any file.
    """

    def __init__(self, unsafe: bool) -> None:
        self._unsafe = unsafe
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._binaries: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, program: Program) -> bytes:
        """The program as an executable file's bytes. CompileError if it is none.

        Raises:
            UserError: there is no g++ here, or its sandbox cannot be set up.
        """
        key = content_key(program)
        with self._lock:
            if self._folder is None:
                self._folder = self._prepare()
            binary = self._binaries.get(key)
        if binary is None:
            binary = self._compile(program, Path(self._folder.name))
        with self._lock:
            self._binaries[key] = binary
            self._binaries.move_to_end(key)
            while len(self._binaries) > 1 and sum(map(len, self._binaries.values())) > _KEPT_BYTES:
                self._binaries.popitem(last=False)
        return binary

    def close(self) -> None:
        """Remove what was compiled."""
        if self._folder is not None:
            self._folder.cleanup()

    def _prepare(self) -> "tempfile.TemporaryDirectory[str]":
        folder = tempfile.TemporaryDirectory(prefix="openmimo-judge-")
        root = Path(folder.name)
        root.chmod(0o755)
        (root / "bits").mkdir()
        (root / "header.h").write_text(f"#include <{_HEADER}>\n")
        target = root / f"{_HEADER}.gch"
        command = [_gxx(), *_FLAGS, "-x", "c++-header", str(root / "header.h"), "-o", str(target)]
        done = subprocess.run(
            command, capture_output=True, timeout=_WALL_SECONDS, check=False, cwd=root
        )
        if done.returncode:  # a library without that header: slower, not wrong
            target.unlink(missing_ok=True)
        return folder

    def _compile(self, program: Program, headers: Path) -> bytes:
        with tempfile.TemporaryDirectory(prefix="openmimo-judge-") as folder:
            scratch = Path(folder)
            share_with_nobody(scratch)
            files = {**dict(program.files), "solution.cpp": program.source}
            for name, text in files.items():
                (scratch / name).write_bytes(text.encode("utf-8", "surrogatepass"))
            sources = [name for name in files if name.endswith(_SOURCES)]
            command = [_gxx(), *_FLAGS, "-static", "-I", str(headers), "-I", ".", *sources]
            status, output = self._run([*command, "-o", "program"], scratch, headers)
            if status == _LOCKDOWN_FAILED:
                raise UserError(f"judge: {output}; programs are not compiled unprotected")
            if status != 0:
                raise CompileError(output or f"the compiler ended with status {status}")
            return (scratch / "program").read_bytes()

    def _run(self, command: list[str], folder: Path, headers: Path) -> tuple[int, str]:
        options = {
            "command": command, "folder": str(folder), "headers": str(headers),
            "unsafe": self._unsafe, "cpu_seconds": _CPU_SECONDS, "memory_bytes": _MEMORY_BYTES,
            "file_bytes": _FILE_BYTES,
        }  # fmt: skip
        # A file, as the limit of files holds for it: a program decides how much its messages are.
        with tempfile.TemporaryFile() as messages:
            process = subprocess.Popen(
                python_command("compile_cpp", options),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            late = b""
            try:
                process.wait(_WALL_SECONDS)
            except subprocess.TimeoutExpired:
                late = b"the compiler took too long"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                process.wait()
            messages.seek(0)
            output = late or messages.read(4 * _ERROR_CHARACTERS)
        return process.returncode, output.decode("utf-8", "replace").strip()[:_ERROR_CHARACTERS]


def _gxx() -> str:
    path = shutil.which("g++")
    if path is None:
        raise UserError("judge: a C++ program, and no g++ here: install it (apt-get install g++)")
    return os.path.realpath(path)


def share_with_nobody(folder: Path) -> None:
    """Let the sandbox write to a folder, whether it keeps this user or becomes nobody."""
    if os.geteuid() == 0:
        os.chown(folder, 65534, 0)
        folder.chmod(0o770)

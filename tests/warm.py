"""Starts of the program without a new Python each time: a warm process forks them.

A start of `python -m cipherbox` costs up to 0.7 CPU seconds, nearly all of it imports, and the
suite makes thousands.  So each process that runs tests keeps one warm Python that has imported
everything, and `subprocess.Popen([sys.executable, "-m", "cipherbox", ...])`, from wherever it is
called, lets that one fork, in 0.02.  So it does with `[sys.executable, "-c", FORKED + source,
...]`.  Rules:

1. What comes of it is a process as any other: the test's own child with a pid of its own (the
   fork's parent ends, and this process adopts it), with real signals, exit status, files, terminal,
   environment, directory and arguments.  `Popen` keeps every other part of its work.
2. What a fork could not give is started for real: another program, other limits or users, files
   passed on, a `preexec_fn` but `own_terminal`, and what Python or C's library reads as it starts
   (`AT_START`).
3. The warm process runs nothing of the program before a fork: it imports, and completes classes of
   attrs, a quarter of a short command's time.  It has one thread and ends with the tests.
4. `COLD=1` in the environment, or another system than Linux: everything is started for real.
5. With `CHEAP` in its environment a fork stretches passwords in 1 ms instead of 150: for tests of
   everything but the cost, which is written in each file of keys.
6. Commands that start others (`NESTED`) take a warm process of their own along, so what they start
   is forked too.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import os
import pickle
import pkgutil
import re
import runpy
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

PROGRAM = [sys.executable, "-m", "cipherbox"]
FORKED = "# forked\n"
CHEAP = "TESTS_CHEAP_PASSWORDS"
UTF8 = {"PYTHONIOENCODING": "utf-8"}
ROOM = 16_384  # bytes for the arguments of a fork, as `ps` shows them
NAMES = ("stdin", "stdout", "stderr")
NESTED = frozenset(["demo", "prove", "bench"])
# parsing the sources for them would take longer than all of the imports
IMPORTS = re.compile(r"^ *(?:from ([\w.]+) import |import ([\w.]+)(?: as \w+)?$)", re.MULTILINE)
AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OPENSSL_", "TZ")
_LARGEST = 100_000  # of a request: a datagram of a socket pair
_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
REALLY = getattr(subprocess.Popen, "_execute_child")  # noqa: B009


class Request(NamedTuple):
    """One start; its standard input, output and error come beside it."""

    arguments: list[str]
    directory: str
    environment: dict[bytes, bytes]
    new_session: bool
    terminal: bool
    umask: int


def own_terminal() -> None:
    """A `preexec_fn`: the terminal on standard output is this process's, and Ctrl-C ends it,
    also in tests that a shell runs in its background.
    """
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def install() -> Warm | None:
    """From here on `subprocess.Popen` forks starts of the program."""
    if sys.platform != "linux" or os.environ.get("COLD"):
        return None
    warm = Warm()
    _take_over(warm)
    return warm


class Warm:
    """The warm process, started when it is first needed."""

    def __init__(self) -> None:
        self.forks = 0
        self._control: socket.socket | None = None
        self._lock = threading.Lock()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def start(self, request: Request, files: list[int]) -> int | None:
        """The pid of a new child of this process; None when it has to be started for real."""
        data = pickle.dumps(request)
        if len(data) > _LARGEST:
            return None
        with self._lock:
            if self._control is None:
                self._control = self._begin()
            self._adopting(True)
            try:
                socket.send_fds(self._control, [data], files)
                pid = int(self._control.recv(20))
                self.forks += 1
                return pid
            finally:
                self._adopting(False)

    def use(self, control: socket.socket) -> None:
        """Takes a warm process that is there already."""
        self._control = control

    def _begin(self) -> socket.socket:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from tests.warm import main; main()",
                str(there.fileno()),
                " " * ROOM,
            ],
            cwd=Path(__file__).parent.parent,
            pass_fds=[there.fileno()],
            env=_at_start(),
            stdin=subprocess.DEVNULL,
        )
        there.close()

        def end() -> None:
            here.close()
            process.wait()

        atexit.register(end)
        return here

    def _adopting(self, on: bool) -> None:
        """Children whose parent ends become this process's: on only while a start is made."""
        if self._libc.prctl(_SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def _at_start() -> dict[str, str]:
    """The environment of the warm process; that of a fork has the same of these."""
    return {k: v for k, v in os.environ.items() if k.startswith(AT_START)} | UTF8


def _take_over(warm: Warm) -> None:
    def execute(self: Any, *given: Any) -> None:
        start = Start(*given)
        request = start.request()
        files = ((start.p2cread, 0), (start.c2pwrite, 1), (start.errwrite, 2))
        pid = request and warm.start(request, [own if file == -1 else file for file, own in files])
        if not pid:
            REALLY(self, *given)
            return
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*start[10:16])

    subprocess.Popen._execute_child = execute  # type: ignore[attr-defined]


class Start(NamedTuple):
    """What `Popen` gives to the method that starts a process, the same in Python 3.11 to 3.14."""

    args: Any
    executable: Any
    preexec_fn: Any
    close_fds: bool
    pass_fds: Any
    cwd: Any
    env: Any
    startupinfo: Any
    creationflags: int
    shell: bool
    p2cread: int
    p2cwrite: int
    c2pread: int
    c2pwrite: int
    errread: int
    errwrite: int
    restore_signals: bool
    gid: Any
    gids: Any
    uid: Any
    umask: int
    start_new_session: bool
    process_group: int

    def request(self) -> Request | None:
        """None where a fork would not do."""
        plain = Start(
            self.args,
            None,
            self.preexec_fn,
            True,
            (),
            self.cwd,
            self.env,
            None,
            0,
            False,
            *self[10:16],
            True,
            None,
            None,
            None,
            -1,
            self.start_new_session,
            -1,
        )
        if (
            self != plain
            or self.preexec_fn not in (None, own_terminal)
            or not isinstance(self.args, list | tuple)
        ):
            return None
        arguments = [os.fspath(one) for one in self.args]
        environment = {os.fsencode(k): os.fsencode(v) for k, v in (self.env or os.environ).items()}
        read_at_start = {os.fsdecode(k): os.fsdecode(v) for k, v in environment.items()}
        read_at_start = {k: v for k, v in read_at_start.items() if k.startswith(AT_START)}
        directory = os.fspath(self.cwd or os.getcwd())
        source = arguments[:2] == [sys.executable, "-c"] and arguments[2].startswith(FORKED)
        if not (source or arguments[:3] == PROGRAM) or UTF8 | read_at_start != _at_start():
            return None
        if not os.access(directory, os.X_OK):
            return None
        mask = os.umask(0)
        os.umask(mask)
        terminal = self.preexec_fn is not None
        return Request(arguments, directory, environment, self.start_new_session, terminal, mask)


# -- in the warm process ---------------------------------------------------------------------------


def import_everything() -> None:
    """All modules of the program, and what its functions import when they run."""
    import cipherbox

    found: set[str] = set()
    for module in pkgutil.walk_packages(cipherbox.__path__, "cipherbox."):
        if ".manual" in module.name or module.name.endswith("__main__"):
            continue
        found.add(module.name)
        importlib.import_module(module.name)
        source = Path(str(sys.modules[module.name].__file__)).read_text("utf-8")
        found |= {name for both in IMPORTS.findall(source) for name in both if name}
    for name in sorted(found - {"cipherbox.__main__"}):
        try:
            importlib.import_module(name)
        except ImportError:  # another system's
            pass
    for name in found & sys.modules.keys():
        for value in list(vars(sys.modules[name]).values()):
            getattr(value, "__attrs_attrs__", None)  # or each fork completes it: cipherbox.classes


def forking(control: socket.socket) -> Request:
    """Forks until there is nobody left to ask for it; comes back in each fork, with what it is
    to run.
    """
    while True:
        try:
            data, files, _, _ = socket.recv_fds(control, _LARGEST, 3)
        except KeyboardInterrupt:
            data = b""
        if not data:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()
        if not between:
            if pid := os.fork():  # whoever asked adopts it, once this one is gone
                os.write(write, b"%d" % pid)
                os._exit(0)
            os.close(read)
            os.close(write)
            control.close()
            request: Request = pickle.loads(data)
            become(request, files)
            return request
        os.close(write)
        for file in files:
            os.close(file)
        os.waitpid(between, 0)
        control.send(os.read(read, 20))
        os.close(read)


def become(request: Request, files: list[int]) -> None:
    """What a new Python would find."""
    if request.new_session:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if request.terminal:
        own_terminal()
    os.umask(request.umask)
    os.chdir(request.directory)
    os.environ.clear()
    os.environb.update(request.environment)
    sys.path[0] = "" if request.arguments[1] == "-c" else request.directory
    sys.orig_argv[:] = request.arguments
    sys.argv[:] = ["-c", *request.arguments[3:]]
    _show(sys.orig_argv)
    for number, name in enumerate(NAMES):
        text = _text(number)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def _show(arguments: list[str]) -> None:
    """Lets other processes see these arguments."""
    first, last = map(int, Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[45:47])
    shown = b"".join(os.fsencode(one) + b"\0" for one in arguments)[: last - first]
    ctypes.memmove(first, shown.ljust(last - first, b"\0"), last - first)


def _text(number: int) -> io.TextIOWrapper:
    """A standard file as Python opens it, with UTF-8."""
    raw = io.FileIO(number, "w" if number else "r", closefd=False)
    raw.name = f"<{NAMES[number]}>"
    plain = bool(number and os.environ.get("PYTHONUNBUFFERED"))
    buffer: Any = raw if plain else io.BufferedWriter(raw) if number else io.BufferedReader(raw)
    errors = "backslashreplace" if number == 2 else "strict"
    by_line = not plain and (number == 2 or raw.isatty())
    text = io.TextIOWrapper(
        buffer, "utf-8", errors, "\n", line_buffering=by_line, write_through=plain
    )
    text.mode = "w" if number else "r"  # type: ignore[misc]
    return text


def take_along() -> Request | None:
    """A warm process for what this one starts; comes back in each fork of it, with what that is to
    run.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        here.close()
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.close(null)
        return forking(there)
    there.close()
    warm = Warm()
    warm.use(here)
    _take_over(warm)
    return None


class Leaving:
    """The last step of an end, after threads and `atexit`: nothing is torn down module by
    module, which takes longer than most commands and copies all that was shared.
    """

    code: object = None

    def __call__(self) -> None:
        if isinstance(self.code, int):
            try:
                for file in (sys.stdout, sys.stderr):
                    if file is not None:
                        file.flush()
            except (OSError, ValueError):
                return  # Python has an exit code for that
            os._exit(self.code & 0xFF)


def main() -> None:
    leaving = Leaving()
    atexit.register(leaving)  # before all others, which are called before it
    control = socket.socket(fileno=int(sys.argv[1]))
    import_everything()
    gc.collect()
    gc.freeze()
    request = forking(control)
    if os.environ.get(CHEAP):
        from cipherbox.sealing import key_file

        key_file.MEMORY_KIB, key_file.PASSES = 64, 1
    if NESTED.intersection(request.arguments):
        request = take_along() or request
    try:
        if request.arguments[1] == "-c":
            sys.modules["__main__"] = module = ModuleType("__main__")
            exec(compile(request.arguments[2], "<string>", "exec"), module.__dict__)
        else:
            runpy.run_module("cipherbox", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        leaving.code = end.code
        raise

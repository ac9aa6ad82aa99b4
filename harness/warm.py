"""A fork server that has imported the third-party libraries, so that a stage starts in a fraction of a second.

The server imports libraries only: never this project's code (a child imports it anew, so an edit counts at once), never
CUDA. It is started by whoever needs it first, detached from it, and leaves after five idle minutes. It is named by
everything that a process inherits and that counts at import: interpreter, installed packages, environment, cgroup,
cores, limits. Whoever differs in one of them gets a server of its own, and a warm stage equals a cold one bit for bit.

One connection is one stage. Request: one line of JSON (``job`` as in harness.child, ``environment``, ``folder``) with
three descriptors: standard output, standard error, the lock. Replies: ``{"pid": ...}``, then ``{"exit": ...}``, where a
signal is negative. When the connection closes before that, the stage gets SIGTERM, and SIGKILL a grace later.

Used by ``harness.supervise``; ``TUNING_FORK_WARM=0`` does without, ``TUNING_FORK_WARM_LIBRARIES`` names other libraries.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import hashlib
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

LIBRARIES = (
    "numpy",
    "torch",
    "torch.utils.flop_counter",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "safetensors.torch",
    "peft",
    "lm_eval.models.huggingface",
    "scipy.stats",
    "zstandard",
    "jsonschema",
    "yaml",
)
AT_IMPORT = (
    *("PYTHON", "PATH", "LD_", "LANG", "LC_", "HOME", "TMPDIR", "XDG_", "MALLOC_", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VECLIB_", "RAYON_", "ATEN_", "DNNL_", "ONEDNN_"),
    *("TORCH", "PYTORCH_", "CUDA", "NVIDIA_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "ACCELERATE_", "LOGLEVEL", "MPL"),
    "TUNING_FORK_WARM_LIBRARIES",
)
"""Environment variables, by their beginnings, that libraries may read when they are imported."""
IDLE_SECONDS = 300.0
START_SECONDS = 300.0  # for all imports on a busy machine; after that a stage starts cold


# --------------------------------------------------------------------------- the supervisor's side


class WarmChild:
    """A stage forked by the server. ``pid``; ``wait`` and ``signal`` as its supervisor needs them."""

    def __init__(self, connection: socket.socket, pid: int):
        self._connection, self._buffer, self.pid = connection, b"", pid

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; None after ``seconds``; ConnectionError if the server is gone."""
        ready, _, _ = select.select([self._connection], [], [], seconds)
        if not ready:
            return None
        data = self._connection.recv(4096)
        if not data:
            raise ConnectionError("the warm server is gone")
        self._buffer += data
        return json.loads(self._buffer)["exit"] if self._buffer.endswith(b"\n") else None

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start(job: dict, environment: dict, descriptors: tuple[int, int, int]) -> WarmChild | None:
    """Start a stage through the server of this environment, starting that first where needed; None: do it cold."""
    if not available(environment):
        return None
    request = {"job": job, "environment": environment, "folder": os.getcwd()}
    line = json.dumps(request).encode() + b"\n"
    for _ in range(2):  # a server that is just leaving closes the connection: the second time there is a new one
        try:
            connection = _connect(environment)
        except OSError:
            return None
        try:
            sent = socket.send_fds(connection, [line[:4096]], list(descriptors))
            connection.sendall(line[sent:])
            reply = _reply(connection)
            if reply:
                return WarmChild(connection, json.loads(reply)["pid"])
        except TimeoutError:
            connection.close()  # the server sees it and does not fork: the stage never runs twice
            return None
        except OSError:
            pass
        connection.close()
    return None


def available(environment: dict) -> bool:
    """Whether stages may be forked here: Linux, no GPU, not switched off."""
    from harness.processes import has_gpu  # not at the top: the server imports none of our code

    return sys.platform.startswith("linux") and not has_gpu() and environment.get("TUNING_FORK_WARM", "1") != "0"


def server_name(environment: dict) -> str:
    """Sixteen hexadecimal digits of what makes two processes start alike."""
    packages = []
    for entry in dict.fromkeys(sys.path):
        with contextlib.suppress(OSError):
            found = os.listdir(entry or ".") if "site-packages" in entry or "dist-packages" in entry else []
            packages += [f"{entry}/{name}" for name in sorted(found) if name.endswith((".dist-info", ".pth"))]
    with contextlib.suppress(OSError):
        packages.append(Path("/proc/self/cgroup").read_text(encoding="utf-8"))  # a batch job's server ends with the job
    mask = os.umask(0o077)
    os.umask(mask)
    limits = [getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")]
    facts = [
        [sys.version, sys.executable, hashlib.sha256(Path(__file__).read_bytes()).hexdigest()],
        packages,
        sorted((key, value) for key, value in environment.items() if key.startswith(AT_IMPORT)),
        [sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0), mask],
        [resource.getrlimit(limit) for limit in limits],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def runtime_folder(environment: dict) -> Path:
    """This user's folder of sockets, readable by nobody else. Raises OSError when it is someone else's."""
    base = environment.get("TUNING_FORK_RUNTIME") or environment.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "tuning-fork" if base and os.path.isdir(base) else Path(f"/tmp/tuning-fork-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user")
    return folder


def _connect(environment: dict) -> socket.socket:
    """A connection to this environment's server; if there is none, one is started."""
    folder = runtime_folder(environment)
    name = server_name(environment)
    path = folder / f"{name}.socket"
    with open(folder / f"{name}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two first stages start one server
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        _launch(path, environment)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def _launch(path: Path, environment: dict) -> None:
    """Start a server with an open socket: requests wait in it while the server imports."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, open(path.with_suffix(".log"), "wb") as log:
        listener.bind(str(path))
        listener.listen(128)
        # -P: the folder of this file must not stand on the server's path, its names (data, record) are ours alone.
        subprocess.Popen(
            [sys.executable, "-P", __file__, str(listener.fileno()), str(path)],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        ).returncode = 0  # it is meant to outlive this process: nobody waits for it


def _reply(connection: socket.socket) -> bytes:
    """The first line of the server, or nothing."""
    connection.settimeout(START_SECONDS)
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(1)  # not a byte of the next line
        if not part:
            return b""
        data += part
    connection.settimeout(None)
    return data


# --------------------------------------------------------------------------- the server's side


class Server:
    """Accepts requests, forks, reaps, reports. ``run`` gives None when it leaves, in a forked child the request."""

    def __init__(self, listener: socket.socket, path: Path):
        self.listener, self.path = listener, path
        self.inode = path.stat().st_ino
        self.connections: dict[socket.socket, int] = {}  # to the supervisor of which process
        self.grace: dict[int, float] = {}  # seconds between SIGTERM and SIGKILL, by process
        self.kill_at: dict[int, float] = {}  # stages without a supervisor: when their grace is over
        self.idle_since = time.monotonic()
        self.idle_seconds = float(os.environ.get("TUNING_FORK_WARM_IDLE", IDLE_SECONDS))
        self.wake, wake_end = socket.socketpair()
        self.wake.setblocking(False)
        wake_end.setblocking(False)
        self.wake_end = wake_end
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only a handled signal is written to the wake-up descriptor
        signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)

    def run(self) -> dict | None:
        while True:
            watched = [self.listener, self.wake, *self.connections]
            ready, _, _ = select.select(watched, [], [], min(1.0, self.idle_seconds))
            for source in ready:
                if source is self.wake:
                    with contextlib.suppress(BlockingIOError):
                        self.wake.recv(4096)
                elif source is self.listener:
                    request = self._accept()
                    if request is not None:
                        return request
                elif source in self.connections:
                    self._abandon(source)
            self._reap()
            if self.connections or self.kill_at:
                self.idle_since = time.monotonic()
            elif time.monotonic() - self.idle_since >= self.idle_seconds or self._replaced():
                self._leave()
                return None

    def _accept(self) -> dict | None:
        """Fork for one request; None in the server."""
        connection, _ = self.listener.accept()
        request, descriptors = self._receive(connection)
        if request is None:
            connection.close()
        else:
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become_child(connection, descriptors)
                request["job"] |= {"parent": server, "lock": descriptors[2]}
                return request
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # here and in the child: whoever is first
            self.connections[connection] = pid
            self.grace[pid] = float(request["environment"].get("TUNING_FORK_GRACE", 60))
            try:
                connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
            except OSError:
                self._abandon(connection)
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _receive(self, connection: socket.socket) -> tuple[dict | None, list[int]]:
        """(the request, its descriptors); no request when it is no whole one, or nobody waits for it any more."""
        descriptors: list[int] = []
        try:
            connection.settimeout(10)
            data, descriptors, _, _ = socket.recv_fds(connection, 65536, 3)
            while not data.endswith(b"\n"):
                part = connection.recv(65536)
                if not part:
                    return None, descriptors
                data += part
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if connection.recv(1) == b"":
                    return None, descriptors
            connection.setblocking(True)
            return json.loads(data), descriptors
        except (OSError, ValueError) as error:
            print(f"request dropped: {error}", file=sys.stderr, flush=True)
            return None, descriptors

    def _become_child(self, connection: socket.socket, descriptors: list[int]) -> None:
        """Drop what is the server's; standard streams are the request's; a process group of its own."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for held in (self.listener, self.wake, self.wake_end, connection, *self.connections):
            held.close()
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)
        os.close(descriptors[0])
        os.close(descriptors[1])
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)

    def _abandon(self, connection: socket.socket) -> None:
        """The supervisor is gone: its stage checkpoints and ends."""
        pid = self.connections.pop(connection)
        connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        self.kill_at[pid] = time.monotonic() + self.grace[pid]

    def _reap(self) -> None:
        """Report every stage that has ended; end those whose grace is over."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.kill_at.pop(pid, None)
            self.grace.pop(pid, None)
            for connection in [c for c, owner in self.connections.items() if owner == pid]:
                del self.connections[connection]
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps({"exit": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
                connection.close()
        for pid, when in list(self.kill_at.items()):
            if time.monotonic() >= when:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def _replaced(self) -> bool:
        """Whether the socket's file is no longer this server's: nobody can find it any more."""
        try:
            return self.path.stat().st_ino != self.inode
        except OSError:
            return True

    def _leave(self) -> None:
        if not self._replaced():
            self.path.unlink(missing_ok=True)
        self.listener.close()


def main(descriptor: int, path: Path) -> int:
    """The server's life, and in a forked child the stage's."""
    server = Server(socket.socket(fileno=descriptor), path)
    for library in os.environ.get("TUNING_FORK_WARM_LIBRARIES", " ".join(LIBRARIES)).split():
        try:
            __import__(library)
        except ImportError as error:  # the stage that needs it will say so
            print(f"{library}: {error}", file=sys.stderr, flush=True)
    gc.collect()
    gc.freeze()  # children share these pages as long as nobody writes to them
    request = server.run()
    if request is None:
        return 0
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path.insert(0, request["folder"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # as in a process of its own: no two children start from one state
    from harness.child import run

    code = run(request["job"])
    threading._shutdown()  # wait for the stage's threads and call what it wants called, as an ending interpreter does,
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # but do not take a million objects apart one by one


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))

"""Workers as Ray actors, on this machine or on a cluster.

    send ──> actor.put(bytes) ────> inbox ──receive──> serve(channel)  on a thread of the actor
    poll <── actor.take(timeout) <─ outbox <──send────
             one call always on its way; its end wakes `poll`

Ray places an actor (`resources`), sees it die and ends it with its coordinator. It restarts none:
that is for those above. Only bytes and text cross. The worker's environment needs the same Ray and
the same minor version of Python as the cluster. Ray itself prints a line when an actor dies.

A cluster started here listens on the loopback interface and takes a fresh token; an existing one is
addressed with the user's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token), unless
RAY_AUTH_MODE=disabled. Ray gives an actor as many OMP threads as CPUs are named in `resources`,
one if none are, and shows it no GPU that is not named.
"""

import importlib
import logging
import os
import queue
import re
import secrets
import shlex
import socket
import sys
import threading
import traceback
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost, Spec
from interlock.fleet.local import interpreter
from interlock.processes.child import UNASKED_BYTES
from interlock.processes.deadline import Deadline
from interlock.processes.frames import too_long
from interlock.processes.logs import appended, cut, tail
from interlock.processes.scratch import Scratch
from interlock.processes.spins import few_spins
from interlock.text import described, error_line, last_line

_TAKE_S = 5.0  # one call of `take` at most
_REASON_CHARACTERS = 300
_REACH_S = 10.0
_SINGLE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0" does that on Linux, too
_TOUCH = 0.001  # of a machine's own resource, which places a worker there and takes nothing away

_Reply = tuple[list[bytes], str | None]  # messages, and why no more will come
_Arrival = tuple["_Actor", "Future[_Reply]"]


class RayNode(NamedTuple):
    """A machine of the cluster."""

    host: str
    address: str
    whole: dict[str, float]  # resources: what names the machine, and all its accelerators


class RayFleet:
    """See `base.Fleet`. `address`: "host:port" of a cluster; None: RAY_ADDRESS, or start one here.

    A worker that does not run `start_s` seconds after its start, for want of free resources or of
    a working environment, is lost. One that is lost or killed takes Ray some seconds to end.
    Messages that had not left an actor when it died are lost with it. Raises ConfigError when there
    is no Ray, or no way into it.
    """

    def __init__(self, address: str | None = None, start_s: float = 300.0) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        if address is not None:
            reach(address)
        self._starts_cluster = address is None
        self._start_s = start_s
        self._directory: Scratch | None = None
        self._ray = _import_ray(self._starts_cluster)
        self._connect(address)
        self._node = self._ray.get_runtime_context().get_node_id()
        self._actor = self._ray.remote(
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"put": 1, "take": 1},  # one thread each keeps the order
        )(RayWorker)
        self._workers: dict[str, _Actor] = {}
        self._events: list[Event] = []
        # Replies from Ray's threads; None: wake up.
        self._arrived: queue.SimpleQueue[tuple[_Actor, Future[_Reply]] | None] = queue.SimpleQueue()

    def nodes(self) -> list[RayNode]:
        """The cluster's machines that are alive."""
        alive = (node for node in self._ray.nodes() if node["Alive"])
        return [
            RayNode(
                node["NodeManagerHostname"],
                node["NodeManagerAddress"],
                {
                    kind: min(amount, _TOUCH) if ":" in kind else amount
                    for kind, amount in node["Resources"].items()
                    if kind == f"node:{node['NodeManagerAddress']}"
                    or (kind.isupper() and kind != "CPU")
                },
            )
            for node in alive
        ]

    def start(self, spec: Spec) -> None:
        assert spec.name not in self._workers, spec.name
        environment: dict[str, Any] = {
            "env_vars": {"PYTHONUNBUFFERED": "1", **few_spins(), **spec.env}
        }
        if spec.python is not None:
            python = interpreter(spec) if self._starts_cluster else spec.python
            environment["py_executable"] = shlex.quote(python)  # Ray hands it to a shell
        problem = self._infeasible(spec.resources)
        if problem is not None and self._starts_cluster:
            raise ConfigError(f"generator {spec.name!r}: {problem}; mend its resources")
        if problem is not None:  # nodes come and go
            self._events.append((spec.name, Lost(problem)))
            return
        others = {kind: n for kind, n in spec.resources.items() if kind not in ("CPU", "GPU")}
        try:
            actor = self._actor.options(
                num_cpus=spec.resources.get("CPU", 0),
                num_gpus=spec.resources.get("GPU", 0),
                resources=others,
                runtime_env=environment,
            ).remote(spec.module, str(spec.log.absolute()), self._node)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"generator {spec.name!r}: {error_line(error, _REASON_CHARACTERS)}"
            ) from None
        worker = _Actor(spec, actor, Deadline(self._start_s))
        self._workers[spec.name] = worker
        self._take(worker, 0.0)  # answers as soon as the actor runs

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        worker = self._workers.get(name)
        if worker is not None:
            worker.limit = worker.limit if reply_bytes is None else reply_bytes
            worker.actor.put.options(concurrency_group="put").remote(message)

    def poll(self, timeout_s: float) -> list[Event]:
        deadline = Deadline(timeout_s)
        woken = False
        while True:
            starting = [w.deadline.left for w in self._workers.values() if not w.runs]
            wait_s = 0.0 if self._events or woken else min([deadline.left, *starting])
            try:
                arrived = self._arrived.get(timeout=wait_s)
            except queue.Empty:
                self._give_up_overdue()
                if self._events or woken or deadline.over:
                    break
                continue
            if arrived is None:
                woken = True
            elif self._workers.get(arrived[0].spec.name) is arrived[0]:  # not of one killed since
                self._receive(*arrived)
        events, self._events = self._events, []
        return events

    def pid(self, name: str) -> int | None:
        return None

    def wake(self) -> None:
        self._arrived.put(None)

    def kill(self, name: str) -> None:
        worker = self._workers.pop(name, None)
        if worker is not None:
            self._ray.kill(worker.actor)
        self._events = [event for event in self._events if event[0] != name]

    def close(self) -> None:
        for name in list(self._workers):
            self.kill(name)
        self._ray.shutdown()
        if self._directory is not None:
            self._directory.cleanup()

    def _connect(self, address: str | None) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            # Where Ray's socket names, which have a limit, fit.
            self._directory = Scratch("interlock-ray-", "/tmp")
            options |= {
                "address": "local",  # never a cluster that happens to run here
                "include_dashboard": False,
                # Ray opens its directory to everybody: this one lies in ours.
                "_temp_dir": f"{self._directory.name}/ray",
                # What a worker started goes with it; no worker is slowed down.
                "_system_config": {"process_group_cleanup_enabled": True, "worker_niceness": 0},
            }
        else:
            options |= {"address": address}
        try:
            self._ray.init(**options)
        except (self._ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            reason = error_line(error, _REASON_CHARACTERS)
            if address is None:
                raise ConfigError(f"a local Ray cluster does not start: {reason}") from error
            raise ConfigError(f"Ray at {address}: {reason}; is it the right token?") from error

    def _infeasible(self, wanted: dict[str, float]) -> str | None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(kind, 0) >= n for kind, n in wanted.items()) for node in nodes):
            return None
        kinds = sorted({kind for node in nodes for kind in node if kind.isupper()} | wanted.keys())
        most = {kind: max([node.get(kind, 0) for node in nodes], default=0) for kind in kinds}
        return f"no node of the Ray cluster has {_amounts(wanted)}; the most are {_amounts(most)}"

    def _take(self, worker: "_Actor", timeout_s: float) -> None:
        reply = worker.actor.take.options(concurrency_group="take").remote(timeout_s)
        reply.future().add_done_callback(lambda future: self._arrived.put((worker, future)))

    def _receive(self, worker: "_Actor", future: "Future[_Reply]") -> None:
        try:
            messages, end = future.result()
        except self._ray.exceptions.RayError as error:
            self._lose(worker, worker.epitaph(error))
            return
        worker.runs = True
        for message in messages:
            if len(message) > worker.limit:
                self._lose(worker, too_long(len(message), worker.limit))
                return
            self._events.append((worker.spec.name, message))
        if end is None:
            self._take(worker, _TAKE_S)
        else:
            self._lose(worker, end)

    def _give_up_overdue(self) -> None:
        for worker in list(self._workers.values()):
            if not worker.runs and worker.deadline.over:
                wanted = _amounts(worker.spec.resources) or "its environment"
                self._lose(worker, f"not started in {self._start_s:g} s: waited for {wanted}")

    def _lose(self, worker: "_Actor", reason: str) -> None:
        del self._workers[worker.spec.name]
        self._ray.kill(worker.actor)
        self._events.append((worker.spec.name, Lost(reason)))


class _Actor:
    """The coordinator's view of one worker."""

    def __init__(self, spec: Spec, actor: Any, deadline: Deadline) -> None:
        self.spec = spec
        self.actor = actor
        self.deadline = deadline  # of its start
        self.limit = UNASKED_BYTES
        self.runs = False
        self._log_start = spec.log.stat().st_size if spec.log.is_file() else 0

    def epitaph(self, error: Exception) -> str:
        """Of all that Ray says, the cause; and the last line of the log, where it is here."""
        cause = re.search(r"is dead because (.+?)\.( |$)", error_line(error, 2000))
        if cause is None:
            return error_line(error, _REASON_CHARACTERS)
        words = ""
        with suppress(OSError), open(self.spec.log, "rb") as log:
            words = last_line(tail(log, self._log_start), _REASON_CHARACTERS)
        return f"{cause[1]}: {words}".removesuffix(": ")


class RayWorker:
    """The actor, and the channel of the worker inside it."""

    def __init__(self, module: str, log: str, coordinator_node: str) -> None:
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        ray = importlib.import_module("ray")
        here = ray.get_runtime_context().get_node_id() == coordinator_node
        self._log = _print_to(Path(log)) if here else None
        threading.Thread(target=self._serve, args=[module], name="worker", daemon=True).start()

    def receive(self) -> bytes | None:
        return self._inbox.get()

    def send(self, message: bytes) -> None:
        self._outbox.put(message)

    def put(self, message: bytes) -> None:
        self._inbox.put(message)

    def take(self, timeout_s: float) -> _Reply:
        """Wait for messages, and give all there are."""
        if self._log is not None:  # here, as this is called all the time
            cut(self._log)
        messages: list[bytes] = []
        while True:
            try:
                item = self._outbox.get(timeout=0.0 if messages else timeout_s)
            except queue.Empty:
                return messages, None
            if isinstance(item, str):
                return messages, item
            messages.append(item)

    def _serve(self, module: str) -> None:
        end = "exit code 0"
        try:
            importlib.import_module(module).serve(self)
        except BaseException as error:
            traceback.print_exc()
            end = f"exit code 1: {described(error, _REASON_CHARACTERS)}"
        self._outbox.put(end)


def reach(address: str) -> None:
    """Raises ConfigError where nobody listens there.

    Ray itself would try for many minutes, and takes a name for an address of its client.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address!r} ({error}): give host:port") from None


def _import_ray(starts_cluster: bool) -> Any:
    """Ray reads these variables when it is imported."""
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        raise ConfigError("Ray was imported without authentication: set RAY_AUTH_MODE=token")
    if "ray" in sys.modules and starts_cluster and _SINGLE_MACHINE not in os.environ:
        raise ConfigError(
            "Ray was imported for clusters elsewhere, and one started now would listen on every "
            f"interface: set {_SINGLE_MACHINE}=0 before, or start it in another process"
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if starts_cluster:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ[_SINGLE_MACHINE] = "0"
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"fleet kind 'ray' needs Ray ({error}): pip install 'interlock[ray]'"
        ) from None


def _print_to(log: Path) -> BinaryIO:
    file = appended(log)
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    return file


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{kind} {amount:g}" for kind, amount in sorted(resources.items()))

"""`interlock serve`: from a model's name to an endpoint that answers.

settings, keys, model ──┬─ a thread: open_pool ──> a replica serves ──> ready: the URL
                        └─ listens (503 until then) ── SIGTERM: streams end, then the replicas

The replicas are started before anything of HTTP is imported, which they need not wait for.
"""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, NamedTuple

from interlock.config.serving import ServeSettings
from interlock.errors import ConfigError, TrainingError
from interlock.listening import bound
from interlock.models.fetch import find_model
from interlock.records.serving import ReplicaState
from interlock.regular import read_regular
from interlock.serve.http.keys import ADMIN_VARIABLE, API_VARIABLE, Keys, load_keys, new_key
from interlock.serve.http.open_files import allow_files
from interlock.text import hide_credentials, one_line
from interlock.workers.replicas.base import Replicas
from interlock.workers.replicas.crew import PoolTerms
from interlock.workers.replicas.opening import open_pool

if TYPE_CHECKING:
    from interlock.serve.endpoint import Endpoint

Say = Callable[[str], None]
_LOOK_S = 0.05
_OPENING_S = 20.0  # for what is being opened when it ends
_GONE = (ReplicaState.REFUSED, ReplicaState.RETIRED)


class Access(NamedTuple):
    """Who may ask. `made`: the key that was generated, as none was given."""

    keys: Keys
    admin: Keys
    made: str | None


def access(api_keys: Path | None, admin_keys: Path | None) -> Access:
    """The keys of files and of the environment. Raises ConfigError."""
    given = load_keys(api_keys, API_VARIABLE, os.environ)
    admin = Keys(load_keys(admin_keys, ADMIN_VARIABLE, os.environ), "admin")
    made = None if given else new_key()
    keys = Keys(given or [str(made)])
    if keys.overlaps(admin):
        raise ConfigError("a key is both an API key and an admin key; give the admin another")
    return Access(keys, admin, made)


def serve(model: str, settings: ServeSettings, who: Access, follow: str | None, say: Say) -> None:
    """Until a signal. Raises UserError on what is wrong with the model or the settings,
    TrainingError when no replica comes up, KeyboardInterrupt at a second signal.
    """
    directory = find_model(model, say)
    allow_files(settings.limits.connections)
    listener = bound(settings.host, settings.port)
    opening = _Opening(directory, settings, None if follow is None else versions_of(follow), say)
    try:
        _run(opening, model, settings, who, listener)
    finally:
        opening.close()
    if opening.error is not None:
        raise opening.error
    opening.forget_logs()


def _run(
    opening: "_Opening", model: str, settings: ServeSettings, who: Access, listener: socket
) -> None:
    """What answers, made while the replicas start."""
    from interlock.models.tokenizer import Tokenizer
    from interlock.serve.app import guarded, make_app
    from interlock.serve.endpoint import Endpoint
    from interlock.serve.http.server import DrainingServer

    tokenizer = Tokenizer.load(opening.directory, settings.chat_template)
    endpoint = Endpoint(settings.names or [name_of(model)], tokenizer, settings)
    app = guarded(make_app(endpoint), endpoint, who.keys, who.admin)
    server = DrainingServer(app, endpoint)
    fragment = "" if who.made is None else f"/#key={who.made}"
    url = url_of(settings.host, listener.getsockname()[1])
    opening.attach(endpoint, server.stop, f"{endpoint.name} is served at {url}{fragment}")
    server.run([listener])
    opening.ending.set()
    if server.killed:
        raise KeyboardInterrupt


class _Opening:
    """Starts the replicas in a thread, at once, and says when the first serves."""

    def __init__(
        self, directory: Path, settings: ServeSettings, follow: str | None, say: Say
    ) -> None:
        self.directory = directory
        self._settings, self._follow, self._say = settings, follow, say
        self._noted = threading.Event()
        self.ending, self._attached = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._pool: Replicas | None = None
        self._logs: Path | None = None
        self._thread = threading.Thread(target=self._run, name="open", daemon=True)
        self._thread.start()

    def attach(self, endpoint: "Endpoint", stop: Callable[[], None], ready: str) -> None:
        """What the replicas are for. `stop` is called when none comes up; `ready` is said."""
        self._endpoint, self._stop, self._ready = endpoint, stop, ready
        self._attached.set()

    def close(self) -> None:
        """End the replicas: what was asked has ended, or has been told so."""
        self.ending.set()
        self._attached.set()
        self._thread.join(_OPENING_S)
        if self._pool is not None:
            self._pool.close(0.0)

    def forget_logs(self) -> None:
        """Of workers that came to a clean end nobody asks what they printed."""
        if self._logs is not None:
            shutil.rmtree(self._logs, ignore_errors=True)

    def _run(self) -> None:
        try:
            self._pool = self._opened()
        except BaseException as error:
            self.error = error
        self._attached.wait()
        if self.ending.is_set():
            return
        try:
            if self._pool is not None:
                self._endpoint.replicas = self._pool
                if self._serves(self._pool):
                    self._say(self._ready)
        except BaseException as error:
            self.error = error
        if self.error is not None:
            self._stop()

    def _opened(self) -> Replicas:
        settings = self._settings
        replicas = settings.replicas()
        logs = self._logs = Path(tempfile.mkdtemp(prefix="interlock-serve-"))
        self._say(f"starting {', '.join(replicas)}; their logs are in {logs}")
        return open_pool(
            self.directory,
            replicas,
            settings.fleet,
            logs,
            self._note,
            chat_template=settings.chat_template,
            band=settings.guard,
            terms=terms_of(settings),
            follow=self._follow,
        )

    def _note(self, kind: str, message: str, replica: str) -> None:
        self._say(f"{one_line(replica, 80)}: {one_line(hide_credentials(message), 400)}")
        self._noted.set()

    def _serves(self, pool: Replicas) -> bool:
        """Waits until a replica does; False: it ends before. Raises TrainingError."""
        while not self.ending.is_set():
            facts = pool.facts()
            if any(each.state.serves for each in facts):
                return True
            if all(each.state in _GONE for each in facts):
                why = "; ".join(f"{each.name}: {each.reason}" for each in facts)
                raise TrainingError(f"no replica serves: {one_line(why, 600)}")
            self._noted.wait(_LOOK_S)
            self._noted.clear()
        return False


def terms_of(settings: ServeSettings) -> PoolTerms:
    """What the pool is held to."""
    return PoolTerms(
        queue=settings.queue,
        examine_s=settings.examine_s,
        drain_s=settings.load_drain_s,
        stall_s=settings.stall_s,
        unqualified=settings.unqualified,
        reference=settings.reference,
    )


def versions_of(follow: str) -> str:
    """Where a run publishes its weights; what is no run is such a place itself.

    Raises ConfigError.
    """
    directory, shown = Path(follow), one_line(repr(follow), 80)
    if "://" not in follow and not directory.is_dir():
        raise ConfigError(
            f"nothing to follow at {shown}: give the directory of a run, or the directory or URL "
            "that it publishes to"
        )
    if "://" in follow or not (directory / "manifest.json").is_file():
        return follow
    if (directory / "sync").is_dir():
        return str(directory / "sync")
    tree = json.loads(read_regular(directory / "config.json", 1 << 22))
    if isinstance(url := tree.get("sync", {}).get("url"), str):
        created = json.loads(read_regular(directory / "manifest.json", 1 << 22))["created"]
        # Below the URL, which runs may share: see recipes/fleet.py.
        return f"{url.rstrip('/')}/{directory.resolve().name}-{created:.0f}"
    raise ConfigError(
        f"the run {shown} publishes no weights: its generator is inline; give a run whose "
        'fleet.kind is "local" or "ray"'
    )


def name_of(model: str) -> str:
    """What a model is called where settings do not say."""
    if model.startswith("hf:"):
        return model.removeprefix("hf:").partition("@")[0]
    path = Path(model).expanduser()
    return one_line(path.resolve().name if path.exists() else model, 200)


def url_of(host: str, port: int) -> str:
    """As it may be opened here."""
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host)
    return f"http://{here or (f'[{host}]' if ':' in host else host)}:{port}"

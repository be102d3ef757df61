"""`interlock serve`: from a model's name to an endpoint that answers.

settings, keys, model ──> listens at once (503) ── a thread: open_pool ──> ready: the URL
                                └── SIGTERM: streams end, then the replicas
"""

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from interlock.config.schema import GeneratorSettings
from interlock.config.serving import ServeSettings
from interlock.errors import ConfigError, TrainingError
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from interlock.records.serving import ReplicaState
from interlock.serve.app import guarded, make_app
from interlock.serve.endpoint import Endpoint
from interlock.serve.keys import ADMIN_VARIABLE, API_VARIABLE, Keys, load_keys, new_key
from interlock.serve.server import DrainingServer, allow_files, listen
from interlock.text import hide_credentials, one_line
from interlock.workers.replicas.crew import PoolTerms
from interlock.workers.replicas.opening import open_pool

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
    store = None if follow is None else versions_of(follow)
    tokenizer = Tokenizer.load(directory, settings.chat_template)
    endpoint = Endpoint(settings.names or [name_of(model)], tokenizer, settings)
    allow_files(settings.limits.connections)
    listener = listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    server = DrainingServer(guarded(make_app(endpoint), endpoint, who.keys, who.admin), endpoint)
    opening = _Opening(endpoint, directory, store, say, server)
    fragment = "" if who.made is None else f"/#key={who.made}"
    ready = f"{endpoint.name} is served at {url_of(settings.host, port)}{fragment}"
    thread = threading.Thread(target=lambda: opening.run(ready), name="open", daemon=True)
    thread.start()
    try:
        server.run([listener])
    finally:
        thread.join(0 if server.killed else _OPENING_S)
        if endpoint.replicas is not None:
            endpoint.replicas.close(0.0)  # what was asked has ended, or has been told so
    if opening.error is not None:
        raise opening.error
    if server.killed:
        raise KeyboardInterrupt


class _Opening:
    """Starts the replicas beside the server, and waits for the first that serves."""

    def __init__(
        self,
        endpoint: Endpoint,
        directory: Path,
        store: str | None,
        say: Say,
        server: DrainingServer,
    ) -> None:
        self._endpoint, self._directory, self._store = endpoint, directory, store
        self._say, self._server = say, server
        self._noted = threading.Event()
        self.error: BaseException | None = None

    def run(self, ready: str) -> None:
        """`ready` is said once a replica serves."""
        try:
            self._open()
            if self._wait():
                self._say(ready)
        except BaseException as error:
            self.error = error
            self._server.stop()

    def _open(self) -> None:
        settings = self._endpoint.settings
        self._endpoint.replicas = open_pool(
            self._directory,
            replicas_of(settings),
            settings.fleet,
            Path(tempfile.mkdtemp(prefix="interlock-serve-")),
            self._note,
            chat_template=settings.chat_template,
            band=settings.guard,
            terms=PoolTerms(queue=settings.queue, unqualified=settings.unqualified),
            follow=self._store,
        )

    def _note(self, kind: str, message: str, replica: str) -> None:
        self._say(f"{one_line(replica, 80)}: {one_line(hide_credentials(message), 400)}")
        self._noted.set()

    def _wait(self) -> bool:
        """Whether a replica serves; False: the server ends before. Raises TrainingError."""
        pool = self._endpoint.replicas
        assert pool is not None
        while not self._server.should_exit:
            facts = pool.facts()
            if any(each.state.serves for each in facts):
                return True
            if all(each.state in _GONE for each in facts):
                why = "; ".join(f"{each.name}: {each.reason}" for each in facts)
                raise TrainingError(f"no replica serves: {one_line(why, 600)}")
            self._noted.wait(_LOOK_S)
            self._noted.clear()
        return False


def replicas_of(settings: ServeSettings) -> dict[str, GeneratorSettings]:
    """The settings of every replica, by its name. Raises ConfigError on two of one name."""
    found: dict[str, GeneratorSettings] = {}
    for index, each in enumerate(settings.replica):
        base = each.name or f"replica-{index}"
        names = [base] if each.count == 1 else [f"{base}-{i}" for i in range(each.count)]
        for name in names:
            if name in found:
                raise ConfigError(f"two replicas are named {name!r}; give each [[replica]] a name")
            found[name] = each
    return found


def versions_of(follow: str) -> str:
    """Where a run publishes its weights: of its newest session, or the URL itself.

    Raises ConfigError.
    """
    directory = Path(follow)
    if "://" in follow or not (directory / "manifest.json").is_file():
        return follow
    sessions = [each for each in (directory / "sync").glob("*") if each.is_dir()]
    if not sessions:
        shown = one_line(repr(follow), 80)
        raise ConfigError(
            f"the run {shown} has published no weights in its directory; give the sync.url of its "
            "recipe"
        )
    return str(max(sessions, key=lambda each: each.stat().st_mtime))


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

"""A teacher behind an OpenAI-compatible URL: it reads texts, and tells log-probabilities.

    texts ── POST /v1/completions, prompt_logprobs = k, each ──> own [T], ids, logprobs [T, k]
              └─ what may pass (interlock.remote): again, later, until patience_s

`interlock serve` and vLLM tell log-probabilities of prompts so, at temperature 1. Whether the
endpoint has the student's tokenizer is tried on a text with many scripts and the special tokens.

Legend: T completion tokens of all texts, k alternatives
"""

import json
import math
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from interlock.config.distilling import TeacherSettings
from interlock.errors import ConfigError, ModelError, TrainingError
from interlock.models.tokenizer import Tokenizer
from interlock.processes.deadline import Deadline
from interlock.remote import OverlongAnswer, Passing, Service
from interlock.text import error_line, hide_credentials, one_line
from interlock.workers.handle import backoff

_CHECK_S = 30.0  # that an endpoint is waited for before the run begins
_LOOK_S = 0.5  # between two looks at what the requests had to say
_LONGEST_PAUSE_S = 60.0  # that an endpoint may ask for
_ROUNDING = 1e-3  # by which a log-probability may be above 0
_PROBE = (
    "The quick brown fox jumps over 13 lazy dogs.\n\n\tdef f(x):\n        return x**2  # 3.14e-2\n"
    "naïve café — “π ≈ 22/7”; Привет, мир! 你好世界。 こんにちは 안녕하세요 "
    "مرحبا שלום हिन्दी 🙂🚀 "
    "\\frac{a}{b} <think> 1234567890 HTTPResponse snake_case   trailing  "
)


_LATER = "see to it, and go on with --resume"
_NEEDS = "have /tokenize, and /v1/completions with prompt_logprobs, as interlock serve and vLLM do"


class Read(NamedTuple):
    """A text: what was given, and the completion whose tokens are to be scored."""

    given: list[int]
    completion: list[int]


class Said(NamedTuple):
    """Of a completion of N tokens: own [N], and the k likeliest of each place, likeliest first."""

    own: list[float]
    ids: list[list[int]]
    logprobs: list[list[float]]


class ScoringClient:
    """Asks one endpoint; its connections are closed at the end of its `with`.

    tokens, retries: how many tokens it was given to read, and how often it was asked again.
    """

    def __init__(self, name: str, settings: TeacherSettings, model: str | None = None) -> None:
        """`model`: by its name there, where it is known. Raises ConfigError when the key or the
        package is missing.
        """
        assert settings.url is not None
        self.name, self._settings = name, settings
        self._base = settings.url.rstrip("/").removesuffix("/v1")
        self._shown = hide_credentials(self._base)
        self.model = model or settings.served  # None: found by `check`
        self._service = _service(name, settings)
        self._checking = False
        self._stop = threading.Event()
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.tokens = self.retries = 0

    def __enter__(self) -> "ScoringClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._service.close()

    def check(self, tokenizer: Tokenizer, k: int) -> int:
        """Find the endpoint's model, compare tokenizers, and have it score a token with k
        alternatives, as endpoints allow few or none. -> tokens of the longest text

        Raises ModelError when it has another tokenizer, and as `score` does.
        """
        self._checking, allowed = True, min(self._settings.patience_s, _CHECK_S)
        if self.model is None:
            told = self._ask("GET", "/v1/models", None, allowed)
            with _told(self, "no model", "name one of its models with served, or mend url"):
                self.model = str(told["data"][0]["id"])
        probe = _PROBE + "".join(dict.fromkeys(tokenizer.roles.values()))
        body = {"model": self.model, "prompt": probe, "add_special_tokens": False}
        told = self._ask("POST", "/tokenize", body, allowed)
        with _told(self, "no tokens"):
            theirs, longest = list(told["tokens"]), int(told["max_model_len"])
        if theirs != tokenizer.encode(probe):
            raise ModelError(
                f"teacher {self.name!r} at {self._shown} has another tokenizer than the student; "
                "take a teacher of the student's family, or train on its answers (sft)"
            )
        self._score(Read(theirs[:1], theirs[1:2]), k, allowed)
        self._checking = False
        return longest - 1  # a token is drawn behind each text

    def score(self, texts: Sequence[Read], k: int, note: Callable[[str], None]) -> list[Said]:
        """What the model says of some texts; `note` is told once that the endpoint is late.

        Raises TrainingError when one is not scored within patience_s, or is refused.
        """
        told = False
        with ThreadPoolExecutor(self._settings.concurrent) as pool:
            patience = self._settings.patience_s
            asked = [pool.submit(self._score, text, k, patience) for text in texts]
            left: set[Future[Said]] = set(asked)
            try:
                while left:
                    done, left = wait(left, _LOOK_S, FIRST_EXCEPTION)
                    while not self._notes.empty():
                        if (why := self._notes.get()) and not told:
                            note(why)
                            told = True
                    for each in done:
                        each.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [each.result() for each in asked]

    def _score(self, text: Read, k: int, allowed: float) -> Said:
        tokens = text.given + text.completion
        body = {
            "model": self.model,
            "prompt": tokens,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": k,
        }
        told = self._ask("POST", "/v1/completions", body, allowed)
        with _told(self, "no log-probabilities of the prompt"):
            places = told["choices"][0]["prompt_logprobs"]
            if len(places) != len(tokens):
                raise ValueError(f"{len(places)} places of {len(tokens)}")
            found = [
                _place(place, token, k)
                for place, token in zip(places[len(text.given) :], text.completion, strict=True)
            ]
        with self._lock:
            self.tokens += len(tokens)
        return Said(*([part[n] for part in found] for n in range(3)))  # type: ignore[arg-type]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, allowed: float) -> Any:
        """The answer to a request, sent again while what fails may pass, for `allowed` seconds."""
        deadline, failures = Deadline(allowed), 0
        while True:
            try:
                return self._once(method, path, body, deadline)
            except Passing as error:
                failures += 1
                asked = min(_LONGEST_PAUSE_S, error.pause_s or 0.0)
                pause = max(backoff(self._settings.backoff_s, failures), asked)
                why = f"teacher {self.name!r} at {self._shown}: {one_line(str(error), 200)}"
            if pause >= deadline.left:
                # Before a run there is nothing to go on with.
                remedy = "start it, or mend the teacher's url" if self._checking else _LATER
                raise TrainingError(f"{why}; not answered within {allowed:g} s: {remedy}")
            with self._lock:
                self.retries += 1
            self._notes.put(f"{why}; asked again")
            if self._stop.wait(pause):
                raise TrainingError(f"{why}; given up with the others")

    def _once(self, method: str, path: str, body: dict[str, Any] | None, deadline: Deadline) -> Any:
        import httpx2

        seconds = min(self._settings.timeout_s, max(deadline.left, 0.001))
        most, url = self._settings.most_mb << 20, f"{self._base}{path}"
        try:
            found = self._service.exchange(method, url, body, seconds, most, self._stop.is_set)
        except OverlongAnswer:
            raise TrainingError(
                f"teacher {self.name!r} answers with more than {most >> 20} MB; raise most_mb, or "
                "lower top_k"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise TrainingError(
                f"teacher {self.name!r} at {self._shown}: {one_line(error_line(error), 200)}; mend "
                "its url"
            ) from None
        if found.status != 200:
            raise TrainingError(
                f"teacher {self.name!r} at {self._shown} refuses {path}, HTTP {found.status}: "
                f"{one_line(found.words, 200)}; {self._remedy(found.status)}"
            )
        with _told(self, "no JSON"):
            return json.loads(found.content)

    def _remedy(self, status: int) -> str:
        """Of a refusal, which no other time mends."""
        variable = self._settings.key_variable
        if status in (401, 403) and variable is None:
            return "name the environment variable that holds its key with key_variable"
        if status in (401, 403):
            return f"see that {variable}, the key_variable, holds a key that it takes"
        if 300 <= status < 400:
            return "give the url that it leads to, which no request follows"
        if status in (404, 405, 501):
            return f"see that url and served are what it has, which must {_NEEDS}"
        return "mend what it names; alternatives are as many as top_k (vLLM: --max-logprobs)"


class _told:
    """Whatever an answer lacks inside of it becomes one error that says who gave it."""

    def __init__(
        self, client: ScoringClient, what: str, remedy: str = f"its endpoint must {_NEEDS}"
    ) -> None:
        self._name, self._what, self._remedy = client.name, what, remedy

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if isinstance(error, LookupError | TypeError | ValueError | AttributeError):
            raise TrainingError(
                f"teacher {self._name!r} tells {self._what} ({one_line(str(error), 80)}); "
                f"{self._remedy}"
            ) from None


def _place(told: Any, token: int, k: int) -> tuple[float, list[int], list[float]]:
    """One place of prompt_logprobs: {"17": {"logprob": -0.1, …}, …}, its own token among them."""
    found = {int(name): float(entry["logprob"]) for name, entry in told.items()}
    # -inf too: of a sampled token it is no finite loss, and no softmax of finite logits gives it.
    wrong = [each for each in found.values() if not math.isfinite(each) or each > _ROUNDING]
    if wrong:
        raise ValueError(f"{wrong[0]} is no log-probability")
    ranked = sorted(found.items(), key=lambda each: (-each[1], each[0]))[:k]
    if len(ranked) < k:
        raise ValueError(f"{len(ranked)} alternatives of {k}")
    return found[token], [each for each, _ in ranked], [value for _, value in ranked]


def _service(name: str, settings: TeacherSettings) -> Service:
    headers = {}
    if (variable := settings.key_variable) is not None:
        key = os.environ.get(variable, "")
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"teacher {name!r}: the environment variable {variable} holds no key; set it"
            )
        headers["Authorization"] = f"Bearer {key}"
    try:
        return Service(settings.concurrent, headers)
    except ImportError:
        raise ConfigError(
            f"teacher {name!r} with url needs the package 'httpx2': pip install 'interlock[remote]'"
        ) from None

"""Real engines in real processes: groups stream out, weights stream in, and processes die."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import logged_worker
import pytest
from draws import Drawn, assert_drawn
from real_workers import CANARY, SETTINGS, SLOTS, Weights

from interlock.config.schema import FleetSettings, GuardSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.fleet.base import Spec
from interlock.fleet.local import LocalFleet
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, Group, Problem, Sampling
from interlock.sync.store import Publisher
from interlock.workers.dispatcher import Dispatcher
from interlock.workers.generator import open_generator
from interlock.workers.generators import Purpose, Work
from interlock.workers.protocol import Open
from interlock.workers.reading import Reader

DEADLINE_S = 60
SEED = 5
SETTLED = FleetSettings(kind="local", start_s=60, load_s=60, unit_s=60, backoff_s=0.1)


def problem(key: int) -> Problem:
    return Problem(f"p{key}", [{"role": "user", "content": f"Say {key}."}], str(key))


class Run:
    """A dispatcher over real worker processes, and what became of what was ordered."""

    def __init__(self, weights: Weights, directory: Path, names: tuple[str, ...]) -> None:
        self.weights, self.directory = weights, directory
        self.arrived: list[tuple[float, int, Group]] = []
        self.notes: list[tuple[str, str, str]] = []
        self.fleet: LocalFleet | None = None
        self._tokenizer = Tokenizer.load(weights.model)
        store = str(directory / "published")
        here = str(Path(logged_worker.__file__).parent)
        workers = {}
        for name in names:
            env = {"PYTHONPATH": here, "OMP_NUM_THREADS": "1", "STEP_LOG": str(self.log(name))}
            spec = Spec(name, "logged_worker", directory / f"{name}.log", env=env)
            workers[name] = spec, Open(name, str(weights.model), SETTINGS, None, store, CANARY)

        def opened() -> LocalFleet:
            self.fleet = LocalFleet()
            return self.fleet

        self.dispatcher = Dispatcher(
            opened,
            workers,
            SETTLED,
            GuardSettings(),
            Publisher(store, 5),
            Reader(self._tokenizer, weights.decoder(0).arch.vocab),
            lambda *note: self.notes.append(note),
        )
        self.dispatcher.keep = self._keep
        self.publish(0)
        self.wait_for(lambda: all(f.weight_version == 0 for f in self.dispatcher.facts().values()))

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.steps"

    def _keep(self, found: object) -> None:
        now = time.monotonic()
        self.arrived += [(now, key, group) for key, group in found]  # type: ignore[attr-defined]

    def publish(self, number: int) -> None:
        decoder = self.weights.decoder(number)
        engine = PortableEngine(self.weights.decoder(number), self._tokenizer, 1)
        self.dispatcher.publish(
            number, dict(decoder.tensors()), lambda text: engine.score(text).logprobs
        )

    def order(self, *keys: int, completions: int = 1, exact: bool = False, most: int = 60) -> None:
        problems, rule = tuple(problem(key) for key in keys), Sampling(max_tokens=most)
        work = Work(Purpose.TRAIN, keys, problems, completions, rule, SEED, exact)
        self.dispatcher.order([work])

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, (self.notes, self.dispatcher.facts())
            self.dispatcher.collect(Purpose.TRAIN, 0.0)
            time.sleep(0.002)

    def finish(self, count: int) -> dict[int, Group]:
        self.wait_for(lambda: len(self.arrived) >= count)
        found = {key: group for _, key, group in self.arrived}
        assert len(found) == len(self.arrived) == count, "each once"
        return found

    def kill(self, name: str) -> None:
        assert self.fleet is not None
        os.kill(self.fleet._children[name].pid, signal.SIGKILL)

    def steps(self, name: str, until: float) -> Iterator[int]:
        """Sequences that got a token in each step that ended before."""
        for line in self.log(name).read_text().splitlines():
            when, busy, _ = line.split()
            if float(when) < until:
                yield int(busy)


@pytest.fixture
def make(weights: Weights, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def run(*names: str) -> Run:
        made.append(Run(weights, tmp_path, names))
        return made[-1]

    yield run
    for each in made:
        each.dispatcher.close()


def check_plain(run: Run, group: Group, most: int) -> None:
    """Every token is what the weights draw that its segment names."""
    prompt, rule = group.prompt_tokens, Sampling(max_tokens=most)
    for number, own in enumerate(group.completions):
        request = Request(group.problem.id, prompt, number + 1, rule, SEED)
        begun: list[int] = []
        for segment in own.segments:
            assert segment.weight_version is not None
            decoder = run.weights.decoder(segment.weight_version)
            tokens, logprobs = segment.tokens, segment.logprobs
            assert_drawn([Drawn(decoder, request, number, tokens, logprobs, begun)])
            begun = begun + segment.tokens


def test_short_answers_of_a_unit_arrive_before_long_ones(make: Callable[..., Run]) -> None:
    run = make("a")
    run.order(*range(SLOTS), most=400)
    run.finish(SLOTS)
    lengths = [len(group.completions[0].tokens) for _, _, group in run.arrived]
    assert lengths == sorted(lengths) and len(set(lengths)) > 3
    assert run.arrived[0][0] < run.arrived[-1][0], "not all at once"


def test_weights_come_in_the_middle_and_no_slot_waits(make: Callable[..., Run]) -> None:
    run, total = make("a", "b"), 160
    begun = time.monotonic()
    for key in range(total):
        run.order(key, completions=2)
    for number, count in enumerate((20, 60, 100), start=1):
        run.wait_for(lambda count=count: len(run.arrived) >= count)  # type: ignore[misc]
        run.publish(number)
    run.wait_for(lambda: len(run.arrived) >= total - 30)
    late = run.arrived[total - 40][0]  # work waits until about then: 13 sequences each are held
    found = run.finish(total)
    versions = Counter(
        tuple(answer.weight_versions) for group in found.values() for answer in group.completions
    )
    assert any(len(each) > 1 for each in versions), versions
    assert {each for several in versions for each in several} >= {0, 1, 2}
    kinds = Counter(kind for kind, _, _ in run.notes)
    assert kinds == {"worker_started": 2, "weights_whole": 1}, run.notes  # all of them change
    for group in list(found.values())[::8]:
        check_plain(run, group, 60)
    for name in "ab":
        steps = [busy for busy in run.steps(name, late)][8:]  # those of the first proof
        idle = sum(max(0, SLOTS - busy) for busy in steps) / (SLOTS * len(steps))
        assert len(steps) > 50 and idle < 0.05, (idle, Counter(steps), late - begun)


def test_a_killed_worker_loses_only_what_was_not_answered(make: Callable[..., Run]) -> None:
    run, total = make("a", "b"), 60
    for key in range(total):
        run.order(key, completions=2)
    run.wait_for(lambda: len(run.arrived) >= 15)
    run.kill("a")
    found = run.finish(total)
    assert sorted(found) == list(range(total))
    assert [kind for kind, _, _ in run.notes].count("worker_lost") == 1
    for group in list(found.values())[::6]:
        check_plain(run, group, 60)


def test_an_exact_unit_killed_in_the_middle_has_the_bits_it_would_have_had(
    make: Callable[..., Run], chatty: Path
) -> None:
    run, units = make("a"), [tuple(range(12)), tuple(range(12, 20))]
    for unit in units:
        run.order(*unit, completions=2, exact=True, most=200)
    steps = run.log("a")
    before = len(steps.read_text().splitlines())
    run.wait_for(lambda: len(steps.read_text().splitlines()) > before + 30)
    run.kill("a")
    assert run.arrived == [], "none of a unit before all of it"
    found = run.finish(20)
    generator = open_generator(SETTINGS, chatty, None, "a")
    bits: list[list[Completion]] = []
    for unit in units:
        problems = [problem(key) for key in unit]
        groups = generator.generate(problems, 2, Sampling(max_tokens=200), SEED)
        bits += [group.completions for group in groups]
    assert [found[key].completions for key in range(20)] == bits
    assert [key for _, key, _ in run.arrived] in (
        list(range(20)),
        [*range(12, 20), *range(12)],
    ), "each unit together"

"""An adapter in vLLM's slot against the same one merged: how far off, and what it costs.

Run by the interpreter of vLLM's environment (`make vllm`), and by it alone:

    OMP_NUM_THREADS=1 .venv-vllm/bin/python bench/lora_vllm.py --json lora_vllm.json

Two engines, one after another: with slots and without, each with the base alone, then with the
adapter. What they draw is scored by the decoder in float32 arithmetic, base and adapter apart, on
the very weights that the engine was given. Seconds are of the CPU, so a busy machine adds none.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from environment import environment
from interlock.config.schema import GeneratorSettings
from interlock.engine.base import Engine, Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.vllm.engine import open_engine
from interlock.mismatch import Mismatch, mismatch
from interlock.models import adapters
from interlock.models.checkpoint import load_decoder
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from interlock.records.adapters import AdapterForm
from interlock.records.rl import Completion, Sampling
from interlock.records.serving import Rules
from workload import MODEL

LONG = list(range(40, 940))  # a text that is scored
QUESTIONS = ["Tell me of railways.", "What is 17 + 25?", "Why is the sky blue?", "Name a colour."]
GROUP, NEW = 8, 32


class _Weights:
    """Base and adapter as the learner publishes them, and float32 arithmetic on both."""

    def __init__(self, model: Path, form: AdapterForm, dtype: str) -> None:
        self.form, compute = form, getattr(torch, dtype)
        decoder = load_decoder(model, torch.float32, torch.device("cpu"))
        self.base = dict(decoder.published(compute))
        noise = torch.Generator().manual_seed(0)
        shapes = adapters.adapter_shapes({n: list(t.shape) for n, t in self.base.items()}, form)
        self.own = {
            name: (torch.randn(shape, generator=noise) * 5e-3).to(compute)
            for name, shape in shapes.items()
        }
        self._judge = PortableEngine(decoder, Tokenizer.load(model), 1)

    def into(self, engine: Engine, what: str) -> None:
        """Have it serve `what` of these, by the way that is to be measured."""
        if what == "adapter":
            engine.load_adapter(self.own, self.form, 2)
        elif what == "merged":
            engine.load(dict(adapters.merged(self.base.items(), self.own, self.form)), 2)
        else:
            engine.load(self.base, 1)

    def apart(self, asked: Sequence[Request], drawn: Sequence[list[Completion]], what: str) -> Any:
        """Of what an engine drew, with the base or an adapter beside it."""
        self._judge.load(self.base, 0)
        if what != "base":
            self._judge.load_adapter(self.own, self.form, 0)
        found = Mismatch()
        for request, group in zip(asked, drawn, strict=True):
            prompt = request.prompt_tokens
            for answer in group:
                scored = self._judge.score(prompt + answer.tokens).logprobs[len(prompt) - 1 :]
                found += mismatch(scored, answer.logprobs)
        return found


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Of the CPU, behind one round that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return median(taken[1:])


def side(model: Path, form: AdapterForm, dtype: str, rounds: int, slots: bool) -> dict[str, Any]:
    tokenizer, weights = Tokenizer.load(model), _Weights(model, form, dtype)
    options = {"max_model_len": 1024, "enable_lora": slots}
    settings = GeneratorSettings(engine="vllm", dtype=dtype, slots=32, options=options)  # type: ignore[arg-type]
    engine = open_engine(settings, model, tokenizer, form)
    rules, sampling = Rules(ignore_eos=True), Sampling(max_tokens=NEW)
    prompts = {q: tokenizer.chat([{"role": "user", "content": q}]) for q in QUESTIONS}
    asked = [Request(q, p, GROUP, sampling, 0, rules=rules) for q, p in prompts.items()]
    found: dict[str, Any] = {"engine": engine.description}
    for what in ("base", "adapter" if slots else "merged"):
        swap = seconds(lambda what=what: weights.into(engine, what), rounds)  # type: ignore[misc]
        drawing = seconds(lambda: engine.generate(asked), rounds)
        prefill = seconds(lambda: engine.score(LONG), rounds)
        apart = weights.apart(asked, engine.generate(asked), what)
        found[what] = {
            "swap_s": swap,
            "tokens_s": apart.tokens / drawing,
            "prefill_s": prefill,
            "tokens": apart.tokens,
            "k3": apart.k3,
            "largest": apart.max,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--side", choices=("slots", "merged"), help="this one alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    if given.side:
        form = AdapterForm(rank=given.rank)
        slots = given.side == "slots"
        found = side(find_model(MODEL), form, given.dtype, given.rounds, slots)
    else:  # an engine of vLLM's leaves its process only with it
        for name in ("slots", "merged"):
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                more = ["--side", name, "--json", file.name]
                subprocess.run([sys.executable, *sys.argv, *more], check=True)
                found[name] = json.loads(Path(file.name).read_text())
        found |= {"environment": environment(), "settings": vars(given) | {"json": None}}
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

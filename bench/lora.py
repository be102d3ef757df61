"""Adapters against full training: bytes of a version, swap of an engine, memory, seconds of a step.

    versions   AdamW steps on the texts of sync.py; what each version takes in the store; and the
               same of random weights in the shape of Qwen2.5-0.5B, four times as large
    swap       an engine that has served one version takes the next: fetched, loaded, first score
    decoding   64 completions with an adapter and without, in turns
    step       grpo_step.py's workload in turns: Interlock in full, with an adapter, and TRL with
               peft's; `--no-trl` leaves that out

Each side of `step` is a process of its own, so that memory, the peak resident set, is measured
apart. TRL as in trl_grpo.py, its weights in --dtype: what stays frozen needs no wider masters.

    python bench/lora.py --rounds 3 --json lora.json
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from environment import environment
from grpo_step import Side, measure
from interlock.chips import probe
from interlock.config.schema import GeneratorSettings, LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine, open_engine
from interlock.learner.learner import Learner
from interlock.mismatch import Mismatch, mismatch
from interlock.models import adapters
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.records.adapters import Adapted, AdapterForm
from interlock.records.rl import Sampling
from interlock.records.serving import Rules
from interlock.sync.replica import Replica
from interlock.sync.store import Publisher
from sync import groups, texts
from workload import MODEL

# Qwen/Qwen2.5-0.5B's config.json, as published.
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
ROWS = 2  # texts of a step
SCORED = list(range(40, 168))


def at_random(directory: Path) -> Path:
    """A checkpoint of random weights in the shape of Qwen2.5-0.5B, with SmolLM2's tokenizer."""
    for each in find_model(MODEL).iterdir():
        if each.suffix != ".safetensors":
            shutil.copy(each, directory)
    (directory / "config.json").write_text(json.dumps(QWEN), encoding="utf-8")
    decoder = Decoder(read_architecture(directory))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=noise)
    save_file(dict(decoder.published(torch.bfloat16)), directory / "model.safetensors")
    return directory


def versions(model: Path, form: AdapterForm, count: int, dtype: str, lr: float) -> dict[str, Any]:
    """Bytes of adapter versions over those of whole ones, and the seconds of a swap."""
    place = torch.device("cpu")
    compute = getattr(torch, dtype)
    decoder = load_decoder(model, compute, place)
    adapters.attach(decoder, form, torch.float32, seed=0)
    settings = LearnerSettings(dtype=dtype, lora=form)  # type: ignore[arg-type]
    learner = Learner(decoder, settings, OptimizerSettings(lr=lr), total_steps=count + 1)
    engine = PortableEngine(load_decoder(model, compute, place), Tokenizer.load(model), 8)
    shapes = engine.shapes
    whole = sum(tensor.nbytes for tensor in decoder.tensors().values())
    written, swaps = [], []
    with tempfile.TemporaryDirectory() as store:
        publisher = Publisher(store, anchor_every=20)
        base = publisher.of_base().publish(0, dict(decoder.published(compute)))
        replica = Replica(store, shapes, lambda form: adapters.adapter_shapes(shapes, form))
        rows = texts(Tokenizer.load(model))
        for step in range(count):
            learner.step(groups(rows[ROWS * step : ROWS * (step + 1)]), loss=None)
            number, tensors = learner.publish()
            published = publisher.publish(number, tensors, Adapted(form, base.version))
            start = time.perf_counter()
            engine.load_adapter(replica.fetch(published.version), form, number)
            engine.score(SCORED)
            swaps.append(time.perf_counter() - start)
            written.append(published.written_bytes)
            print(
                f"version {number}: {published.kind}, {written[-1] / whole:.2%} of a whole one,"
                f" served after {swaps[-1]:.2f} s"
            )
    elements, beside = adapters.adapter_share(decoder)
    return {
        "elements": elements / beside,
        "full_bytes": whole,
        "written_bytes": written,
        "share": median(written[1:]) / whole,
        "swap_s": median(swaps[1:]),
    }


def decoding(model: Path, form: AdapterForm, dtype: str, rounds: int) -> dict[str, Any]:
    """Tokens a second with an adapter and without, in turns; and how far the log-probabilities of
    drawn tokens, with packed weights, are from those that A and B give beside the weights.

    B is drawn so that the adapter moves every weight by some thousandths.
    """
    settings = probe.settled(GeneratorSettings(dtype=dtype), torch.device("cpu"))  # type: ignore[arg-type]
    tokenizer = Tokenizer.load(model)
    engine = open_engine(settings, model, tokenizer)
    noise = torch.Generator().manual_seed(0)
    shapes = adapters.adapter_shapes(engine.shapes, form)
    added = {name: torch.randn(shape, generator=noise) * 5e-3 for name, shape in shapes.items()}
    whole = {name: tensor.clone() for name, tensor in engine.decoder.tensors().items()}
    prompt = tokenizer.chat([{"role": "user", "content": "Tell me of railways."}])
    sampling, rules = Sampling(max_tokens=48), Rules(ignore_eos=True)
    asked = [Request(f"{n}", prompt, 8, sampling, 0, rules=rules) for n in range(8)]
    taken: dict[str, list[float]] = {"plain": [], "adapter": []}
    found = {"plain": Mismatch(), "adapter": Mismatch()}
    for _ in range(rounds + 1):
        for side in taken:
            engine.load(whole, 0)
            if side == "adapter":
                engine.load_adapter(added, form, 1)
            start = time.perf_counter()
            drawn = engine.generate(asked)
            taken[side].append(64 * 48 / (time.perf_counter() - start))
            for each in drawn[0][:4]:
                scored = engine.score(prompt + each.tokens).logprobs[len(prompt) - 1 :]
                found[side] += mismatch(scored, each.logprobs)
    print({side: f"{median(rates[1:]):.0f} tokens/s" for side, rates in taken.items()})
    return {
        "kernel": settings.kernel,
        "tokens_s": {side: median(rates[1:]) for side, rates in taken.items()},
        "k3": {side: each.k3 for side, each in found.items()},
    }


def steps(rounds: int, dtype: str, rank: int, trl: bool) -> dict[str, Any]:
    """Seconds and peak memory of each side, in turns."""
    common = ["--steps", str(rounds + 1), "--dtype", dtype]
    sides = [
        Side("full", "ours_grpo.py", common),
        Side("lora", "ours_grpo.py", [*common, "--lora", str(rank)]),
    ]
    if trl:
        more = ["--lora", str(rank), "--weights", dtype]
        sides.append(Side("trl", "trl_grpo.py", [*common, *more]))
    taken = measure(sides, rounds)
    for side in sides:
        side.close()
    found: dict[str, Any] = {
        name: {
            "seconds": median(each.seconds for each in steps),
            "update_s": median(each.seconds - each.facts.generate_s for each in steps),
            "ms_per_token": median(each.ms_per_token for each in steps),
            "peak_rss_mb": max(each.facts.peak_rss_mb for each in steps),
        }
        for name, steps in taken.items()
    }
    lora = found["lora"]
    for name in found.keys() - {"lora"}:
        other = found[name]
        found[f"lora / {name}"] = {what: lora[what] / other[what] for what in lora}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--versions", type=int, default=8, help="optimizer steps (default: 8)")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument(
        "--rounds", type=int, default=3, help="of decoding, and GRPO steps a side; 0: none"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    form = AdapterForm(rank=given.rank)
    how = form, given.versions, given.dtype, given.lr
    found = {"versions": versions(find_model(MODEL), *how)}
    with tempfile.TemporaryDirectory() as directory:
        found["qwen2.5-0.5b"] = versions(at_random(Path(directory)), *how)
    if given.rounds:
        found["decoding"] = decoding(find_model(MODEL), form, given.dtype, given.rounds)
        found["step"] = steps(given.rounds, given.dtype, given.rank, not given.no_trl)
    print(json.dumps(found, indent=2))
    if given.json:
        figures = {"environment": environment(), "settings": vars(given) | {"json": None}}
        given.json.write_text(json.dumps(figures | found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What replay of the sampler's draws does to the mismatch, on one set of weights.

    python bench/replay.py [--dtype float32] [--tokens 48] [--json result.json]

Kept sets: a model draws with top-p, top-k or min-p, and the learner, in float32 and with the same
weights, scores what was drawn: over the whole vocabulary, then over the sets that came with the
tokens. Where both are in float32 the mean ratio is to be the kept mass before, and 1 after.

Routes: random mixtures of experts draw in bfloat16, and the learner scores in float32: by its own
routes, then by those that came with the tokens.
"""

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from environment import environment
from interlock.config.schema import GeneratorSettings, LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine, open_engine
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.mismatch import mismatch
from interlock.models.architecture import Architecture, DefaultRope, Routing
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.fetch import find_model
from interlock.models.routes import route_shape
from interlock.models.tokenizer import Tokenizer
from interlock.records.replay import Replay
from interlock.records.rl import Completion, Sampling

CPU = torch.device("cpu")
RULES = {
    "top_p 0.8": Sampling(top_p=0.8),
    "top_p 0.95": Sampling(top_p=0.95),
    "top_k 20": Sampling(top_k=20),
    "top_k 512": Sampling(top_k=512),
    "min_p 0.1": Sampling(min_p=0.1),
}
QUESTIONS = (
    "Tell me of the sea in winter.",
    "Which number follows 17, and why?",
    "Write a short letter to a neighbour.",
    "How does a lock on a canal work?",
)
SEEDS = range(4)


def groups_of(asked: list[Request], drawn: list[list[Completion]]) -> list[TrainingGroup]:
    return [
        TrainingGroup(
            prompt=request.prompt_tokens,
            completions=[each.tokens for each in answers],
            weights=[[0.0] * len(each.tokens) for each in answers],
            sampler_logprobs=[each.logprobs for each in answers],
            kept=[each.kept for each in answers],
            prompt_routes=answers[0].prompt_routes,
            routes=[each.routes for each in answers],
        )
        for request, answers in zip(asked, drawn, strict=True)
    ]


def scored(learner: Learner, groups: list[TrainingGroup]) -> dict[str, float]:
    """Of the ratios pi / mu: mean, share outside of 0.9 to 1.1, k3."""
    pi = torch.cat([part for each in learner.logprobs(groups) for part in each]).tolist()
    mu = [v for group in groups for values in group.sampler_logprobs or [] for v in values]
    ratios = [math.exp(a - b) for a, b in zip(pi, mu, strict=True)]
    return {
        "ratio": sum(ratios) / len(ratios),
        "far": sum(abs(ratio - 1) > 0.1 for ratio in ratios) / len(ratios),
        "k3": mismatch(pi, mu).k3,
    }


def kept_sets(model: Path, dtype: str, tokens: int) -> list[dict[str, Any]]:
    tokenizer = Tokenizer.load(model)
    settings = GeneratorSettings(dtype=dtype, slots=32)  # type: ignore[arg-type]
    engine = open_engine(settings, model, tokenizer)
    learner = learner_of(load_decoder(model, torch.float32, CPU))
    prompts = [tokenizer.chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    found = []
    for name, rule in RULES.items():
        rule = replace(rule, max_tokens=tokens)
        asked = [
            Request(str(n), prompt, 8, rule, 1, replay=Replay(kept=True))
            for n, prompt in enumerate(prompts)
        ]
        groups = groups_of(asked, engine.generate(asked))
        whole = [replace(group, kept=None) for group in groups]
        sets = [each for group in groups for each in group.kept or [] if each is not None]
        sizes = [size for each in sets for size in each.sizes]
        row = {"rule": name, "tokens": len(sizes), "words": sum(sizes) / len(sizes)}
        row["bytes"] = sum(len(e.counts) + len(e.ids) for e in sets) / len(sizes)
        row["mass"] = mass_of(learner, whole, groups)
        found.append(row | {"before": scored(learner, whole), "after": scored(learner, groups)})
    return found


def mass_of(learner: Learner, whole: list[TrainingGroup], groups: list[TrainingGroup]) -> float:
    """What the learner gives the sets, in the mean."""
    columns = [
        torch.cat([v for e in learner.logprobs(each) for v in e]) for each in (whole, groups)
    ]
    return (columns[0] - columns[1]).exp().mean().item()


def mixture(seed: int) -> Decoder:
    """Six layers, five of them with the 32 experts of which a token passes four."""
    routing = Routing(
        layers=frozenset(range(1, 6)),
        experts=32,
        per_token=4,
        inner=32,
        shared_inner=0,
        gate="softmax",
        corrected=False,
        groups=1,
        kept_groups=1,
        group_top=1,
        normalize=True,
        scale=1.0,
    )
    arch = Architecture(
        family="qwen3_moe",
        vocab=512,
        hidden=64,
        layers=6,
        heads=4,
        kv_heads=2,
        head_dim=16,
        value_dim=16,
        inner=96,
        norm_eps=1e-5,
        context=512,
        tied=False,
        rope=DefaultRope(),
        rope_dim=16,
        routing=routing,
    )
    decoder, noise = Decoder(arch), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.2 * drawn)
            parameter.copy_(parameter.bfloat16())  # what is published
    return decoder


class Wordless:
    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return ""

    def stream(self) -> "Wordless":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return ""


def routes(tokens: int) -> list[dict[str, Any]]:
    found = []
    for seed in SEEDS:
        decoder = mixture(seed)
        sampler = copy.deepcopy(decoder)
        sampler.dtype = torch.bfloat16
        for parameter in sampler.parameters():
            parameter.data = parameter.data.bfloat16()
        engine = PortableEngine(sampler, Wordless(), 32)
        shape = route_shape(decoder.arch)
        assert shape is not None
        asked = [
            Request(str(n), list(range(n, n + 16)), 8, Sampling(max_tokens=tokens), seed,
                    replay=Replay(routes=shape))
            for n in range(4)
        ]  # fmt: skip
        groups = groups_of(asked, engine.generate(asked))
        own = [replace(g, prompt_routes=b"", routes=[]) for g in groups]
        learner = learner_of(decoder)
        rows = {"before": scored(learner, own), "after": scored(learner, groups)}
        found.append({"seed": seed, "bytes": shape.token_bytes} | rows)
    return found


def learner_of(decoder: Decoder) -> Learner:
    settings = LearnerSettings(dtype="float32", micro_batch_tokens=1024)
    return Learner(decoder, settings, OptimizerSettings(), 1)


def shown(figures: dict[str, float]) -> str:
    return f"{figures['ratio']:.4f} / {figures['far']:.1%} / {figures['k3']:.2e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kept = kept_sets(find_model(args.model, print), args.dtype, args.tokens)
    print(f"\nkept sets, sampler in {args.dtype}; mean ratio / outside 0.9 to 1.1 / k3\n")
    print("| sampling | kept mass | whole vocabulary | over the sets | words | bytes a token |")
    print("|---|---|---|---|---|---|")
    for row in kept:
        both = f"{shown(row['before'])} | {shown(row['after'])}"
        print(f"| {row['rule']} | {row['mass']:.4f} | {both} | {row['words']:.1f} | "
              f"{row['bytes']:.0f} |")  # fmt: skip
    routed = routes(args.tokens)
    print("\nroutes, sampler in bfloat16\n")
    print("| mixture | own routes | the sampler's | bytes a token |\n|---|---|---|---|")
    for row in routed:
        both = f"{shown(row['before'])} | {shown(row['after'])}"
        print(f"| {row['seed']} | {both} | {row['bytes']} |")
    if args.json:
        result = {"environment": environment(), "kept": kept, "routes": routed}
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Does the software of a chip belong together, and has it every operator that Interlock needs?

    versions               the stack's parts: is the plugin made for this torch?
    generation_operators   the engine ──┐                  ┌─ there
    training_operators     the learner ─┴─ under Survey ───┼─ missing: run on the host, so that the
                                          every operator   │  program goes on and all are found
                                                           └─ on the host in secret: by its warning

The programs are the engine's and the learner's own, on little models of every kind that Interlock
has: nothing here lists operators by hand. Numbers are not judged: numerics.py does that. A backend
that runs an operator on the host without a word is found by its slowness (speed.py).

Which failures this is after: Ascend/pytorch#40 and LlamaFactory#4836 (operators that are missing or
fall back), vllm-ascend#117 and #750 (versions that do not belong together).
"""

import itertools
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import interlock
from interlock.chips import device as chips
from interlock.chips import vendors
from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Architecture, Latent, Routing
from interlock.models.attention import FUSED_ABOVE
from interlock.qualify import tiny_model
from interlock.qualify.check import Evidence, Level, Subject, is_missing, judged
from interlock.records.rl import Sampling
from interlock.records.trust import Measure, Stack
from interlock.sync import tensor_digest
from interlock.text import described, first_line

# Variables that change numbers stand among the figures, so that two certificates of one stack can
# be told apart; but for those that may hold a secret.
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")


def versions(subject: Subject) -> Evidence:
    """Whether the stack can be certified: its parts are known and made for each other."""
    device = subject.device
    stack = chips.stack(device)
    problems = [*_unknown(stack), *_disagreeing(device, stack)]
    mismatch = chips.plugin_mismatch(stack)
    if mismatch is not None:
        problems.insert(0, mismatch)
    named = {name: getattr(stack, name) or "none" for name in stack.__struct_fields__}
    if not problems:
        parts = [part for part in (stack.driver, stack.runtime, stack.plugin) if part]
        with_parts = " with " + ", ".join(parts) if parts else ""
        good = f"{stack.chip}{with_parts} and torch {stack.torch} belong together"
        return Evidence(True, good, named | _environment())
    return Evidence(False, "; ".join(problems), named | _environment())


def generation_operators(subject: Subject) -> Evidence:
    """Every operator that the engine uses is there. One that runs on the host is right, if slow: it
    is named.
    """
    dtypes = [torch.bfloat16] if subject.level is Level.QUICK else [torch.bfloat16, torch.float32]

    def program() -> None:
        for architecture, dtype in itertools.product(_kinds(subject), dtypes):
            _generate(architecture(), subject.device, dtype)

    return _surveyed(subject, "generation", program, host_allowed=True)


def training_operators(subject: Subject) -> Evidence:
    """The same of the learner, forward, backward and update. None may run on the host: there the
    slowest chip holds up all others.
    """
    dtypes = ["bfloat16"] if subject.level is Level.QUICK else ["bfloat16", "float32"]

    def program() -> None:
        for architecture, dtype in itertools.product(_kinds(subject), dtypes):
            _train(architecture(), subject.device, dtype, ["truncated"])
        if subject.level is not Level.QUICK:
            _train(_dense(), subject.device, "bfloat16", _CORRECTIONS)

    return _surveyed(subject, "training", program, host_allowed=False)


class Survey(TorchDispatchMode):
    """Notes every operator that is run, and what became of it.

    An operator that the device refuses is run on the host instead, so that the program goes on to
    the next one. The numbers may be wrong from there on (a view becomes a copy).
    """

    def __init__(self, device: torch.device, caught: list[warnings.WarningMessage]) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.missing: dict[str, str] = {}  # operator -> how it was refused
        self.on_host: dict[str, str] = {}  # operator -> the warning
        self._device, self._caught, self._read = device, caught, len(caught)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        self.calls[name] += 1
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            if not is_missing(error):
                raise RuntimeError(f"{name}{_shapes(args)}: {described(error, 200)}") from error
            self.missing.setdefault(name, described(error, 200))
            result = _run_on_host(func, args, kwargs, self._device)
        self.listen(name)
        return result

    def listen(self, name: str) -> None:
        """Read the warnings since the last call; one of a fallback is about operator `name`."""
        for warning in self._caught[self._read :]:
            text = str(warning.message)
            if vendors.FALLBACK.search(text):
                # Warnings of the backward pass may come when it is over, but name the operator.
                named = re.search(r"aten::\w+", text)
                self.on_host.setdefault(named[0] if named else name, first_line(text))
        self._read = len(self._caught)


@contextmanager
def surveying(device: torch.device) -> Iterator[Survey]:
    """A Survey of what is run inside; what torch warns of once per process, it warns of here."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            survey = Survey(device, caught)
            with survey:
                yield survey
            survey.listen("an operator")
    finally:
        torch.set_warn_always(always)


def _surveyed(
    subject: Subject, kind: str, program: Callable[[], None], *, host_allowed: bool
) -> Evidence:
    stopped = None
    with surveying(subject.device) as survey:
        try:
            program()
            chips.synchronize(subject.device)
        except Exception as error:
            if not survey.missing:
                raise
            # A consequence, most likely: numbers were wrong by then.
            stopped = described(error, 200)
    figures: dict[str, float | int | str] = {
        f"operators of {kind}": len(survey.calls),
        "calls": survey.calls.total(),
    }
    strict = vendors.of(chips.kind(subject.device)).strict_env
    figures |= {name: os.environ.get(name, "not set") for name in strict}
    figures |= {f"missing: {name}": text for name, text in survey.missing.items()}
    figures |= {f"on the host: {name}": text for name, text in survey.on_host.items()}
    if stopped is not None:
        figures["stopped by"] = stopped
    missing = [f"{name} is missing" for name in survey.missing]
    host = [f"{name} runs on the host" for name in survey.on_host if name not in survey.missing]
    bad = missing if host_allowed else missing + host
    used = [name for name in survey.calls if name not in survey.missing]
    measures = [Measure(name, 1.0, 0.0) for name in missing]
    measures += [Measure(name, 1.0, float(host_allowed)) for name in host]
    measures += [Measure(f"{name} is there", 0.0, 0.0) for name in used]
    slow = f"but slow: {', '.join(host)}" if host else "none is known to run on the host"
    good = f"all {len(survey.calls)} operators of {kind} are there, {slow}"
    return judged(measures, good, f"{len(bad)} operators of {kind} fail: {', '.join(bad)}", figures)


def _run_on_host(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> Any:
    """What `func` gives, computed on the CPU from copies; what it writes to is written back."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # id of the copy -> the original, the copy

    def down(tensor: Tensor) -> Tensor:
        copy = tensor.cpu().clone()
        copies[id(copy)] = tensor, copy
        return copy

    def up(tensor: Tensor) -> Tensor:
        return copies[id(tensor)][0] if id(tensor) in copies else tensor.to(device)

    host_args, host_kwargs = tree_map_only(Tensor, down, (args, kwargs))
    if host_kwargs.get("device") is not None:
        host_kwargs["device"] = torch.device("cpu")
    result = func(*host_args, **host_kwargs)
    if func._schema.is_mutable:
        for original, copy in copies.values():
            original.copy_(copy)
    return tree_map_only(Tensor, up, result)


def _generate(arch: Architecture, device: torch.device, dtype: torch.dtype) -> None:
    """Everything that a generator does with its engine."""
    engine = tiny_model.engine(arch, tiny_model.weights(arch), device, dtype, slots=6)
    rules = [
        Sampling(temperature=0.0, max_tokens=4),
        Sampling(temperature=0.7, max_tokens=5),
        Sampling(top_k=5, max_tokens=3),
        Sampling(top_p=0.9999, max_tokens=3),  # so flat that the whole row is sorted
        Sampling(top_k=20, top_p=0.8, max_tokens=4),
    ]
    start = tiny_model.prompt(8, arch.vocab)  # in common: prefilled once
    requests = [
        Request(f"p{i}", start + tiny_model.prompt(3 + i, arch.vocab), 2, rule, 0)
        for i, rule in enumerate(rules)
    ]
    long = tiny_model.prompt(FUSED_ABOVE + 8, arch.vocab)
    requests.append(tiny_model.request(long, "long", 1, 2))
    engine.generate(requests)
    engine.load(tiny_model.weights(arch, seed=1), 1)
    engine.score(long)
    engine.score(start)
    for _, tensor in engine.held():
        tensor_digest(tensor)


def _train(
    arch: Architecture, device: torch.device, dtype: str, corrections: Sequence[str]
) -> None:
    """Everything that a recipe does with its learner."""
    decoder = tiny_model.decoder(arch, tiny_model.weights(arch), device, torch.float32)
    settings = LearnerSettings(
        dtype=dtype,  # type: ignore[arg-type]
        fused_attention_above=FUSED_ABOVE,
        logits_chunk=16,
        activation_checkpointing=arch.routing is not None,
    )
    optimizer = OptimizerSettings(clip_norm=1e-3, weight_decay=0.1, warmup_steps=1)
    learner = Learner(decoder, settings, optimizer, 8, keep_reference=True)
    groups = [_group(arch, 5, [3, 6]), _group(arch, 7, [4]), _group(arch, FUSED_ABOVE + 1, [2, 3])]
    old = learner.logprobs(groups)
    for correction in corrections:
        loss = LossSettings(correction=correction, kl_beta=0.01)  # type: ignore[arg-type]
        learner.step(groups, loss, temperature=0.9, old=old)
    text = [replace(group, sampler_logprobs=None, kl_weights=None) for group in groups]
    learner.step(text, None)
    _, published = learner.publish()
    for tensor in published.values():
        tensor_digest(tensor)
    learner.score(tiny_model.prompt(9, arch.vocab))


def _group(arch: Architecture, prompt: int, lengths: list[int]) -> TrainingGroup:
    def each(value: float) -> list[list[float]]:
        return [[value] * length for length in lengths]

    return TrainingGroup(
        prompt=tiny_model.prompt(prompt, arch.vocab),
        completions=[tiny_model.prompt(length, arch.vocab, seed=1) for length in lengths],
        weights=each(0.1),
        sampler_logprobs=each(-6.0),
        kl_weights=each(0.01),
    )


def _dense() -> Architecture:
    return replace(tiny_model.architecture(), qkv_bias=True)


def _experts() -> Architecture:
    """As DeepSeek-V3: latent attention and a corrected sigmoid gate over groups of experts."""
    routing = Routing(
        layers=frozenset({1}),
        experts=8,
        per_token=2,
        inner=32,
        shared_inner=32,
        gate="sigmoid",
        corrected=True,
        groups=4,
        kept_groups=2,
        group_top=2,
        normalize=True,
        scale=2.5,
    )
    return replace(
        tiny_model.architecture(),
        kv_heads=4,
        head_dim=24,
        rope_dim=8,
        qk_norm=False,
        tied=False,
        latent=Latent(q_rank=32, kv_rank=16, interleaved=True),
        routing=routing,
    )


def _softmax_experts() -> Architecture:
    """As Qwen3-MoE: a softmax gate over all experts, none shared."""
    routing = Routing(
        layers=frozenset({0, 1}),
        experts=4,
        per_token=2,
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
    return replace(tiny_model.architecture(), routing=routing)


def _kinds(subject: Subject) -> list[Callable[[], Architecture]]:
    """Every kind of layer that Interlock has; the third adds no operator to the other two but in
    its gate."""
    return (
        [_dense, _experts] if subject.level is Level.QUICK else [_dense, _experts, _softmax_experts]
    )


_CORRECTIONS = ("truncated", "masked", "geometric", "bypass", "off")


def _unknown(stack: Stack) -> list[str]:
    """The parts that a certificate must name, and that this stack does not tell."""
    needed = ["kind", "chip", "torch", "interlock"]
    lacking = [name for name in needed if not getattr(stack, name)]
    if stack.kind != "cpu" and not (stack.driver or stack.runtime or stack.plugin):
        lacking.append("driver, runtime or plugin")
    return [f"the stack does not tell its {name}" for name in lacking]


def _disagreeing(device: torch.device, stack: Stack) -> list[str]:
    """Where what the stack says is not what torch says."""
    found = []
    if stack.torch.split("+")[0] != torch.__version__.split("+")[0]:
        found.append(f"the stack names torch {stack.torch}, which is {torch.__version__}")
    if stack.interlock != interlock.__version__:
        found.append(f"the stack names interlock {stack.interlock}, not {interlock.__version__}")
    if chips.chip(device) != stack.chip:
        found.append(f"the stack names the chip {stack.chip!r}, torch {chips.chip(device)!r}")
    if chips.count(device) <= (device.index or 0):
        found.append(f"torch counts {chips.count(device)} devices, which leaves out {device}")
    if torch.ones(1, device=device).device.type != device.type:
        found.append(f"a tensor for {device} lands elsewhere")
    return found


def _environment() -> dict[str, str]:
    return {
        f"environment {name}": value
        for name, value in sorted(os.environ.items())
        if vendors.changes_numbers(name) and not _SECRET.search(name)
    }


def _shapes(args: tuple[Any, ...]) -> str:
    return "".join(f" {list(x.shape)}" for x in args if isinstance(x, Tensor))

"""Do compiled and replayed programs give what eager ones do?

    a decoder forward, a decode step, ─┬─ eager ──────────────────────────────> numbers ─┐
    a training step; 1 to 513 tokens   ├─ decomposed (make_fx) ─────────────┐            ├─ equal?
                                       ├─ compiled (aot_eager, inductor) ───┼─> numbers ─┘
                                       └─ captured and replayed ────────────┘
                                          made with one input, run with others

Interlock runs eagerly today. So what a device or this machine does not offer (capture, a compiler)
is named among the figures and fails nothing; where it offers none at all, nothing is proven. What
is there and gives other numbers fails, since the engines that serve (vLLM) do replay. Published:
vllm-ascend#9564 and #9691, where a graph fails at some sizes and not at others; and
vllm-ascend#7473, where it goes on with what it was captured with.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from interlock.chips import device as chips
from interlock.engine.portable.kv_cache import Arena, Decode, Shared
from interlock.errors import UserError
from interlock.models.architecture import Architecture
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.qualify import tiny_model
from interlock.qualify.check import Evidence, Level, Subject, first_line, judged, short
from interlock.records.trust import Measure

Numbers = list[Tensor]
Run = Callable[[Tensor], Numbers]

# Another form may fuse what eager mode rounds in between, and add up in another order: as wrong as
# the CPU is in this dtype, and some more. A form that keeps old inputs is wrong by all of it.
_MARGIN = 6.0
_FLOOR = 1e-5  # gradients that are added up in an order left to chance differ by less
_INPUTS = 3  # that each form is run with, beside the one it was made with
_PROMPT = 24
_BUDGET_S = {
    Level.QUICK: 3.0,
    Level.DEFAULT: 18.0,
}  # of this process, after which no slow form is begun


class NotOffered(Exception):
    """This device or machine has no such form of any program."""


class Program(NamedTuple):
    """`forward` of tokens [N] -> numbers; the gradients of `trained` by the first are more."""

    forward: Callable[[Tensor], Tensor]
    trained: list[nn.Parameter]


@dataclass(frozen=True)
class Form:
    """Another way to run a program. `make` it with one input; what it returns runs with others."""

    make: Callable[[torch.device, Program, Tensor], Run]
    programs: tuple[str, ...]
    rows: Mapping[Level, tuple[int, ...]]
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    slow: bool = True  # seconds for each program and size


def agreement(subject: Subject) -> Evidence:
    """Every form that is offered, of every program, at every size, against the eager one.

    Raises UserError when none is: nothing is proven where nothing was compared.
    """
    level = Level.DEFAULT if subject.level is Level.SOAK else subject.level
    end = time.process_time() + _BUDGET_S[level]
    measures: list[Measure] = []
    lacking: dict[str, str] = {}
    for name, form in _FORMS.items():
        try:
            for program in form.programs if form.rows[level] else ():
                found, refused = _at_all_sizes(subject.device, level, name, program, end)
                measures += found
                lacking |= refused
        except NotOffered as error:
            lacking[name] = str(error)
    if not measures:
        why = "; ".join(f"{what}: {reason}" for what, reason in lacking.items())
        raise UserError(f"no other form of a program can be made here ({why}); run eagerly")
    figures: dict[str, float | int | str] = {
        f"cases {name}": count
        for name in _FORMS
        if (count := sum(measure.name.startswith(name) for measure in measures))
    }
    forms = ", ".join(figure.removeprefix("cases ") for figure in figures)
    figures |= {f"not {what}": reason for what, reason in lacking.items()}
    return judged(
        measures,
        f"programs give the same numbers eagerly and in every other form ({forms})",
        "{count} of {total} programs give other numbers than eagerly, worst: {worst}",
        figures,
    )


def _at_all_sizes(
    device: torch.device, level: Level, name: str, program: str, end: float
) -> tuple[list[Measure], dict[str, str]]:
    """One form of one program: what was compared, and what was not, with the reason.

    A form that can be made at some sizes and not at others is a failure of the others.
    """
    form, found, lacking = _FORMS[name], [], {}
    refused: dict[str, str] = {}
    dtypes = form.dtypes[:1] if level is Level.QUICK else form.dtypes
    for rows, dtype in itertools.product(form.rows[level], dtypes):
        label = f"{name}, {program} {short(dtype)} [{rows}]"
        if form.slow and time.process_time() > end:
            lacking[label] = "no time is left"
            continue
        try:
            found.append(_compared(device, form, _Case(program, rows, dtype), label))
        except _Refused as error:
            refused[label] = str(error)
        except _Untrainable as error:
            return [], {program: f"it does not run eagerly either: {error}"}
    if not found:
        return [], lacking | refused
    return found + [Measure(f"{what}: {why}", inf, 0.0) for what, why in refused.items()], lacking


class _Refused(Exception):
    """A form cannot be made of this program at this size."""


class _Untrainable(Exception):
    """Gradients cannot be computed eagerly either, as other checks find: nothing to agree with."""


class _Case(NamedTuple):
    program: str
    rows: int
    dtype: torch.dtype


def _compared(device: torch.device, form: Form, case: _Case, label: str) -> Measure:
    """The largest difference of one form, made with one input and run with others.

    Raises NotOffered, _Refused and _Untrainable when there is nothing to compare.
    """
    arch = tiny_model.architecture()
    program = _PROGRAMS[case.program](arch, case.rows, device, case.dtype)
    first, *others = [_tokens(arch, case.rows, seed).to(device) for seed in range(1 + _INPUTS)]
    eager = _with_gradients(program.forward, program.trained)
    try:
        eager(first)  # before anything is captured: kernels load, tables are made
    except Exception as error:
        if program.trained:
            raise _Untrainable(first_line(error)) from error
        raise
    try:
        run = form.make(device, program, first)
        run(first)  # compilers begin only now
    except NotOffered:
        raise
    except Exception as error:
        raise _Refused(first_line(error)) from error
    worst = 0.0
    for tokens in [*others, first, others[0]]:
        expected = [numbers.cpu() for numbers in eager(tokens)]
        worst = _larger(worst, _difference(run(tokens), expected))
    own = _own_error(case)
    limit = max(_FLOOR, _MARGIN * (own + torch.finfo(case.dtype).eps))
    return Measure(label, worst, limit, own)


# The programs. Weights and inputs are drawn on the CPU and the same on every device.


def _forward(arch: Architecture, rows: int, device: torch.device, dtype: torch.dtype) -> Program:
    """Hidden states and logits of `rows` tokens in a row, as prefill computes them."""
    decoder = _decoder(arch, device, dtype).requires_grad_(False)
    attend = causal(rows, device)
    return Program(lambda tokens: decoder.logits(decoder(tokens, attend.positions, attend)), [])


def _decode(arch: Architecture, rows: int, device: torch.device, dtype: torch.dtype) -> Program:
    """The next hidden state of `rows` completions of one prompt, each of another length."""
    decoder = _decoder(arch, device, dtype).requires_grad_(False)
    stored = [row % 5 for row in range(rows)]
    prompt, own = _filled(arch, 1, _PROMPT, device, dtype), _filled(arch, rows, 8, device, dtype)
    attend = Decode(own, stored, [Shared(prompt, [_PROMPT], [list(range(rows))])])
    positions = torch.tensor([_PROMPT + length for length in stored], device=device)
    return Program(lambda tokens: decoder.logits(decoder(tokens, positions, attend)), [])


def _training(arch: Architecture, rows: int, device: torch.device, dtype: torch.dtype) -> Program:
    """The mean log-probability of `rows` targets, and its gradient by every parameter."""
    decoder = _decoder(arch, device, torch.float32)
    decoder.dtype = dtype
    attend = causal(rows, device)
    targets = _tokens(arch, rows, 99).to(device)[:, None]

    def loss(tokens: Tensor) -> Tensor:
        logits = decoder.logits(decoder(tokens, attend.positions, attend))
        return -logits.float().log_softmax(-1).gather(1, targets).mean()

    return Program(loss, list(decoder.parameters()))


_PROGRAMS = {"forward": _forward, "decode step": _decode, "training step": _training}


def _decoder(arch: Architecture, device: torch.device, dtype: torch.dtype) -> Decoder:
    return tiny_model.decoder(arch, tiny_model.weights(arch), device, dtype)


def _filled(
    arch: Architecture, rows: int, length: int, device: torch.device, dtype: torch.dtype
) -> Arena:
    """An arena of random keys and values."""
    noise = torch.Generator().manual_seed(length)
    shape = (2, arch.layers, rows, arch.kv_heads, length, arch.head_dim)
    k, v = torch.randn(shape, generator=noise).to(device=device, dtype=dtype)
    arena = Arena(k, v)
    arena.append(0, k, v)
    return arena


def _tokens(arch: Architecture, rows: int, seed: int) -> Tensor:
    return torch.tensor(tiny_model.prompt(rows, arch.vocab, seed))


# The forms.


def _replayed(device: torch.device, program: Program, tokens: Tensor) -> Run:
    eager = _with_gradients(program.forward, program.trained)
    given, kept = tokens.clone(), Numbers()

    def captured() -> None:
        kept[:] = eager(given)

    replay = chips.capture(device, captured)
    if replay is None:
        raise NotOffered("the device captures no graphs, or torch offers no way to them")

    def run(tokens: Tensor) -> Numbers:
        given.copy_(tokens)
        replay()
        return kept

    return run


def _decomposed(device: torch.device, program: Program, tokens: Tensor) -> Run:
    """In the core operators that compilers ask of a backend."""
    eager = _with_gradients(program.forward, program.trained)
    made = make_fx(eager, dict(torch._decomp.core_aten_decompositions()))(tokens)
    if not next(iter(made.graph.nodes)).users:  # the tensors of a backend written in Python
        raise NotOffered("torch cannot follow tensors of this device through a program")
    return made


def _compiled(backend: str, options: dict[str, Any] | None = None) -> Callable[..., Run]:
    def make(device: torch.device, program: Program, tokens: Tensor) -> Run:
        torch.compiler.reset()  # what was compiled for other sizes would count against this one
        forward = torch.compile(
            program.forward, backend=backend, fullgraph=True, dynamic=False, options=options
        )
        return _with_gradients(forward, program.trained)

    return make


_ALL = tuple(_PROGRAMS)
_FORMS = {
    "replayed": Form(
        _replayed,
        _ALL,
        {Level.QUICK: (1, 8, 65), Level.DEFAULT: (1, 2, 7, 8, 64, 65, 513)},
        (torch.bfloat16, torch.float32),
        slow=False,
    ),
    "decomposed": Form(_decomposed, _ALL, {Level.QUICK: (8,), Level.DEFAULT: (1, 65)}),
    "compiled by aot_eager": Form(
        _compiled("aot_eager"), _ALL, {Level.QUICK: (), Level.DEFAULT: (64,)}
    ),
    # One process: a pool of compilers would outlive this check.
    "compiled by inductor": Form(
        _compiled("inductor", {"compile_threads": 1}),
        ("forward",),
        {Level.QUICK: (), Level.DEFAULT: (64,)},
    ),
}


def _with_gradients(forward: Callable[[Tensor], Tensor], trained: list[nn.Parameter]) -> Run:
    def run(tokens: Tensor) -> Numbers:
        if not trained:
            with torch.no_grad():
                return [forward(tokens)]
        loss = forward(tokens)
        return [loss.detach(), *torch.autograd.grad(loss, trained)]

    return run


# What is as good as equal.


def _own_error(case: _Case) -> float:
    """How wrong the CPU is in bfloat16, by float32; scaled down to the steps of a finer dtype."""
    host, arch = torch.device("cpu"), tiny_model.architecture()
    tokens = _tokens(arch, case.rows, 0)
    made = [
        _PROGRAMS[case.program](arch, case.rows, host, dtype)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    coarse = _difference(*[_with_gradients(*program)(tokens) for program in made])
    return coarse * torch.finfo(case.dtype).eps / torch.finfo(torch.bfloat16).eps


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any number, relative to the largest number of its tensor.

    A tensor of nothing but rounding (the gradient of a query that sees one key) is held against
    the largest of all. What is NaN in both agrees, and so does the same infinity; NaN or infinite
    where only one of them is not finite.
    """
    pairs = []
    for x, y in zip(found, expected, strict=True):
        x, y = x.detach().cpu().double(), y.double()
        alike = ((x == y) | (x.isnan() & y.isnan())) & ~y.isfinite()
        pairs.append((x.masked_fill(alike, 0.0), y.masked_fill(alike, 0.0)))
    largest = max(float(y.abs().max()) for _, y in pairs)
    worst = 0.0
    for x, y in pairs:
        scale = max(float(y.abs().max()), 1e-3 * largest) or 1.0
        worst = _larger(worst, float((x - y).abs().max()) / scale)
    return worst


def _larger(one: float, other: float) -> float:
    """The larger of two; NaN when either is."""
    return other if other != other or other > one else one

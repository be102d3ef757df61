"""What a plan must know of a model: how many weights, how many of them a token passes, its cache.

    config.json ──────────┐
    models/catalogue.toml ┼──> ModelShape
    total and active only ┘   (of a model that nobody described: scaled from the nearest)

Dense, mixture of experts, and latent attention (MLA). Counts are elements, not bytes. What a plan
needs is read leniently: a config.json of a family that the decoder does not know can be planned.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from interlock.errors import ConfigError, ModelError
from interlock.models.catalogue import ModelRecord, catalogue
from interlock.models.fetch import of_run
from interlock.plan.layer_kinds import counted_whole
from interlock.plan.sizes import StatedSizes, of_text, sizes_of
from interlock.records.adapters import ALL_LINEAR, AdapterForm
from interlock.regular import read_regular
from interlock.text import error_line, one_line

_MOST_BYTES = 4 << 20  # of a config.json
_VARIANT = re.compile(  # what follows a name without changing a size
    r"[-_ ]?(base|instruct|chat|it|zero|thinking|bf16|fp8|\d{4}|v0\.\d|[0-9a-f]{40})$", re.I
)


class ModelShape(msgspec.Struct, frozen=True):
    """The sizes of one model on which time and memory hang."""

    name: str
    params: float  # weights in all
    active: float  # weights that one token is multiplied with: the embedding is looked up, not that
    layers: int
    hidden: int
    heads: int
    vocab: int
    kv_elements: float  # of the cache, per token, all layers
    attention: float  # per layer: elements of queries, and of values, all heads; their sum
    decoding: float  # as much of a decoding step; with MLA heads attend to the latent itself
    experts: int = 0  # of a layer; 0: dense
    per_token: int = 0
    routed: float = 0.0  # weights of routed experts, in all
    active_inner: float = 0.0  # per layer: inner elements that a token passes
    # Of every linear layer but the vocabulary's and the gate of experts, by its last word: inputs
    # and outputs, all of its kind added up. An adapter of rank r has r times as many weights.
    linear: tuple[tuple[str, float], ...] = ()
    source: str = "catalogue"

    @property
    def always(self) -> float:
        """Weights that every decoding step reads, whoever is routed where; no embedding."""
        return self.active - self.routed * (self.per_token / self.experts if self.experts else 0)

    def adapter(self, form: AdapterForm | None) -> float:
        """Weights of an adapter; 0 of none. Raises ConfigError where it would have none."""
        if form is None:
            return 0.0
        every = form.targets == ALL_LINEAR
        chosen = [size for name, size in self.linear if every or name in form.targets]
        if not chosen:
            raise ConfigError(
                f"learner.lora.targets = {one_line(repr(form.targets), 80)} names no linear layer "
                f"of {self.name}; choose of {', '.join(name for name, _ in self.linear)}"
            )
        return form.rank * sum(chosen)

    def thinned(self, every: int) -> "ModelShape":
        """Layers 0, `every`, 2 * `every`, … of a model without experts, and all that is none."""
        if every == 1:
            return self
        assert not self.experts
        left = -(-self.layers // every)
        kept = left / self.layers
        gone = (1.0 - kept) * (self.active - self.hidden * self.vocab)
        return msgspec.structs.replace(
            self,
            name=f"{self.name}, every {every}. layer",
            params=self.params - gone,
            active=self.active - gone,
            layers=left,
            kv_elements=self.kv_elements * kept,
            linear=tuple((name, size * kept) for name, size in self.linear),
        )

    def hit(self, tokens: float) -> float:
        """Weights of experts that a step with so many tokens reads, on average.

        Of experts drawn at random, b tokens that choose k of E each hit 1 - (1 - k/E)^b.
        """
        if not self.experts:
            return 0.0
        return self.routed * (1.0 - (1.0 - self.per_token / self.experts) ** tokens)


def _attention(of: StatedSizes) -> tuple[float, float, float, float]:
    """Of one layer: weights, elements of the cache per token, elements of queries and values, the
    same of a decoding step.
    """
    values = of.value_dim or of.head_dim
    if of.kv_rank:
        rotated = of.rope_dim or 64
        queries = of.heads * of.head_dim
        given = of.hidden * of.q_rank + of.q_rank * queries if of.q_rank else of.hidden * queries
        latent = of.hidden * (of.kv_rank + rotated)
        up = of.kv_rank * of.heads * (of.head_dim - rotated + values)
        out = of.heads * values * of.hidden
        attention = of.heads * (of.head_dim + values)
        decoding = of.heads * (2 * of.kv_rank + rotated)
        return given + latent + up + out, of.kv_rank + rotated, attention, decoding
    around = 2 * of.hidden * of.heads * of.head_dim
    keys = 2 * of.hidden * of.kv_heads * of.head_dim
    attention = of.heads * 2 * of.head_dim
    return around + keys, 2 * of.kv_heads * of.head_dim, attention, attention


def _linear(of: StatedSizes) -> dict[str, float]:
    """Of ModelShape.linear."""
    with_experts = of.layers - of.dense_layers if of.experts else 0
    values = of.heads * (of.value_dim or of.head_dim)
    queries = of.heads * of.head_dim
    if of.kv_rank:
        rotated = of.rope_dim or 64
        up = of.heads * (of.head_dim - rotated) + values
        attention = {
            "kv_a_proj_with_mqa": of.hidden + of.kv_rank + rotated,
            "kv_b_proj": of.kv_rank + up,
        }
    else:
        keys = of.hidden + of.kv_heads * of.head_dim
        attention = {"k_proj": keys, "v_proj": keys}
    if of.kv_rank and of.q_rank:
        attention |= {"q_a_proj": of.hidden + of.q_rank, "q_b_proj": of.q_rank + queries}
    else:
        attention["q_proj"] = of.hidden + queries
    attention["o_proj"] = values + of.hidden
    inner = (of.layers - with_experts) * (of.hidden + of.inner)
    inner += with_experts * of.experts * (of.hidden + of.expert_inner)
    inner += with_experts * (of.hidden + of.shared_inner) if of.shared_inner else 0
    found = {name: float(of.layers * size) for name, size in attention.items()}
    return found | dict.fromkeys(("gate_proj", "up_proj", "down_proj"), float(inner))


def _shape(of: StatedSizes, source: str) -> ModelShape:
    weights, cache, attention, decoding = _attention(of)
    with_experts = of.layers - of.dense_layers if of.experts else 0
    dense = of.layers - with_experts
    routed = with_experts * of.experts * 3.0 * of.hidden * of.expert_inner
    shared = with_experts * (3.0 * of.hidden * of.shared_inner + of.hidden * of.experts)
    plain = of.layers * weights + dense * 3.0 * of.hidden * of.inner + shared
    vocabulary = of.vocab * of.hidden
    share = of.per_token / of.experts if of.experts else 0.0
    passed = dense * of.inner + with_experts * (of.per_token * of.expert_inner + of.shared_inner)
    return ModelShape(
        name=of.name,
        params=plain + routed + vocabulary * (1 if of.tied else 2),
        active=plain + routed * share + vocabulary,
        layers=of.layers,
        hidden=of.hidden,
        heads=of.heads,
        vocab=of.vocab,
        kv_elements=of.layers * cache,
        attention=attention,
        decoding=decoding,
        experts=of.experts if with_experts else 0,
        per_token=of.per_token,
        routed=routed,
        active_inner=passed / of.layers,
        linear=tuple(_linear(of).items()),
        source=source,
    )


def of_record(record: ModelRecord) -> ModelShape:
    """A model of the catalogue."""
    return _shape(
        msgspec.convert(record, StatedSizes, from_attributes=True), "models/catalogue.toml"
    )


def of_config(config: dict[str, Any], name: str) -> ModelShape:
    """A model of which the config.json was read. Raises ModelError where a size is missing."""
    return _shape(sizes_of(config, name), f"config.json{counted_whole(of_text(config))}")


def read_config(path: Path) -> ModelShape:
    """Of a config.json, or of a model directory that has one. Raises ModelError."""
    file = path / "config.json" if path.is_dir() else path
    try:
        tree = json.loads(read_regular(file, _MOST_BYTES))
    except RecursionError:
        raise ModelError(f"cannot read {file}: nested too deeply; give a config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error_line(error)}; give a config.json") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{file} holds no JSON object; give a model's config.json")
    return of_config(tree, file.parent.name if path.is_dir() else path.stem)


def named(name: str) -> ModelShape | None:
    """The model of the catalogue that a name, or an address of the hub, means; None: none."""
    wanted = _stem(name)
    for record in catalogue():
        if wanted in (_stem(record.name), _stem(record.repository)):
            return of_record(record)
    short = [each for each in catalogue() if _squeezed(each.name) == _squeezed(wanted)]
    return of_record(short[0]) if short else None


def _stem(name: str) -> str:
    """'hf:Qwen/Qwen3-4B-Instruct-2507@main' -> 'qwen3-4b'"""
    plain = name.removeprefix("hf:").partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    while (shorter := _VARIANT.sub("", plain)) != plain:
        plain = shorter
    return plain


def _squeezed(name: str) -> str:
    """As people shorten: 'Qwen3-30B3A', 'Qwen3-235B', 'R1-Distill-Qwen-1.5B'."""
    plain = re.sub(r"[^a-z0-9.]", "", _stem(name)).removeprefix("deepseekr1distill")
    plain = plain.removeprefix("r1distill") if plain.startswith("r1distill") else plain
    return re.sub(r"(\d+b)a?\d+(b|a)?$", r"\1", plain)


def model_shape(path: str) -> ModelShape:
    """The model of a recipe: a directory, a run, a config.json, an address or a catalogue's name.

    Nothing is fetched. Raises ModelError; RunError for a run that has no weights yet.
    """
    here = Path(path).expanduser()
    if here.suffix.lower() == ".gguf":
        raise ModelError(
            f"{one_line(path, 80)} is a GGUF file, whose sizes a plan does not read; give --model, "
            "a name of the catalogue or a config.json"
        )
    if not path.startswith("hf:") and here.exists():
        if here.is_file():
            return read_config(here)
        return replace(read_config(of_run(here)), name=here.resolve().name)
    found = named(path)
    if found is None:
        near = sorted(catalogue(), key=lambda each: _unlike(each.name, path))[:4]
        raise ModelError(
            f"no sizes of {one_line(repr(path), 80)}: it is no directory here and not in the "
            f"catalogue ({', '.join(each.name for each in near)}, …); give --model config.json"
        )
    return found


def _unlike(name: str, wanted: str) -> float:
    import difflib

    return -difflib.SequenceMatcher(None, _stem(name), _stem(wanted)).ratio()


def of_counts(name: str, total: float, active: float) -> ModelShape:
    """A model of which only the weights are known, in all and per token.

    Scaled from the model of the catalogue that is nearest in both: widths and depth as the cube
    root of the ratio of active weights, which keeps what is between them.
    """

    def apart(other: ModelShape) -> float:
        return abs(math.log(other.params / total)) + 2 * abs(
            math.log(other.active / other.params * total / active)
        )

    near = min(map(of_record, catalogue()), key=apart)
    by = (active / near.active) ** (1 / 3)
    routed = max(total - near.hidden * by * near.vocab - near.always * by**3, 0.0)
    return msgspec.structs.replace(
        near,
        name=name,
        params=total,
        active=active,
        layers=max(1, round(near.layers * by)),
        hidden=max(1, round(near.hidden * by)),
        kv_elements=near.kv_elements * by**2,
        attention=near.attention * by,
        decoding=near.decoding * by,
        routed=min(routed, near.routed * total / near.params) if near.experts else 0.0,
        active_inner=near.active_inner * by,
        linear=tuple((each, size * by**2) for each, size in near.linear),
        source=f"scaled from {near.name}",
    )

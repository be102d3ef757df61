"""Settings of a generator as vLLM wants them: its environment, its arguments, what is refused.

GeneratorSettings ──settle──> os.environ, kind of device
         │ └─────arguments──> keyword arguments ──start──> LLMEngine
         └─ options, checked ──────────────────────┘
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from interlock.chips import vendors
from interlock.config.schema import GeneratorSettings
from interlock.engine.vllm import cpu_products
from interlock.engine.vllm.extension import WorkerExtension
from interlock.engine.vllm.slots import TARGETS, AdapterSlots, known_ranks
from interlock.errors import ConfigError
from interlock.text import error_line

# Settings that are decided here; the recipe has another place for the first three.
_FIXED = {
    "model",
    "dtype",
    "max_num_seqs",
    "logprobs_mode",
    "skip_tokenizer_init",
    "trust_remote_code",
    "worker_extension_cls",
    TARGETS,
}


def settle(settings: GeneratorSettings) -> str:
    """Set what vLLM reads from the environment; the kind of device ("cpu", "cuda", "npu", …).

    What the recipe's generator.env says goes before. Raises ConfigError.
    """
    kind, _, index = settings.device.partition(":")
    vendor = vendors.of(kind)
    if index not in ("", "0"):
        example = f', such as {{ {vendor.visible} = "{index}" }}' if vendor.visible else ""
        raise ConfigError(
            f"generator.device = {settings.device!r}: vLLM takes the first device it sees; write "
            f"{kind!r} and choose it with generator.env{example}"
        )
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, one thing at a time
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if kind == "cpu":
        wanted["VLLM_CPU_KVCACHE_SPACE"] = "4"  # GiB
        # Otherwise vLLM goes down to one thread once it has started.
        wanted["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        if settings.options.get("enforce_eager", True):
            # Its sampler has one function that is compiled even then, for 20 s.
            wanted["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in (wanted | vendor.vllm_env).items():
        os.environ.setdefault(name, value)
    return kind


def arguments(
    model: Path, settings: GeneratorSettings, kind: str, dtype: str, context: int
) -> dict[str, Any]:
    """What vLLM is started with, but for the recipe's own options."""
    sequences = settings.slots + 1  # one is kept free, so that a text can be scored at any time
    wanted = {
        "model": str(model),
        "dtype": dtype,
        "max_num_seqs": sequences,
        "max_model_len": context,
        "max_logprobs": -1,  # any top_k of a text that is scored
        "logprobs_mode": "processed_logprobs",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "enable_prefix_caching": False,
        "enforce_eager": not vendors.of(kind).vllm_graphs,
        "disable_log_stats": True,
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__name__}",
    }
    if kind == "cpu":
        # A prompt prefilled in parts makes the CPU build turn a seeded generator back, which
        # torch's CPU generators refuse. So the longest must fit beside the tokens of all others.
        wanted["enable_chunked_prefill"] = False
        wanted["max_num_batched_tokens"] = max(2048, context + sequences)
    return wanted


def start(
    wanted: dict[str, Any], options: Mapping[str, Any], kind: str, slots: AdapterSlots
) -> tuple[Any, str]:
    """The started LLMEngine, and its name with version."""
    try:
        import vllm
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(
            f'engine = "vllm" cannot be started here ({error}); set generator.python to the '
            "interpreter of an environment with vLLM, such as the one that `make vllm` builds"
        ) from None
    description = f"vllm {vllm.__version__}"
    if (built := current_platform.device_type) != kind:
        raise ConfigError(
            f"generator.device = {kind!r}, but this {description} is built for {built!r}; set "
            "generator.python to an environment with the other build"
        )
    wanted |= slots.arguments(known_ranks(), kind, wanted["dtype"])
    check_options(options, wanted, {field.name for field in dataclasses.fields(EngineArgs)})
    if kind == "cpu":
        cpu_products.keep_weights_plain()
        cpu_products.multiply_adapters_at_once()
    try:
        engine = LLMEngine.from_engine_args(EngineArgs(**wanted | dict(options)))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{description} refuses the generator's settings: {error_line(error)}"
        ) from None
    return engine, description


def check_options(options: Mapping[str, Any], wanted: Mapping[str, Any], known: set[str]) -> None:
    """Raise ConfigError on an option that vLLM does not have, or that is not free."""
    if lacking := sorted(wanted.keys() - known):
        raise ConfigError(f"this vLLM has no setting {lacking[0]!r}; install 0.20 or newer")
    for name in options:
        if name in _FIXED:
            raise ConfigError(
                f"generator.options.{name} is not free: dtype and slots are settings of the "
                "generator, the rest is what makes vLLM a generator; remove it"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"vLLM has no setting {name!r} (in generator.options){hint}")

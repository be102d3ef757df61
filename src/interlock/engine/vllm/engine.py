"""vLLM as the engine: its CPU, CUDA and Ascend builds, in an environment of their own.

    requests ──check──> one vLLM request per completion ──step──> Row ──> completions, per request
    weights ──compared with the model──> safetensors file ──Weights, in vLLM's worker──> its model
    held, score <── the parameters themselves <────────────────────────────┘

The only module that imports vllm, and only when an engine is opened. vLLM gets token ids and gives
token ids: it has no tokenizer here, and stop strings are found by the same `Row` as in the torch
engine. Nothing of an older version is used again: no request outlives a call, and a prefix cache,
if asked for, is emptied with every version.

What differs between versions of vLLM is asked for, not assumed. docs/vllm.md says what was run.
"""

import dataclasses
import difflib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interlock.chips import device, vendors
from interlock.config.schema import GeneratorSettings
from interlock.engine.base import (
    Engine,
    Limits,
    Progress,
    Request,
    Scores,
    Shapes,
    Vocabulary,
    check_request,
    check_weights,
)
from interlock.engine.sequence import LiveSequence
from interlock.errors import ConfigError, ModelError, SyncError, TrainingError
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.text import error_line

_SCORE = "score"  # vLLM's name for a text that is scored; sequences have numbers
NO_VERSION = -1  # of an engine whose weights are not whole
LOWEST_TEMPERATURE = 0.01  # vLLM raises a lower one to this, greedy apart
_FILE = "weights.safetensors"
# Settings that this module decides; the recipe has another place for the first three.
_FIXED = {
    "model",
    "dtype",
    "max_num_seqs",
    "logprobs_mode",
    "skip_tokenizer_init",
    "trust_remote_code",
    "worker_extension_cls",
}

Place = tuple[str, int, int]  # a vLLM parameter, and from which of its rows to which


class VllmEngine(Engine):
    """Generates with vLLM; `version` says which weights it holds, NO_VERSION that they are torn."""

    def __init__(self, model: Path, settings: GeneratorSettings, vocabulary: Vocabulary) -> None:
        """Start vLLM on the weights in the directory `model`, as version 0; takes a minute.

        Raises ConfigError when vLLM is not installed, is too old, or refuses a setting; ModelError
        when the model is of a family that Interlock does not know.
        """
        with torch.device("meta"):
            decoder = Decoder(read_architecture(model))
        self._shapes = {name: list(view.shape) for name, view in decoder.tensors().items()}
        self._vocabulary = vocabulary
        context = int(settings.options.get("max_model_len", decoder.arch.context))
        self.limits = Limits(decoder.arch.vocab, context, settings.slots)
        kind = settle(settings)
        self.dtype = device.settled_dtype(settings.dtype, device.claim(settings.device))
        wanted = {
            "model": str(model),
            "dtype": self.dtype,
            "max_num_seqs": settings.slots,
            "max_model_len": context,
            "logprobs_mode": "processed_logprobs",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "enable_prefix_caching": False,
            "enforce_eager": not vendors.of(kind).vllm_graphs,
            "disable_log_stats": True,
            "worker_extension_cls": f"{__name__}.{Weights.__name__}",
        }
        if kind == "cpu":
            # A prompt prefilled in parts makes the CPU build turn a seeded generator back, which
            # torch's CPU generators refuse.
            wanted["enable_chunked_prefill"] = False
            wanted["max_num_batched_tokens"] = max(2048, context, settings.slots)
        self._engine, self.description, self.device = _start(wanted, settings.options, kind)
        self._sequences: dict[str, LiveSequence] = {}  # by the name of vLLM's request
        self._submitted = 0
        self._early: list[Progress] = []  # made while something was scored, for the next step
        self._refuse_packed()
        self.version = 0

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take over the weights of `version`: tensors under Hugging Face names, of any float dtype.

        Raises ModelError, with nothing changed, on a missing or unknown name or a wrong shape;
        SyncError, with nothing changed, when they cannot be written down for vLLM's worker;
        ModelError, and the engine holds no version, when vLLM did not take all of them.
        """
        check_weights(tensors, self._shapes, version)
        running = list(self._sequences.values())
        self._engine.abort_request(list(self._sequences))
        self._sequences.clear()
        with TemporaryDirectory(prefix="interlock-") as folder:
            path = Path(folder) / _FILE
            _write({name: tensors[name] for name in self._shapes}, path)
            self.version = NO_VERSION
            left = self._engine.collective_rpc("interlock_load", args=(str(path),))
        if missing := sorted({name for names in left for name in names}):
            raise ModelError(
                f"vLLM has weights that version {version} does not set, {missing[0]} first; use "
                'engine = "torch" for this model'
            )
        if self._engine.reset_prefix_cache() is False:
            raise TrainingError("vLLM kept its prefix cache, which belongs to older weights")
        self.version = version
        for sequence in running:
            self._submit(sequence)

    def held(self) -> Iterator[tuple[str, Tensor]] | None:
        """The weights as vLLM's products read them, under Hugging Face names.

        None when they cannot be read back: sharded over several workers, or stored by vLLM in an
        order of its own (experts of a mixture, latent attention, quantised weights).
        """
        found = self._engine.collective_rpc("interlock_shapes")
        where = places(self._shapes, *found[0]) if len(found) == 1 else None
        return None if where is None else self._read(where)

    def score(self, tokens: Sequence[int], top_k: int = 0) -> Scores:
        """Raises ConfigError when there is no room in the context for the one token that vLLM draws
        behind every prompt.
        """
        from vllm import SamplingParams

        if len(tokens) >= self.limits.context:
            raise ConfigError(
                f"a text of {len(tokens)} tokens cannot be scored by vLLM in a context of "
                f"{self.limits.context}; give it one of at most {self.limits.context - 1}"
            )
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False, ignore_eos=True
        )
        self._engine.add_request(_SCORE, {"prompt_token_ids": list(tokens)}, params)
        found: Any = None
        finished = False
        while not finished:
            for output in self._engine.step():
                if output.request_id == _SCORE:
                    found, finished = output.prompt_logprobs or found, output.finished
                else:
                    self._early += self._push(output)
        places = list(zip(tokens[1:], found[1:], strict=True))
        given = [entry[token].logprob for token, entry in places]
        return Scores(given, [_most_likely(entry, top_k) for _, entry in places])

    @property
    def pending(self) -> int:
        return len(self._sequences) + sum(each.completion is not None for each in self._early)

    def add(self, name: str, request: Request) -> None:
        assert self.version != NO_VERSION, "its weights are torn"
        assert all(each.name != name for each in self._sequences.values()), name
        check_request(request, self.limits)
        _check_temperature(request)
        for number in range(request.completions):
            self._submit(LiveSequence(name, request, number, self._vocabulary))

    def abort(self, name: str) -> bool:
        early = len(self._early)
        self._early = [each for each in self._early if each.name != name]
        gone = [key for key, each in self._sequences.items() if each.name == name]
        self._engine.abort_request(gone)
        for key in gone:
            del self._sequences[key]
        return bool(gone) or len(self._early) < early

    def step(self) -> list[Progress]:
        progress, self._early = self._early, []
        if progress or not self._sequences:
            return progress
        try:
            return [each for output in self._engine.step() for each in self._push(output)]
        except BaseException:
            self._engine.abort_request(list(self._sequences))
            self._sequences.clear()
            raise

    def _submit(self, sequence: LiveSequence) -> None:
        """Give vLLM a sequence to begin, or to go on with where it has drawn tokens already."""
        self._submitted += 1
        key = str(self._submitted)
        tokens = [*sequence.request.prompt_tokens, *sequence.tokens]
        params = _sampling_params(sequence, self._vocabulary.eos_ids)
        self._engine.add_request(key, {"prompt_token_ids": tokens}, params)
        self._sequences[key] = sequence

    def _push(self, output: Any) -> list[Progress]:
        """Give a sequence its next tokens."""
        sequence = self._sequences.get(output.request_id)
        if sequence is None:
            return []
        (answer,) = output.outputs
        found: list[Progress] = []
        for token, entry in zip(answer.token_ids, answer.logprobs or (), strict=True):
            logprob = entry[token].logprob
            if not math.isfinite(logprob):
                raise TrainingError(
                    f"the logits of weight version {self.version} are not finite: training broke "
                    "the weights, or the generator's dtype is too narrow for them"
                )
            found.append(sequence.push(token, logprob, self.version))
            if sequence.finish is not None:
                if not output.finished:  # a stop string, of which vLLM knows nothing
                    self._engine.abort_request([output.request_id])
                del self._sequences[output.request_id]
                return found
        if output.finished:
            raise TrainingError(
                f"vLLM gave up a completion of {sequence.request.problem_id!r} after "
                f"{len(sequence.tokens)} tokens ({answer.finish_reason})"
            )
        return found

    def _refuse_packed(self) -> None:
        """Raise ConfigError when vLLM hid weights behind handles: an update may leave those on the
        old ones.
        """
        for shapes, _ in self._engine.collective_rpc("interlock_shapes"):
            for name, shape in shapes.items():
                if 0 in shape:
                    raise ConfigError(
                        f"{self.description} packed {name} away, so weights cannot be updated; on "
                        "a CPU, leave tensor_parallel_size at 1"
                    )

    def _read(self, where: dict[str, Place]) -> Iterator[tuple[str, Tensor]]:
        with TemporaryDirectory(prefix="interlock-") as folder:
            path = Path(folder) / _FILE
            self._engine.collective_rpc("interlock_save", args=(str(path),))
            with safe_open(path, framework="pt") as file:
                for name, (parameter, start, end) in where.items():
                    yield name, file.get_slice(parameter)[start:end]


class Weights:
    """What vLLM's worker can do besides: vLLM makes this a base of its worker class
    (`worker_extension_cls`), and the engine calls it by name, with plain arguments.
    """

    model_runner: Any
    vllm_config: Any

    def interlock_load(self, path: str) -> list[str]:
        """Put the tensors of a safetensors file into the model; the parameters it left unset."""
        from vllm.config import set_current_vllm_config

        model = self.model_runner.get_model()
        unset = {name for name, _ in model.named_parameters()}
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            begin, end = _reloading(model, self.vllm_config.model_config)
            begin()
            loaded = model.load_weights(_stream(path))
            end()
        return sorted(unset - set(unset if loaded is None else loaded))

    def interlock_shapes(self) -> tuple[Shapes, dict[str, list[str]]]:
        """The shapes of all parameters, and which of them are several of a checkpoint's in one."""
        model = self.model_runner.get_model()
        shapes = {name: list(each.shape) for name, each in model.named_parameters()}
        packed = getattr(model, "packed_modules_mapping", None) or {}
        return shapes, {name: list(parts) for name, parts in packed.items()}

    def interlock_save(self, path: str) -> None:
        """Write all parameters as they are to a safetensors file."""
        model = self.model_runner.get_model()
        _write(dict(model.named_parameters()), Path(path))


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


def _start(wanted: dict[str, Any], options: Mapping[str, Any], kind: str) -> tuple[Any, str, str]:
    """The started LLMEngine, its name with version, and its device in words."""
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
    check_options(options, wanted, {field.name for field in dataclasses.fields(EngineArgs)})
    if kind == "cpu":
        _keep_weights_plain()
    try:
        engine = LLMEngine.from_engine_args(EngineArgs(**wanted | dict(options)))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{description} refuses the generator's settings: {error_line(error)}"
        ) from None
    chip = current_platform.get_device_name()
    return engine, description, kind if kind == chip else f"{kind}: {chip}"


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


def _keep_weights_plain() -> None:
    """Have vLLM's CPU build multiply with its parameters as they are.

    It would pack them away for oneDNN: not to be read back, and a vocabulary projection tied to the
    embedding would go on with the packed weights of the version before.
    """
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain


def _reloading(model: Any, model_config: Any) -> tuple[Any, Any]:
    """What to call before and after the weights of a running model are loaded again."""
    try:
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )
    except ImportError:  # older: weights stay as loaded, but for what is derived from them
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        place = next(model.parameters()).device
        return lambda: None, lambda: process_weights_after_loading(model, model_config, place)
    return (
        lambda: initialize_layerwise_reload(model),
        lambda: finalize_layerwise_reload(model, model_config),
    )


def _most_likely(entry: Mapping[int, Any], top_k: int) -> list[tuple[int, float]]:
    """The `top_k` first of what vLLM says of one place, which adds the token that was given."""
    ranked = sorted(entry.items(), key=lambda item: item[1].rank)
    return [(token, value.logprob) for token, value in ranked[:top_k]]


def _sampling_params(sequence: LiveSequence, eos_ids: Iterable[int]) -> Any:
    """vLLM's words for the rest of a sequence; logprobs are of the distribution drawn from."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    request, drawn = sequence.request, len(sequence.tokens)
    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens - drawn,
        seed=noise_seed(request.seed, request.problem_id, sequence.number, drawn),
        stop_token_ids=sorted(eos_ids),
        ignore_eos=True,  # but for those
        logprobs=0,  # of the drawn token alone
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def noise_seed(seed: int, problem_id: str, number: int, drawn: int = 0) -> int:
    """The seed of a completion from its token `drawn` on, in [0, 2^63).

    A hash, so neighbours have nothing in common.
    """
    key = f"{seed} {number} {drawn} {problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def _check_temperature(request: Request) -> None:
    if 0 < (temperature := request.sampling.temperature) < LOWEST_TEMPERATURE:
        raise ConfigError(
            f"sampling.temperature = {temperature}: vLLM draws at {LOWEST_TEMPERATURE} or above; "
            "raise it to that, or to 0 for the most likely token"
        )


def places(
    shapes: Shapes, parameters: Shapes, packed: Mapping[str, list[str]]
) -> dict[str, Place] | None:
    """Where in vLLM's `parameters` each tensor of `shapes` is; None when one cannot be found.

    packed: module of vLLM -> the checkpoint's modules whose rows it holds, one after another. Rows
    behind those of the checkpoint are padding.
    """
    whole = {part: (module, parts) for module, parts in packed.items() for part in parts}
    found: dict[str, Place] = {}
    for name, shape in shapes.items():
        parameter, start = name, 0
        words = name.split(".")
        if name not in parameters and len(words) > 1 and words[-2] in whole:
            module, parts = whole[words[-2]]
            siblings = [".".join([*words[:-2], part, words[-1]]) for part in parts]
            if not all(sibling in shapes for sibling in siblings):
                return None
            start = sum(shapes[each][0] for each in siblings[: siblings.index(name)])
            parameter = ".".join([*words[:-2], module, words[-1]])
        end = start + shape[0]
        held = parameters.get(parameter)
        if held is None or held[1:] != shape[1:] or held[0] < end:
            return None
        found[name] = parameter, start, end
    return found


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file of `tensors`. Raises SyncError when the disk refuses."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
    except (OSError, SafetensorError) as error:
        raise SyncError(
            f"cannot write the weights to {path} ({error_line(error)}); make room there, or set "
            "TMPDIR"
        ) from None


def _stream(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            yield name, file.get_tensor(name)

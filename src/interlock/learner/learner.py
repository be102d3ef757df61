"""The learner: owns the fp32 master weights and the optimizer, and executes per-token weights.

    groups ─ pack ─> micro-batches ─ decoder ─ chunked_loss ─ backward ─┐ (accumulated)
                                                                       v
    WeightVersion, tensors <─ publish ─ masters <─ AdamW <─ clip <─ gradients, if all are finite

It knows nothing of rewards, advantages or tasks: what to learn stands in the groups' weights.
"""

import copy
import math
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor, nn

from interlock import config
from interlock.chips import device
from interlock.errors import TrainingError
from interlock.learner.loss import Sums, Terms, chunked_loss, policy_loss, sums, token_logprobs
from interlock.learner.packing import MicroBatch, TrainingGroup, pack
from interlock.models.decoder import Decoder
from interlock.models.weights import digest
from interlock.records import WeightVersion

# How far an expert's bias moves per step: DeepSeek-V3, arXiv 2412.19437, section 4.2.
_BALANCE_SPEED = 1e-3
# Devices for which torch has AdamW in one pass.
_FUSED = ("cpu", "cuda", "xpu")


class StepResult(msgspec.Struct, frozen=True):
    """One optimizer step. Means are over `tokens`; None where the step had no such thing."""

    loss: float  # the sum over tokens: the weights hold the normalisation
    grad_norm: float  # before clipping
    lr: float
    tokens: int  # whose log-probabilities were computed
    skipped: bool  # loss or gradient not finite: nothing was updated
    entropy: float
    mismatch_k3: float | None  # learner against sampler, on the sampler's tokens
    mismatch_max: float | None  # largest absolute difference of log-probabilities
    mismatch_share_above_2: float | None  # share of tokens with pi / mu > 2
    clipped_share: float | None
    vetoed: int | None  # tokens whose pi / mu is below tis_veto
    kl: float | None  # k3 against the reference


def learning_rate(settings: config.Optimizer, step: int, total_steps: int) -> float:
    """The rate of a step, counted from 0: linear warm-up to lr, then the schedule's way down.

    The last step of a linear or cosine schedule, and any after it, has final_lr * lr.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    way = total_steps - 1 - settings.warmup_steps
    progress = min(1.0, (step - settings.warmup_steps) / way) if way > 0 else 1.0
    match settings.schedule:
        case "constant":
            left = 1.0
        case "linear":
            left = 1.0 - progress
        case "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * left)


class Learner:
    """Trains `decoder`, whose fp32 parameters are the masters, for the steps of one stage.

    A stage gets a new Learner, and with it a new optimizer and schedule, on the same decoder.
    `keep_reference` freezes a copy of the decoder as it is now, which groups with KL weights need.
    `version` is the number of the first published weights.

    A step whose loss or gradient norm is not finite is skipped: masters, moments and the place in
    the schedule stay bit for bit as they were; it only counts in `bad_steps` and `bad_in_row`.
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: config.Learner,
        optimizer: config.Optimizer,
        total_steps: int,
        *,
        keep_reference: bool = False,
        version: int = 0,
    ) -> None:
        parameters = {n: p for n, p in decoder.named_parameters() if p.requires_grad}
        assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
        place = decoder.embed.device
        decoder.dtype = device.dtype(device.settled_dtype(settings.dtype, place))
        decoder.checkpointing = settings.activation_checkpointing
        self.decoder = decoder
        self.parameters = parameters
        self.reference = _frozen_copy(decoder) if keep_reference else None
        self.steps = 0  # applied: the place in the schedule
        self.bad_steps = 0
        self.bad_in_row = 0
        self.version = version  # of the weights last published, or of the first ones to be
        self.unpublished = False  # the weights have moved since the last publication
        self.optimizer = _adamw(parameters, optimizer)
        self._settings = settings
        self._schedule = optimizer
        self._total_steps = total_steps

    @property
    def device(self) -> torch.device:
        return self.decoder.embed.device

    def step(
        self,
        groups: Sequence[TrainingGroup],
        loss: config.Loss | None,
        temperature: float = 1.0,
        old: Sequence[Sequence[Tensor]] | None = None,
    ) -> StepResult:
        """One optimizer step on all groups: clipped surrogate with `loss`, likelihood without.

        `temperature` is what the completions were sampled at. `old` is what `logprobs` gave before
        the first of several steps on the same groups; None: this is the only or the first one.
        Raises TrainingError on malformed groups, on groups without any weight, on log-probabilities
        that are missing, and when `max_bad_steps` steps in a row were not finite.
        """
        batches = self._pack(groups)
        if not batches:
            raise TrainingError("no token of the step's groups has a weight; leave the step out")
        behaviour = None if old is None else torch.cat([part for group in old for part in group])
        tokens = sum(len(completion) for group in groups for completion in group.completions)
        assert behaviour is None or len(behaviour) == tokens
        total = Sums()
        for batch in batches:
            total += self._accumulate(batch, loss, temperature, behaviour)
        lr = learning_rate(self._schedule, self.steps, self._total_steps)
        grad_norm, skipped = self._apply(total.loss, lr)
        return _result(total, grad_norm, lr, skipped, batches[0], loss)

    @torch.no_grad()
    def logprobs(
        self, groups: Sequence[TrainingGroup], temperature: float = 1.0
    ) -> list[list[Tensor]]:
        """Log-probability of every completion token: per group, per completion, fp32 [tokens]."""
        lengths = [[len(completion) for completion in group.completions] for group in groups]
        flat = torch.empty(sum(map(sum, lengths)))
        for batch in self._pack(groups, every_token=True):
            flat[batch.source.cpu()] = self._logprobs(self.decoder, batch, temperature).cpu()
        parts = iter(flat.split([length for group in lengths for length in group]))
        return [[next(parts) for _ in group] for group in lengths]

    @torch.no_grad()
    def publish(self) -> tuple[WeightVersion, dict[str, Tensor]]:
        """The masters in the compute dtype under Hugging Face names; copies, on their device.

        Weights that have not moved since the last call keep their version number.
        """
        self.version += self.unpublished
        self.unpublished = False
        tensors = dict(self.decoder.published(self.decoder.dtype))
        return WeightVersion(self.version, digest(tensors)), tensors

    def _pack(self, groups: Sequence[TrainingGroup], every_token: bool = False) -> list[MicroBatch]:
        limit, vocab = self._settings.micro_batch_tokens, self.decoder.arch.vocab
        return pack(groups, limit, vocab, self.device, every_token)

    def _accumulate(
        self,
        batch: MicroBatch,
        loss: config.Loss | None,
        temperature: float,
        old: Tensor | None,
    ) -> Sums:
        """Add the gradients of one micro-batch to those of the step."""
        reference = None
        if self.reference is not None and batch.kl_weights is not None:
            reference = self._logprobs(self.reference, batch, temperature)
        terms = Terms(
            weights=batch.weights,
            sampler=batch.sampler_logprobs,
            old=None if old is None else old[batch.source.cpu()].to(self.device),
            reference=reference,
            kl_weights=batch.kl_weights,
        )
        value, logprobs, entropy = chunked_loss(
            _hidden(self.decoder, batch),
            self.decoder.head,
            batch.targets,
            temperature,
            self._settings.logits_chunk,
            lambda logprobs, rows: policy_loss(logprobs, terms[rows], loss),
        )
        value.backward()
        return sums(logprobs, entropy, terms, loss)

    @torch.no_grad()
    def _logprobs(self, decoder: Decoder, batch: MicroBatch, temperature: float) -> Tensor:
        hidden, chunk = _hidden(decoder, batch), self._settings.logits_chunk
        return token_logprobs(hidden, decoder.head, batch.targets, temperature, chunk)[0]

    def _apply(self, loss: float, lr: float) -> tuple[float, bool]:
        """Update the masters from the gradients, and clear these. -> gradient norm, skipped"""
        for parameter in self.parameters.values():
            # Without a gradient AdamW would leave its moments alone: those of a weight that no
            # token met, an idle expert's say, would then depend on when it was last used.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        grad_norm = norm.item()
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            if grad_norm > self._schedule.clip_norm:
                for gradient in gradients:
                    gradient.mul_(self._schedule.clip_norm / norm)
            for parameter_group in self.optimizer.param_groups:
                parameter_group["lr"] = lr
            self.optimizer.step()
            self.steps += 1
            self.unpublished = True
        self.optimizer.zero_grad()
        routing = self.decoder.arch.routing
        if routing is not None and routing.corrected:
            # At speed 0 the biases stay, and what a bad step counted is forgotten.
            self.decoder.balance_experts(_BALANCE_SPEED if finite else 0.0)
        self._count_bad(not finite, loss, grad_norm)
        return grad_norm, not finite

    def _count_bad(self, bad: bool, loss: float, grad_norm: float) -> None:
        self.bad_steps += bad
        self.bad_in_row = self.bad_in_row + 1 if bad else 0
        if self.bad_in_row >= self._settings.max_bad_steps:
            raise TrainingError(
                f"step {self.steps + self.bad_steps}: loss {loss} and gradient norm {grad_norm}; "
                f"{self.bad_in_row} steps in a row were not finite, lower the learning rate"
            )


def _hidden(decoder: Decoder, batch: MicroBatch) -> Tensor:
    """The hidden states that predict the targets, [M, d]."""
    return decoder(batch.tokens, batch.attend.positions, batch.attend)[batch.rows]


def _adamw(parameters: dict[str, nn.Parameter], settings: config.Optimizer) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); norms and biases do not decay."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = True if matrices[0].device.type in _FUSED else None
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused
    )


def _frozen_copy(decoder: Decoder) -> Decoder:
    """The decoder as it is now, in its compute dtype, to which every weight is cast at its use."""
    frozen = copy.deepcopy(decoder)
    for parameter in frozen.parameters():
        if parameter.requires_grad:  # the others stay fp32, see models/decoder.py
            parameter.data = parameter.data.to(decoder.dtype)
    return frozen.requires_grad_(False)


def _result(
    total: Sums,
    grad_norm: float,
    lr: float,
    skipped: bool,
    batch: MicroBatch,
    loss: config.Loss | None,
) -> StepResult:
    tokens, sampled = total.tokens, loss is not None
    return StepResult(
        loss=total.loss,
        grad_norm=grad_norm,
        lr=lr,
        tokens=tokens,
        skipped=skipped,
        entropy=total.entropy / tokens,
        mismatch_k3=total.mismatch / tokens if sampled else None,
        mismatch_max=total.mismatch_max if sampled else None,
        mismatch_share_above_2=total.above_two / tokens if sampled else None,
        clipped_share=total.clipped / tokens if sampled else None,
        vetoed=total.vetoed if sampled else None,
        kl=None if batch.kl_weights is None else total.kl / tokens,
    )

"""The learner: owns the fp32 master weights and the optimizer, and executes per-token weights.

    groups ─ pack ─> micro-batches ─ decoder ─ chunked_loss ─ backward ─┐ (accumulated)
                                                                       v
    number, tensors <─ publish ─ masters <─ AdamW <─ clip <─ gradients, if all are finite

It knows nothing of rewards, advantages or tasks: what to learn stands in the groups' weights. Of a
decoder with an adapter (models/adapters.py) the masters are A and B; the weights beside them are
held once, in the compute dtype, and have neither gradients nor moments.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import msgspec
import torch
from torch import Tensor

from interlock.chips import device, probe
from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import TrainingError
from interlock.learner.ahead import ahead_loss
from interlock.learner.balance import ExpertLoad, settle_experts
from interlock.learner.distributed import sharding
from interlock.learner.distributed.messages import (
    BeginStage,
    ComputeLogprobs,
    PublishWeights,
    RenewReference,
    ScoreText,
    TrainStep,
)
from interlock.learner.distributed.ranks import Ranks
from interlock.learner.losses.constants import Constants, of_completions
from interlock.learner.losses.corrections import off_sampler
from interlock.learner.losses.kept import KeptSets, kept_sums
from interlock.learner.losses.policy import Sums, policy_loss, sums
from interlock.learner.losses.projection import chunked_loss, token_logprobs
from interlock.learner.losses.terms import Terms
from interlock.learner.optimizer import adamw, clip, gradients_of, learning_rate
from interlock.learner.packing import MicroBatch, TrainingGroup, check_sampled, labels_of, pack
from interlock.learner.reading import read, read_targets
from interlock.learner.reference import frozen_copy
from interlock.learner.step_result import StepResult, step_result
from interlock.models import adapters
from interlock.models.attention import causal, repeated
from interlock.models.decoder import Decoder
from interlock.models.routes import route_shape


class Learner:
    """Trains `decoder`, whose fp32 parameters are the masters, for the steps of one stage.

    A stage gets a new Learner, and with it a new optimizer and schedule, on the same decoder:

        learner = Learner(decoder, recipe.learner, stage.optimizer, total_steps=100)
        result = learner.step(groups, stage.loss)
        number, tensors = learner.publish()  # what generators load

    Args:
        decoder: in fp32, but what an adapter leaves frozen; its compute dtype becomes that of
            `settings`.
        total_steps: optimizer steps of the stage, which the schedule runs over.
        keep_reference: freeze a copy of the masters as they are now; groups with KL weights need
            it.
        version: the number of the first published weights.
        ranks: the processes that share the decoder (sharding.py), each with a Learner on its part;
            rank 0's broadcasts what is asked of it to the others. None: this process alone.

    A step whose loss or gradient norm is not finite is skipped: masters, moments and the place in
    the schedule stay bit for bit as they were; it only counts in `bad_steps` and `bad_in_row`.
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: LearnerSettings,
        optimizer: OptimizerSettings,
        total_steps: int,
        *,
        keep_reference: bool = False,
        version: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        parameters = {n: p for n, p in decoder.named_parameters() if p.requires_grad}
        assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
        settings = probe.settled(settings, decoder.embed.device)
        decoder.dtype = device.dtype(settings.dtype)
        decoder.use(settings.kernel)
        decoder.checkpointing = settings.activation_checkpointing
        self.ranks = ranks or Ranks()
        self.decoder = decoder
        self.parameters = parameters
        begin = BeginStage(settings, optimizer, total_steps, keep_reference, version)
        with self.ranks.broadcast(begin):
            self.reference = frozen_copy(decoder, self.ranks) if keep_reference else None
        self.steps = 0  # applied: the place in the schedule
        self.bad_steps = 0
        self.bad_in_row = 0
        self.version = version  # of the weights last published, or of the first ones to be
        self.unpublished = False  # the weights have moved since the last publication
        self.optimizer = adamw(parameters, optimizer)
        self._settings = settings
        self._expert_load: ExpertLoad | None = None  # of the last step
        self._schedule = optimizer
        self._total_steps = total_steps

    @property
    def device(self) -> torch.device:
        """Where the masters of this process are."""
        return self.decoder.embed.device

    def step(
        self,
        groups: Sequence[TrainingGroup],
        loss: LossSettings | None,
        temperature: float = 1.0,
        old: Sequence[Sequence[Tensor]] | None = None,
    ) -> StepResult:
        """One optimizer step on all groups.

        Args:
            loss: the clipped surrogate of a policy; None: the weighted likelihood (SFT).
            temperature: what the completions were sampled at.
            old: what `logprobs` gave before the first of several steps on the same groups; None:
                this is the only or the first one.

        Raises:
            TrainingError: groups are malformed, none has a weight, log-probabilities that the loss
                needs are missing, or `max_bad_steps` steps in a row were not finite.
        """
        if loss is not None:
            check_sampled(groups)
        batches = self.pack(groups, predict=self.decoder.predictor is not None)
        if not batches:
            raise TrainingError("no token of the step's groups has a weight; leave the step out")
        behaviour = None if old is None else torch.cat([part for group in old for part in group])
        lengths = [len(completion) for group in groups for completion in group.completions]
        assert behaviour is None or len(behaviour) == sum(lengths)
        told = None if behaviour is None else behaviour.numpy().tobytes()
        with self.ranks.broadcast(TrainStep(list(groups), loss, temperature, told)):
            return self._step(groups, batches, loss, temperature, behaviour)

    def update(
        self, groups: Sequence[TrainingGroup], accumulate: Callable[[MicroBatch], Sums]
    ) -> StepResult:
        """One optimizer step on the gradients that `accumulate` adds for each micro-batch.

        For a loss that needs more than the tokens' log-probabilities (distillation.py), in one
        process. Raises TrainingError as `step` does.
        """
        batches = self.pack(groups)
        if self.ranks.size > 1 or not batches:
            why = "several processes" if batches else "no token"
            raise TrainingError(f"a step of this loss has {why}; it needs one, and some")
        total = sum(map(accumulate, batches), Sums())
        lr = learning_rate(self._schedule, self.steps, self._total_steps)
        grad_norm, skipped = self._apply(total.loss, lr)
        result = step_result(
            *(total, grad_norm, lr, skipped, batches[0], LossSettings()), labels_of(groups)
        )
        none_of = {"clipped_share": None, "corrected_share": None, "vetoed": None}
        return msgspec.structs.replace(result, **none_of, expert_load=self._expert_load)

    @torch.no_grad()
    def logprobs(
        self, groups: Sequence[TrainingGroup], temperature: float = 1.0
    ) -> list[list[Tensor]]:
        """Log-probabilities (natural) of every completion token under the current weights, over
        the set that it was drawn from where that is known.

        Returns:
            Per group, per completion: fp32 [tokens of the completion], on the CPU.
        """
        lengths = [[len(completion) for completion in group.completions] for group in groups]
        flat = torch.zeros(sum(map(sum, lengths)))
        batches = self.pack(groups, every_token=True)
        with self.ranks.broadcast(ComputeLogprobs(list(groups), temperature)):
            for batch in self.ranks.shard(batches):
                flat[batch.source.cpu()] = self._logprobs(self.decoder, batch, temperature).cpu()
            if self.ranks.needs_padding(batches):
                self._logprobs(self.decoder, self._empty(batches[0]), temperature)
            self.ranks.all_reduce(flat)  # every place was written by one rank
        parts = iter(flat.split([length for group in lengths for length in group]))
        return [[next(parts) for _ in group] for group in lengths]

    @torch.no_grad()
    def score(self, tokens: list[int]) -> list[float]:
        """Log-probabilities (natural) of tokens[1:], each given those before it, at temperature 1.

        It is what an engine with the current weights should give for that text, up to rounding.
        `tokens` are of the vocabulary.
        """
        stream = torch.tensor(tokens, device=self.device)
        attend = causal(len(tokens), self.device, self._settings.fused_attention_above)
        with self.ranks.broadcast(ScoreText(tokens)):
            hidden = self.decoder(stream, attend.positions, attend)[:-1]
            found = self._of_targets(self.decoder, hidden, stream[1:], 1.0)
            sharding.reshard(self.decoder)
            return found.tolist()

    @torch.no_grad()
    def publish(self) -> tuple[int, dict[str, Tensor]]:
        """What generators load: the weights, or the adapter (`decoder.adapter`) alone.

        Returns:
            The version's number, and the masters in the compute dtype, by Hugging Face names, of an
            adapter by PEFT's: copies, on the masters' device; of several processes, on the CPU of
            rank 0 alone. Masters that have not moved since the last call keep their number.
        """
        self.version += self.unpublished
        self.unpublished = False
        if self.decoder.adapter is not None:
            return self.version, adapters.published_adapter(self.decoder, self.decoder.dtype)
        return self.version, self.weights(self.decoder.dtype)

    @torch.no_grad()
    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights, with what an adapter adds to them, by Hugging Face names; as of `publish`"""
        if self.decoder.adapter is not None:
            return dict(adapters.merged_weights(self.decoder, dtype))
        with self.ranks.broadcast(PublishWeights(str(dtype).removeprefix("torch."))):
            return dict(sharding.published(self.decoder, self.ranks, dtype))

    @cached_property
    def base(self) -> str | None:
        """Digest of the weights that the adapter stands beside; None: all of them learn."""
        adapted = self.decoder.adapter is not None
        return adapters.base_digest(self.decoder) if adapted else None

    @torch.no_grad()
    def renew_reference(self) -> None:
        """Make the weights as they are now the reference, in the place of the one that is kept."""
        assert self.reference is not None
        with self.ranks.broadcast(RenewReference()):
            pairs = zip(self.reference.parameters(), self.decoder.parameters(), strict=True)
            for kept, own in pairs:
                sharding.local_shard(kept).copy_(sharding.local_shard(own))

    def _step(
        self,
        groups: Sequence[TrainingGroup],
        batches: Sequence[MicroBatch],
        loss: LossSettings | None,
        temperature: float,
        behaviour: Tensor | None,
    ) -> StepResult:
        constants = Constants(behaviour)
        if loss is not None:
            now = partial(self._flat_logprobs, groups, temperature)
            constants = of_completions(groups, loss, behaviour, now)
        total, ahead = Sums(), sum(len(b.ahead.targets) for b in batches if b.ahead)
        for batch in self.ranks.shard(batches):
            total += self._accumulate(batch, loss, temperature, constants, ahead)
        if self.ranks.needs_padding(batches):
            self._accumulate(self._empty(batches[0]), None, temperature, Constants())
            sharding.discount_last_pass(self.decoder)
        total = sum(self.ranks.all_gather(total), Sums())
        lr = learning_rate(self._schedule, self.steps, self._total_steps)
        grad_norm, skipped = self._apply(total.loss, lr)
        labels = labels_of(groups)
        load = self._expert_load
        return step_result(total, grad_norm, lr, skipped, batches[0], loss, labels, load)

    def _flat_logprobs(self, groups: Sequence[TrainingGroup], temperature: float) -> Tensor:
        """What `logprobs` gives, [T]."""
        return torch.cat([part for each in self.logprobs(groups, temperature) for part in each])

    def pack(
        self, groups: Sequence[TrainingGroup], every_token: bool = False, predict: bool = False
    ) -> list[MicroBatch]:
        """The micro-batches of some groups, as packing.pack. Raises TrainingError."""
        settings, arch = self._settings, self.decoder.arch
        how = every_token, settings.fused_attention_above, predict, route_shape(arch)
        return pack(groups, settings.micro_batch_tokens, arch.vocab, self.device, *how)

    def _empty(self, like: MicroBatch) -> MicroBatch:
        """One token without weight: all ranks must make as many passes as the busiest of them."""
        kl_weights = None if like.kl_weights is None else [[0.0]]
        return self.pack([TrainingGroup([0], [[0]], [[0.0]], kl_weights=kl_weights)], True)[0]

    def _accumulate(
        self,
        batch: MicroBatch,
        loss: LossSettings | None,
        temperature: float,
        constants: Constants,
        ahead: int = 0,
    ) -> Sums:
        """Add the gradients of one micro-batch to those of the step.

        `ahead`: tokens of the step that are predicted two ahead, over which that loss is a mean.
        """
        reference = None
        if self.reference is not None and batch.kl_weights is not None:
            reference = self._logprobs(self.reference, batch, temperature)
        terms = Terms(
            weights=batch.weights,
            sampler=batch.sampler_logprobs,
            old=_of(batch, constants.old),
            reference=reference,
            kl_weights=batch.kl_weights,
            completion=_of(batch, constants.completion),
            sequence=_of(batch, constants.sequence),
            labels=batch.labels,
        )
        stream = read(self.decoder, batch, routed=True)
        value, logprobs, entropy, mass = chunked_loss(
            repeated(stream, batch.rows),
            self.decoder.head,
            batch.targets,
            temperature,
            self._settings.logits_chunk,
            lambda logprobs, rows: policy_loss(logprobs, terms[rows], loss),
            self.decoder.dtype,
            self.decoder.product,
            batch.kept,
        )
        found = sums(logprobs, entropy, terms, loss)
        if batch.kept is not None and loss is not None:
            found += Sums(kept=kept_sums(off_sampler(logprobs, terms), mass, batch.kept))
        if batch.ahead is not None:
            settings = self._settings
            weight = settings.mtp_weight / ahead
            how = weight, settings.mtp_detached, settings.logits_chunk
            more, unlikely = ahead_loss(self.decoder, stream, batch.ahead, *how)
            value = value + more
            found += Sums(ahead=len(batch.ahead.targets), ahead_loss=unlikely)
        value.backward()
        return found

    @torch.no_grad()
    def _logprobs(self, decoder: Decoder, batch: MicroBatch, temperature: float) -> Tensor:
        hidden = read_targets(decoder, batch, routed=decoder is self.decoder)
        found = self._of_targets(decoder, hidden, batch.targets, temperature, batch.kept)
        sharding.reshard(decoder)
        return found

    def _of_targets(
        self,
        decoder: Decoder,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        kept: KeptSets | None = None,
    ) -> Tensor:
        """The log-probabilities [M] of targets [M] after hidden [M, d]."""
        how = self._settings.logits_chunk, decoder.dtype, decoder.product, kept
        return token_logprobs(hidden, decoder.head, targets, temperature, *how)[0]

    def _apply(self, loss: float, lr: float) -> tuple[float, bool]:
        """Update the masters from the gradients, and clear these. -> gradient norm, skipped"""
        for parameter in self.parameters.values():
            # Without a gradient AdamW would leave its moments alone: those of a weight that no
            # token met, an idle expert's say, would then depend on when it was last used.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # Apart: what a detached predictor learns is to change nothing else.
        grad_norm, gradients = gradients_of(self.parameters, self.ranks, predictor=False)
        ahead_norm, ahead = gradients_of(self.parameters, self.ranks, predictor=True)
        finite = all(map(math.isfinite, (loss, grad_norm, ahead_norm)))
        if finite:
            clip(gradients, grad_norm, self._schedule.clip_norm)
            clip(ahead, ahead_norm, self._schedule.clip_norm)
            for parameter_group in self.optimizer.param_groups:
                parameter_group["lr"] = lr
            self.optimizer.step()
            self.steps += 1
            self.unpublished = True
        self.optimizer.zero_grad()
        # At rate 0 the biases stay, and what a bad step counted is forgotten.
        moves = finite and self.decoder.adapter is None  # else they are of what is frozen
        rate = self._settings.expert_bias_rate if moves else 0.0
        self._expert_load = settle_experts(self.decoder, self.ranks, rate)
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


def _of(batch: MicroBatch, column: Tensor | None) -> Tensor | None:
    """The values [M] of the batch's targets, out of those [T] of all completion tokens."""
    return None if column is None else column[batch.source.cpu()].to(batch.source.device)

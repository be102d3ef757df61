"""What TRL's GRPOTrainer makes of a few tensors: run as a script, this records it.

    python tests/support/trl_losses.py      (with TRL installed)

Its own `_compute_loss` runs, on a stand-in for the trainer that hands out log-probabilities instead
of a model's. What each side is given is in `CASES` and `batch`; nothing of TRL's is rewritten here.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

RECORDED = Path(__file__).parents[1] / "learner" / "trl_losses.json"
MAX_TOKENS = 8


class Case(NamedTuple):
    """One loss, in TRL's words and in ours."""

    trl: dict[str, Any]
    ours: dict[str, Any]
    factor: bool = False  # times min(pi_old / mu, 2), "truncated" without a veto
    threshold: float | None = None  # of off-policy sequence masking


PLAIN = {"correction": "off"}
CASES = {
    "grpo": Case({"loss_type": "grpo"}, {"normalize": "sequence"}),
    "grpo k3": Case({"loss_type": "grpo", "beta": 0.1}, {"normalize": "sequence", "kl_beta": 0.1}),
    "grpo unbiased": Case(
        {"loss_type": "grpo", "beta": 0.1, "unbiased": True},
        {"normalize": "sequence", "kl_beta": 0.1, "kl_estimate": "unbiased"},
    ),
    "dapo": Case({"loss_type": "dapo", "high": 0.28}, {"normalize": "token", "clip_high": 0.28}),
    "dapo truncated": Case(
        {"loss_type": "dapo"},
        {"normalize": "token", "correction": "truncated", "tis_veto": 0.0},
        factor=True,
    ),
    "dr_grpo": Case({"loss_type": "dr_grpo"}, {"normalize": "constant"}),
    "gspo": Case(
        {"loss_type": "grpo", "level": "sequence", "low": 3e-4, "high": 4e-4},
        {"rule": "gspo", "normalize": "sequence"},
    ),
    "gspo wide": Case(
        {"loss_type": "grpo", "level": "sequence", "low": 0.2, "high": 0.3},
        {"rule": "gspo", "normalize": "sequence", "gspo_low": 0.2, "gspo_high": 0.3},
    ),
    "cispo": Case(
        {"loss_type": "cispo", "high": 1.2},
        {"rule": "cispo", "normalize": "token", "cispo_cap": 1.2},
    ),
    "sapo": Case({"loss_type": "sapo"}, {"rule": "sapo", "normalize": "sequence"}),
    "grpo off-policy": Case({"loss_type": "grpo"}, {"normalize": "sequence"}, threshold=0.1),
}


class Batch(NamedTuple):
    """Four completions of 2 to 5 tokens, padded to 5. [4, 5] fp64, but `advantages` [4]."""

    logprobs: Tensor
    old: Tensor
    sampler: Tensor
    reference: Tensor
    mask: Tensor
    advantages: Tensor


def batch() -> Batch:
    noise = torch.Generator().manual_seed(7)

    def near(base: Tensor, by: float) -> Tensor:
        return base + by * torch.randn(base.shape, generator=noise, dtype=torch.float64)

    old = -3 * torch.rand((4, 5), generator=noise, dtype=torch.float64) - 0.5
    mask = (torch.arange(5) < torch.tensor([[5], [3], [2], [4]])).double()
    return Batch(
        logprobs=near(old, 0.4),
        old=old,
        sampler=near(old, 0.5),
        reference=near(old, 0.3),
        mask=mask,
        advantages=torch.tensor([1.5, -0.5, 0.25, -1.25], dtype=torch.float64),
    )


def by_trl(case: Case, given: Batch) -> tuple[float, list[list[float]]]:
    """TRL's loss, and its slope by each log-probability [4][5]."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    said = {"low": 0.2, "high": 0.2, "beta": 0.0, "level": "token", "unbiased": False} | case.trl
    leaf = given.logprobs.clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=case.threshold,
        importance_sampling_level=said["level"],
        loss_type=said["loss_type"],
        beta=said["beta"],
        epsilon_low=said["low"],
        epsilon_high=said["high"],
        max_completion_length=MAX_TOKENS,
        use_vllm=case.factor,
        vllm_importance_sampling_correction=case.factor,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(
            delta=None,
            use_bias_correction_kl=said["unbiased"],
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            steps_per_generation=1,
        ),
    )
    ids = torch.zeros(given.mask.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": given.mask[:, :1],
        "completion_ids": ids,
        "completion_mask": given.mask,
        "advantages": given.advantages,
        "old_per_token_logps": given.old,
        "sampling_per_token_logps": given.sampler,
        "ref_per_token_logps": given.reference,
        "importance_sampling_ratio": (given.old - given.sampler).exp().clamp(max=2.0),
        "num_items_in_batch": given.mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.item(), slope.tolist()


if __name__ == "__main__":
    found = {name: by_trl(case, batch()) for name, case in CASES.items()}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")

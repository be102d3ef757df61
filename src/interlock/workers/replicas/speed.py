"""How fast a replica is, from when its messages came.

    Drawn, Drawn, …  seconds between two ~ a + b x sequences      decoding
                     what a step with first tokens took longer    a prompt's tokens

One stream tells little of 64: a replica is taken to gain from company until it is seen not to.
That way one that had little to do is given more, and then is known.
"""

from dataclasses import dataclass

_KEEP = 0.98  # of what was seen before, with every step
_PROMPT_KEEP = 0.9


@dataclass(eq=False)
class ReplicaSpeed:
    """How fast a replica draws, by how many at a time."""

    steps: float = 0.0  # decayed count, and sums over them
    sequences: float = 0.0
    squares: float = 0.0
    seconds: float = 0.0
    products: float = 0.0
    prompt_s: float = 0.0  # seconds a token of a prompt
    tokens_per_s: float = 0.0  # drawn, as it worked lately

    def saw_step(self, sequences: int, tokens: int, seconds: float) -> None:
        """A step that began no prompt."""
        for name, value in (
            ("steps", 1.0),
            ("sequences", float(sequences)),
            ("squares", float(sequences**2)),
            ("seconds", seconds),
            ("products", sequences * seconds),
        ):
            setattr(self, name, _KEEP * getattr(self, name) + value)
        self._saw_tokens(tokens, seconds)

    def saw_prompts(self, prompt_tokens: int, sequences: int, tokens: int, seconds: float) -> None:
        """A step whose first tokens came of so many tokens of prompts."""
        longer = max(0.0, seconds - self.step_s(sequences)) / max(1, prompt_tokens)
        keep = _PROMPT_KEEP if self.prompt_s else 0.0
        self.prompt_s = keep * self.prompt_s + (1 - keep) * longer
        self._saw_tokens(tokens, seconds)

    def step_s(self, sequences: int) -> float:
        """What a step of so many sequences takes; 0: nothing was seen."""
        if not self.steps:
            return 0.0
        mean, time = self.sequences / self.steps, self.seconds / self.steps
        spread = self.squares / self.steps - mean**2
        each = 0.0
        if spread > 1e-9:
            each = max(0.0, (self.products / self.steps - mean * time) / spread)
        each = min(each, time / mean)
        return time + each * (sequences - mean)

    def at(self, sequences: int) -> float:
        """Tokens a second of so many sequences together; 0: nothing was seen."""
        step_s = self.step_s(sequences)
        return sequences / step_s if step_s > 0 else 0.0

    def _saw_tokens(self, tokens: int, seconds: float) -> None:
        if seconds <= 0:
            return
        keep = _KEEP if self.tokens_per_s else 0.0
        self.tokens_per_s = keep * self.tokens_per_s + (1 - keep) * tokens / seconds

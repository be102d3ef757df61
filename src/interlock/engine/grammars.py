"""Grammars that answers keep to, by llguidance, and what they may cost.

    Rules.grammar ──compiled once: Grammars──> Matcher, one per sequence ──> bits of the tokens
                                                  ^── the token that was drawn     that may follow

llguidance is imported when a grammar is first asked for, or made ready for. Compiling is bounded,
and so is every step: a schema that is too large, or a regular expression that explodes, is refused
or gives up.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interlock.engine.vocabulary import Vocabulary
from interlock.errors import ConfigError
from interlock.text import error_line, one_line

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Bits = NDArray[np.int32]  # a bit per token of the vocabulary, in words of 32

KEPT = 16  # compiled grammars, of those used last
RENEWED = 4  # times that one text has its grammar compiled anew
# Measured: half a second for the largest grammar that is compiled, and for one refused; up to 20 ms
# for a step; 20,000 states are 40 MB. A thousand optional properties are within them.
LIMITS = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 20_000,
    "max_items_in_row": 5_000,
    "verbose_errors": False,  # else a reason repeats the whole grammar
}
_REASON = 300  # characters of llguidance's reason


class Matcher:
    """Where one text is in its grammar.

    llguidance has one lexer for all texts of a compiled grammar. It grows with what they need, and
    once it is full it fails all of them for good: then the grammar is compiled anew, and what the
    text has so far is read again.
    """

    def __init__(self, compiled: "LLMatcher", renew: Callable[["LLMatcher"], "LLMatcher"]) -> None:
        """`renew`: another one for a compiled grammar that is used up."""
        self._compiled, self._renew = compiled, renew
        self._matcher = compiled.deep_copy()
        self._taken: list[int] = []
        self._renewed = 0  # times

    @property
    def error(self) -> str:
        """Why it can say nothing more, as it is once a limit was reached; "" as long as it can."""
        return error_of(self._matcher)

    def take(self, token: int) -> None:
        """The next token; one that may not stand there is an error."""
        self._taken.append(token)
        self._matcher.consume_token(token)
        self._mended()

    def takes(self, token: int) -> bool:
        """Whether the token may stand next."""
        return self._matcher.validate_tokens([token]) == 1

    def fill(self, bits: Bits) -> None:
        """Set the bits of the tokens that may follow; the end tokens are among them where the text
        may end."""
        _fill(self._matcher, bits)
        if self._mended():
            _fill(self._matcher, bits)

    def _mended(self) -> bool:
        """Whether its lexer had failed, and it has another one now."""
        if not self.error.startswith("lexer error") or self._renewed == RENEWED:
            return False
        self._renewed += 1
        try:
            self._compiled = self._renew(self._compiled)
        except ConfigError:  # as it is, it has an error to tell
            return False
        self._matcher = self._compiled.deep_copy()
        self._matcher.consume_tokens(self._taken)
        return True


class Grammars:
    """Compiled grammars over one vocabulary of `size` tokens."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self._vocabulary, self._size = vocabulary, size
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def prepare(self) -> None:
        """Read the vocabulary for llguidance: a third of a second for 50,000 tokens, in which
        nothing else of the process runs. Where grammars cannot be used, who asks for one is told.
        """
        with suppress(ConfigError):
            self._of_vocabulary()

    def matcher(self, grammar: str) -> Matcher:
        """At the beginning of the grammar. Raises ConfigError with the reason when it is none, is
        too large, or allows no answer.
        """
        return Matcher(self._compiled(grammar), partial(self._compiled, grammar))

    def _compiled(self, grammar: str, used_up: "LLMatcher | None" = None) -> "LLMatcher":
        found = self._kept.pop(grammar, None)
        if found is None or found is used_up:
            found = self._compile(grammar)
        self._kept[grammar] = found
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found

    def _compile(self, grammar: str) -> "LLMatcher":
        made = bounded_matcher(self._of_vocabulary(), grammar)
        if not (error := error_of(made)):
            first = made.deep_copy()  # that no text can be begun shows in the first step alone
            _fill(first, np.zeros(words(self._size), np.int32))
            error = error_of(first)
        if error:
            raise ConfigError(
                f"the grammar or JSON schema cannot be used: {error}; change or simplify it"
            )
        return made

    def _of_vocabulary(self) -> "LLTokenizer":
        if self._tokenizer is None:
            self._tokenizer = self._read(llguidance_here())
        return self._tokenizer

    def _read(self, library: Any) -> "LLTokenizer":
        ends = sorted(self._vocabulary.eos_ids)
        read = partial(library.LLTokenizer, self._vocabulary.definition())
        made: LLTokenizer
        try:
            try:
                made = read(n_vocab=self._size, eos_token=ends or [0])
            except ValueError:
                # It refuses them all for one beyond the tokenizer's own tokens, as a generation
                # config may name a row of the embedding that stands for none. Such a one is no text
                # of any grammar. To ask first how many tokens there are would take as long again.
                known = read(eos_token=[0], slices=[]).vocab_size
                ends = [token for token in ends if token < known]
                made = read(n_vocab=self._size, eos_token=ends or [0])
        except Exception as error:  # whatever the library does not like about a tokenizer
            raise ConfigError(
                "grammars cannot be used with this model's tokenizer: "
                f"{error_line(error, _REASON)}; ask without response format"
            ) from None
        if not ends:
            raise ConfigError(
                "a grammar says where an answer ends, but the model has no end token that its "
                "tokenizer knows; name one as eos_token_id in its generation_config.json"
            )
        return made


def bounded_matcher(tokenizer: "LLTokenizer", grammar: str) -> "LLMatcher":
    """At the beginning of a grammar, within LIMITS; `error_of` says when it is none."""
    library = llguidance_here()
    limits = library.LLParserLimits(**LIMITS)
    made: LLMatcher = library.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    return made


def words(size: int) -> int:
    """Words of `Bits` that a vocabulary takes."""
    return -(-size // 32)


def _fill(matcher: "LLMatcher", bits: Bits) -> None:
    matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)


def error_of(matcher: "LLMatcher") -> str:
    """Why a matcher can say nothing more; "" as long as it can."""
    if not matcher.is_error():
        return ""
    return one_line(matcher.get_error().removesuffix("<non-verbose/>").strip(), _REASON)


def llguidance_here() -> Any:
    """The library, which is an extra. Raises ConfigError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "a grammar or JSON schema needs llguidance; pip install 'interlock[serve]'"
        ) from None
    return llguidance

"""A client and a model that talk in a recorded session, without an engine: tokens are made up."""

from pathlib import Path
from typing import Any

from chat_models import write_model
from chat_templates import CHATML, DEEPSEEK_R1, LLAMA31, QWEN3, QWEN3_TOOLS, QWEN25_TOOLS, SMOLLM2

from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason
from interlock.records.serving import Piece
from interlock.serve.sessions.bridge import Asked, Bridge
from interlock.serve.sessions.session import Draft, RecordedSession, SessionTerms

# Name: the template, and the token that ends a turn.
TEMPLATES: dict[str, tuple[str, str]] = {
    "chatml": (CHATML, "<|im_end|>"),
    "smollm2": (SMOLLM2, "<|im_end|>"),
    "qwen2.5": (QWEN25_TOOLS, "<|im_end|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "qwen3-tools": (QWEN3_TOOLS, "<|im_end|>"),
    "deepseek-r1": (DEEPSEEK_R1, "<｜end▁of▁sentence｜>"),  # noqa: RUF001
    "llama3": (LLAMA31, "<|eot_id|>"),
}
WITH_TOOLS = ("qwen2.5", "qwen3-tools", "llama3")
_LLAMA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_FIRST_FREE = 268


def write_template(directory: Path, name: str) -> Path:
    template, end = TEMPLATES[name]
    added = {str(_FIRST_FREE + i): {"content": t, "special": True} for i, t in enumerate(_LLAMA)}
    return write_model(directory, template, end, added_tokens_decoder=added)


class Talk:
    """One session and its client, who sends all messages every time."""

    def __init__(self, directory: Path, name: str, **terms: Any) -> None:
        write_template(directory, name)
        self.name, self.directory = name, directory
        self.tokenizer = Tokenizer.load(directory)
        self.end = self.tokenizer.encode(TEMPLATES[name][1])
        self.session = RecordedSession("s", "", SessionTerms(**terms), Bridge(self.tokenizer))
        self.messages: list[dict[str, Any]] = []

    def asked(self, messages: list[dict[str, Any]], **settings: Any) -> Asked:
        def render(turns: list[dict[str, Any]]) -> str:
            return self.tokenizer.render(turns, **settings)

        return Asked(list(messages), render, self.tokenizer.encode, settings)

    def begin(self, *messages: dict[str, Any] | str, **settings: Any) -> Draft:
        """The messages so far, and these; a text is a user's."""
        for message in messages:
            said = {"role": "user", "content": message} if isinstance(message, str) else message
            self.messages.append(said)
        return self.session.begin(self.asked(self.messages, **settings))

    def answer(
        self,
        draft: Draft,
        tokens: list[int],
        number: int = 0,
        version: int = 1,
        finish: FinishReason = FinishReason.STOP,
        **message: Any,
    ) -> dict[str, Any]:
        """The model draws these tokens; the client is told `message`, by default their text."""
        text = self.tokenizer.decode(tokens)
        logprobs = [-0.5 - i / 7 for i in range(len(tokens))]
        for i, token in enumerate(tokens):
            last = finish if i == len(tokens) - 1 else None
            draft.take(Piece(number, [token], [logprobs[i]], version=version, finish=last))
        message = {"content": text} | message
        draft.answered(number, message, text)
        return {"role": "assistant", **message}

    def turn(
        self, said: dict[str, Any] | str, reply: str, **more: Any
    ) -> tuple[list[int], list[int]]:
        """One question and its answer, ended by the template's token: prompt and answer ids."""
        draft = self.begin(said)
        tokens = self.tokenizer.encode(reply) + self.end
        self.messages.append(self.answer(draft, tokens, **more))
        draft.close()
        return draft.prompt, tokens


def call(name: str, arguments: Any, id: str = "call_1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

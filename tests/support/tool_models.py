"""A tool, its call and its result, and a vocabulary with the marks of calls."""

# ruff: noqa: RUF001  DeepSeek spells its special tokens with a fullwidth bar

import json
from pathlib import Path

TOOL_MARKS = [
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Ōsaka"}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}


def add_marks(directory: Path) -> Path:
    """Give a model directory the marks of tool calls as added tokens that are not special."""
    import tokenizers
    from tokenizers import AddedToken

    path = str(directory / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(path)
    backend.add_tokens([AddedToken(mark, normalized=False) for mark in TOOL_MARKS])
    backend.save(path)
    assert json.loads(Path(path).read_text())["added_tokens"][-1]["content"] == TOOL_MARKS[-1]
    return directory

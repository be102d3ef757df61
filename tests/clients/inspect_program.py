"""inspect-ai's openai-api provider: a task of two rows, and one whose solver may call a tool."""

import os
import tempfile
from typing import Any

from reporting import BASE_URL, KEY, MODEL, report

os.environ |= {"INTERLOCK_API_KEY": KEY, "INTERLOCK_BASE_URL": BASE_URL}

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, ToolFunction, tool

ROWS = [
    Sample(input="Repeat this word: banana", target="banana"),
    Sample(input="What is the capital of France?", target="Paris"),
]
LOGS = tempfile.TemporaryDirectory()  # read again whenever a sample is looked at
CALLED: list[tuple[int, int]] = []


@tool
def add() -> Tool:
    async def execute(a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        CALLED.append((a, b))
        return str(a + b)

    return execute


def plain() -> dict[str, Any]:
    log = _run(Task(dataset=ROWS, solver=generate(), scorer=includes()), max_tokens=16)
    return {
        "status": log.status,
        "error": str(log.error) if log.error else None,
        "outputs": [sample.output.completion for sample in log.samples or []],
        "stops": [sample.output.stop_reason for sample in log.samples or []],
        "scores": [score.value for s in log.samples or [] for score in (s.scores or {}).values()],
        "usage": {k: v.model_dump() for k, v in log.stats.model_usage.items()},
        "accuracy": log.results.scores[0].metrics["accuracy"].value if log.results else None,
    }


def with_tool() -> dict[str, Any]:
    """Its tools are strict, as it marks all of them: beside tool_choice auto too, which it asks for
    once a call that was forced is done.
    """
    solver = [use_tools(add(), tool_choice=ToolFunction(name="add")), generate(tool_calls="loop")]
    rows = [Sample(input="What is 12 + 30?", target="42")]
    log = _run(Task(dataset=rows, solver=solver, message_limit=6), 96)
    (sample,) = log.samples or []
    return {
        "status": log.status,
        "error": str(log.error) if log.error else None,
        "roles": [message.role for message in sample.messages],
        "called": CALLED,
        "results": [str(m.content) for m in sample.messages if m.role == "tool"],
    }


def streamed() -> dict[str, Any]:
    model = get_model(f"openai-api/interlock/{MODEL}", stream=True, config=_config(16))
    task = Task(dataset=ROWS[:1], solver=generate())
    (log,) = eval(task, model=model, log_dir=LOGS.name, display="none")
    return {"status": log.status, "outputs": [s.output.completion for s in log.samples or []]}


def _config(max_tokens: int) -> GenerateConfig:
    return GenerateConfig(temperature=0, max_tokens=max_tokens, max_retries=2)


def _run(task: Task, max_tokens: int, **more: Any) -> Any:
    model = get_model(f"openai-api/interlock/{MODEL}", config=_config(max_tokens), **more)
    (log,) = eval(task, model=model, log_dir=LOGS.name, display="none")
    return log


if __name__ == "__main__":
    report({"plain": plain, "with_tool": with_tool, "streamed": streamed})

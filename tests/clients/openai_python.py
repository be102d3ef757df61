"""What a user of the openai package does, each with the figures that tell whether it was right."""

from openai_chats import chat, logprobs, many, sampling, stream
from openai_forms import responses, structured, tool_helper, tools
from openai_texts import completions, echo, models
from openai_trouble import concurrent, crowded, errors, loading, retries
from reporting import report

SECTIONS = (chat, stream, many, logprobs, sampling, tools, tool_helper, structured, errors, models)
SECTIONS += (completions, echo, concurrent, retries, crowded, responses)

if __name__ == "__main__":
    report({section.__name__: section for section in SECTIONS}, {"loading": loading})

"""vLLM's side of rollout.py, run by the interpreter of its own environment (`make vllm`).

    stdin: one JSON of model, dtype, prompts, group, threads; then, a line each, new tokens
    stdout: vLLM's version once it is ready, then, a line each, the number of tokens made

vLLM is started as its users start it: compiled, with its own defaults, for sequences as long as
these. End tokens end nothing.
"""

import json
import os
import sys


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    asked = json.loads(sys.stdin.readline())
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(asked["threads"])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GB, more than these sequences need

    from vllm import LLM, SamplingParams, __version__

    engine = LLM(model=asked["model"], dtype=asked["dtype"], max_model_len=512)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    print(__version__, file=replies, flush=True)
    for line in sys.stdin:
        new_tokens = json.loads(line)
        rule = SamplingParams(
            n=asked["group"], temperature=1.0, max_tokens=new_tokens, ignore_eos=True
        )
        done = engine.generate(prompts, rule, use_tqdm=False)
        made = sum(len(output.token_ids) for request in done for output in request.outputs)
        print(made, file=replies, flush=True)


if __name__ == "__main__":
    main()

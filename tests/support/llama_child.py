"""Runs in an environment with xllamacpp: what llama.cpp makes of a GGUF file, as JSON.

    stdin {"model", "texts", "prompts": [ids], "top"} ──> stdout {"tokens": [ids], "logprobs": […]}

llama.cpp gives no log-probabilities of a prompt, so every prefix of a prompt is a request of its
own for one token: the answer's list has what the model thinks of the token that really follows.
"""

import json
import os
import sys
import urllib.request


def main() -> None:
    import xllamacpp

    asked = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # llama.cpp writes there what it likes
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.port = 0
    server = xllamacpp.Server(params)
    address = server.listening_address
    tokens = [tokenized(address, text) for text in asked["texts"]]
    (plain,) = tokenized(address, "a")
    found = [
        [following(address, plain, ids[:end], ids[end], asked["top"]) for end in range(1, len(ids))]
        for ids in asked["prompts"]
    ]
    os.write(out, json.dumps({"tokens": tokens, "logprobs": found}).encode())
    os.close(out)
    os._exit(0)


def tokenized(address: str, text: str) -> list[int]:
    asked = {"content": text, "add_special": False, "parse_special": True}
    return ask(f"{address}/tokenize", asked)["tokens"]


def following(address: str, plain: int, prefix: list[int], token: int, top: int) -> float | None:
    """The log-probability of a token after a prefix; None when it is not among the first `top`."""
    asked = {"prompt": prefix, "n_predict": 1, "n_probs": top, "temperature": 0.0}
    # Half a character, or an end, would come without the list, which is of before this.
    asked["logit_bias"] = [[plain, 1000.0]]
    (drawn,) = ask(f"{address}/completion", asked)["completion_probabilities"]
    return next((one["logprob"] for one in drawn["top_logprobs"] if one["id"] == token), None)


def ask(url: str, body: dict) -> dict:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()

"""llama.cpp's server for serve.py, run by the interpreter of an environment with xllamacpp.

argv: GGUF, port, streams, context of each, threads
stdout: one line once it answers
"""

import sys
import time

import xllamacpp  # type: ignore[import-not-found]


def main() -> None:
    model, port, streams, context, threads = sys.argv[1], *map(int, sys.argv[2:])
    given = xllamacpp.CommonParams()
    given.model.path = model
    given.hostnames, given.port = ["127.0.0.1"], port
    given.n_parallel, given.n_ctx = streams, streams * context
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    given.n_gpu_layers = 0
    server = xllamacpp.Server(given)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()

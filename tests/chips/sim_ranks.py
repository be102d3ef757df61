"""Run by test_simulated_run.py as each of two ranks: `sim_ranks.py DEVICE CASE FILE RANK`.

Its last line is what its collectives gave, as JSON.
"""

import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from interlock.chips import device


def every_collective(place: torch.device, rank: int) -> dict[str, object]:
    def full(value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, device=place)

    summed, low = full(1.0 + rank, 3), full(1.0 + rank, 1).bfloat16()
    dist.all_reduce(summed)
    waiting = dist.all_reduce(low, async_op=True)
    assert waiting is not None
    waiting.wait()
    sent = full(1.0 + rank, 2)
    dist.broadcast(sent, 1)
    gathered = [full(0.0, 1) for _ in range(2)]
    dist.all_gather(gathered, full(1.0 + rank, 1))
    scattered = full(0.0, 1)
    dist.reduce_scatter(scattered, [full(1.0 + rank, 1), full(10.0 * (1 + rank), 1)])
    swapped = full(0.0, 2)
    dist.all_to_all_single(swapped, torch.tensor([0.0, 10.0], device=place) + 100 * rank)
    received = full(9.0, 1)
    if rank == 0:
        dist.send(full(0.0, 1), 1)
        dist.recv(received, 1)
    else:
        dist.recv(received, 0)
        dist.send(full(1.0, 1), 0)
    host = torch.full((1,), 1.0 + rank)
    dist.all_reduce(host)
    dist.barrier()
    return {
        "all_reduce": summed.tolist(),
        "all_reduce bf16": low.tolist(),
        "broadcast": sent.tolist(),
        "all_gather": [each.tolist() for each in gathered],
        "reduce_scatter": scattered.tolist(),
        "all_to_all": swapped.tolist(),
        "received": received.tolist(),
        "on the host": host.tolist(),
    }


def sizes(place: torch.device, rank: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for size in (4096, 4097, 100_000):
        tensor = torch.full((size,), 1.0 + rank, device=place)
        dist.all_reduce(tensor)
        assert tensor.min().item() == tensor.max().item()
        found[str(size)] = tensor[0].item()
        print(size, flush=True)
    return found


def repeat(place: torch.device, rank: int) -> dict[str, object]:
    sums: list[float] = []
    while True:
        tensor = torch.full((1,), 1.0 + rank, device=place)
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            return {"sums": sums, "error": str(error)}
        sums.append(tensor.item())


CASES = {"all": every_collective, "sizes": sizes, "repeat": repeat}

if __name__ == "__main__":
    name, case, meeting, rank = sys.argv[1:]
    place = device.claim(name)
    dist.init_process_group(
        device.backend(place),
        init_method=f"file://{meeting}",
        rank=int(rank),
        world_size=2,
        timeout=timedelta(seconds=90),
    )
    print(json.dumps(CASES[case](place, int(rank))))
    dist.destroy_process_group()

"""Several processes: the first one's word counts, gradients are averaged."""

import json
import os
import socket
import subprocess
import sys

CODE = """
import json, torch
from policies.reference.ranks import Ranks
ranks = Ranks.join()
layer = torch.nn.Linear(2, 1)
torch.nn.init.constant_(layer.weight, ranks.rank + 1.0)
ranks.copy_first(layer)
layer(torch.full((1, 2), float(ranks.rank))).sum().backward()
ranks.average_gradients(layer.parameters())
word = ranks.share(f"of {ranks.rank}")
print(json.dumps([ranks.world, layer.weight.tolist(), layer.weight.grad.tolist(), word]))
ranks.leave()
"""


def test_two_processes_hold_the_same_weights_and_the_mean_of_their_gradients() -> None:
    """Two interpreters import torch: 3 s, and the only way to see them meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE],
            env=os.environ | meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert json.loads(out.splitlines()[-1]) == [2, [[1.0, 1.0]], [[0.5, 0.5]], "of 0"]

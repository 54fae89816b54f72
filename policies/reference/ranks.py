"""Several GPUs train together: a process each, as torchrun starts them; a process alone is a world of one.

Every process draws batches of its own; gradients are averaged, so all of them keep the same weights.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls) -> "Ranks":
        """Meet the other processes that torchrun's variables (`WORLD_SIZE`, `RANK`, ...) tell of."""
        world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        if world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        return cls(rank, world, device)

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """The first process's value, in all of them; a small thing, for it is pickled."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def copy_first(self, module: nn.Module) -> None:
        """Overwrite parameters and buffers with the first process's."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.world == 1:
            return
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        flat = _flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        flat /= self.world
        torch._foreach_copy_(gradients, list(_unflatten_dense_tensors(flat, gradients)))

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

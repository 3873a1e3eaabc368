"""Several processes train one model on the digits, each on its own part of every batch.

    python -m torch.distributed.run --standalone --nproc-per-node 2 examples/several_processes.py

By an objective, as any method can; ``--plain`` is a loop of one's own with DistributedDataParallel, and
``--plain --shards`` with parameters in shards (FSDP2).
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import curvlab

torch.set_num_threads(1)
dist.init_process_group("gloo")  # "nccl" where every process has a GPU
rank, size = dist.get_rank(), dist.get_world_size()
images, digits = load_digits(return_X_y=True)
inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)

torch.manual_seed(0)  # all ranks start from one model
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
plain, shards = "--plain" in sys.argv, "--shards" in sys.argv
if shards:  # before the optimizer is made
    fully_shard(model)
criterion = nn.CrossEntropyLoss()
optimizer = curvlab.optimizer("singd", model, lr=1e-2)
called = DistributedDataParallel(model) if plain and not shards else model

order = torch.Generator().manual_seed(1)  # ... and agree on the batches
for _ in range(5):
    for batch in torch.randperm(len(inputs), generator=order).split(128):
        mine = batch.chunk(size)[rank]
        x, y = inputs[mine], targets[mine]
        if plain:
            optimizer.zero_grad()
            criterion(called(x), y).backward()
            optimizer.step()
        else:
            optimizer.step(curvlab.objective(model, criterion, x, y))

with torch.no_grad():  # in every process, since each may have a part of the model
    right = (model(inputs).argmax(-1) == targets).float().mean()
if rank == 0:
    print(f"{size} processes, training accuracy {float(right):.3f}")
dist.destroy_process_group()

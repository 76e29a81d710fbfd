"""One of the processes of test_comparison's gather test: ``gather_worker.py RANK WORLD_SIZE FOLDER``.

Takes this process's share of FOLDER/cases.pt and writes the losses and gradients of every case to FOLDER/rankRANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from solotrack.modeling.embedding import CenterQueue, InstanceContrastiveLoss

rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=(folder / "rendezvous").absolute().as_uri(), rank=rank, world_size=world_size)
results = []
for case in torch.load(folder / "cases.pt"):
    images = case["shares"][rank]
    weight = case["weight"].clone().requires_grad_()  # stands for the network, as each process's copy of it
    embeddings = case["inputs"][images] @ weight
    queue = CenterQueue(40, 5)
    queue.push(case["past"][rank::2], torch.zeros(len(case["past"][rank::2]), dtype=torch.long))
    loss = InstanceContrastiveLoss(level_sizes=case["level_sizes"], scope="gather", queue=queue, **case["options"])
    losses = loss(embeddings, case["index"][images], [case["gt_ids"][n] for n in images], case["views"], 0)
    sum(losses.values()).backward()
    values = {name: value.detach() for name, value in losses.items()}
    results.append({"losses": values, "gradient": weight.grad, "queue": (queue.levels, queue.centers)})
torch.save(results, folder / f"rank{rank}.pt")
dist.destroy_process_group()

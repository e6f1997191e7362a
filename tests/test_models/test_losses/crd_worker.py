"""One process of a distributed CRD: python crd_worker.py OUT."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

import mmcakd  # noqa: F401
from mmcakd.models.losses import CRDLoss

LABELS = torch.arange(12) % 3
#: One batch a step; an image may be there twice.
STEPS = ([0, 1, 2, 3], [8, 4, 7, 6], [0, 5, 0, 9], [3, 2, 1, 0])


class Embedding(nn.Module):
    """Two embeddings and the loss that trains them."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(6, 8)
        self.teacher = nn.Linear(5, 8)
        self.crd = CRDLoss(embed_dims=8, num_negatives=20)

    def forward(self, images, index):
        return self.crd(
            self.student(images[index, :6]),
            self.teacher(images[index, 6:]),
            index,
            LABELS[index],
        )


def main() -> None:
    rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    images = torch.randn(12, 11, generator=torch.Generator().manual_seed(5))
    # What DDP does not make equal on all ranks is different on them.
    torch.manual_seed(rank)
    model = whole = Embedding()
    if world > 1:
        dist.init_process_group('gloo')
        whole = nn.parallel.DistributedDataParallel(model)
    model.crd.prepare_from_labels(LABELS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = []
    for batch in STEPS:
        index = torch.tensor(batch).chunk(world)[rank]
        loss = whole(images, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        history.append(dict(loss=loss.item(), state=state))
    torch.save(history, f'{sys.argv[1]}_{world}_{rank}.pth')


if __name__ == '__main__':
    main()

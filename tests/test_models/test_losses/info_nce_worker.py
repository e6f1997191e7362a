"""One process of a distributed InfoNCE: python info_nce_worker.py OUT."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

import mmcakd  # noqa: F401
from mmcakd.models.losses import InfoNCELoss

CASES = {
    'one direction': dict(),
    'both directions': dict(symmetric=True),
    'trained teacher': dict(detach_teacher=False),
    'both of both': dict(symmetric=True, detach_teacher=False),
}


class Embedding(nn.Module):
    """Two embeddings and the loss between them."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.student, self.teacher = (
            nn.Parameter(torch.randn(5, 4, generator=generator))
            for _ in range(2)
        )
        self.info_nce = InfoNCELoss(0.2, gather=True, **kwargs)

    def forward(self, student, teacher):
        return self.info_nce(student @ self.student, teacher @ self.teacher)


def run(rank: int, world: int, images: torch.Tensor, **kwargs) -> dict:
    model = whole = Embedding(**kwargs).double()
    if world > 1:
        # Not all parameters have a gradient if the teacher is detached.
        whole = nn.parallel.DistributedDataParallel(
            model, find_unused_parameters=True
        )
    student, teacher = (
        part.chunk(world)[rank].clone().requires_grad_() for part in images
    )
    loss = whole(student, teacher)
    loss.backward()
    gradients = {
        name: p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return dict(
        loss=loss.item(),
        parameters=gradients,
        inputs=[x.grad for x in (student, teacher) if x.grad is not None],
    )


def unequal(rank: int) -> str:
    try:
        Embedding().double()(*torch.randn(2, 2 + rank, 5).double())
    except ValueError as error:
        return str(error)
    return 'no error'


def main() -> None:
    rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    if world > 1:
        dist.init_process_group('gloo')
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 6, 5, generator=generator).double()
    # Unequal processes: the second one's images are much alike.
    images[:, 4:] = images[:, 3:4] + 0.1 * images[:, 4:]
    results = {
        name: run(rank, world, images, **case) for name, case in CASES.items()
    }
    # One image in each of two processes.
    results['few'] = run(rank, world, images[:, 2:4])
    parts = (part.chunk(world)[rank] for part in images)
    results['evaluated'] = Embedding().double().eval()(*parts).item()
    if world > 1:
        results['unequal'] = unequal(rank)
    torch.save(results, f'{sys.argv[1]}_{world}_{rank}.pth')


if __name__ == '__main__':
    main()

"""Train a teacher for the rendered data set.

    python demo/train_teacher.py --out demo/vit-micro_shapes.pth
    python demo/train_teacher.py --teacher resnet \\
        --out demo/resnet-micro_shapes.pth
    python demo/train_teacher.py --teacher mixer \\
        --out demo/mixer-micro_shapes.pth

A ViT learns slowly from little data, which is why its weights are shipped.
This makes them: scenes are rendered that no student sees, a CNN learns their
labels, and the ViT, or an MLP-Mixer, learns from the labels, the CNN's logits
and two of its feature maps, one at the stem and one at the end. The CNN is a
teacher too.
"""

import argparse
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import nn

from mmcakd.datasets.rendered import CLASSES, render_scene
from mmcakd.models import build_model, soft_target_loss
from mmcakd.utils import Command, replacing

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs/quickstart/_base_'
TEACHERS = dict(
    vit='teacher.py', resnet='teacher_resnet.py', mixer='teacher_mixer.py'
)
STAGE_3, STAGE_4 = 2, 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--teacher', choices=TEACHERS, default='vit')
    parser.add_argument(
        '--out', help='default: work_dirs/TEACHER-micro_shapes.pth'
    )
    parser.add_argument('--images', type=int, default=40_000)
    parser.add_argument('--val-images', type=int, default=2400)
    parser.add_argument('--cnn-epochs', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=7)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    args.out = Path(args.out or f'work_dirs/{args.teacher}-micro_shapes.pth')
    return args


def _render(index: int, split: str) -> tuple[np.ndarray, int]:
    scene = render_scene(index, split, seed=0, size=64)
    return scene.image, scene.label


def render(num_images: int, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Render uint8 images ``(N, 3, 64, 64)`` and labels ``(N,)``."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        scenes = list(
            pool.map(
                partial(_render, split=split),
                range(num_images),
                chunksize=256,
            )
        )
    images, labels = zip(*scenes, strict=True)
    return (
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
    )


def normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def augment(images: torch.Tensor) -> torch.Tensor:
    """Flip or transpose a batch; shapes and textures survive both."""
    if torch.rand(()) < 0.5:
        images = images.flip(3)
    if torch.rand(()) < 0.5:
        images = images.transpose(2, 3)
    return images


def build_cnn() -> nn.Module:
    return build_model(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='ResNet_CIFAR',
                depth=18,
                base_channels=16,
                stem_channels=16,
                strides=(2, 2, 2, 2),
                out_indices=(STAGE_3, STAGE_4),
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=len(CLASSES),
                in_channels=128,
            ),
        ),
        'CNN',
    )


@torch.no_grad()
def top1(model: nn.Module, images, labels) -> float:
    """Top-1 accuracy in percent, in full precision."""
    was_training = model.training
    model.eval()
    predicted = torch.cat(
        [model(normalise(batch)).argmax(1) for batch in images.split(200)]
    )
    model.train(was_training)
    return (predicted == labels).float().mean().item() * 100


def train(
    name, parameters, losses, data, val, model, args, epochs, lr, wd, save
):
    """Run AdamW with warm-up and cosine decay over ``epochs``.

    ``losses`` maps a batch of images and labels to a dict of losses; ``save``
    is told the accuracy now and then.
    """
    images, labels = data
    decay = [p for p in parameters if p.ndim > 1]
    no_decay = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [dict(params=decay, weight_decay=wd), dict(params=no_decay)],
        lr=lr,
        weight_decay=0.0,
    )
    per_epoch = len(images) // args.batch_size
    total, warm_up = per_epoch * epochs, 200
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / warm_up)
            * (0.5 + 0.5 * math.cos(math.pi * step / total))
        ),
    )
    start = time.time()
    model.train()
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(len(images))
        begin = step % per_epoch * args.batch_size
        batch = order[begin : begin + args.batch_size]
        with torch.autocast('cpu', torch.bfloat16):
            parts = losses(normalise(augment(images[batch])), labels[batch])
        optimizer.zero_grad()
        sum(parts.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        scheduler.step()
        if (step + 1) % 200 == 0 or step + 1 == total:
            shown = ' '.join(f'{k} {float(v):.3f}' for k, v in parts.items())
            accuracy = top1(model, *val)
            print(
                f'{name} {step + 1}/{total} {shown} '
                f'top-1 {accuracy:.2f} % {time.time() - start:.0f} s',
                flush=True,
            )
            save(accuracy)


def standardise(feature: torch.Tensor) -> torch.Tensor:
    """Bring every channel to zero mean and unit deviation."""
    feature = feature.float()
    mean = feature.mean((0, 2, 3), keepdim=True)
    return (feature - mean) / (feature.std((0, 2, 3), keepdim=True) + 1e-3)


def save(model: nn.Module, accuracy: float, args) -> None:
    """Write the weights whole or not at all."""
    meta = dict(
        top1=round(accuracy, 2),
        classes=list(CLASSES),
        args={k: v for k, v in vars(args).items() if k != 'out'},
    )
    with replacing(args.out) as written:
        torch.save(dict(state_dict=model.state_dict(), meta=meta), written)


def main() -> None:
    args = parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    set_random_seed(args.seed)
    print(f'rendering {args.images} images', flush=True)
    data = render(args.images, 'teacher')
    val = render(args.val_images, 'val')

    cnn = build_cnn().to(memory_format=torch.channels_last)
    cnn.init_weights()
    train(
        'CNN',
        list(cnn.parameters()),
        lambda x, y: dict(
            ce=F.cross_entropy(
                cnn(x.contiguous(memory_format=torch.channels_last)).float(),
                y,
            )
        ),
        data,
        val,
        cnn,
        args,
        args.cnn_epochs,
        lr=3e-3,
        wd=0.05,
        save=lambda accuracy: (
            args.teacher == 'resnet' and save(cnn, accuracy, args)
        ),
    )
    if args.teacher != 'resnet':
        teach(cnn.eval().requires_grad_(False), data, val, args)
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.2f} MB')


def teach(cnn: nn.Module, data, val, args: argparse.Namespace) -> None:
    """Train a network of tokens on the labels and on what the CNN says."""
    cfg = Config.fromfile(CONFIGS / TEACHERS[args.teacher])
    model = build_model(cfg.teacher, 'teacher')
    model.init_weights()
    width = model.backbone.embed_dims
    to_stage_3, to_stage_4 = nn.Conv2d(width, 64, 1), nn.Conv2d(width, 128, 1)
    stem = {}
    model.backbone.patch_embed.projection.register_forward_hook(
        lambda module, inputs, output: stem.update(output=output)
    )

    def losses(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            stage_3, stage_4 = cnn.backbone(
                x.contiguous(memory_format=torch.channels_last)
            )
            target = cnn.head(cnn.neck((stage_4,)))
        (last,) = model.backbone(x)
        logits = model.head(model.neck((last,))).float()
        if last.ndim == 3:
            last = last.unflatten(2, model.backbone.patch_resolution)
        pooled = F.adaptive_avg_pool2d(last, stage_4.shape[2:])
        return dict(
            ce=0.5 * F.cross_entropy(logits, y),
            kd=0.5 * soft_target_loss(logits, target, tau=2.0, mode='kl'),
            stem=F.mse_loss(
                to_stage_3(stem['output']).float(), standardise(stage_3)
            ),
            last=F.mse_loss(to_stage_4(pooled).float(), standardise(stage_4)),
        )

    parameters = [
        parameter
        for module in (model, to_stage_3, to_stage_4)
        for parameter in module.parameters()
    ]
    train(
        args.teacher,
        parameters,
        losses,
        data,
        val,
        model,
        args,
        args.epochs,
        lr=2e-3,
        wd=0.05,
        save=lambda accuracy: save(model, accuracy, args),
    )


if __name__ == '__main__':
    with Command():
        main()

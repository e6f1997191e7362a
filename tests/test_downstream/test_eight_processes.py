"""ScaleKD's main config on eight processes, then its student in a detector."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

PROCESSES = 8
PIXELS = 64
#: Heads of the projectors divide its widths.
TEACHER = f"""
_base_ = 'mmpretrain::swin_transformer/swin-large_16xb64_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=12,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 4, 8],
        ),
        img_size={PIXELS},
        pad_small_map=True,
    ),
    head=dict(in_channels=96),
)
"""


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """ImageNet with two images of noise for each process."""
    root = tmp_path / 'imagenet'
    rng = np.random.default_rng(0)
    lines = []
    for index in range(2 * PROCESSES):
        wnid = ('n01440764', 'n01443537')[index % 2]
        folder = root / 'train' / wnid
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{wnid}_{index}.JPEG')
        lines.append(f'{wnid}/{wnid}_{index}.JPEG {index % 2}')
    (root / 'meta').mkdir()
    (root / 'meta' / 'train.txt').write_text('\n'.join(lines))
    return root


def processes_of(folder: Path) -> list[int]:
    """Find the processes whose command names a folder."""
    found = []
    for entry in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            command = entry.read_bytes()
        except OSError:  # it has ended
            continue
        pid = int(entry.parent.name)
        if str(folder).encode() in command and pid != os.getpid():
            found.append(pid)
    return found


@pytest.fixture
def without_remains(tmp_path):
    """Check that all processes of a test have ended; end them if not."""
    yield
    remains = processes_of(tmp_path)
    for pid in remains:
        os.kill(pid, signal.SIGKILL)
    assert remains == []


def build_detector(student: Path) -> torch.nn.Module:
    """Build a narrow RetinaNet on the backbone of an exported student."""
    cfg = Config(
        dict(
            model=get_config(
                'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
            ).model
        )
    )
    backbone = Config.fromfile(student.with_suffix('.py')).model.backbone
    cfg.model.backbone = dict(
        backbone,
        type=f'mmpretrain.{backbone.type}',
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(
            type='Pretrained', checkpoint=str(student), prefix='backbone.'
        ),
    )
    cfg.merge_from_dict(
        {
            'model.neck.in_channels': [32, 64, 128, 256],
            'model.neck.out_channels': 16,
            'model.bbox_head.in_channels': 16,
            'model.bbox_head.feat_channels': 16,
            'model.bbox_head.stacked_convs': 1,
        }
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    return model.train()


def make_batch() -> dict:
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(
            img_shape=(96, 128),
            ori_shape=(96, 128),
            batch_input_shape=(96, 128),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 72.0, 80.0]]),
        labels=torch.tensor([3]),
    )
    image = torch.randint(256, (3, 96, 128), dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


@pytest.mark.usefixtures('without_remains')
def test_eight_processes_train_a_backbone_for_a_detector(
    imagenet, run_tool, free_port, tmp_path
):
    teacher = tmp_path / 'teacher.py'
    teacher.write_text(TEACHER)
    work_dir = tmp_path / 'run'
    printed = run_tool(
        'tools/dist_train.sh',
        'configs/scalekd/swin-l_resnet50_in1k.py',
        PROCESSES,
        '--work-dir',
        work_dir,
        '--no-validate',
        '--cfg-options',
        f'model.teacher={teacher}',
        'model.teacher_ckpt=random',
        f'model.input_size={PIXELS}',
        'model.architecture.backbone.stem_channels=8',
        'model.architecture.backbone.base_channels=8',
        'model.architecture.head.in_channels=256',
        f'train_dataloader.dataset.data_root={imagenet}',
        f'train_dataloader.dataset.pipeline.1.scale={PIXELS}',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        # Two epochs of a step each.
        'train_cfg.max_epochs=2',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        'default_hooks.logger.interval=1',
        cwd=Path(__file__).parents[2],
        PORT=free_port,
    )
    assert 'Epoch(train) [2][1/1]' in printed
    assert 'distill.loss_s4_frequency' in printed

    # The tool writes what the hook has written at the end of training.
    student = tmp_path / 'exported.pth'
    run_tool(
        'tools/model_converters/export_student.py',
        work_dir / 'epoch_2.pth',
        student,
    )
    weights = torch.load(student)['state_dict']
    by_hook = torch.load(work_dir / 'student.pth')['state_dict']
    assert weights.keys() == by_hook.keys()
    assert all(torch.equal(weights[key], by_hook[key]) for key in weights)

    detector = build_detector(student)
    for name, value in detector.backbone.state_dict().items():
        assert torch.equal(value, weights[f'backbone.{name}']), name
    before = detector.backbone.layer4[2].conv3.weight.clone()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    log = detector.train_step(make_batch(), OptimWrapper(optimizer))
    assert log['loss'].isfinite()
    assert not torch.equal(before, detector.backbone.layer4[2].conv3.weight)

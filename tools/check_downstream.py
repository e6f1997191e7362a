"""Check that MMDetection and MMSegmentation work in this environment.

Runs compiled operators of mmcv against values known without them, on the CPU
and, where they are compiled for it, on a GPU, and imports both projects.
"""

import sys
from importlib.util import find_spec

import mmcv
import torch
import torch.nn.functional as F

# Before mmdet and mmseg: they import torchvision, which may need its help.
import mmcakd  # noqa: F401
from mmcakd.utils import Command


def check_nms(device: str) -> None:
    from mmcv.ops import nms

    # The first two overlap by 81 / 100.
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]],
        dtype=torch.float32,
        device=device,
    )
    scores = torch.tensor([0.8, 0.9, 0.7], device=device)
    for threshold, expected in ((0.80, [1, 2]), (0.82, [1, 0, 2])):
        kept = nms(boxes, scores, iou_threshold=threshold)[1].tolist()
        assert kept == expected, f'nms keeps {kept}, not {expected}'


def check_roi_align(device: str) -> None:
    from mmcv.ops import roi_align

    # Interpolating a plane gives the plane at the centres of the bins.
    x = torch.arange(8.0, device=device)
    plane = (x + 10 * x[:, None])[None, None].requires_grad_()
    box = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    bins = roi_align(plane, box, (2, 2))
    expected = plane.new_tensor([[16.5, 18.5], [36.5, 38.5]])
    torch.testing.assert_close(bins[0, 0], expected)
    bins.sum().backward()
    torch.testing.assert_close(plane.grad.sum(), plane.new_tensor(4.0))


def check_deform_conv(device: str) -> None:
    from mmcv.ops import modulated_deform_conv2d

    # Without offsets and with masks of 1 / 2 it is half a convolution.
    torch.manual_seed(0)
    image = torch.randn(2, 3, 5, 6, device=device)
    weight = torch.randn(4, 3, 3, 3, device=device)
    offset = image.new_zeros(2, 18, 5, 6)
    mask = image.new_full((2, 9, 5, 6), 0.5)
    deformed = modulated_deform_conv2d(
        image, offset, mask, weight, None, 1, 1, 1, 1, 1
    )
    torch.testing.assert_close(
        deformed, F.conv2d(image, weight, padding=1) / 2, rtol=1e-4, atol=1e-4
    )


def main() -> None:
    if find_spec('mmcv._ext') is None:
        sys.exit(
            'mmcv has no compiled operators here, as mmcv-lite has none: '
            'bash tools/setup_downstream.sh installs them'
        )
    from mmcv.ops import get_compiling_cuda_version

    devices = ['cpu']
    if torch.cuda.is_available():
        if get_compiling_cuda_version() == 'not available':
            print("mmcv's operators are compiled for the CPU alone")
        else:
            devices.append('cuda')
    for device in devices:
        check_nms(device)
        check_roi_align(device)
        check_deform_conv(device)

    import mmdet.evaluation
    import mmdet.models
    import mmseg.evaluation
    import mmseg.models

    print(
        f'mmcv {mmcv.__version__} with operators on {" and ".join(devices)}, '
        f'mmdet {mmdet.__version__} and mmseg {mmseg.__version__} work '
        f'with torch {torch.__version__}'
    )


if __name__ == '__main__':
    with Command():
        main()

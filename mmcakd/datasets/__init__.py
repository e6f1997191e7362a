from .ade20k import PIXEL_CLASSES, index_mask
from .coco import (
    MIN_VISIBLE,
    coco_annotations,
    coco_file_name,
    coco_instances,
    decode_mask,
    encode_mask,
)
from .rendered import CLASSES, RenderedObject, Scene, render_scene
from .resumable import (
    ResumableBatches,
    SampleIndex,
    SeededDataset,
    make_resumable,
)
from .transforms import (
    AnotherView,
    LoadPairedImage,
    PackNamedInputs,
    SharedTransforms,
)
from .unlabelled import UnlabelledImages

__all__ = [
    'CLASSES',
    'SharedTransforms',
    'PackNamedInputs',
    'LoadPairedImage',
    'AnotherView',
    'MIN_VISIBLE',
    'PIXEL_CLASSES',
    'RenderedObject',
    'ResumableBatches',
    'SampleIndex',
    'Scene',
    'SeededDataset',
    'UnlabelledImages',
    'coco_annotations',
    'coco_file_name',
    'coco_instances',
    'decode_mask',
    'encode_mask',
    'index_mask',
    'make_resumable',
    'render_scene',
]

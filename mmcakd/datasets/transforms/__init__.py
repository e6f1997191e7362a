from .another_view import AnotherView
from .load_paired_image import LoadPairedImage
from .pack_named_inputs import PackNamedInputs
from .shared_transforms import SharedTransforms

__all__ = [
    'AnotherView',
    'LoadPairedImage',
    'PackNamedInputs',
    'SharedTransforms',
]

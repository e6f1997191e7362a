"""What losses say of themselves, and what is known of MMRazor's."""

from torch import nn

#: Losses of MMRazor over a softmax of class scores.
_CLASSES_IN_MMRAZOR = ('DISTLoss', 'DKDLoss', 'KDSoftCELoss', 'KLDivergence')
#: Losses of MMRazor that compare maps place by place.
_PLACES_IN_MMRAZOR = (
    'ABLoss',
    'ATLoss',
    'ChannelWiseDivergence',
    'FBKDLoss',
    'FTLoss',
    'L1Loss',
    'L2Loss',
    'MGDLoss',
    'OFDLoss',
    'PKDLoss',
)


class ReadsLogits:
    """Trait of a loss that compares class scores of student and teacher."""


class ComparesClasses(ReadsLogits):
    """Trait of a loss over a softmax of class scores.

    It is for images of one class each. A distiller refuses it on heads and
    samples of several labels an image.
    """


class NeedsHardLabels:
    """Trait of a loss whose labels are the one class of each image.

    An algorithm refuses it where images are mixed, whatever kind of labels
    its reference asks for.
    """


class ComparesPlaces:
    """Trait of a loss that compares features place by place.

    An algorithm warns where student and teacher see views in which the
    places do not match.
    """


class ComparesImages:
    """Trait of a loss that compares the images of a batch with each other.

    The :class:`mmcakd.engine.TrainingSetHook` hands the size of the smallest
    batch to :meth:`check_batch_size` before training starts; the loss itself
    does in each step.
    """

    #: Fewest images that it can compare: from fewer it learns nothing.
    min_images = 2

    def check_batch_size(self, smallest: int) -> None:
        """Refuse batches that tell the loss nothing.

        Args:
            smallest (int): Images of a process in the smallest batch.

        Raises:
            ValueError: They are fewer than ``min_images``.
        """
        if smallest < self.min_images:
            raise ValueError(
                f'{type(self).__name__} compares the images of a batch, which '
                f'takes at least {self.min_images}, but a batch has '
                f'{smallest}: use a larger batch, or drop_last=True in the '
                'data loader if it is the rest of an epoch'
            )


def is_of_mmrazor(part: nn.Module) -> bool:
    """Whether a loss or connector is one of MMRazor's."""
    return type(part).__module__.startswith('mmrazor.')


def reads_logits(loss: nn.Module) -> bool:
    """Whether a loss, of mmcakd or MMRazor, compares class scores."""
    return isinstance(loss, ReadsLogits) or compares_classes(loss)


def compares_classes(loss: nn.Module) -> bool:
    """Whether a loss, of mmcakd or MMRazor, is for one class an image."""
    return isinstance(loss, ComparesClasses) or _is_one_of(
        loss, _CLASSES_IN_MMRAZOR
    )


def compares_places(loss: nn.Module) -> bool:
    """Whether a loss, of mmcakd or MMRazor, compares place by place."""
    return isinstance(loss, ComparesPlaces) or _is_one_of(
        loss, _PLACES_IN_MMRAZOR
    )


def needs_hard_labels(loss: nn.Module) -> bool:
    """Whether a loss reads the one class of each image."""
    return isinstance(loss, NeedsHardLabels)


def _is_one_of(loss: nn.Module, names: tuple[str, ...]) -> bool:
    return is_of_mmrazor(loss) and type(loss).__name__ in names

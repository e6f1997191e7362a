"""What losses ask of a run, told by their classes."""

from torch import nn

#: Losses of MMRazor over a softmax of class scores.
_SOFTMAX_OF_MMRAZOR = ('DISTLoss', 'DKDLoss', 'KDSoftCELoss', 'KLDivergence')


class ComparesClasses:
    """Trait of a loss over a softmax of class scores.

    It is for images of one class each. A distiller refuses it on heads and
    samples of several labels an image.
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


def compares_classes(loss: nn.Module) -> bool:
    """Whether a loss, of mmcakd or MMRazor, is for one class an image."""
    if isinstance(loss, ComparesClasses):
        return True
    kind = type(loss)
    return (
        kind.__module__.startswith('mmrazor.')
        and kind.__name__ in _SOFTMAX_OF_MMRAZOR
    )

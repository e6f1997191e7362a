"""How alike two layers see the same images."""

import torch


def linear_gram(features: torch.Tensor) -> torch.Tensor:
    """Inner products of the images of a batch, as one layer sees them.

    The features of the first image are subtracted from all. This changes no
    HSIC, costs no precision where features share a large offset, and makes
    the matrix of a layer that is the same for all images exactly zero.

    Args:
        features (Tensor): ``(N, ...)``, of any shape behind the batch.

    Returns:
        Tensor: ``(N, N)``, float64.

    Examples:
        >>> import torch
        >>> from mmcakd.evaluation import linear_gram
        >>> linear_gram(torch.tensor([[5.0, 5.0], [6.0, 5.0], [5.0, 7.0]]))
        tensor([[0., 0., 0.],
                [0., 1., 0.],
                [0., 0., 4.]], dtype=torch.float64)
    """
    features = features.detach().flatten(1).double()
    features = features - features[0]
    return features @ features.T


def unbiased_hsic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    r"""Unbiased estimate of the Hilbert-Schmidt independence criterion.

    With the Gram matrices :math:`K` of ``x`` and :math:`L` of ``y``, their
    diagonals set to zero,

    .. math::
        HSIC(K, L) = \frac{1}{n (n-3)} \left[ tr(K L)
        + \frac{1^T K 1 \; 1^T L 1}{(n-1)(n-2)}
        - \frac{2}{n-2} 1^T K L 1 \right]

    Source: `Feature Selection via Dependence Maximization
    <https://www.jmlr.org/papers/v13/song12a.html>`_.

    Args:
        x (Tensor): Gram matrices of ``n`` images, ``(*A, n, n)``, symmetric.
        y (Tensor): Gram matrices of the same images, ``(*B, n, n)``.

    Returns:
        Tensor: ``(*A, *B)``, each of the one with each of the other.

    Raises:
        ValueError: Matrices that are not square or differ in size, or fewer
            than four images.

    Examples:
        >>> import torch
        >>> from mmcakd.evaluation import unbiased_hsic
        >>> pairs = torch.eye(2).repeat_interleave(2, 0)  # two of each kind
        >>> unbiased_hsic(pairs @ pairs.T, pairs @ pairs.T)
        tensor(0.6667)
        >>> unbiased_hsic(torch.rand(3, 8, 8), torch.rand(5, 8, 8)).shape
        torch.Size([3, 5])
    """
    n = x.shape[-1]
    if x.shape[-2:] != (n, n) or y.shape[-2:] != (n, n):
        raise ValueError(
            'Gram matrices must be square and of the same images, but got '
            f'{tuple(x.shape)} and {tuple(y.shape)}'
        )
    if n <= 3:
        raise ValueError(
            f'the unbiased HSIC needs at least 4 images a batch, but got {n}: '
            'take a larger batch'
        )
    others = ~torch.eye(n, dtype=torch.bool, device=x.device)
    x, y = x * others, y * others
    x_rows, y_rows = x.sum(-1), y.sum(-1)
    trace = torch.tensordot(x, y, dims=([-2, -1], [-2, -1]))
    sums = torch.tensordot(x_rows.sum(-1), y_rows.sum(-1), dims=0)
    rows = torch.tensordot(x_rows, y_rows, dims=([-1], [-1]))
    total = trace + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
    return total / (n * (n - 3))


class MinibatchCKA:
    r"""Similarity of every layer with every other, from many small batches.

    .. math::
        CKA(X, Y) = \frac{\sum_b HSIC(K_b, L_b)}
        {\sqrt{\sum_b HSIC(K_b, K_b)} \sqrt{\sum_b HSIC(L_b, L_b)}}

    where :math:`K_b` and :math:`L_b` are the Gram matrices of both layers on
    batch :math:`b` (:func:`linear_gram`). As :func:`unbiased_hsic` is
    unbiased, the result does not depend on the size of the batches but for
    noise. It is 1 for layers that differ by a rotation and a factor, and
    around 0, on either side, for independent ones.

    Source: `Do Wide and Deep Networks Learn the Same Things?
    <https://arxiv.org/abs/2010.15327>`_; figure 1 of `One-for-All
    <https://arxiv.org/abs/2310.19444>`_ compares architectures by it.

    Attributes:
        num_batches (int): How many batches went in.

    Examples:
        >>> import torch
        >>> from mmcakd.evaluation import MinibatchCKA, linear_gram
        >>> cka = MinibatchCKA()
        >>> _ = torch.manual_seed(0)
        >>> for _ in range(100):
        ...     images = torch.randn(16, 8)
        ...     rotated = 3 * images.flip(1)
        ...     noisy = images + torch.randn(16, 8)
        ...     layers = (images, rotated, noisy, torch.randn(16, 8))
        ...     cka.update(torch.stack([linear_gram(x) for x in layers]))
        >>> [round(value, 2) for value in cka.compute()[0].tolist()]
        [1.0, 1.0, 0.49, 0.0]
    """

    def __init__(self) -> None:
        self.num_batches = 0
        self._hsic: torch.Tensor | float = 0.0

    def update(self, grams: torch.Tensor) -> None:
        """Add a batch.

        Args:
            grams (Tensor): ``(P, n, n)``, the Gram matrices of ``P`` layers,
                in the same order each time. ``n`` may differ between batches.
        """
        self._hsic = self._hsic + unbiased_hsic(grams, grams)
        self.num_batches += 1

    def compute(self) -> torch.Tensor:
        """Compute the similarities so far.

        Returns:
            Tensor: ``(P, P)``, symmetric. NaN in the row and column of a
            layer that gives all images the same features.

        Raises:
            RuntimeError: There was no batch.
        """
        if not self.num_batches:
            raise RuntimeError('there is no CKA of no batches: call update()')
        norms = self._hsic.diagonal().sqrt()
        return self._hsic / torch.outer(norms, norms)

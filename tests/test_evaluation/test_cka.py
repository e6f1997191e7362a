from itertools import permutations

import pytest
import torch

from mmcakd.evaluation import MinibatchCKA, linear_gram, unbiased_hsic


def cka(*layers: torch.Tensor) -> torch.Tensor:
    similarity = MinibatchCKA()
    similarity.update(torch.stack([linear_gram(x) for x in layers]))
    return similarity.compute()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize('n', [4, 5, 7])
def test_hsic_is_the_mean_over_four_distinct_images(n):
    x, y = linear_gram(draw(n, 3)), linear_gram(draw(n, 2))
    terms = [
        x[i, j] * (y[i, j] + y[q, r] - 2 * y[i, q])
        for i, j, q, r in permutations(range(n), 4)
    ]
    torch.testing.assert_close(unbiased_hsic(x, y), torch.stack(terms).mean())


def test_hsic_of_independent_features_is_zero_on_average():
    n, unbiased, biased = 6, [], []
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    for _ in range(2000):
        x, y = linear_gram(draw(n, 4)), linear_gram(draw(n, 4))
        unbiased.append(unbiased_hsic(x, y))
        biased.append((x @ centre @ y @ centre).trace() / (n - 1) ** 2)
    unbiased, biased = torch.stack(unbiased), torch.stack(biased)
    error = unbiased.std() / len(unbiased) ** 0.5
    assert unbiased.mean().abs() < 3 * error
    assert biased.mean() > 10 * error


def test_hsic_pairs_all_matrices_of_two_stacks():
    xs = torch.stack([linear_gram(draw(6, 3)) for _ in range(2)])
    ys = torch.stack([linear_gram(draw(6, 5)) for _ in range(3)])
    pairs = torch.tensor([[unbiased_hsic(x, y) for y in ys] for x in xs])
    torch.testing.assert_close(unbiased_hsic(xs, ys), pairs)


def test_hsic_ignores_what_all_images_share():
    x, y = draw(8, 3), draw(8, 4)
    torch.testing.assert_close(
        unbiased_hsic(linear_gram(x), linear_gram(y)),
        unbiased_hsic((x + 5) @ (x + 5).T, y @ y.T),
    )


@pytest.mark.parametrize(
    'shapes, message',
    [
        (((3, 3), (3, 3)), 'at least 4 images a batch, but got 3'),
        (((5, 5), (6, 6)), 'of the same images'),
        (((5, 6), (6, 5)), 'must be square'),
    ],
)
def test_hsic_refuses_what_it_cannot_compare(shapes, message):
    with pytest.raises(ValueError, match=message):
        unbiased_hsic(*(torch.rand(shape) for shape in shapes))


def test_cka_is_one_for_rotated_scaled_and_shifted_features():
    x = draw(12, 6)
    rotation, _ = torch.linalg.qr(draw(6, 6))
    same = cka(x, -0.01 * x @ rotation + 7)
    torch.testing.assert_close(same, torch.ones_like(same))


def test_cka_does_not_change_with_the_basis_of_one_side():
    x, y = draw(12, 6), draw(12, 5)
    rotation, _ = torch.linalg.qr(draw(6, 6))
    before, after = cka(x, y)[0, 1], cka(4 * x @ rotation, y)[0, 1]
    torch.testing.assert_close(before, after)
    assert before < 0.9


def test_features_of_any_shape_and_precision_are_flattened():
    x = torch.randn(8, 3, 2, 5)
    flat = cka(x.double().flatten(1), x)
    torch.testing.assert_close(flat, torch.ones_like(flat))
    assert flat.dtype == torch.float64


def test_batches_are_averaged_before_the_quotient():
    batches = [(draw(6, 3), draw(6, 4)), (5 * draw(9, 3), draw(9, 4))]
    similarity = MinibatchCKA()
    sums = dict(xy=0.0, xx=0.0, yy=0.0)
    for x, y in batches:
        grams = dict(x=linear_gram(x), y=linear_gram(y))
        similarity.update(torch.stack(list(grams.values())))
        for a, b in sums:
            sums[a + b] += unbiased_hsic(grams[a], grams[b])
    expected = sums['xy'] / (sums['xx'] * sums['yy']).sqrt()
    torch.testing.assert_close(similarity.compute()[0, 1], expected)
    assert similarity.num_batches == 2


def test_layer_that_never_varies_has_no_similarity():
    same = cka(torch.full((6, 3), 0.1), torch.randn(6, 3))
    assert same.isnan().tolist() == [[True, True], [True, False]]


def test_no_batches_are_an_error():
    with pytest.raises(RuntimeError, match='no batches'):
        MinibatchCKA().compute()

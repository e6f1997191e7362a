"""CRD against its definition, MMRazor's, and itself on two processes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample
from mmrazor.models.losses import CRDLoss as MMRazorCRDLoss

from mmcakd.models.losses import CRDLoss

IMAGES, CLASSES, DIMS, NEGATIVES = 30, 5, 8, 40
LABELS = torch.arange(IMAGES) % CLASSES
INDEX = torch.tensor([3, 17, 29, 0])


def make(prepare: bool = True, **kwargs) -> CRDLoss:
    crd = CRDLoss(embed_dims=DIMS, num_negatives=NEGATIVES, **kwargs)
    if prepare:
        crd.prepare_from_labels(LABELS)
    return crd


@pytest.fixture
def embeddings():
    return torch.randn(2, 4, DIMS)


def step(crd, student, teacher, index=INDEX):
    return crd(student, teacher, index, LABELS[index])


def half(anchors, memory, images, z) -> float:
    """One of the two halves, in plain probabilities of double precision."""
    total = 0.0
    noise = (images.shape[1] - 1) / IMAGES
    for anchor, row in zip(anchors, images, strict=True):
        anchor = anchor / anchor.norm()
        scores = [
            math.exp(float(anchor @ memory[i]) / 0.07) / z
            for i in row.tolist()
        ]
        total -= math.log(scores[0] / (scores[0] + noise))
        total -= sum(math.log(noise / (score + noise)) for score in scores[1:])
    return total / len(anchors)


def constant(anchors, memory, images) -> float:
    """Z as the first batch tells it."""
    scores = [
        math.exp(float(anchor / anchor.norm() @ memory[i]) / 0.07)
        for anchor, row in zip(anchors, images, strict=True)
        for i in row.tolist()
    ]
    return IMAGES * sum(scores) / len(scores)


def definition(crd, student, teacher, z=None):
    """Both halves, and the Z of each."""
    index = INDEX.to(student.device)
    images = torch.cat([index[:, None], crd.draw_negatives(index)], 1)
    memories = crd.teacher_memory.double(), crd.student_memory.double()
    anchors = student.double(), teacher.double()
    z = z or [
        constant(a, m, images) for a, m in zip(anchors, memories, strict=True)
    ]
    halves = [
        half(a, m, images, c)
        for a, m, c in zip(anchors, memories, z, strict=True)
    ]
    return sum(halves), z


# --------------------------------------------------------------- definition


@pytest.mark.parametrize('weight', [1.0, 0.8])
def test_value_is_that_of_the_definition(embeddings, weight):
    crd = make(loss_weight=weight)
    expected, z = definition(crd, *embeddings)
    loss = step(crd, *embeddings)
    assert loss.item() == pytest.approx(weight * expected, rel=1e-5)
    assert crd.log_z.exp().tolist() == pytest.approx(z, rel=1e-5)


def test_normalisation_stays_as_the_first_step_found_it(embeddings):
    crd = make()
    _, z = definition(crd, *embeddings)
    step(crd, *embeddings)
    student, teacher = torch.randn(2, 4, DIMS)
    expected, _ = definition(crd, student, teacher, z)
    assert step(crd, student, teacher).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert crd.log_z.exp().tolist() == pytest.approx(z, rel=1e-5)


def test_memory_is_a_normalised_running_mean(embeddings):
    crd = make(momentum=0.3)
    for name, new in zip(('student', 'teacher'), embeddings, strict=True):
        expected = getattr(crd, f'{name}_memory').clone()
        for i, embedding in zip(INDEX.tolist(), new, strict=True):
            row = 0.3 * expected[i] + 0.7 * embedding / embedding.norm()
            expected[i] = row / row.norm()
        other = copy.deepcopy(crd)
        step(other, *embeddings)
        found = getattr(other, f'{name}_memory')
        assert torch.allclose(found, expected, atol=1e-6)
        rest = [i for i in range(IMAGES) if i not in INDEX.tolist()]
        assert torch.equal(found[rest], expected[rest])


def test_memory_starts_with_vectors_of_about_unit_length():
    crd = CRDLoss()
    crd.prepare_from_labels(torch.arange(1000) % 10)
    for memory in (crd.student_memory, crd.teacher_memory):
        assert memory.shape == (1000, 128)
        assert memory.norm(dim=1).mean().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(crd.student_memory, crd.teacher_memory)


def test_defaults_are_those_of_the_published_comparison():
    crd = CRDLoss()
    assert (crd.embed_dims, crd.num_negatives) == (128, 16384)
    assert (crd.temperature, crd.momentum) == (0.07, 0.5)
    assert crd.loss_weight == 1


@pytest.mark.parametrize('argument', [0, 1])
def test_gradient_is_that_of_finite_differences(argument):
    crd = make().double().eval()
    embeddings = list(torch.randn(2, 4, DIMS, dtype=torch.float64))
    embeddings[argument].requires_grad_()

    def loss(x):
        arguments = list(embeddings)
        arguments[argument] = x
        # Z is a constant, not a function of the batch.
        crd.steps.fill_(1)
        crd.log_z.fill_(4.0)
        return step(crd, *arguments)

    assert torch.autograd.gradcheck(loss, embeddings[argument])


def test_gradient_is_that_of_the_memory_before_its_update(embeddings):
    crd = make()
    grads = []
    for train in (False, True):
        student, teacher = (x.clone().requires_grad_() for x in embeddings)
        loss = step(crd.train(train), student, teacher)
        loss.backward()
        grads.append(torch.stack([student.grad, teacher.grad]))
    assert grads[0].abs().sum() > 0
    assert torch.allclose(*grads)


def test_evaluation_remembers_nothing(embeddings):
    crd = make().eval()
    before = copy.deepcopy(crd.state_dict())
    step(crd, *embeddings)
    after = crd.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_training_makes_the_two_networks_agree():
    torch.manual_seed(1)
    images = torch.randn(IMAGES, 12)
    embed_s, embed_t = torch.nn.Linear(12, DIMS), torch.nn.Linear(12, DIMS)
    crd = make()
    optimizer = torch.optim.Adam(
        [*embed_s.parameters(), *embed_t.parameters()], lr=0.01
    )

    def agreement() -> float:
        """How many images find themselves in the other network."""
        with torch.no_grad():
            s, t = F.normalize(embed_s(images)), F.normalize(embed_t(images))
        best = (s @ t.T).argmax(1)
        return (LABELS[best] == LABELS).float().mean().item()

    before = agreement()
    for _ in range(60):
        index = torch.randperm(IMAGES)[:10]
        loss = step(crd, embed_s(images[index]), embed_t(images[index]), index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.5
    assert agreement() > 0.8


# ---------------------------------------------------------------- negatives


def test_negatives_are_never_of_the_class_of_the_image():
    crd = CRDLoss(embed_dims=2, num_negatives=500)
    # Classes of unequal size in no order, one without images.
    labels = torch.tensor([4, 0, 0, 2, 4, 1, 0, 0, 2, 0])
    crd.prepare_from_labels(labels)
    index = torch.arange(10)
    negatives = crd.draw_negatives(index)
    assert negatives.shape == (10, 500)
    for i in index.tolist():
        others = {j for j in range(10) if labels[j] != labels[i]}
        assert set(negatives[i].tolist()) == others


def test_negatives_are_uniform_over_the_other_classes():
    crd = CRDLoss(embed_dims=2, num_negatives=40_000)
    crd.prepare_from_labels(torch.tensor([0, 1, 1, 2, 0, 3]))
    counts = crd.draw_negatives(torch.tensor([4]))[0].bincount(minlength=6)
    assert counts[[0, 4]].tolist() == [0, 0]
    assert counts[[1, 2, 3, 5]].tolist() == pytest.approx(
        [10_000] * 4, rel=0.05
    )


def test_negatives_depend_on_seed_step_and_image_alone(embeddings):
    crd = make()
    first = crd.draw_negatives(INDEX)
    torch.manual_seed(123)
    assert torch.equal(crd.draw_negatives(INDEX), first)
    # whichever other images there are
    assert torch.equal(crd.draw_negatives(INDEX[[2]]), first[[2]])
    assert torch.equal(crd.draw_negatives(INDEX.flip(0)), first.flip(0))
    # 3 and 18 are of the same class
    same_class = crd.draw_negatives(torch.tensor([3, 18]))
    assert not torch.equal(*same_class)
    step(crd, *embeddings)
    assert not torch.equal(crd.draw_negatives(INDEX), first)
    other = make()
    assert other.seed != crd.seed
    assert not torch.equal(other.draw_negatives(INDEX), first)


def test_drawing_leaves_the_global_generator_alone():
    crd = make()
    state = torch.get_rng_state()
    crd.draw_negatives(INDEX)
    crd.prepare_from_labels(LABELS)
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- precision


def test_half_precision_is_lifted_and_autocast_is_kept_out(embeddings):
    crd = make().eval()
    student, teacher = embeddings
    expected = step(crd, student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = step(crd, student, teacher)
        halves = step(crd, student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.05)
    crd.train()
    with torch.autocast('cpu', torch.bfloat16):
        step(crd, student.bfloat16(), teacher.half())
    assert crd.student_memory.dtype == torch.float32


@pytest.mark.parametrize('scale', [0, 1e-30, 1e30])
def test_embeddings_of_any_length_give_a_finite_loss(embeddings, scale):
    loss = step(make(), *(scale * embeddings))
    assert loss.isfinite()


def test_a_sharp_temperature_does_not_overflow(embeddings):
    crd = make(temperature=0.011)
    student, teacher = (x.clone().requires_grad_() for x in embeddings)
    for _ in range(3):
        loss = step(crd, student, teacher)
        loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'
)
def test_memory_moves_to_the_device_of_the_embeddings(embeddings):
    # The runner moves the model before the training set is read.
    crd = make(prepare=False).cuda()
    crd.prepare_from_labels(LABELS)
    assert all(buffer.is_cuda for buffer in crd.buffers())
    student, teacher = embeddings.cuda()
    for _ in range(2):
        expected, _ = definition(crd, student, teacher)
        with torch.autocast('cuda', torch.float16):
            # Indices come from the data samples, on the processor.
            loss = crd(student, teacher, INDEX, LABELS[INDEX].cuda())
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        crd.steps.zero_()


# ---------------------------------------------------------------- processes


def test_of_an_image_that_is_there_twice_the_last_one_is_kept():
    crd = make(momentum=0.0)
    student, teacher = torch.randn(2, 4, DIMS)
    step(crd, student, teacher, torch.tensor([7, 2, 7, 2]))
    for memory, new in (
        (crd.student_memory, student),
        (crd.teacher_memory, teacher),
    ):
        expected = F.normalize(new[[2, 3]], dim=1)
        assert torch.allclose(memory[[7, 2]], expected)


def test_two_processes_remember_what_one_does_of_the_joint_batch(run_worker):
    one, first, second = run_worker('crd_worker.py')
    for joint, left, right in zip(one, first, second, strict=True):
        assert left['loss'] != right['loss']
        mean = (left['loss'] + right['loss']) / 2
        assert mean == pytest.approx(joint['loss'], rel=1e-5)
        assert set(left['state']) == set(joint['state'])
        for key, expected in joint['state'].items():
            assert torch.equal(left['state'][key], right['state'][key]), key
            assert torch.allclose(left['state'][key], expected, atol=1e-5), key
    assert not torch.equal(
        one[0]['state']['crd.student_memory'],
        one[-1]['state']['crd.student_memory'],
    )


def test_a_resumed_loss_goes_on_bit_by_bit(embeddings):
    unbroken = make()
    step(unbroken, *embeddings)
    state = copy.deepcopy(unbroken.state_dict())
    torch.manual_seed(99)
    resumed = make()
    resumed.load_state_dict(state)
    for _ in range(2):
        student, teacher = torch.randn(2, 4, DIMS)
        assert step(resumed, student, teacher) == step(
            unbroken, student, teacher
        )
    for key, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_checkpoint_holds_nothing_that_the_data_set_tells():
    assert set(make().state_dict()) == {
        'seed', 'steps', 'log_z', 'student_memory', 'teacher_memory'
    }  # fmt: skip


# ------------------------------------------------------------------ MMRazor


def mmrazor(crd, student, teacher, **kwargs) -> float:
    """Their loss, of the same memories and negatives."""
    theirs = MMRazorCRDLoss(
        neg_num=NEGATIVES, sample_n=IMAGES, dim_out=DIMS, **kwargs
    )
    theirs.contrast.memory_v1.copy_(crd.student_memory)
    theirs.contrast.memory_v2.copy_(crd.teacher_memory)
    samples = [
        DataSample(
            metainfo=dict(
                sample_idx=i, contrast_sample_idxs=torch.cat([i[None], row])
            )
        )
        for i, row in zip(INDEX, crd.draw_negatives(INDEX), strict=True)
    ]
    return theirs(F.normalize(student), F.normalize(teacher), samples).item()


def test_mmrazors_is_the_same_at_weight_one(embeddings):
    crd = make()
    theirs = mmrazor(crd, *embeddings)
    assert step(crd, *embeddings).item() == pytest.approx(theirs, rel=1e-4)


def test_mmrazors_ignores_its_weight(embeddings):
    crd = make()
    assert mmrazor(crd, *embeddings, loss_weight=0.5) == mmrazor(
        crd, *embeddings
    )
    whole = step(copy.deepcopy(crd), *embeddings)
    crd.loss_weight = 0.5
    assert step(crd, *embeddings) == 0.5 * whole


def test_mmrazors_draws_negatives_of_the_class_of_the_image():
    theirs = MMRazorCRDLoss(neg_num=NEGATIVES, sample_n=IMAGES, dim_out=DIMS)
    drawn = theirs.contrast.multinomial.draw(1000)
    assert set(LABELS[drawn].tolist()) == set(range(CLASSES))


# ---------------------------------------------------------------- bad input


def test_training_without_the_training_set_is_refused(embeddings):
    with pytest.raises(RuntimeError, match='TrainingSetHook'):
        step(make(prepare=False), *embeddings)


def test_example_before_training_checks_the_shapes_only(embeddings):
    crd = make(prepare=False).eval()
    assert step(crd, *embeddings) == 0
    with pytest.raises(ValueError, match='embed_dims is 8'):
        step(crd, *torch.rand(2, 4, 16))
    with pytest.raises(ValueError, match='PooledEmbedding'):
        step(crd, torch.rand(4, 8), torch.rand(4, 16))


@pytest.mark.parametrize('wrong', [-1, IMAGES])
def test_an_index_out_of_range_is_refused(embeddings, wrong):
    index = torch.tensor([3, 17, wrong, 0])
    with pytest.raises(ValueError, match='30 images') as caught:
        make()(*embeddings, index, torch.zeros(4, dtype=torch.long))
    assert str(wrong) in str(caught.value)


def test_classes_that_are_not_those_of_the_index_are_refused(embeddings):
    with pytest.raises(ValueError, match='sample_idx'):
        make()(*embeddings, INDEX, LABELS[INDEX].flip(0))


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match='all 5 training images'):
        make(prepare=False).prepare_from_labels(
            torch.full((5,), 3, dtype=torch.long)
        )


@pytest.mark.parametrize('labels', [torch.rand(5), torch.eye(3).long()])
def test_other_labels_than_class_indices_are_refused(labels):
    with pytest.raises(ValueError, match='one class index'):
        make(prepare=False).prepare_from_labels(labels)


@pytest.mark.parametrize(
    'arguments',
    [dict(temperature=0.0), dict(num_negatives=0), dict(momentum=1.0)],
)
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CRDLoss(**arguments)

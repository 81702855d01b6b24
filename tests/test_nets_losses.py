"""The torch focal loss against the golden set, against numpy, and against the faults of a published module."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InvalidInput
from models.losses import reduced_gradient, sigmoid_focal, softmax_focal, total
from models.nets.losses import FocalLoss, SigmoidFocalLoss, sigmoid_focal_loss, softmax_focal_loss
from tests.golden import GAMMAS, Case, assert_close, cases

torch.set_num_threads(1)
TOLERANCE = {torch.float64: (1e-12, 1e-290), torch.float32: (2e-5, 1e-30)}


def batch(n: int = 8, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, classes, generator=generator, dtype=torch.float64) * 4
    return z.to(dtype).requires_grad_(), torch.randint(classes, (n,), generator=generator)


def gradient_of(loss: Tensor, z: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return gradient


def run(case: Case, z: Tensor) -> Tensor:
    loss = softmax_focal_loss if case.kind == "softmax" else sigmoid_focal_loss
    return loss(z, torch.as_tensor(case.targets), reduction=case.reduction, **case.options())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_every_golden_case_is_met(case: Case, dtype: torch.dtype) -> None:
    rtol, atol = TOLERANCE[dtype]
    z = torch.tensor(case.logits).to(dtype).requires_grad_()
    loss = run(case, z)
    gradient = gradient_of(loss, z)
    assert loss.dtype == gradient.dtype == dtype
    if case.expected["loss"] is None:
        assert loss == 0 and not gradient.any()
        return
    assert_close(loss.detach().numpy(), case.expected["loss"], rtol, atol, "loss")
    assert_close(gradient.numpy(), case.expected["grad"], rtol, atol, "gradient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [c for c in cases() if "-half-" in c.id], ids=lambda case: case.id)
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    z = torch.tensor(case.logits).to(dtype).requires_grad_()
    loss = run(case, z)
    assert loss.dtype == torch.float32
    gradient = gradient_of(loss, z)
    assert gradient.dtype == dtype and bool(gradient.isfinite().all())
    if bool((z.detach().double() == torch.tensor(case.logits)).all()):
        assert_close(loss.detach().numpy(), case.expected["loss"], 2e-5, 1e-30, "loss")
        wanted = torch.tensor(case.expected["grad"]).to(torch.float32).to(dtype)
        torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("gamma", [*GAMMAS, 0.1])
def test_torch_and_numpy_agree(gamma: float) -> None:
    z, y = batch(30)
    numbers, labels = z.detach().numpy(), y.numpy()
    soft = np.random.default_rng(0).random((30, 5))
    for alpha, smoothing, targets in ((None, 0.0, labels), ([1, 2, 0, 3.5, 1], 0.1, labels), (None, 0.0, soft)):
        terms = softmax_focal(numbers, targets, gamma=gamma, alpha=alpha, label_smoothing=smoothing)
        options: dict[str, Any] = {"gamma": gamma, "alpha": alpha, "label_smoothing": smoothing}
        for reduction in ("sum", "mean", "weighted_mean"):
            loss = softmax_focal_loss(z, torch.as_tensor(targets), reduction=reduction, **options)
            assert loss.item() == pytest.approx(total(terms, reduction).value, rel=1e-13)
            grad = gradient_of(loss, z).numpy()
            np.testing.assert_allclose(grad, reduced_gradient(terms, reduction), rtol=1e-11, atol=1e-16)
    for convention in ("expected", "interpolated", "qfl"):
        elements = sigmoid_focal(numbers, soft, gamma=gamma, soft=convention)
        for reduction in ("sum", "mean", "mean_positive", "batchmean"):
            loss = sigmoid_focal_loss(z, torch.tensor(soft), gamma=gamma, soft=convention, reduction=reduction)
            assert loss.item() == pytest.approx(total(elements, reduction).value, rel=1e-13)
        grad = gradient_of(loss, z).numpy()
        np.testing.assert_allclose(grad, reduced_gradient(elements, "batchmean"), rtol=1e-10, atol=1e-16)


def test_gamma_0_is_torch_cross_entropy_with_and_without_weights() -> None:
    z, y = batch(40)
    weight = torch.tensor([0.2, 1, 3.5, 0.7, 2], dtype=torch.float64)
    plain = functional.cross_entropy(z, y)
    torch.testing.assert_close(FocalLoss(gamma=0)(z, y), plain)
    torch.testing.assert_close(gradient_of(FocalLoss(gamma=0)(z, y), z), gradient_of(plain, z))
    weighted = functional.cross_entropy(z, y, weight=weight)
    ours = FocalLoss(gamma=0, alpha=weight, reduction="mean_weighted")
    torch.testing.assert_close(ours(z, y), weighted)
    terms = softmax_focal(z.detach().numpy(), y.numpy(), gamma=0, alpha=weight.numpy())
    assert total(terms, "mean_weighted").value == pytest.approx(weighted.item(), rel=1e-12)
    torch.testing.assert_close(gradient_of(ours(z, y), z), gradient_of(weighted, z))


def test_gamma_0_with_smoothing_is_torch_cross_entropy_with_smoothing() -> None:
    z, y = batch(40)
    torch.testing.assert_close(
        FocalLoss(gamma=0, label_smoothing=0.1)(z, y), functional.cross_entropy(z, y, label_smoothing=0.1)
    )


def test_sigmoid_at_gamma_0_is_binary_cross_entropy() -> None:
    z, _ = batch()
    t = (z.detach() > 1).double() * 0.9
    torch.testing.assert_close(
        SigmoidFocalLoss(gamma=0)(z, t), functional.binary_cross_entropy_with_logits(z, t), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_pass_gradcheck(gamma: float) -> None:
    z, y = batch(4, 3)
    t = torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha = [1.0, 0.2, 0.7]
    picture = z.detach().T.reshape(1, 3, 2, 2).requires_grad_()
    checks: list[tuple[Any, Tensor]] = [
        (lambda x: softmax_focal_loss(x, y, gamma=gamma, alpha=alpha, reduction="none"), z),
        (lambda x: softmax_focal_loss(x, y, gamma=gamma, alpha=alpha, label_smoothing=0.1), z),
        (lambda x: softmax_focal_loss(x, y.reshape(1, 2, 2), gamma=gamma, reduction="mean"), picture),
        (lambda x: softmax_focal_loss(x, t, gamma=gamma, alpha=alpha, reduction="mean_weighted"), z),
        (lambda x: sigmoid_focal_loss(x, t, gamma=gamma, alpha=alpha, reduction="none"), z),
        (lambda x: sigmoid_focal_loss(x, t > 0.5, gamma=gamma, alpha=0.25, reduction="num_positive"), z),
        (lambda x: sigmoid_focal_loss(x, t, gamma=gamma, alpha=0.25, soft="interpolated"), z),
        (lambda x: sigmoid_focal_loss(x, t, gamma=gamma, soft="qfl", reduction="batchmean"), z),
    ]
    for function, logits in checks:
        assert torch.autograd.gradcheck(function, (logits,))


def test_a_second_derivative_is_refused() -> None:
    z, y = batch()
    for loss in (softmax_focal_loss(z, y), sigmoid_focal_loss(z, (z > 0).long())):
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(loss, z, create_graph=True)


def test_alpha_may_be_a_list_but_not_a_number() -> None:
    z, y = batch(3, 2, torch.float32)
    assert FocalLoss(alpha=[0.25, 0.75])(z, y % 2).isfinite()
    with pytest.raises(InvalidInput, match="scalar alpha"):
        FocalLoss(alpha=0.25)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="each of the 2 classes"):
        FocalLoss(alpha=[1, 2, 3])(z, y % 2)


@pytest.mark.parametrize("alpha", [None, [1.0, 1, 1, 1, 1]])
def test_ignored_labels_leave_the_mean_and_the_gradient_alone(alpha: list[float] | None) -> None:
    z, y = batch(6)
    y[2:4] = -100
    kept = torch.tensor([0, 1, 4, 5])
    loss = FocalLoss(alpha=alpha)
    with torch.no_grad():
        z[2:4] = torch.nan
    torch.testing.assert_close(loss(z, y), loss(z[kept], y[kept]))
    gradient = gradient_of(loss(z, y), z)
    assert bool((gradient[2:4] == 0).all()) and bool((gradient[kept] != 0).all())


def test_pictures_give_one_loss_per_pixel() -> None:
    z, y = batch(12)
    picture = z.detach().reshape(1, 3, 4, 5).permute(0, 3, 1, 2).requires_grad_()
    losses = FocalLoss(reduction="none")(picture, y.reshape(1, 3, 4))
    assert losses.shape == (1, 3, 4)
    torch.testing.assert_close(losses.flatten(), FocalLoss(reduction="none")(z, y))


def test_soft_targets_with_weights_follow_the_expected_convention() -> None:
    z, _ = batch(4, 3)
    t = torch.rand(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p = z.detach().softmax(dim=1)
    alpha = torch.tensor([0.5, 1, 2], dtype=torch.float64)
    expected = -(t * alpha * (1 - p) ** 2 * p.log()).sum(dim=1)
    torch.testing.assert_close(FocalLoss(alpha=alpha, reduction="none")(z, t).detach(), expected)


def test_a_float64_alpha_leaves_the_loss_in_float32() -> None:
    z, y = batch(dtype=torch.float32)
    alpha = torch.ones(5, dtype=torch.float64)
    assert FocalLoss(alpha=alpha)(z, y).dtype == torch.float32
    assert SigmoidFocalLoss(alpha=alpha)(z, torch.ones_like(z)).dtype == torch.float32


def test_alpha_is_moved_saved_and_copied_with_the_module() -> None:
    module = nn.Sequential(FocalLoss(alpha=[1, 2]), SigmoidFocalLoss(alpha=0.25))
    assert set(module.state_dict()) == {"0.alpha", "1.alpha"}
    other = nn.Sequential(FocalLoss(alpha=[9, 9]), SigmoidFocalLoss(alpha=0.9))
    other.load_state_dict(module.state_dict())
    assert [a.tolist() for a in other.buffers()] == [[1, 2], 0.25]
    assert {a.device.type for a in copy.deepcopy(module).to("meta").buffers()} == {"meta"}
    assert not FocalLoss().state_dict()


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_saturated_logits_with_gamma_below_1_have_finite_gradients(gamma: float) -> None:
    for dtype in (torch.float64, torch.float32):
        z = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [100, 0], [0, 0]], dtype=dtype, requires_grad=True)
        for loss in (
            FocalLoss(gamma=gamma)(z, torch.zeros(4).long()),
            SigmoidFocalLoss(gamma=gamma)(z, (z > 0).long()),
        ):
            assert bool(loss.isfinite()) and bool(gradient_of(loss, z).isfinite().all())


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_weighted"])
def test_an_empty_or_wholly_ignored_batch_is_0_and_trains_nothing(reduction: str) -> None:
    module = FocalLoss(alpha=[1, 2, 3], reduction=reduction)
    for n in (0, 2):
        z = torch.zeros(n, 3, requires_grad=True)
        loss = module(z, torch.full((n,), -100))
        loss.backward()
        assert loss == 0 and z.grad is not None and not z.grad.any()


def test_what_the_numbers_are_does_not_depend_on_grad_mode() -> None:
    z, y = batch()
    with torch.no_grad():
        loss = FocalLoss()(z, y)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, FocalLoss()(z, y).detach(), rtol=0, atol=0)


def test_bad_logits_show_in_the_loss_for_a_gradient_scaler_to_see() -> None:
    z = torch.tensor([[0.0, torch.inf], [1.0, 2.0]], requires_grad=True)
    assert not FocalLoss()(z, torch.tensor([0, 1])).isfinite()


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_under_autocast_the_loss_is_float32(amp: torch.dtype) -> None:
    layer = nn.Linear(4, 3)
    with torch.autocast("cpu", dtype=amp):
        logits = layer(torch.ones(2, 4))
        loss = FocalLoss()(logits, torch.tensor([0, 2]))
    assert logits.dtype == amp and loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad is not None and bool(layer.weight.grad.isfinite().all())


def test_a_small_network_learns_with_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    y = (x[:, 0] > x[:, 1]).long()
    layer, loss = nn.Linear(2, 2), FocalLoss(gamma=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss(layer(x), y).backward()
        optimizer.step()
    assert (layer(x).argmax(dim=1) == y).float().mean() > 0.97


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": -1.0}, "gamma must be a finite number"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"reduction": "average"}, "unknown reduction 'average' for softmax; known: none, sum, mean, mean_weighted"),
        ({"reduction": "num_positive"}, "unknown reduction"),
        ({"soft": "interpolated"}, "unknown soft-target convention"),
        ({"targets": torch.tensor([0, 5])}, r"target 5 of row 1 is not a class in 0\.\.2"),
        ({"targets": torch.tensor([-1, 0])}, "target -1 of row 0"),
        ({"targets": torch.tensor([0.0, 1.0])}, "integer class indices"),
        ({"targets": torch.tensor([0])}, "fit neither"),
        ({"targets": torch.full((2, 3), 1.5)}, r"targets must be in \[0, 1\]"),
        ({"logits": torch.zeros(2, 1)}, "C >= 2"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, "floating point"),
    ],
)
def test_softmax_refuses_and_names(options: dict[str, Any], words: str) -> None:
    logits, targets = options.pop("logits", torch.zeros(2, 3)), options.pop("targets", torch.tensor([0, 1]))
    with pytest.raises(InvalidInput, match=words):
        softmax_focal_loss(logits, targets, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\]"),
        ({"alpha": [0.5, 0.5]}, "each of the 3 classes"),
        ({"alpha": 0.5, "soft": "qfl"}, "takes no alpha"),
        ({"reduction": "mean_weighted"}, "unknown reduction 'mean_weighted' for sigmoid"),
        ({"targets": torch.zeros(2)}, "do not fit"),
        ({"targets": torch.full((2, 3), 2)}, r"targets must be in \[0, 1\]"),
    ],
)
def test_sigmoid_refuses_and_names(options: dict[str, Any], words: str) -> None:
    targets = options.pop("targets", torch.zeros(2, 3))
    with pytest.raises(InvalidInput, match=words):
        sigmoid_focal_loss(torch.zeros(2, 3), targets, **options)

"""Targets, weights and the guidance gradient."""

from types import SimpleNamespace

import pytest
import torch
from helpers.tiny import tiny_classifier

from diffusers_multiguidance.guidance import (
    ClassifierScore,
    check_guidance_interval,
    is_guided,
    weights_from_classes,
    weights_from_target,
)
from diffusers_multiguidance.models import NoisyClassifierSet

ATTRIBUTES = {"Smiling": ["no", "yes"], "Hair": ["black", "brown", "blond"]}


def test_target_is_a_share_of_the_scale():
    weights = weights_from_target(
        ATTRIBUTES, {"Smiling": 0.25, "Hair": {"black": 0.5, "blond": 0.5}}, guidance_scale=60, batch_size=2
    )
    assert torch.equal(weights["Smiling"], torch.tensor([[45.0, 15.0]] * 2))
    assert torch.equal(weights["Hair"], torch.tensor([[30.0, 0.0, 30.0]] * 2))


def test_uniform_targets_fill_the_line_and_the_square():
    two = {"Smiling": ["no", "yes"], "Age": ["old", "young"]}
    line = weights_from_target(two, {"Smiling": "uniform"}, 1, 4)["Smiling"]
    torch.testing.assert_close(line[:, 1], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    square = weights_from_target(two, "uniform", 1, 400)
    cells = (square["Smiling"][:, 1] * 5).long() * 5 + (square["Age"][:, 1] * 5).long()
    assert cells.bincount(minlength=25).min() >= 13  # of 16 expected in each of 25 cells


def test_raw_weights_may_be_negative_and_partial():
    weights = weights_from_classes(ATTRIBUTES, {"Hair": {"blond": 30, "black": -5}}, batch_size=1)
    assert torch.equal(weights["Hair"], torch.tensor([[-5.0, 0.0, 30.0]]))


class LinearClassifier:
    """logits = (0, a * x) with x the mean pixel, so every gradient is known."""

    attributes = {"Smiling": ["no", "yes"]}  # noqa: RUF012
    dtype = torch.float32

    def __call__(self, sample, timestep):
        logit = 3 * sample.mean(dim=(1, 2, 3))
        return SimpleNamespace(logits={"Smiling": torch.stack([torch.zeros_like(logit), logit], dim=1)})


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_guidance_vanishes_at_the_target_probability_and_leads_to_it(target):
    weights = weights_from_target({"Smiling": ["no", "yes"]}, {"Smiling": target}, 60, 3)
    balance = torch.logit(torch.tensor(target)) / 3
    x = torch.stack([torch.full((1, 2, 2), float(balance + shift)) for shift in (-0.2, 0, 0.2)])
    grad = ClassifierScore(LinearClassifier(), weights)(x, 0)
    assert (grad[0] > 0.1).all()
    torch.testing.assert_close(grad[1], torch.zeros(1, 2, 2), atol=1e-5, rtol=0)
    assert (grad[2] < -0.1).all()


def test_gradient_is_the_weighted_sum_of_log_probability_gradients():
    """Against autograd by class and member, for a set of two networks that share one attribute."""
    members = [tiny_classifier(1), tiny_classifier(2)]
    x, timestep = torch.randn(2, 1, 8, 8), torch.tensor([3, 70])
    weights = {"Smiling": torch.tensor([[10.0, 50.0], [-20.0, 5.0]])}
    one = members[0]
    x.requires_grad_()
    log_probs = one(x, timestep).logits["Smiling"].log_softmax(dim=1)
    expected = torch.zeros_like(x)
    for name in (0, 1):
        (grad,) = torch.autograd.grad(log_probs[:, name].sum(), x, retain_graph=True)
        expected = expected + weights["Smiling"][:, name].reshape(2, 1, 1, 1) * grad
    torch.testing.assert_close(ClassifierScore(one, weights)(x, timestep), expected)

    both = NoisyClassifierSet.from_members(members)
    logit = sum(member(x, timestep).logits["Smiling"].diff(dim=1) for member in members) / 2
    objective = (weights["Smiling"] * torch.nn.functional.logsigmoid(torch.cat([-logit, logit], dim=1))).sum()
    (expected,) = torch.autograd.grad(objective, x)
    torch.testing.assert_close(ClassifierScore(both, weights)(x, timestep), expected, rtol=1e-4, atol=1e-6)


def test_guidance_interval_counts_steps_from_noise_to_image():
    guided = [step for step in range(10) if is_guided(step, 10, (0.2, 0.5))]
    assert guided == [2, 3, 4]
    assert all(is_guided(step, 10, (0.0, 1.0)) for step in range(10))
    assert not any(is_guided(step, 10, (0.3, 0.3)) for step in range(10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights_from_target(ATTRIBUTES, {"Smile": 0.5}, 60, 1), "`target` names attribute 'Smile'; expected"),
        (lambda: weights_from_target(ATTRIBUTES, {"Smiling": 1.1}, 60, 1), "`target` .* 1.1; expected"),
        (lambda: weights_from_target(ATTRIBUTES, {"Smiling": float("nan")}, 60, 1), "`target` .* nan; expected"),
        (lambda: weights_from_target(ATTRIBUTES, {"Smiling": "mild"}, 60, 1), "`target` .* 'mild'; expected"),
        (lambda: weights_from_target(ATTRIBUTES, {"Hair": 0.5}, 60, 1), "`target` .* expected a dict of shares"),
        (lambda: weights_from_target(ATTRIBUTES, {"Hair": {"red": 1}}, 60, 1), "`target` names class 'red'"),
        (lambda: weights_from_target(ATTRIBUTES, {"Hair": {"black": 0.5}}, 60, 1), "`target` .* sum to 1"),
        (lambda: weights_from_target(ATTRIBUTES, {"Hair": {"black": 2, "blond": -1}}, 60, 1), "`target` .* sum to 1"),
        (lambda: weights_from_target(ATTRIBUTES, {}, 60, 1), "`target` is empty; expected"),
        (lambda: weights_from_target(ATTRIBUTES, 0.5, 60, 1), "`target` is 0.5; expected"),
        (lambda: weights_from_target(ATTRIBUTES, {"Smiling": 0.5}, -1, 1), "`guidance_scale` is -1; expected"),
        (lambda: weights_from_target(ATTRIBUTES, {"Smiling": 0.5}, float("inf"), 1), "`guidance_scale` is inf"),
        (lambda: weights_from_classes(ATTRIBUTES, {"Smiling": 30}, 1), "`guidance_weights` .* 30; expected"),
        (lambda: weights_from_classes(ATTRIBUTES, {"Smiling": {"maybe": 30}}, 1), "`guidance_weights` names class"),
        (lambda: weights_from_classes(ATTRIBUTES, {"Smiling": {"no": float("nan")}}, 1), "`guidance_weights` .* nan"),
        (lambda: check_guidance_interval((0.5, 0.2)), "`guidance_interval` is"),
        (lambda: check_guidance_interval((0.0, 1.5)), "`guidance_interval` is"),
        (lambda: check_guidance_interval(0.5), "`guidance_interval` is"),
        (lambda: check_guidance_interval((0.0, 0.5, 1.0)), "`guidance_interval` is"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()

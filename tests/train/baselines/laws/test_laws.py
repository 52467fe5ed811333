"""Fits recover the law that made the losses, stay within reason where a small swarm leaves them open, and know their own slope."""

from __future__ import annotations

import numpy as np
import pytest

from train.baselines.laws.additive import AdditiveLaw, fit_additive
from train.baselines.laws.fits import cross_validated, figures_of, fit_named
from train.baselines.laws.law import SmoothLaw
from train.baselines.laws.log_linear import LogLinearLaw, fit_log_linear
from train.baselines.laws.simple_laws import LinearLaw, NearestLaw, fit_ridge
from train.baselines.swarm import swarm_weights

UNIFORM_K = np.full(4, 0.25)
LAWS: list[SmoothLaw] = [
    AdditiveLaw(1.5, np.log([0.6, 0.05, 0.2, 0.1]), 0.4),
    LogLinearLaw(0.7, np.array([-1.2, 0.4, 0.1, -0.3])),
    LinearLaw(3.0, np.array([-1.0, 0.5, 0.2, 0.0])),
]
FITS = {AdditiveLaw: "additive", LogLinearLaw: "log-linear", LinearLaw: "ridge"}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: FITS[type(law)])
def test_a_fit_recovers_the_law_that_made_the_losses(law: SmoothLaw) -> None:
    weights_NK, fresh_NK = (swarm_weights(UNIFORM_K, num_mixtures=num, seed=seed) for num, seed in ((32, 0), (50, 9)))
    found = fit_named(FITS[type(law)])(weights_NK, law.predict(weights_NK))
    spread = np.ptp(law.predict(fresh_NK))
    assert found.predict(fresh_NK) == pytest.approx(law.predict(fresh_NK), abs=0.02 * spread)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: FITS[type(law)])
def test_gradients_are_finite_differences(law: SmoothLaw) -> None:
    at_K, step = np.array([0.4, 0.3, 0.2, 0.1]), 1e-6
    either_side = [law.predict(at_K + sign * step * np.eye(4)) for sign in (1, -1)]
    assert law.gradient(at_K) == pytest.approx((either_side[0] - either_side[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_the_additive_fit_does_not_depend_on_the_unit_of_the_losses() -> None:
    """Ridges count in standard deviations: benchmark scores turned round are as good as nats."""
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=16, seed=0)
    losses_N = LAWS[0].predict(weights_NK) + np.random.default_rng(0).normal(0, 0.1, 16)
    nats, scores = fit_additive(weights_NK, losses_N), fit_additive(weights_NK, 0.01 * losses_N - 7)
    assert scores.predict(weights_NK) == pytest.approx(0.01 * nats.predict(weights_NK) - 7, abs=1e-5)


def test_the_log_linear_fit_forgives_a_wild_proxy() -> None:
    """Huber's loss is linear beyond 0.02, so that one proxy that went wrong does not bend the law."""
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=32, seed=0)
    losses_N = LAWS[1].predict(weights_NK)
    losses_N[5] += 3.0
    law = fit_log_linear(weights_NK, losses_N, seed=0)
    others = np.arange(32) != 5
    assert law.predict(weights_NK)[others] == pytest.approx(losses_N[others], abs=0.01)


@pytest.mark.parametrize("num_mixtures", [6, 12, 20])
def test_the_log_linear_fit_stays_in_range_where_the_swarm_leaves_it_open(num_mixtures: int) -> None:
    """With fewer mixtures than sources any slope fits along some direction, and losses off the sample used to have no limit."""
    prior_K = np.full(16, 1 / 16)
    weights_NK = swarm_weights(prior_K, num_mixtures=num_mixtures, seed=1)
    losses_N = 3 + weights_NK @ np.linspace(-1, 1, 16) + np.random.default_rng(1).normal(0, 0.2, num_mixtures)
    law = fit_log_linear(weights_NK, losses_N, seed=0)
    predicted_N = law.predict(np.concatenate([np.eye(16), np.random.default_rng(2).dirichlet(prior_K, 1000)]))
    assert predicted_N.min() > 0 and predicted_N.max() <= 2 * 1.5 * losses_N.max()


def test_the_nearest_law_is_the_swarm_s_own_losses() -> None:
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=8, seed=0)
    law = NearestLaw(weights_NK, np.arange(8.0))
    assert law.predict(weights_NK[::-1]).tolist() == list(range(7, -1, -1))


def test_a_plane_of_noise_is_flat() -> None:
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=200, seed=0)
    noise_N = np.random.default_rng(0).normal(5, 1, 200)
    assert np.ptp(fit_ridge(weights_NK, noise_N).slope_K) < 0.6


def test_cross_validation_predicts_each_mixture_from_the_others() -> None:
    """A law that remembers its swarm has no error on it; held out, it has the distance to the next mixture."""
    weights_NK = swarm_weights(UNIFORM_K, num_mixtures=40, seed=0)
    losses_N = LAWS[0].predict(weights_NK)
    nearest = figures_of(cross_validated(NearestLaw, weights_NK, losses_N), losses_N)
    additive = figures_of(cross_validated(fit_named("additive"), weights_NK, losses_N), losses_N)
    assert 0.2 < nearest.rank_correlation < additive.rank_correlation <= 1
    assert additive.error < 0.1 * nearest.error

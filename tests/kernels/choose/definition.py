"""What a draw should do, by the definition, with a sort; and whether draws do it."""

from __future__ import annotations

import numpy as np

from draftmill.kernels.choose.choose import Setting


def probabilities(logits: np.ndarray, setting: Setting) -> np.ndarray:
    """Of the tokens of logits [V] after temperature, min-p, top-k and top-p: float64 [V]."""
    order = np.argsort(-logits, kind="stable")
    p = np.exp((logits - logits.max()).astype(np.float64) * setting.inverse)[order]
    p[p < setting.min_p * p[0]] = 0
    if setting.top_k:
        p[setting.top_k :] = 0
    p /= p.sum()
    # A token stays while those before it weigh less than top-p, so that at least the first one does.
    p[(np.cumsum(p) - p >= setting.top_p) & (setting.top_p < 1)] = 0
    result = np.empty_like(p)
    result[order] = p / p.sum()
    return result


def limit(freedom: int) -> float:
    """The 99.99 % quantile of chi-squared (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3


def chi_squared(tokens: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """Of tokens [N] that are said to be drawn from p [V], and the bound that it must not reach."""
    observed = np.bincount(tokens, minlength=len(p))
    possible = p > 1e-9
    assert observed[~possible].sum() == 0
    expected = p[possible] * len(tokens)
    return float(((observed[possible] - expected) ** 2 / expected).sum()), limit(max(1, int(possible.sum()) - 1))

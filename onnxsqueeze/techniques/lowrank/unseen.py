"""The errors of candidates on rows that their fit has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.linear.chains import Chain
from onnxsqueeze.linear.fitting import Fitting, relative_error
from onnxsqueeze.techniques.lowrank.forms import Candidate

__all__ = ["judged"]

KNOTS = 4
"""Candidates of a form that are composed to be judged; between them the growth of the error is interpolated."""
LEAST = 1e-12


def judged(
    fitting: Fitting, found: Iterable[Candidate], compose: Callable[[Fitting, Candidate], tuple[list[Chain], Matrix]]
) -> list[Candidate]:
    """Return the candidates, where rows are few with the error that they have on rows which their fit has not seen.

    Candidates are fitted to three feeds in four, and their error on the fourth over that which the algebra predicts is
    the growth of the error, at least 1. It is taken at a few candidates of each form, from the closest to the
    coarsest, and its logarithm is linear in that of the error between them.
    """
    listed = list(found)
    early, unseen = fitting.early, fitting.unseen
    if early is None or unseen is None:
        return listed
    growth: dict[str, tuple[Matrix, Matrix]] = {}
    for form in dict.fromkeys(candidate.form for candidate in listed):
        mine = sorted((c for c in listed if c.form == form), key=lambda c: c.error)
        knots = [mine[i] for i in np.unique(np.linspace(0, len(mine) - 1, KNOTS).round().astype(int))]
        seen = np.array([max(c.error, LEAST) for c in knots])
        errors = [relative_error(unseen, compose(early, c)[1]) for c in knots]
        growth[form] = np.log(seen), np.log(np.maximum(np.array(errors) / seen, 1.0))
    return [
        replace(
            c,
            error=min(
                max(c.error, LEAST) * float(np.exp(np.interp(np.log(max(c.error, LEAST)), *growth[c.form]))), 1.0
            ),
        )
        for c in listed
    ]

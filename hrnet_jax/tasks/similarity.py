"""Scores of people, and how alike two of them are: the OKS of COCO's evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SEEN = 0.2  # score of a keypoint that counts for the person's
SAME = 0.9  # OKS above which two people of an image are one


def person_score(box_score: float | np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(..., K) -> (...): the box's times the mean of the scores above 0.2; 0 where there is
    none."""
    seen = scores > SEEN
    total = np.sum(np.where(seen, scores, 0), -1, dtype=np.float64)
    return box_score * total / np.maximum(seen.sum(-1), 1)


def similarity(
    one: np.ndarray, others: np.ndarray, areas: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """OKS of a person with others.

    Args:
        one: (K, 2) keypoints; others: (N, K, 2).
        areas: (N,) the mean of the two areas of each pair.
        sigmas: of the keypoints.
    """
    squares = np.sum((others - one) ** 2, -1)
    variances = (2 * np.asarray(sigmas)) ** 2
    return np.mean(np.exp(-squares / variances / (areas[:, None] + np.spacing(1)) / 2), -1)


def suppressed(
    keypoints: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    sigmas: Sequence[float],
    threshold: float = SAME,
) -> np.ndarray:
    """The people of one image that stay, best first: who is too like a better one goes.

    Args:
        keypoints: (N, K, 2); scores, areas: (N,). Of equal scores the first counts as better.

    Returns:
        Their numbers.
    """
    order, kept = np.argsort(-scores, kind='stable'), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        mean = (areas[best] + areas[order]) / 2
        order = order[similarity(keypoints[best], keypoints[order], mean, sigmas) <= threshold]
    return np.array(kept, int)

"""Permutation tests on paired per-case differences, as BraTS compares entries: Bakas et al. 2018.

https://arxiv.org/abs/1811.02629.
"""

import numpy as np

EXACT_UP_TO = 16  # cases: 65,536 sign patterns
CHUNK = 1000  # permutations at a time, to bound the memory


def sign_flip_p_values(differences: np.ndarray, permutations: int = 100_000, seed: int = 0) -> np.ndarray:
    """The chance of a mean as large as the observed one if the sign of every case's difference were a coin's.

    differences (case, comparison) -> p (comparison), one-sided: small where the mean is clearly above zero. Up to
    `EXACT_UP_TO` cases all sign patterns are counted; beyond, `permutations` are drawn, and the observed pattern counts
    as one of them, so that no p is zero. Differences that are all zero give 1.
    """
    cases, comparisons = differences.shape
    observed = differences.sum(0)
    bar = observed - 1e-9 * np.abs(differences).sum(0)  # equal sums stay equal in spite of rounding
    if cases <= EXACT_UP_TO:
        patterns = (np.arange(2**cases)[:, None] >> np.arange(cases)) & 1
        return ((1 - 2 * patterns) @ differences >= bar).mean(0)
    generator = np.random.default_rng(seed)
    reached = np.ones(comparisons)
    for start in range(0, permutations, CHUNK):
        signs = generator.integers(0, 2, (min(CHUNK, permutations - start), cases), dtype=np.int8) * 2.0 - 1
        reached += (signs @ differences >= bar).sum(0)
    return reached / (permutations + 1)

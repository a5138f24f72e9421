"""Which of many equal scores are the best: those that PyTorch's sort on a CPU puts first.

Where thousands of scores are equal, as sigmoids that reach 1, the order that a sort happens to give
them decides which are kept. PyTorch sorts by `std::sort`: quicksort with the median of three, until
parts have at most 16 elements, then insertion. Its partitions are the same for every part at a
time, so that all parts are computed together. The fallback of `std::sort` for deep recursions is
left out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_SMALL = 16  # elements that are not parted any more


def best(scores: Array, most: int) -> tuple[Array, Array]:
    """The `most` best of (M,) scores and their places.

    Where there are more than `most`, and equal ones among the best, they are in the order of
    PyTorch's sort; else in that of a stable one.
    """
    count = len(scores)
    if count <= most:
        return lax.top_k(scores, count)
    top = lax.top_k(scores, most + 1)[0]
    order = _parted(scores, most, jnp.any(top[1:] == top[:-1]))
    values, places = lax.top_k(scores[order], most)
    return values, order[places]


def _parted(scores: Array, most: int, wanted: Array) -> Array:
    """int32 (M,): the numbers of the scores in the order in which the parts leave them, as far as
    the first `most` depend on it; as they are unless `wanted`."""
    count = len(scores)
    places = jnp.arange(count, dtype=jnp.int32)

    def unfinished(first: Array, end: Array) -> Array:
        return (end - first > _SMALL) & (first < most)

    def cond(state: tuple[Array, Array, Array]) -> Array:
        return wanted & jnp.any(unfinished(*state[1:]))

    def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        order, first, end = state
        work = unfinished(first, end)
        # The median of three goes to the front.
        x = scores[order]
        a, b, c = first + 1, first + (end - first) // 2, end - 1
        chosen = _median(*((i, x[jnp.clip(i, 0, count - 1)]) for i in (a, b, c)))
        head = work & (places == first)
        other = jnp.where(head, chosen, count)
        swapped = jnp.where(head, order[chosen], order).at[other].set(order, mode='drop')
        order = jnp.where(work, swapped, order)
        x = scores[order]
        pivot = x[first]
        # From the left whatever is not better than it, from the right whatever is not worse, in
        # pairs until they meet.
        inner = work & (places > first)
        left, right = inner & (x <= pivot), inner & (x >= pivot)
        slot = first + _before(left, first)
        behind = first + _before(right[::-1], (count - end)[::-1])[::-1]
        lefts = (
            jnp.full(count, count, jnp.int32)
            .at[jnp.where(left, slot, count)]
            .set(places, mode='drop')
        )
        rights = (
            jnp.full(count, -1, jnp.int32)
            .at[jnp.where(right, behind, count)]
            .set(places, mode='drop')
        )
        pairs = work & (lefts < rights)
        source = places.at[jnp.where(pairs, lefts, count)].set(rights, mode='drop')
        source = source.at[jnp.where(pairs, rights, count)].set(lefts, mode='drop')
        number = _total(pairs, first, end)
        next_left = lefts[jnp.clip(first + number, 0, count - 1)]
        last_right = jnp.where(number > 0, rights[jnp.clip(first + number - 1, 0, count - 1)], end)
        cut = jnp.minimum(jnp.minimum(next_left, last_right), end)
        below = places < cut
        return (
            order[source],
            jnp.where(work & ~below, cut, first),
            jnp.where(work & below, cut, end),
        )

    start = jnp.zeros(count, jnp.int32), jnp.full(count, count, jnp.int32)
    return lax.while_loop(cond, body, (places, *start))[0]


def _median(*three: tuple[Array, Array]) -> Array:
    """The place of the median of three values, as libstdc++ chooses it; better comes first."""
    (i, a), (j, b), (k, c) = three
    if_ab = jnp.where(b > c, j, jnp.where(a > c, k, i))
    return jnp.where(a > b, if_ab, jnp.where(a > c, i, jnp.where(b > c, k, j)))


def _before(flags: Array, first: Array) -> Array:
    """How many flags there are from `first` up to each place, without it."""
    total = jnp.cumsum(flags.astype(jnp.int32)) - flags.astype(jnp.int32)
    return total - total[jnp.clip(first, 0, len(flags) - 1)]


def _total(flags: Array, first: Array, end: Array) -> Array:
    """How many flags there are from `first` to `end`."""
    total = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(flags.astype(jnp.int32))])
    return total[end] - total[first]

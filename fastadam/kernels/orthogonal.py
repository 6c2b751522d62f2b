"""Newton-Schulz iterations with few products of the whole matrix: what to multiply, in which order; on any device.

An iteration takes X to X P, with P = a I + b A + c A A and A = X.T X, the Gram matrix of its short side. All that is
made of A commutes: the next Gram matrix is P A P, and X itself has to be multiplied only once in a few iterations, by
the product of their P. Products of the short side squared are cheap, and what they give is symmetric. But a Gram matrix
has small singular values squared, with half their digits, and each one that is made of another loses more; after
``SPAN`` iterations X is multiplied and the next made of it anew, which is as exact as X P every time.
"""

from typing import NamedTuple

SPAN = 3
"""Iterations between two products with the whole matrix."""

SQUARES = 4
"""Matrices of the short side squared that are kept."""


class Product(NamedTuple):
    """One of them is x y; or, as a ``polynomial``, where x and y are the Gram matrix, a I + b x + c x y."""

    out: int
    x: int
    y: int
    polynomial: bool


class Span(NamedTuple):
    """Products to be made once square 0 is the Gram matrix of X, and the square that X is multiplied by then."""

    products: tuple[Product, ...]
    total: int


def spans(steps: int) -> list[Span]:
    """All spans of so many iterations, in turn: equal shares, none above SPAN."""
    shares = -(-steps // SPAN)
    return [_span((steps + share) // shares) for share in reversed(range(shares))]


def _span(steps: int) -> Span:
    gram, factor, total, other = range(SQUARES)
    products = list[Product]()
    for left in reversed(range(steps)):
        products.append(Product(factor, gram, gram, True))
        if left:
            products += [Product(other, factor, gram, False), Product(gram, factor, other, False)]  # P A P
        if left == steps - 1:
            total, factor = factor, total
        else:
            products.append(Product(other, factor, total, False))
            total, other = other, total
    return Span(tuple(products), total)

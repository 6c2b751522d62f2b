"""The optimisers' updates: one pass over flat arrays, elements independent of each other.

    update(p, *kept, g, h, groups)

p (n,)               in and out: parameters
kept (n,) each       in and out: what the rule keeps of them, in the order of ``rules.MOMENTS``
g (n,)               in: gradients
h (G, fields)        in: the numbers of ``rules.Hyper``, a row a group
groups (K, 3) int64  in: rows (start, end, group), in order: elements start to end - 1 use row ``group`` of h

The loops are written once for each number of arrays that a rule keeps, and take the rule as an argument: numba
compiles them into each leaf with the rule's formula in place.
"""

from numba import njit

from fastadam.kernels import rules
from fastadam.kernels.cpu.jit import inlined, leaf
from fastadam.kernels.cpu.parallel import parallel
from fastadam.kernels.rules import Hyper

CHUNK = 1 << 14
"""Elements of one task: 64 KiB of each array, enough to hide the fork and to share out evenly."""


def chunks(array):
    """Tasks of a pass over a flat array."""
    return -(-array.size // CHUNK)


@leaf
def hyper_of(h):
    """A row of h as ``Hyper``."""
    return Hyper(
        h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8], h[9], h[10], h[11], h[12],
        h[13], h[14], h[15], h[16], h[17], h[18], h[19], h[20], h[21], h[22], h[23], h[24], h[25], h[26],
        h[27], h[28],
    )  # fmt: skip


@leaf
def part_of(chunk, groups, run):
    """The elements of a run of ``groups`` that fall into a chunk: the first, and one after the last.

    Loops slice them first: a signed offset in an index has numba check for wrap-around, and none vectorises.
    """
    first = max(chunk * CHUNK, groups[run, 0])
    return first, max(first, min((chunk + 1) * CHUNK, groups[run, 1]))


@njit(inline="always")
def _one(rule, chunk, p, r, g, h, groups):
    for run in range(len(groups)):
        (i, j), hyper = part_of(chunk, groups, run), hyper_of(h[groups[run, 2]])
        ps, rs, gs = p[i:j], r[i:j], g[i:j]
        for k in range(ps.size):
            ps[k], rs[k] = rule(ps[k], rs[k], gs[k], hyper)


@njit(inline="always")
def _two(rule, chunk, p, r, s, g, h, groups):
    for run in range(len(groups)):
        (i, j), hyper = part_of(chunk, groups, run), hyper_of(h[groups[run, 2]])
        ps, rs, ss, gs = p[i:j], r[i:j], s[i:j], g[i:j]
        for k in range(ps.size):
            ps[k], rs[k], ss[k] = rule(ps[k], rs[k], ss[k], gs[k], hyper)


@njit(inline="always")
def _three(rule, chunk, p, r, s, t, g, h, groups):
    for run in range(len(groups)):
        (i, j), hyper = part_of(chunk, groups, run), hyper_of(h[groups[run, 2]])
        ps, rs, ss, ts, gs = p[i:j], r[i:j], s[i:j], t[i:j], g[i:j]
        for k in range(ps.size):
            ps[k], rs[k], ss[k], ts[k] = rule(ps[k], rs[k], ss[k], ts[k], gs[k], hyper)


@njit(inline="always")
def _four(rule, chunk, p, r, s, t, u, g, h, groups):
    for run in range(len(groups)):
        (i, j), hyper = part_of(chunk, groups, run), hyper_of(h[groups[run, 2]])
        ps, rs, ss, ts, us, gs = p[i:j], r[i:j], s[i:j], t[i:j], u[i:j], g[i:j]
        for k in range(ps.size):
            ps[k], rs[k], ss[k], ts[k], us[k] = rule(ps[k], rs[k], ss[k], ts[k], us[k], gs[k], hyper)


# Wrapped at module level: a rule closed over in a factory would never hit the compile cache.
_adam = inlined(rules.adam)
_adamw = inlined(rules.adamw)
_amsgrad = inlined(rules.amsgrad)
_adamax = inlined(rules.adamax)
_nadam = inlined(rules.nadam)
_radam = inlined(rules.radam)
_adabelief = inlined(rules.adabelief)
_adabound = inlined(rules.adabound)
_padam = inlined(rules.padam)
_adan = inlined(rules.adan)
_lion = inlined(rules.lion)
_sgd = inlined(rules.sgd)
_schedulefree = inlined(rules.schedulefree)


@leaf
def _adam_chunk(worker, chunk, p, m, v, g, h, groups):
    _two(_adam, chunk, p, m, v, g, h, groups)


def adam_update(p, m, v, g, h, groups):
    """One step of ``rules.adam``."""
    parallel(_adam_chunk, chunks(p), p, m, v, g, h, groups)


@leaf
def _adamw_chunk(worker, chunk, p, m, v, g, h, groups):
    _two(_adamw, chunk, p, m, v, g, h, groups)


def adamw_update(p, m, v, g, h, groups):
    """One step of ``rules.adamw``."""
    parallel(_adamw_chunk, chunks(p), p, m, v, g, h, groups)


@leaf
def _amsgrad_chunk(worker, chunk, p, m, v, v_max, g, h, groups):
    _three(_amsgrad, chunk, p, m, v, v_max, g, h, groups)


def amsgrad_update(p, m, v, v_max, g, h, groups):
    """One step of ``rules.amsgrad``."""
    parallel(_amsgrad_chunk, chunks(p), p, m, v, v_max, g, h, groups)


@leaf
def _adamax_chunk(worker, chunk, p, m, u, g, h, groups):
    _two(_adamax, chunk, p, m, u, g, h, groups)


def adamax_update(p, m, u, g, h, groups):
    """One step of ``rules.adamax``."""
    parallel(_adamax_chunk, chunks(p), p, m, u, g, h, groups)


@leaf
def _nadam_chunk(worker, chunk, p, m, v, g, h, groups):
    _two(_nadam, chunk, p, m, v, g, h, groups)


def nadam_update(p, m, v, g, h, groups):
    """One step of ``rules.nadam``."""
    parallel(_nadam_chunk, chunks(p), p, m, v, g, h, groups)


@leaf
def _radam_chunk(worker, chunk, p, m, v, g, h, groups):
    _two(_radam, chunk, p, m, v, g, h, groups)


def radam_update(p, m, v, g, h, groups):
    """One step of ``rules.radam``."""
    parallel(_radam_chunk, chunks(p), p, m, v, g, h, groups)


@leaf
def _adabelief_chunk(worker, chunk, p, m, s, g, h, groups):
    _two(_adabelief, chunk, p, m, s, g, h, groups)


def adabelief_update(p, m, s, g, h, groups):
    """One step of ``rules.adabelief``."""
    parallel(_adabelief_chunk, chunks(p), p, m, s, g, h, groups)


@leaf
def _adabound_chunk(worker, chunk, p, m, v, g, h, groups):
    _two(_adabound, chunk, p, m, v, g, h, groups)


def adabound_update(p, m, v, g, h, groups):
    """One step of ``rules.adabound``."""
    parallel(_adabound_chunk, chunks(p), p, m, v, g, h, groups)


@leaf
def _padam_chunk(worker, chunk, p, m, v, v_max, g, h, groups):
    _three(_padam, chunk, p, m, v, v_max, g, h, groups)


def padam_update(p, m, v, v_max, g, h, groups):
    """One step of ``rules.padam``."""
    parallel(_padam_chunk, chunks(p), p, m, v, v_max, g, h, groups)


@leaf
def _adan_chunk(worker, chunk, p, m, d, n, past, g, h, groups):
    _four(_adan, chunk, p, m, d, n, past, g, h, groups)


def adan_update(p, m, d, n, past, g, h, groups):
    """One step of ``rules.adan``."""
    parallel(_adan_chunk, chunks(p), p, m, d, n, past, g, h, groups)


@leaf
def _lion_chunk(worker, chunk, p, m, g, h, groups):
    _one(_lion, chunk, p, m, g, h, groups)


def lion_update(p, m, g, h, groups):
    """One step of ``rules.lion``."""
    parallel(_lion_chunk, chunks(p), p, m, g, h, groups)


@leaf
def _sgd_chunk(worker, chunk, p, m, g, h, groups):
    _one(_sgd, chunk, p, m, g, h, groups)


def sgd_update(p, m, g, h, groups):
    """One step of ``rules.sgd``."""
    parallel(_sgd_chunk, chunks(p), p, m, g, h, groups)


@leaf
def _schedulefree_chunk(worker, chunk, p, z, v, g, h, groups):
    _two(_schedulefree, chunk, p, z, v, g, h, groups)


def schedulefree_update(p, z, v, g, h, groups):
    """One step of ``rules.schedulefree``."""
    parallel(_schedulefree_chunk, chunks(p), p, z, v, g, h, groups)

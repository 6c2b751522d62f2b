"""Where planned slots lie: lifetimes, and one block shared by slots that never live at the same time."""

from collections.abc import Mapping, Sequence

from fastadam.arena import ALIGN_BYTES
from fastadam.calls import Call, Slot

Lifetimes = dict[Slot, tuple[int, int]]


def lifetimes(calls: Sequence[Call]) -> Lifetimes:
    """{planned slot: (the call that writes it, the last call that reads it)}; an OUT lives past the end.

    Both ends count as alive: what a call writes never overlays what it reads.
    """
    life: Lifetimes = {}
    for i, call in enumerate(calls):
        for slot in call.outs + call.ins:
            if slot.planned:
                first, _ = life.get(slot, (i, i))
                life[slot] = (first, len(calls) if slot.kind == "OUT" else i)
    return life


def live_peak(life: Lifetimes) -> int:
    """The most bytes alive at one call: no layout can do with less."""
    ends = [(first, slot.bytes) for slot, (first, _) in life.items()]
    ends += [(last + 1, -slot.bytes) for slot, (_, last) in life.items()]
    live = peak = 0
    for _, change in sorted(ends):
        live += change
        peak = max(peak, live)
    return peak


def place(
    life: Lifetimes, *, share: bool = True, guard: int = 0, sizes: Mapping[Slot, int] | None = None
) -> tuple[dict[Slot, int], int]:
    """({slot: offset in bytes}, bytes of the block): largest first, each in the lowest gap free all its life.

    Offsets are multiples of 64. ``share`` False gives every slot memory of its own; ``guard`` leaves that
    many bytes untouched before, between and after slots; ``sizes`` replaces the slots' own bytes.
    """
    need = {s: -(-(sizes[s] if sizes else s.bytes) // ALIGN_BYTES) * ALIGN_BYTES for s in life}
    guard = -(-guard // ALIGN_BYTES) * ALIGN_BYTES
    at: dict[Slot, int] = {}
    total = guard
    for slot in sorted(life, key=lambda s: -need[s]):
        first, last = life[slot]
        taken = sorted(
            (at[other], at[other] + need[other] + guard)
            for other in at
            if not share or (life[other][0] <= last and first <= life[other][1])
        )
        offset = guard
        for start, end in taken:
            if offset + need[slot] + guard <= start:
                break
            offset = max(offset, end)
        at[slot] = offset
        total = max(total, offset + need[slot] + guard)
    return at, total

"""Numbers for people."""

_UNITS = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("PB", 1e15), ("EB", 1e18))


def human_bytes(size: float) -> str:
    """A number of bytes: 1,234 B, 12.3 MB, 4.56 GB."""
    if size < 10_000:
        return f"{size:,.0f} B"
    unit, scale = next(((unit, scale) for unit, scale in _UNITS if size < 1000 * scale), _UNITS[-1])
    return f"{size / scale:,.{1 if scale < 1e9 else 2}f} {unit}"

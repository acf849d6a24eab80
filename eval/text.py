"""Text that comes from files, as it may be shown to a person."""


def printable(text: object, most: int | None = None) -> str:
    """The text in one line, with what a terminal or a page would obey instead of showing it written out, as \\x1b.

    That is everything which Unicode doesn't count as printable: control characters, line ends, what turns the direction of
    writing around, half of a surrogate pair. Of a longer text than `most` characters the rest is left out, and "..." says so.
    """
    line = str(text)
    if most is not None and len(line) > most:  # first, as what is left out may be very long
        line = line[: most - 3] + "..."
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if most is None or len(line) <= most else line[: most - 3] + "..."

"""Numbers as the report writes them."""

from __future__ import annotations

from fastmix_data.units import format_count

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float) -> str:
    """A share in about three digits.

    >>> percent(0.6092), percent(0.0154), percent(0.00002), percent(0)
    ('60.9%', '1.54%', '<0.01%', '0%')
    """
    value = 100 * share
    # Not at 10: 9.996 rounds to 10.00, a digit more than the 10.0 beside it.
    if value >= 9.995:
        return f"{value:.1f}%"
    return f"{value:.2f}%" if value >= 0.01 else "<0.01%" if value else "0%"


def tokens(count: float) -> str:
    """A count of tokens, with its unit set apart.

    >>> tokens(1_269_760), tokens(12)
    ('1.27 M', '12')
    """
    text = format_count(count)
    return f"{text[:-1]} {text[-1]}" if text[-1].isalpha() else text


def tick(count: float) -> str:
    """A round count of tokens, for an axis.

    >>> tick(1_500_000), tick(2e9), tick(0)
    ('1.5 M', '2 B', '0')
    """
    number, _, letter = tokens(count).partition(" ")
    return f"{float(number):g} {letter}".rstrip()


def times(factor: float) -> str:
    """A factor against a reference.

    >>> times(7.31), times(0.0312), times(44.4), times(0.0002)
    ('7.3×', '0.03×', '44×', '<0.01×')
    """
    if factor >= 1:
        return f"{factor:.1f}×" if factor < 10 else f"{factor:.0f}×"
    return f"{factor:.2f}×" if factor >= 0.01 else "<0.01×" if factor else "0×"


def duration(seconds: float) -> str:
    """A span of time as one says it.

    >>> duration(132.3), duration(8.2), duration(7_300)
    ('2 min 12 s', '8.2 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def power_of_ten(value: float) -> str:
    """A large number, such as a count of floating point operations.

    >>> power_of_ten(1.234e15), power_of_ten(0)
    ('1.2 × 10¹⁵', '0')
    """
    if not value:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"

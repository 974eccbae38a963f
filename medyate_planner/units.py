"""Bytes and counts <-> text. The only place that knows "kB"."""

from __future__ import annotations

import re

from medyate_planner.errors import InputError

_FACTORS = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "byte": 1,
    "bytes": 1,
}
_AMOUNT = re.compile(r"^\s*([0-9][0-9_]*(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*$")
_DECIMAL_COMMA = re.compile(r"^\s*([0-9]+),([0-9]+)\s*([A-Za-z]*)\s*$")
_EXAMPLES = "write it as 512kB (1000 B each), 512KiB (1024 B each), 0.5MB or 512000B"


def parse_bytes(text: str | int, *, what: str = "budget") -> int:
    """Read an amount of memory; an `int` is bytes. Fractions of a byte are rounded down.

    Units are bytes, whatever their capitals: B, kB, MB, GB (1000) and KiB, MiB, GiB (1024). A plain K, M or G, which
    some read as the one and some as the other, is refused, as is a comma that may be a decimal one.

    Raises:
        InputError: no number, no unit, an unknown or ambiguous unit, or an amount below 1 byte.
    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise InputError(f"{what}: expected bytes or a text such as 512kB, got {text!r}; {_EXAMPLES}")
    if isinstance(text, int):
        amount_bytes = text
    else:
        number, factor = _number_and_factor(text, what)
        whole, _, fraction = number.partition(".")
        scale = 10 ** len(fraction)
        amount_bytes = int((whole or "0") + fraction) * factor // scale
    if amount_bytes < 1:
        raise InputError(f"{what}: {text!r} is less than 1 byte; {_EXAMPLES}")
    return amount_bytes


def _number_and_factor(text: str, what: str) -> tuple[str, int]:
    """The digits of an amount, and the bytes of its unit."""
    match = _AMOUNT.match(text)
    if not match or re.match(r"\s*0+,", text):
        raise InputError(f"{what}: {text!r} is not an amount of memory; {_not_an_amount(text)}")
    shown, unit = match.groups()
    number = shown.replace("_", "").replace(",", "")
    if not unit and float(number) > 0:
        raise InputError(
            f"{what}: {text!r} has no unit; write {shown}kB (1000 B each), {shown}KiB (1024 B each) or {shown}MB"
        )
    if unit.lower() in ("k", "m", "g"):
        decimal, binary = ("kB", "KiB") if unit.lower() == "k" else (f"{unit.upper()}B", f"{unit.upper()}iB")
        raise InputError(
            f"{what}: {text!r} may mean two things; write {shown}{decimal} ({_FACTORS[decimal.lower()]:,} B each) or "
            f"{shown}{binary} ({_FACTORS[binary.lower()]:,} B each)"
        )
    factor = _FACTORS.get(unit.lower() or "b")
    if factor is None:
        raise InputError(f"{what}: unknown unit {unit!r} in {text!r}; {_EXAMPLES}")
    return number, factor


def _not_an_amount(text: str) -> str:
    """What to write instead."""
    if re.match(r"\s*-", text):
        return f"it is below 0; {_EXAMPLES}"
    comma = _DECIMAL_COMMA.match(text)
    if comma:
        whole, fraction, unit = comma.groups()
        return f"write {whole}.{fraction}{unit or 'MB'}, with a decimal point"
    return _EXAMPLES


def format_bytes(amount_bytes: int) -> str:
    """Bytes for a person, in decimal units: `512.0 kB`; below 1 kB exact."""
    if abs(amount_bytes) < 1000:
        return f"{amount_bytes} B"
    value = float(amount_bytes)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if abs(value) < 999.95 or unit == "GB":
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable")


def format_count(count: int) -> str:
    """A count for a person: `1.2 M` parameters."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit or (limit > 1000 and count / limit >= 0.99995):
            return f"{count / limit:.1f} {unit}"
    return str(count)


def parse_ratio(text: str, *, what: str) -> float:
    """Read `10%` or `0.1` as 0.1.

    Raises:
        InputError: no number, or below 0.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)\s*", text)
    if not match:
        raise InputError(f"{what}: {text!r} is not a share; write it as 10% or 0.1")
    return float(match.group(1)) / (100 if match.group(2) else 1)


def parse_flops(text: str, full_flops: int, *, what: str = "--max-flops") -> int:
    """Read a number of operations: `800M`, `1.2G`, `1200000000`, or `50%` of full fine-tuning's.

    Raises:
        InputError: no number, an unknown unit, or less than 1.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*(%|[kKMGT]?)(?:FLOPs?|FLOP)?\s*", text)
    if not match:
        raise InputError(f"{what}: {text!r} is not a number of operations; write it as 800M, 1.2G, or 50% of full's")
    number, unit = float(match.group(1).replace("_", "").replace(",", "")), match.group(2)
    factor = full_flops / 100 if unit == "%" else {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    flops = int(number * factor)
    if flops < 1:
        raise InputError(f"{what}: {text!r} is less than one operation")
    return flops

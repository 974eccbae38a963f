"""Bytes and counts <-> text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medyate_planner.errors import InputError
from medyate_planner.units import format_bytes, format_count, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512kB", 512_000),
        ("512 kB", 512_000),
        ("  512KB ", 512_000),
        ("512KiB", 524_288),
        ("0.5MB", 500_000),
        (".5 MB", 500_000),
        ("1.5MiB", 1_572_864),
        ("2GB", 2_000_000_000),
        ("1 GiB", 1_073_741_824),
        ("512000B", 512_000),
        ("1,000,000 B", 1_000_000),
        ("1_000kB", 1_000_000),
        ("0.0015kB", 1),
        ("1.9999kB", 1_999),
        ("512 kb", 512_000),
        ("2_000_000 B", 2_000_000),
        ("1,500 bytes", 1_500),
        (7, 7),
    ],
)
def test_parse_bytes_reads_decimal_and_binary_units(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("512", "has no unit; write 512kB (1000 B each), 512KiB (1024 B each) or 512MB"),
        ("0", "less than 1 byte"),
        ("-1", "is below 0"),
        ("", "is not an amount"),
        ("kB", "is not an amount"),
        ("-5kB", "is not an amount"),
        ("1e3kB", "is not an amount"),
        ("1.2.3kB", "is not an amount"),
        ("5 parsecs", "unknown unit 'parsecs'"),
        ("0kB", "less than 1 byte"),
        ("0.0001kB", "less than 1 byte"),
        (0, "less than 1 byte"),
        (-3, "less than 1 byte"),
        (True, "expected bytes or a text"),
        (1.5, "expected bytes or a text"),
        (None, "expected bytes or a text"),
    ],
)
def test_parse_bytes_refuses(text: object, part: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_bytes(text, what="--budget")  # type: ignore[arg-type]
    assert part in caught.value.message
    assert caught.value.message.startswith("--budget: ")
    assert "512kB" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("512K", "may mean two things; write 512kB (1,000 B each) or 512KiB (1,024 B each)"),
        ("3 m", "may mean two things; write 3MB (1,000,000 B each) or 3MiB (1,048,576 B each)"),
        ("2g", "write 2GB (1,000,000,000 B each) or 2GiB (1,073,741,824 B each)"),
        ("0,5MB", "write 0.5MB, with a decimal point"),
        ("1,5 kB", "write 1.5kB, with a decimal point"),
        ("0,500MB", "write 0.500MB, with a decimal point"),
    ],
)
def test_parse_bytes_says_what_to_write_for_what_may_mean_two_things(text: str, end: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_bytes(text, what="--budget")
    assert caught.value.message.startswith(f"--budget: {text!r} ")
    assert caught.value.message.endswith(end)


@given(st.integers(1, 10**15))
def test_parse_bytes_of_plain_bytes_is_exact(amount: int) -> None:
    assert parse_bytes(f"{amount}B") == parse_bytes(f"{amount:,} B") == parse_bytes(amount) == amount


@given(st.integers(1, 10**6), st.integers(0, 999))
def test_parse_bytes_of_decimals_has_no_rounding_error(whole: int, thousandths: int) -> None:
    assert parse_bytes(f"{whole}.{thousandths:03}kB") == 1000 * whole + thousandths


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (512_000, "512.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (14_136_564, "14.1 MB"),
        (999_950_000, "1.0 GB"),
        (10**13, "10000.0 GB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_format_bytes(amount: int, expected: str) -> None:
    assert format_bytes(amount) == expected


@given(st.integers(1, 10**12))
def test_format_bytes_can_be_read_back(amount: int) -> None:
    assert abs(parse_bytes(format_bytes(amount)) - amount) <= 0.051 * amount


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0"), (999, "999"), (1000, "1.0 k"), (1_200_000, "1.2 M"), (3 * 10**9, "3.0 G")]
)
def test_format_count(count: int, expected: str) -> None:
    assert format_count(count) == expected


def test_format_count_carries_into_the_next_unit() -> None:
    assert format_count(999_999) == "1.0 M"

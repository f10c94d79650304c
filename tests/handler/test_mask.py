"""Unmasking: the extension and its fallback in Python have the same results."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.protocol.mask import unmask_in_python

from ..support.extensions import extension

LENGTHS = [*range(20), 63, 64, 65, 125, 126, *range(4094, 4102), 65535, 65536, 65537]


def expected(data: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmask_in_python_is_exclusive_or(data: bytes, mask: bytes) -> None:
    assert unmask_in_python(data, mask) == expected(data, mask)


def test_the_extension_is_exclusive_or() -> None:
    unmask = extension("protocol", "_mask").unmask

    @given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
    def check(data: bytes, mask: bytes) -> None:
        assert unmask(data, mask) == expected(data, mask)

    check()


@pytest.mark.parametrize("length", LENGTHS)
def test_both_have_the_same_result_for_every_length(length: int) -> None:
    data = bytes(i * 7 % 251 for i in range(length))
    assert unmask_in_python(data, b"\x01\x80\xff\x00") == expected(data, b"\x01\x80\xff\x00")
    assert extension("protocol", "_mask").unmask(data, b"\x01\x80\xff\x00") == unmask_in_python(
        data, b"\x01\x80\xff\x00"
    )


def test_the_argument_is_unchanged() -> None:
    data = b"x"
    assert extension("protocol", "_mask").unmask(data, b"abcd") == b"\x19"
    assert data == b"x"


@pytest.mark.parametrize(
    "arguments",
    [(), (b"x",), (b"x", b"abc"), (b"x", b"abcde"), (bytearray(b"x"), b"abcd"), (b"x", "abcd")],
)
def test_the_extension_rejects_other_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        extension("protocol", "_mask").unmask(*arguments)


def test_without_the_extension_python_unmasks() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['apachews_handler.protocol._mask'] = None\n"
            "from apachews_handler.protocol import mask\n"
            "assert not mask.IS_IN_C and mask.unmask is mask.unmask_in_python",
        ],
        check=False,
    )
    assert result.returncode == 0


def test_with_the_extension_it_is_used() -> None:
    extension("protocol", "_mask")
    result = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            "from apachews_handler.protocol.mask import *; assert IS_IN_C",
        ],
        check=False,
    )
    assert result.returncode == 0

"""The frames that payloads are stored in, and the digests that they are checked by."""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import pickle
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dspy_session
from dspy_session.errors import (
    FormatError,
    OptionError,
    SecretError,
    SessionSizeError,
    StoreError,
)
from dspy_session.journal import sealing
from dspy_session.journal.sealing import Seal, is_encrypted, new_secret
from tests.house import loaded_by

KEY, OTHER = b"the first key of 32 bytes, yes!!", b"another key of 32 bytes, it is!!"
TEXT = b"Which museum should I see first? " * 20

PLAIN = Seal()
KEYED = Seal(key=KEY)
SEALS = {
    "plain": Seal(compress_over=None),
    "plain, compressed": Seal(compress_over=0),
    "plain, of both kinds": Seal(old_keys=[KEY]),
    "keyed": Seal(key=KEY, compress_over=None),
    "keyed, compressed": Seal(key=KEY, compress_over=0),
    "keyed, of both kinds": Seal(key=KEY, old_keys=[OTHER, None], compress_over=0),
}
seals = pytest.mark.parametrize("seal", SEALS.values(), ids=SEALS)

payloads = st.binary(max_size=200) | st.builds(
    lambda piece, times: piece * times, st.binary(min_size=1, max_size=20), st.integers(1, 2000)
)


def flips(frame: bytes) -> Iterator[bytes]:
    """The frame with each of its bits flipped, one at a time."""
    for at in range(len(frame)):
        for bit in range(8):
            yield frame[:at] + bytes((frame[at] ^ 1 << bit,)) + frame[at + 1 :]


def outcome(seal: Seal, frame: bytes, about: bytes) -> str:
    """What opening a frame that is not right leads to; any other error is raised."""
    try:
        return f"opened: {seal.open(frame, about)!r}"
    except (FormatError, SecretError) as error:
        return type(error).__name__


# --- what is closed can be opened -----------------------------------------------------------------


@seals
@settings(deadline=None)
@given(payload=payloads, about=st.binary(max_size=40))
def test_C13_X12_a_frame_opens_to_what_was_closed_in_it(
    seal: Seal, payload: bytes, about: bytes
) -> None:
    frame = seal.close(payload, about)
    assert seal.open(frame, about) == payload
    assert is_encrypted(frame) is seal.keyed


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 4096, 32768, 65536, 1_000_003])
def test_C13_a_payload_over_the_size_is_compressed_if_that_makes_it_smaller(size: int) -> None:
    seal = Seal(compress_over=100)
    same, drawn = b"a" * size, os.urandom(size)
    assert seal.open(seal.close(same, b"x"), b"x") == same
    assert seal.open(seal.close(drawn, b"x"), b"x") == drawn

    assert len(seal.close(drawn, b"x")) == size + 5
    if size <= 100:
        assert seal.close(same, b"x") == Seal(compress_over=None).close(same, b"x")
    else:
        assert len(seal.close(same, b"x")) < 30 + size // 100


def test_C13_a_short_payload_stays_as_it_is_and_gets_five_bytes() -> None:
    assert PLAIN.close(TEXT, b"x")[5:] == TEXT
    assert len(PLAIN.close(TEXT * 10, b"x")) < len(TEXT)
    assert len(KEYED.close(TEXT, b"x")) == len(TEXT) + 33
    assert len(KEYED.close(TEXT * 10, b"x")) < len(TEXT)


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(SessionSizeError, match="268,435,456 bytes, not 268,435,457"):
        PLAIN.close(bytes(2**28 + 1), b"x")


# --- what was changed is found --------------------------------------------------------------------


@seals
@settings(max_examples=15, deadline=None)
@given(payload=st.binary(max_size=12) | st.just(b"museum" * 12))
def test_a_single_flipped_bit_is_found_wherever_it_is(seal: Seal, payload: bytes) -> None:
    frame = seal.close(payload, b"here")
    ends = {outcome(seal, flipped, b"here") for flipped in flips(frame)}
    assert ends <= {"FormatError", "SecretError"}
    assert seal.open(frame, b"here") == payload


@seals
def test_a_frame_that_is_cut_off_or_goes_on_is_found(seal: Seal) -> None:
    frame = seal.close(TEXT, b"here")
    wrong = [frame[:length] for length in range(len(frame))]
    wrong += [frame[start:] for start in range(1, len(frame))]
    wrong += [frame + b"\0", frame + frame, b"\0" + frame]
    assert {outcome(seal, each, b"here") for each in wrong} <= {"FormatError", "SecretError"}
    assert outcome(seal, b"", b"here") == "FormatError"


@seals
@settings(deadline=None)
@given(about=st.binary(max_size=20))
def test_X12_a_frame_in_another_place_is_found(seal: Seal, about: bytes) -> None:
    frame = seal.close(TEXT, b"here")
    if about != b"here":
        assert outcome(seal, frame, about) == "FormatError"


@pytest.mark.parametrize("seal", [PLAIN, KEYED])
@settings(deadline=None)
@given(noise=st.binary(max_size=80))
def test_noise_is_no_frame(seal: Seal, noise: bytes) -> None:
    for frame in (noise, *(bytes((flags,)) + noise for flags in range(0x10, 0x14))):
        assert outcome(seal, frame, b"here") in {"FormatError", "SecretError"}


@pytest.mark.parametrize("frame", [None, "text", 7])
def test_what_is_not_even_bytes_is_damaged(frame: Any) -> None:
    with pytest.raises(FormatError, match="cut off"):
        PLAIN.open(frame, b"here")


def test_what_a_newer_version_wrote_is_said_to_be_that() -> None:
    for first in {*range(256)} - {*range(0x10, 0x14)}:
        with pytest.raises(FormatError, match=f"{first:#04x}.*newer version of dspy-session"):
            KEYED.open(bytes((first,)) + KEYED.close(TEXT, b"x")[1:], b"x")


# --- bodies that say one length and become another ------------------------------------------------


def compressed(length: int, payload: bytes, *, end: bytes = b"") -> bytes:
    """An unencrypted frame with a right checksum around a body that says any length."""
    body = length.to_bytes(4) + zlib.compress(payload, wbits=-15) + end
    return b"\x11" + zlib.crc32(body, zlib.crc32(b"x", 0x11)).to_bytes(4) + body


@pytest.mark.parametrize("length", [0, 1, 639, 641, 2**28, 2**28 + 1, 2**32 - 1])
def test_a_body_of_another_length_than_it_says_is_damaged(length: int) -> None:
    assert PLAIN.open(compressed(640, bytes(640)), b"x") == bytes(640)
    with pytest.raises(FormatError, match=f"the {length:,} bytes"):
        PLAIN.open(compressed(length, bytes(640)), b"x")


def test_a_body_with_more_behind_it_or_without_an_end_is_damaged() -> None:
    with pytest.raises(FormatError, match="does not decompress"):
        PLAIN.open(compressed(640, bytes(640), end=b"more"), b"x")
    body = (640).to_bytes(4) + zlib.compress(bytes(640), wbits=-15)[:-1]
    frame = b"\x11" + zlib.crc32(body, zlib.crc32(b"x", 0x11)).to_bytes(4) + body
    with pytest.raises(FormatError, match="does not decompress"):
        PLAIN.open(frame, b"x")
    body = (640).to_bytes(4) + b"\xff\xff\xff"
    frame = b"\x11" + zlib.crc32(body, zlib.crc32(b"x", 0x11)).to_bytes(4) + body
    with pytest.raises(FormatError, match="does not decompress") as raised:
        PLAIN.open(frame, b"x")
    assert isinstance(raised.value.__cause__, zlib.error)


def test_a_body_becomes_no_longer_than_it_says() -> None:
    bomb = compressed(1000, bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="the 1,000 bytes"):
            PLAIN.open(bomb, b"x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000


def test_no_body_becomes_longer_than_a_payload_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_LONGEST", 1000)
    assert PLAIN.open(compressed(1000, bytes(1000)), b"x") == bytes(1000)
    with pytest.raises(FormatError, match="the 1,001 bytes"):
        PLAIN.open(compressed(1001, bytes(1001)), b"x")


# --- keys -----------------------------------------------------------------------------------------


def test_X12_nothing_of_the_payload_is_in_an_encrypted_frame() -> None:
    for seal in (SEALS["keyed"], SEALS["keyed, compressed"]):
        one, two = seal.close(TEXT, b"x"), seal.close(TEXT, b"x")
        assert b"museum" not in one
        assert one[:5] == two[:5]
        assert one[5:17] != two[5:17]  # the nonces
        assert one[17:] != two[17:]
    nonces = {KEYED.close(b"", b"x")[5:17] for _ in range(1000)}
    assert len(nonces) == 1000


def test_X12_no_key_another_key_and_an_altered_frame_are_told_apart() -> None:
    frame = KEYED.close(TEXT, b"x")
    with pytest.raises(SecretError, match="is encrypted: give the key"):
        PLAIN.open(frame, b"x")
    with pytest.raises(SecretError, match=f"another key .its id is {frame[1:5].hex()}"):
        Seal(key=OTHER).open(frame, b"x")
    with pytest.raises(FormatError, match="altered") as raised:
        KEYED.open(frame[:-1] + bytes((frame[-1] ^ 1,)), b"x")
    assert type(raised.value.__cause__).__name__ == "InvalidTag"
    with pytest.raises(FormatError, match="altered"):
        KEYED.open(frame[:6], b"x")
    assert KEYED.open(frame, b"x") == TEXT


def test_X12_a_seal_with_a_key_reads_what_has_none_only_if_told_to() -> None:
    frame = PLAIN.close(TEXT, b"x")
    assert not is_encrypted(frame)
    with pytest.raises(SecretError, match=r"None among the old_keys"):
        KEYED.open(frame, b"x")
    assert Seal(key=KEY, old_keys=[None]).open(frame, b"x") == TEXT


def test_X12_keys_are_rotated() -> None:
    old = KEYED.close(TEXT, b"x")
    rotated = Seal(key=OTHER, old_keys=[KEY])
    new = rotated.close(TEXT, b"x")

    assert rotated.open(old, b"x") == rotated.open(new, b"x") == TEXT
    assert Seal(key=OTHER).open(new, b"x") == TEXT
    with pytest.raises(SecretError, match="another key"):
        KEYED.open(new, b"x")

    given_up = Seal(old_keys=[OTHER, KEY])
    assert given_up.open(old, b"x") == given_up.open(new, b"x") == TEXT
    assert not is_encrypted(given_up.close(TEXT, b"x"))
    assert not given_up.keyed


def test_X12_a_key_may_be_written_in_several_ways() -> None:
    raw = bytes(range(224, 256))
    standard, safe = base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()
    assert standard != safe
    frame = Seal(key=raw).close(TEXT, b"x")
    for text in (standard, safe, standard.rstrip("="), f"{safe}\n"):
        assert Seal(key=text).open(frame, b"x") == TEXT


def test_X12_a_new_secret_is_a_key_and_always_another() -> None:
    assert dspy_session.new_secret is new_secret
    one, two = new_secret(), new_secret()
    assert one != two
    frame = Seal(key=one).close(TEXT, b"x")
    assert Seal(key=one).open(frame, b"x") == TEXT
    with pytest.raises(SecretError):
        Seal(key=two).open(frame, b"x")


BAD_KEYS: dict[str, Any] = {
    "empty": "",
    "a password": "correct horse battery staple",
    "not base64": "ä" * 43,
    "too short": base64.b64encode(b"sixteen bytes!!!").decode(),
    "hexadecimal": KEY.hex(),
    "no bytes": b"",
    "the text as bytes": base64.b64encode(KEY),
    "a number": 12345,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
def test_X12_what_is_no_key_is_refused_with_the_way_to_make_one(key: Any) -> None:
    for keywords in ({"key": key}, {"key": KEY, "old_keys": [key]}):
        with pytest.raises(OptionError, match=r"print\(dspy_session.new_secret\(\)\)") as raised:
            Seal(**keywords)
        assert not key or str(key) not in str(raised.value)


@pytest.mark.parametrize(
    "keywords",
    [{"old_keys": new_secret()}, {"old_keys": KEY}, {"old_keys": 1}]
    + [{"compress_over": value} for value in (-1, 1.5, "1", True)],
)
def test_other_options_are_checked(keywords: Any) -> None:
    with pytest.raises(OptionError, match="must be"):
        Seal(**keywords)


def test_X12_no_secret_gets_out() -> None:
    key = new_secret()
    seal = Seal(key=key, old_keys=[KEY])
    assert key not in repr(seal)
    assert "first" not in repr(seal)
    assert copy.deepcopy(seal) is seal
    assert copy.copy(seal) is seal
    with pytest.raises(OptionError, match="not pickled"):
        pickle.dumps(seal)

    plain = pickle.loads(pickle.dumps(Seal(compress_over=7)))
    assert repr(plain) == "<Seal without a key, compress_over=7>"


def test_X12_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(StoreError, match=r"install dspy-session\[encryption\]") as raised:
        Seal(key=KEY)
    assert isinstance(raised.value.__cause__, ImportError)
    assert Seal().open(Seal().close(TEXT, b"x"), b"x") == TEXT


def test_who_has_no_key_does_not_load_the_library() -> None:
    statement = "from dspy_session.journal.sealing import Seal; Seal().close(b'', b'')"
    assert not {name for name in loaded_by(statement) if name.startswith("cryptography")}


def test_X12_a_seal_serves_many_threads() -> None:
    seal = Seal(key=KEY, compress_over=100)

    def work(number: int) -> bool:
        payload, about = b"%d " % number * 50, b"turn %d" % number
        return all(seal.open(seal.close(payload, about), about) == payload for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


# --- digests --------------------------------------------------------------------------------------


def test_X4_a_digest_is_chained_and_depends_on_each_part() -> None:
    for seal in (PLAIN, KEYED):
        first = seal.digest(b"", b"question", b"answer")
        assert len(first) == 32
        assert first == seal.digest(b"", b"question", b"answer")
        others = {
            seal.digest(b"", b"question", b"answer "),
            seal.digest(b"", b"question"),
            seal.digest(b"", b"questionanswer"),
            seal.digest(b"", b"answer", b"question"),
            seal.digest(b"", b"question", b"answer", b""),
            seal.digest(first, b"question", b"answer"),
            seal.digest(b"question", b"answer"),
        }
        assert len(others - {first}) == 7


@settings(deadline=None)
@given(one=st.lists(st.binary(max_size=12)), two=st.lists(st.binary(max_size=12)))
def test_X4_no_two_lists_of_parts_are_the_same(one: list[bytes], two: list[bytes]) -> None:
    assert (PLAIN.digest(b"", *one) == PLAIN.digest(b"", *two)) is (one == two)
    read_as_one = b"".join(len(part).to_bytes(8) + part for part in one)
    assert (PLAIN.digest(b"", read_as_one) == PLAIN.digest(b"", *one)) is False


def test_X4_a_digest_is_keyed_where_payloads_are_encrypted() -> None:
    made = {seal.digest(b"", TEXT) for seal in (PLAIN, KEYED, Seal(key=OTHER))}
    assert len(made) == 3
    assert hashlib.sha256(TEXT).digest() not in made


def test_X4_a_digest_can_be_made_again_with_each_of_the_keys() -> None:
    unkeyed, keyed = PLAIN.digest(b"", TEXT), KEYED.digest(b"", TEXT)
    migrated = Seal(key=OTHER, old_keys=[KEY, None], compress_over=0)
    mine = Seal(key=OTHER).digest(b"", TEXT)

    assert migrated.digest(b"", TEXT) == mine
    assert [seal.digest(b"", TEXT) for seal in migrated.by_key()] == [mine, keyed, unkeyed]
    assert [seal.digest(b"", TEXT) for seal in PLAIN.by_key()] == [unkeyed]
    assert [seal.digest(b"", TEXT) for seal in Seal(old_keys=[KEY]).by_key()] == [unkeyed, keyed]

    other, first, plain = migrated.by_key()
    assert [seal.keyed for seal in (other, first, plain)] == [True, True, False]
    frame = first.close(TEXT, b"x")
    assert len(frame) < len(TEXT)
    assert KEYED.open(frame, b"x") == TEXT
    for seal in (other, plain):
        with pytest.raises(SecretError):
            seal.open(frame, b"x")


# --- the written form stays what it is ------------------------------------------------------------


WRITTEN = {
    "plain": "EJ0OSV5tdXNldW0=",
    "compressed": "EaLRwPkAAAA8yy0tTi3NzSWLBAA=",
    "encrypted": "Et7DFkwrytwU8yzDo4Guqoq1jcFBO1hhoqy6+fUN1VkO8qROaOPj",
    "both": "E97DFky7vdzKgAOT0EnhLhtxYvkwl4KU7KKDnfezCs+nLtFYwTUPxaTsdigu/S5G",
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_frames_that_were_written_once_can_be_read_for_ever(kind: str) -> None:
    seal = Seal(key=KEY, old_keys=[None])
    frame, payload = (
        base64.b64decode(WRITTEN[kind]),
        b"museum" * (1 if kind in {"plain", "encrypted"} else 10),
    )
    assert seal.open(frame, b"turn 1") == payload


def test_X4_digests_that_were_made_once_fit_for_ever() -> None:
    assert PLAIN.digest(b"p", b"ab", b"c").hex() == (
        "b826d642da4339804a2447b9d9f1ecd12e84cc6ed1d1810b88a8d91c580ddf01"
    )
    assert KEYED.digest(b"p", b"ab", b"c").hex() == (
        "c60322b3468a062a110394158fe4c7ebccf50a9853ca235df1d73b4ca9a65cdf"
    )

"""The frame that a payload is stored in, and the digest that a chain of payloads is checked by.

    unencrypted   flags (1) | CRC-32 (4) | body
    encrypted     flags (1) | key id (4) | nonce (12) | AES-256-GCM of the body, with its tag (16)
    body          the payload; or, compressed, its length (4) and a raw deflate stream

Rules:

- A frame opens to the very payload that was closed in it, or not at all. Flags and `about`, which
  says where a frame belongs, are under the checksum and the tag: no frame passes for another.
- What is raised says whether a key is missing or wrong (`SecretError`) or the frame is damaged
  (`FormatError`).
- A key given is the only one. Frames of other keys, and of none, are read if that is asked for.
- Payloads are compressed before they are encrypted. So the length of a frame tells how well its
  text compresses: whoever may choose part of a payload and see the length can guess at the rest.
  `compress_over=None` ends that.
- Nonces are drawn at random, so a key is good for 2**32 frames.
- No secret is in a repr, a message or a pickle. Keys come from outside; none is made of a password.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from dspy_session.errors import (
    FormatError,
    OptionError,
    SecretError,
    SessionSizeError,
    StoreError,
)

__all__ = ["Key", "Seal", "is_encrypted", "new_secret"]

Key = bytes | str
"""A key: 32 bytes, or text as `new_secret` makes it."""

_PLAIN: Final = 0x10  # the upper half is the version
_COMPRESSED: Final = 0x01
_ENCRYPTED: Final = 0x02
_KNOWN: Final = frozenset(range(_PLAIN, _PLAIN + 4))

_HEAD: Final = struct.Struct(">BI")
_NONCE: Final = 12
_LENGTH: Final = 4
_KEY: Final = 32
_LONGEST: Final = 2**28
_LEVEL: Final = 3  # on recorded turns over 4 KB: 7 % more bytes than level 6, in 70 % of its time
_RAW: Final = -15  # deflate without a header and a checksum of its own

_MAKE_ONE: Final = 'Make one: python -c "import dspy_session; print(dspy_session.new_secret())"'


def new_secret() -> str:
    """Return a new key for the encryption of stored payloads, as text.

    Keep it outside of the store, with the application's other secrets. Without it, nothing that was
    encrypted with it can ever be read again.

    Returns:
        32 random bytes in URL-safe base64.

    Example:
        >>> len(new_secret())
        44
    """
    return base64.urlsafe_b64encode(os.urandom(_KEY)).decode()


def is_encrypted(frame: bytes) -> bool:
    """Whether a frame says that it is encrypted.

    Args:
        frame: What `Seal.close` returned.
    """
    return frame[:1] != b"" and bool(frame[0] & _ENCRYPTED)


class Seal:
    """Closes payloads in frames, and opens them; immutable, for any number of threads.

    Args:
        key: Encrypts, if given; see `Key`.
        old_keys: Keys that frames may have, too, and are read with; None stands for frames without
            encryption, which a seal with a key refuses otherwise.
        compress_over: From how many bytes on payloads are compressed, if that makes them smaller;
            None for never.

    Raises:
        OptionError: One of them is not what it has to be.
        StoreError: There is a key, and cryptography is not installed.

    Example:
        >>> seal = Seal(key=new_secret())
        >>> frame = seal.close(b"Hello", b"turn 1")
        >>> seal.open(frame, b"turn 1")
        b'Hello'
    """

    __slots__ = ("_compress_over", "_hash", "_key", "_keys", "_ring", "_unencrypted")

    def __init__(
        self,
        *,
        key: Key | None = None,
        old_keys: Sequence[Key | None] = (),
        compress_over: int | None = 4096,
    ) -> None:
        if compress_over is not None and (type(compress_over) is not int or compress_over < 0):
            raise OptionError(
                f"compress_over must be a number of bytes or None, not {compress_over!r}."
            )
        if isinstance(old_keys, str | bytes) or not isinstance(old_keys, Sequence):
            raise OptionError("old_keys must be a list of keys; None in it stands for no key.")
        self._compress_over = compress_over
        self._take([None if one is None else _Key(_secret(one)) for one in (key, *old_keys)])

    @property
    def keyed(self) -> bool:
        """Whether it encrypts, and its digests are keyed."""
        return self._key is not None

    def close(self, payload: bytes, about: bytes) -> bytes:
        """Return the frame in which a payload is stored.

        Args:
            payload: Anything.
            about: What says where the frame belongs, such as the key of its node.

        Raises:
            SessionSizeError: The payload has more than 256 MiB.
        """
        flags, body, over = _PLAIN, payload, self._compress_over
        if over is not None and len(payload) > over:
            flags, body = _deflated(payload)
        if len(body) > _LONGEST:
            raise SessionSizeError(
                f"A stored payload has at most {_LONGEST:,} bytes, not {len(payload):,}."
            )
        if self._key is None:
            return _HEAD.pack(flags, zlib.crc32(body, zlib.crc32(about, flags))) + body
        return self._key.encrypted(flags | _ENCRYPTED, body, about)

    def open(self, frame: bytes, about: bytes) -> bytes:
        """Return the payload of a frame.

        Args:
            frame: What `close` returned.
            about: What it was given.

        Raises:
            SecretError: The frame has a key that this seal does not have, or none where one is
                expected.
            FormatError: The frame is damaged, is another's, or comes from a newer version.
        """
        try:
            flags, mark = _HEAD.unpack_from(frame)
        except (struct.error, TypeError) as error:
            raise FormatError("A stored payload is damaged: it is cut off.") from error
        if flags not in _KNOWN:
            raise FormatError(
                f"A stored payload begins with {flags:#04x}, which this version does not know: it "
                "was written by a newer version of dspy-session, or is damaged."
            )
        if flags & _ENCRYPTED:
            body = self._key_of(mark).decrypted(flags, frame, about)
        else:
            body = frame[_HEAD.size :]
            if zlib.crc32(body, zlib.crc32(about, flags)) != mark:
                raise FormatError(
                    "A stored payload is damaged, or stands in another's place: its checksum does "
                    "not fit."
                )
            if not self._unencrypted:
                raise SecretError(
                    "A stored payload is not encrypted, and this key reads only what is. If it was "
                    "written before there was a key, give None among the old_keys; if not, "
                    "somebody put it there."
                )
        return _inflated(body) if flags & _COMPRESSED else body

    def digest(self, parent: bytes, *parts: bytes) -> bytes:
        """Return the hash of some content, chained on that of what came before it.

        SHA-256; with a key HMAC-SHA-256, so that nobody without it can guess at content from its
        digest, or make one that fits. No two lists of parts are the same to it.

        Args:
            parent: The digest of what came before; empty at the beginning.
            *parts: The content.
        """
        return _chained(self._hash(), parent, parts)

    def by_key(self) -> tuple[Seal, ...]:
        """Return a seal for each of the keys alone, its own first, then the old ones.

        A digest does not say which key it has: one of them makes the same, or it is wrong.
        """
        return tuple(Seal._of([one], self._compress_over) for one in self._ring)

    @classmethod
    def _of(cls, ring: list[_Key | None], compress_over: int | None) -> Seal:
        seal = cls(compress_over=compress_over)
        seal._take(ring)
        return seal

    def _take(self, ring: list[_Key | None]) -> None:
        self._ring = ring
        self._key = ring[0]
        self._hash: Callable[[], _Hash] = (
            hashlib.sha256 if self._key is None else self._key.mac.copy
        )
        self._keys = {one.id: one for one in reversed(ring) if one is not None}
        self._unencrypted = None in ring

    def _key_of(self, id: int) -> _Key:
        try:
            return self._keys[id]
        except KeyError:
            pass
        if not self._keys:
            raise SecretError("A stored payload is encrypted: give the key it was stored with.")
        raise SecretError(
            f"A stored payload is encrypted with another key (its id is {id:08x}; known are "
            f"{', '.join(f'{known:08x}' for known in self._keys)}). Give the key that it was "
            "stored with, as key or among the old_keys."
        )

    def __repr__(self) -> str:
        keys = " ".join(f"{known:08x}" for known in self._keys)
        return f"<Seal {keys or 'without a key'}, compress_over={self._compress_over}>"

    def __copy__(self) -> Seal:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Seal:
        return self

    def __reduce__(self) -> tuple[Callable[[], Seal], tuple[()]]:
        if self._keys:
            raise OptionError("A seal with a key is not pickled: the pickle would hold the key.")
        return functools.partial(Seal, compress_over=self._compress_over), ()


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class _Key:
    """What is derived from one key: its id, a cipher and a keyed hash."""

    __slots__ = ("_cipher", "_invalid", "id", "mac")

    def __init__(self, secret: bytes) -> None:
        try:
            from cryptography import exceptions  # noqa: PLC0415  # an extra: for those with a key
            from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  # as above
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # as above
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415  # as above
        except ImportError as error:
            raise StoreError(
                "Encryption needs cryptography, which is not installed: install "
                "dspy-session[encryption]."
            ) from error

        def derived(purpose: bytes, length: int) -> bytes:
            info = b"dspy-session stored payloads 1: " + purpose
            return HKDF(hashes.SHA256(), length, salt=None, info=info).derive(secret)

        self.id = int.from_bytes(derived(b"key id", 4))
        self._cipher = AESGCM(derived(b"encryption", _KEY))
        self.mac = hmac.new(derived(b"digest", _KEY), digestmod="sha256")
        self._invalid: type[Exception] = exceptions.InvalidTag

    def encrypted(self, flags: int, body: bytes, about: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        sealed = self._cipher.encrypt(nonce, body, bytes((flags,)) + about)
        return _HEAD.pack(flags, self.id) + nonce + sealed

    def decrypted(self, flags: int, frame: bytes, about: bytes) -> bytes:
        begin = _HEAD.size + _NONCE
        nonce, sealed = frame[_HEAD.size : begin], frame[begin:]
        try:
            return self._cipher.decrypt(nonce, sealed, bytes((flags,)) + about)
        except (self._invalid, ValueError) as error:  # a nonce that is cut off is a ValueError
            raise FormatError(
                "A stored payload was altered, or stands in another's place: it is encrypted with "
                "this key, but does not fit."
            ) from error


def _secret(given: Key) -> bytes:
    """The 32 bytes of a key; no message says anything of it but its kind and length."""
    if isinstance(given, bytes) and len(given) == _KEY:
        return given
    if not isinstance(given, str):
        came = f"{len(given)} bytes" if isinstance(given, bytes) else type(given).__name__
        raise OptionError(f"A key must be {_KEY} bytes, or text in base64; not {came}. {_MAKE_ONE}")
    text = given.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        secret = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != _KEY:
        raise OptionError(
            f"A key as text must be {_KEY} bytes in base64; this text of {len(given)} characters "
            f"is not. Passwords are none. {_MAKE_ONE}"
        )
    return secret


def _deflated(payload: bytes) -> tuple[int, bytes]:
    """The flags and the body of a long payload: compressed, if that makes it smaller."""
    if len(payload) <= _LONGEST:
        stream = zlib.compress(payload, _LEVEL, _RAW)
        if len(stream) + _LENGTH < len(payload):
            return _PLAIN | _COMPRESSED, len(payload).to_bytes(_LENGTH) + stream
    return _PLAIN, payload


def _inflated(body: bytes) -> bytes:
    """The payload of a compressed body, which may become no longer than it says."""
    length = int.from_bytes(body[:_LENGTH])
    stream = zlib.decompressobj(_RAW)
    cause: zlib.error | None = None
    try:
        if len(body) >= _LENGTH and 0 < length <= _LONGEST:
            payload = stream.decompress(body[_LENGTH:], length + 1)  # one more: it has to end there
            if len(payload) == length and stream.eof and not stream.unused_data:
                return payload
    except zlib.error as error:
        cause = error
    raise FormatError(
        f"A stored payload is damaged: it does not decompress to the {length:,} bytes it says."
    ) from cause


def _chained(fresh: _Hash, parent: bytes, parts: tuple[bytes, ...]) -> bytes:
    for part in (parent, *parts):
        fresh.update(len(part).to_bytes(8))  # so that no two lists of parts read the same
        fresh.update(part)
    return fresh.digest()

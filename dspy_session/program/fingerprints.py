"""What a program's predictors would put into a prompt, as a stamp and as a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import weakref
from collections.abc import Mapping
from typing import Any, Final

import dspy
import msgspec
import pydantic

from dspy_session.program.anatomy import predictors

__all__ = ["SignatureStamp", "fingerprint", "fingerprints", "signature_stamp"]


class _Digest(msgspec.Struct):
    stamp: SignatureStamp
    demos: list[dict[str, Any]]
    digest: bytes


SignatureStamp = tuple[str, list[tuple[str, Any, dict[str, Any]]]]


def signature_stamp(signature: type[dspy.Signature]) -> SignatureStamp:
    """Return what a signature says now; optimizers change instructions and fields in place.

    Args:
        signature: Any signature.
    """
    fields: Mapping[str, Any] = signature.fields
    return signature.instructions, [
        (name, info.annotation, dict(info.json_schema_extra)) for name, info in fields.items()
    ]


_digests: weakref.WeakKeyDictionary[dspy.Predict, _Digest] = weakref.WeakKeyDictionary()


def fingerprint(program: dspy.Module) -> str:
    """Return a digest of what a program's predictors would put into a prompt.

    It covers, by path, each predictor's instructions, fields and demos. It says nothing of the LM,
    of the adapter, or of the code in `forward`. A predictor's part is computed again only when its
    signature or its demos change.

    Args:
        program: Any module.

    Returns:
        32 hexadecimal digits (BLAKE2b, 16 bytes), the same in every process.
    """
    whole = hashlib.blake2b(digest_size=16)
    for path, predictor in predictors(program):
        whole.update(path.encode() + b"\0" + _digest_of(predictor))
    return sys.intern(whole.hexdigest())  # one text for all turns of a program


def fingerprints(program: dspy.Module) -> dict[str, str]:
    """Return the part of `fingerprint` that each predictor has in it, by path.

    Args:
        program: Any module.
    """
    return {path: _digest_of(predictor).hex() for path, predictor in predictors(program)}


def _digest_of(predictor: dspy.Predict) -> bytes:
    signature, demos = predictor.signature, [dict(demo.items()) for demo in predictor.demos]
    stamp = signature_stamp(signature)
    known = _digests.get(predictor)
    if known is not None and known.stamp == stamp and _same_objects(known.demos, demos):
        return known.digest
    text = json.dumps(_plain([stamp, demos]))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    _digests[predictor] = _Digest(stamp, demos, digest)
    return digest


def _same_objects(known: list[dict[str, Any]], demos: list[dict[str, Any]]) -> bool:
    return len(known) == len(demos) and all(
        old.keys() == new.keys() and all(old[name] is new[name] for name in old)
        for old, new in zip(known, demos, strict=True)
    )


def _plain(value: Any) -> Any:
    """What stands for a value in a digest: JSON, in which types are named and addresses are not."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    parts: Any = ()
    if isinstance(value, Mapping | dspy.Example):
        parts = value.items()
    elif isinstance(value, pydantic.BaseModel):
        parts = value
    elif isinstance(value, set | frozenset):
        parts = ((text, None) for text in sorted(map(repr, value)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        parts = [("", _ADDRESS.sub("", repr(value)))]
    return [type(value).__qualname__, [[_plain(key), _plain(item)] for key, item in parts]]


_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")

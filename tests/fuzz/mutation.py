"""Small damage to a parsed model: one field of one of its messages becomes something else. Any seed gives the same damage each time."""

from __future__ import annotations

import random
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

INTEGERS = (0, 1, -1, 2, 3, 7, 16, 255, 256, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x", "../../../etc/passwd", '"; $(touch harm) #', "*/ int main() {", "a\nb\r\n", "нейрон", "{{7*7}}", "`id`", "N" * 300, "9**9**9**9",
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes | None:
    """``data`` with one to four fields changed; None where it is no model, or one whose texts are none."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        return None
    try:
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change(proto, rng)
        return bytes(proto.SerializeToString())
    except UnicodeDecodeError:
        return None


def _change(proto: onnx.ModelProto, rng: random.Random) -> None:
    message = rng.choice(list(_messages(proto)))
    fields = [field for field in message.DESCRIPTOR.fields if field.name != "doc_string"]
    present = [field for field, _ in message.ListFields()]
    # Mostly what is there; now and then a field that the message has not.
    field = rng.choice(present if present and rng.random() < 0.8 else fields)
    if field.type == field.TYPE_MESSAGE:
        _change_messages(message, field, rng)
    elif field.is_repeated:
        values = list(getattr(message, field.name))
        _change_list(values, field, rng, proto)
        del getattr(message, field.name)[:]
        getattr(message, field.name).extend(values)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), rng, proto))


def _messages(message: Message) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _change_messages(message: Any, field: Any, rng: random.Random) -> None:
    held = getattr(message, field.name)
    if not field.is_repeated:
        if message.HasField(field.name) and rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            held.SetInParent()
        return
    if not len(held):
        held.add()
        return
    at = rng.randrange(len(held))
    match rng.randrange(4):
        case 0:
            del held[at]
        case 1:
            held.add().CopyFrom(held[at])
        case 2:
            held[rng.randrange(len(held))].CopyFrom(held[at])
        case _:
            held.add()


def _change_list(values: list[Any], field: Any, rng: random.Random, proto: onnx.ModelProto) -> None:
    match rng.randrange(4) if values else 3:
        case 0:
            del values[rng.randrange(len(values))]
        case 1:
            rng.shuffle(values)
        case 2:
            at = rng.randrange(len(values))
            values[at] = _value(field, values[at], rng, proto)
        case _:
            values.insert(rng.randrange(len(values) + 1), _value(field, values[0] if values else None, rng, proto))


def _value(field: Any, old: Any, rng: random.Random, proto: onnx.ModelProto) -> Any:
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == field.TYPE_BYTES:
        data = bytearray(old or b"")
        if data and rng.random() < 0.7:
            data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        return bytes(data[: rng.randrange(len(data) + 1)]) + bytes(rng.randrange(5))
    if field.type == field.TYPE_STRING:
        names = [name for node in proto.graph.node for name in (*node.input, *node.output, node.op_type)]
        return rng.choice([*names, *TEXTS])
    if field.type == field.TYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    small = field.type in (field.TYPE_INT32, field.TYPE_UINT32)
    number = rng.choice([*INTEGERS, *((old - 1, old + 1, -old) if isinstance(old, int) else ())])
    if field.type in (field.TYPE_UINT64, field.TYPE_UINT32):
        return number % 2**32 if small else number % 2**64
    return max(-(2**31), min(2**31 - 1, number)) if small else max(-(2**63), min(2**63 - 1, number))

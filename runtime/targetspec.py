"""The words that name a target, ``target[:device][{option=value,…}]``, and the Target they mean."""

from __future__ import annotations

from gatewright.errors import UsageError
from gatewright.hw.device import Device, devices, host, load_device
from gatewright.spec import construct, describe, parse, split_outside_braces
from gatewright.targets.base import Target, target_class


def resolve(text: str) -> Target:
    """The target bound to its device and options: ``"hls:pynq-z2{io=stream}"``.

    Without a device a target that takes CPUs gets this machine's. Raises UsageError for an unknown target, device or
    option (with the nearest names), for a device of a kind that the target does not take, and for a missing one.
    """
    spec = parse(text)
    name, colon, device_name = spec.name.partition(":")
    kind = target_class(name.strip())
    if colon and not device_name.strip():
        raise UsageError(f"{text!r} names no device after the colon")
    device = _device(kind, device_name.strip())
    return kind(device, construct(kind.options_type, f"target {kind.name}", spec.options))


def canonical_text(target: Target) -> str:
    """What resolves to ``target`` again, without options at their defaults: ``hls:pynq-z2``."""
    device = target.device
    named = f"{target.name}:{device.name}" if device is not None and device.source != "host" else target.name
    return describe(target.options, named)


def is_here(target: Target) -> bool:
    """Whether what the target runs on is this machine: only then is what a clock says a measurement of its device."""
    return target.is_here


def split_targets(text: str) -> list[str]:
    """``"ort,cpu{level=1},hls:pynq-z2"`` as single targets; commas inside braces belong to the options."""
    return split_outside_braces(text)


def _device(kind: type[Target], name: str) -> Device | None:
    takes = kind.device_kinds
    if not name:
        if not takes:
            return None
        if "cpu" in takes:
            return host()
        known = ", ".join(device.name for device in devices() if device.kind in takes)
        raise UsageError(f"target {kind.name} needs a device", hint=f"write {kind.name}:DEVICE, for example one of {known}")
    if not takes:
        raise UsageError(f"target {kind.name} takes no device, it runs on this machine", hint=f"write {kind.name}")
    device = load_device(name)
    if device.kind not in takes:
        known = ", ".join(other.name for other in devices() if other.kind in takes)
        raise UsageError(f"target {kind.name} takes a {' or '.join(takes)}; {device.name!r} is a {device.kind}", hint=f"known: {known}")
    return device

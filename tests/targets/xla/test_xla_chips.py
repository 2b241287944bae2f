"""Generations, topologies and how cores share the work, without JAX."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatewright.errors import UnsupportedError, UsageError
from gatewright.hw.device import Processor, devices, load_device
from gatewright.runtime.targetspec import canonical_text, is_here, resolve
from gatewright.targets.xla.chips import GENERATIONS, Slice, one_core, present
from gatewright.targets.xla.names import initializer, made_for, mangled
from gatewright.targets.xla.target import XlaTarget


def chip(name: str) -> Processor:
    found = load_device(name)
    assert isinstance(found, Processor)
    return found


def test_every_shipped_tpu_is_a_generation_and_every_generation_is_shipped() -> None:
    assert {device.name for device in devices("tpu")} == set(GENERATIONS)


@pytest.mark.parametrize("name", sorted(GENERATIONS))
def test_figures_have_a_data_sheet(name: str) -> None:
    device = chip(name)
    for figure in ("memory_bytes", "memory_bandwidth_bytes_per_s", "peak_ops_per_s"):
        found = device.cited(figure)
        assert found is not None, figure
        assert found.url.startswith("https://")


def test_an_unknown_topology_names_those_there_are() -> None:
    with pytest.raises(UnsupportedError, match="no topology '3x3'") as caught:
        resolve("tpu:v5e{topology=3x3}")
    assert caught.value.exit_code == 3
    assert "2x2, 2x4" in str(caught.value)


def test_a_device_file_has_to_be_of_a_known_generation() -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match="no TPU generation 'v99'"):
        Slice.of(replace(chip("v5e"), name="v99"), None)


@pytest.mark.parametrize(("text", "words"), [
    ("tpu:v5e{mesh=model}", "pairs of cores"),
    ("tpu:v5e{topology=2x2,batches=2|8}", "multiples of 4"),
    ("tpu:v5e{topology=2x2,mesh=model,batches=3}", "multiples of 2"),
    ("tpu:v5e{batches=0}", "from 1"),
    ("tpu:v5e{batches=4|4}", "twice"),
])  # fmt: skip
def test_what_does_not_go_together_is_said(text: str, words: str) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=r"batches|mesh") as caught:
        resolve(text)
    assert words in str(caught.value)


def test_cores_share_samples_and_weights() -> None:
    data, model = resolve("tpu:v5e{topology=2x2}"), resolve("tpu:v5e{topology=2x2,mesh=model}")
    assert isinstance(data, XlaTarget)
    assert isinstance(model, XlaTarget)
    assert (data.groups, data.halves, data.batches) == (4, 1, (4,))
    assert (model.groups, model.halves, model.batches) == (2, 2, (2,))
    assert canonical_text(model) == "tpu:v5e{topology=2x2,mesh=model}"


def test_one_of_two_cores_has_half_of_the_chip() -> None:
    whole, core = chip("v4"), one_core(chip("v4"))
    assert core.memory_bytes == whole.memory_bytes // 2 if whole.memory_bytes else False
    assert core.peak_ops_per_s["bfloat16"] == whole.peak_ops_per_s["bfloat16"] / 2
    assert one_core(chip("v5e")) == chip("v5e")


@pytest.mark.parametrize(("vendor", "device", "wanted"), [
    ("0x1ae0", "0x0063", ("v5e",)), ("0x1ae0", "0x0042", ()), ("0x10de", "0x0063", ()), ("0x1ae0", "0x0027", ("v2", "v3")),
])  # fmt: skip
def test_a_tpu_is_known_by_its_numbers_on_the_bus(vendor: str, device: str, wanted: tuple[str, ...], tmp_path: Path) -> None:
    """Google's network adapter has its vendor number too, and another vendor's device may have a TPU's number."""
    assert present(tmp_path) == ()
    (tmp_path / "0000:00:05.0").mkdir()
    (tmp_path / "0000:00:05.0" / "vendor").write_text(vendor + "\n")
    (tmp_path / "0000:00:05.0" / "device").write_text(device + "\n")
    assert present(tmp_path) == wanted


def test_on_a_tpus_host_the_device_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewright.targets.base import Artifact
    from gatewright.targets.xla import chips, target

    artifact: Artifact = None  # type: ignore[assignment]
    monkeypatch.setattr(target, "version_of", lambda package: "1")
    monkeypatch.setattr(chips, "present", lambda: ("v5e",))
    assert (resolve("tpu:v5e").default_mode(artifact), resolve("tpu:v6e").default_mode(artifact)) == ("device", "emulate")
    assert (is_here(resolve("tpu:v5e")), is_here(resolve("tpu:v6e"))) == (True, False)
    monkeypatch.setattr(chips, "present", lambda: ())
    assert resolve("tpu:v5e").default_mode(artifact) == "emulate"


def test_different_names_stay_different_where_a_compiler_sees_them() -> None:
    names = ["conv1", "conv/1", "conv_1", "", "x" * 100, "x" * 101, 'a"/b', "a\nb"]
    found = [mangled(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(name.replace(".", "_").isidentifier() for name in found)
    assert made_for("initializer:a", "table") != initializer("a")

"""Names of targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatewright.errors import UsageError
from gatewright.hw.device import Processor, load_device
from gatewright.runtime.targetspec import canonical_text, resolve, split_targets


def test_without_a_device_a_cpu_target_gets_this_machine() -> None:
    target = resolve("cpu")
    assert isinstance(target.device, Processor)
    assert target.device.source == "host"
    assert canonical_text(target) == "cpu"


def test_device_and_options() -> None:
    target = resolve("hls:pynq-z2{io=stream}")
    assert target.device is not None
    assert target.device.name == "pynq-z2"
    assert target.options.io == "stream"
    assert canonical_text(target) == "hls:pynq-z2{io=stream}"
    assert canonical_text(resolve(canonical_text(target))) == canonical_text(target)


def test_options_at_their_defaults_are_not_shown() -> None:
    assert canonical_text(resolve("ort{exact=false}")) == "ort"
    assert canonical_text(resolve("ort{exact=true,threads=2}")) == "ort{exact=true,threads=2}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpuu", ["cpuu", "did you mean cpu"]),
        ("hls:pynq-z3", ["pynq-z3", "did you mean pynq-z2"]),
        ("hls", ["needs a device", "pynq-z2"]),
        ("hls:", ["no device after the colon"]),
        ("hls:znver3", ["board", "znver3", "cpu"]),
        ("ref:znver3", ["takes no device"]),
        ("ort{exakt=true}", ["exakt", "did you mean exact"]),
        ("ort{threads=0}", ["threads", "0"]),
        ("ort{threads=many}", ["threads", "many", "whole number"]),
        ("ort{", ["does not end with '}'"]),
        ("{a=b}", ["name is missing"]),
        ("cpu:./nowhere.toml", ["nowhere.toml"]),
    ],
)
def test_a_wrong_name_says_what_is_known(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        resolve(text)
    assert error.value.exit_code == 2
    for word in words:
        assert word in str(error.value)


def test_a_users_own_device_file_works(tmp_path: Path) -> None:
    shipped = load_device("pynq-z2")
    source = Path(__file__).resolve().parents[2] / "hw" / shipped.source
    own = tmp_path / "mine.toml"
    own.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    target = resolve(f"hls:{own}")
    assert target.device is not None
    assert target.device.name == "mine"


def test_lists_are_split_outside_braces() -> None:
    assert split_targets("ort,cpu{level=1,threads=2},hls:pynq-z2") == ["ort", "cpu{level=1,threads=2}", "hls:pynq-z2"]

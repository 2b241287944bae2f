"""torch.export's files: equal to the program, and opened without running anything that they hold."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatewright.errors import ModelError
from gatewright.frontend import torch_import
from gatewright.frontend.limits import Limits
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession

torch = pytest.importorskip("torch")
nn = torch.nn


def convolutional() -> tuple[Any, Any]:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 25, 5)), (1, 12, 12)


def transformer() -> tuple[Any, Any]:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (6, 16)


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "mlp": lambda: (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)), (8,)),
    "convolutional": convolutional,
    "transformer": transformer,
}


def saved(name: str, path: Path, *, free: bool = True) -> Any:
    torch.manual_seed(0)
    module, shape = MODELS[name]()
    module.eval()
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    program = torch.export.export(module, (torch.randn(2, *shape),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return module


def read(path: Path) -> Any:
    return torch_import.read_file(str(path), {}, None, Limits())


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_program(name: str, tmp_path: Path) -> None:
    module = saved(name, tmp_path / "net.pt2")
    model = read(tmp_path / "net.pt2")
    assert (model.name, model.history[-1].text, model.inputs[0].shape[0]) == ("net", "net.pt2", 1)
    assert max(model.history[-1].details["checked"]["difference"].values()) <= 1e-4
    x = torch.randn(model.inputs[0].shape)
    with torch.no_grad():
        wanted = module(x).numpy()
    found = next(iter(OrtSession(model).run({model.inputs[0].name: x.numpy()}).values()))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    saved("mlp", tmp_path / "net.pt2", free=False)
    assert load(tmp_path / "net.pt2").inputs[0].shape == (2, 8)
    assert load(tmp_path / "net.pt2", trust=True).inputs[0].shape == (2, 8)


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None) -> Path:
    """A copy of the archive with files changed, left out (None) or added."""
    made = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            data = change(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(name, data)
        for name, data in (extra or {}).items():
            new.writestr(f"{root}/{name}", data)
    return made


def test_code_in_a_file_stays_closed(tmp_path: Path) -> None:
    path, mark = tmp_path / "net.pt2", tmp_path / "ran"
    saved("mlp", path)
    attack = f"__import__('pathlib').Path({str(mark)!r}).touch()"

    def program(edit: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
        def change(name: str, data: bytes) -> bytes:
            if name != "models/model.json":
                return data
            held = json.loads(data)
            edit(held)
            return json.dumps(held).encode()

        return change

    def size(held: dict[str, Any]) -> None:
        values = held["graph_module"]["graph"]["tensor_values"]
        next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": attack, "hint": {"as_int": 2}}}

    def target(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda held: held["graph_module"]["graph"]["nodes"][0].update(target=name)

    def nested(held: dict[str, Any]) -> None:
        entry = held["graph_module"]["module_call_graph"][0]["signature"]
        entry["in_spec"] = json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])

    def pickled(name: str, data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("weights_config.json") else data

    cases: list[tuple[Callable[[str, bytes], bytes], str]] = [
        (program(size), "is no arithmetic"),
        (program(target("torch.load")), "calls 'torch.load', which is no operator of ATen"),
        (program(target("torch.ops.aten.from_file.default")), "no operator of ATen"),
        (program(nested), "are of type 'collections.defaultdict'"),
        (pickled, "is pickled"),
    ]
    for change, match in cases:
        with pytest.raises(ModelError, match=match) as refused:
            read(rewritten(path, change))
        assert "trust=True" in str(refused.value)
    with pytest.raises(ModelError, match="holds compiled code"):
        read(rewritten(path, lambda _, data: data, {"data/aotinductor/model/net.so": b"\x7fELF"}))
    # What torch would unpickle or run without being asked is not even handed to it.
    harmless = rewritten(path, lambda name, data: b"cposix\nsystem\n(S'touch'\ntR." if name.endswith("model.pt") else data)
    assert read(harmless).outputs
    assert not mark.exists()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    saved("mlp", path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read(path)
    path.write_bytes(whole)
    with pytest.raises(ModelError, match="the limit is 100"):
        torch_import.read_file(str(path), {}, None, Limits(weight_bytes=100))
    with pytest.raises(ModelError, match=r"no file of torch\.export"):
        read(rewritten(path, lambda name, data: None if name.startswith("models") else data))

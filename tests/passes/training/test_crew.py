"""Several workers compute what one process does, survive one another's deaths, and learn when they don't wait for one another."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tasks import accuracy, bars, clusters, cnn, mlp, weights  # noqa: E402

from gatewright.errors import PassError, UsageError  # noqa: E402
from gatewright.frontend.model import Model  # noqa: E402
from gatewright.passes.base import PassContext  # noqa: E402
from gatewright.passes.pipeline import Pipeline  # noqa: E402
from gatewright.passes.training import crew, worker  # noqa: E402
from gatewright.passes.training.batches import Batches, Told  # noqa: E402
from gatewright.passes.training.crew import Crew, Origin  # noqa: E402
from gatewright.passes.training.distil import Distil  # noqa: E402
from gatewright.passes.training.exchange import Exchange  # noqa: E402
from gatewright.passes.training.finetune import Finetune  # noqa: E402
from gatewright.passes.training.loop import Trainer  # noqa: E402

SUMMED = {"rtol": 1e-4, "atol": 1e-6}
"""What the order of a sum of 64 float32 terms may change, 64·2⁻²⁴ of the terms' size, over a dozen steps."""


def trained(options: Finetune, model: Model, **context: object) -> tuple[Model, tuple[str, ...]]:
    data = bars(90) if len(model.inputs[0].shape) == 4 else clusters()
    result = options.run(model, PassContext(data=data, **context))  # type: ignore[arg-type]
    return result.model, result.notes


@pytest.mark.parametrize("shares", [2, 3, 7])
def test_the_shares_of_a_batch_add_up_to_it(shares: int) -> None:
    """The last batch of an epoch is smaller than the others, and may have fewer samples than there are workers."""
    options, model, data = Finetune(batch=37, shift=1), cnn(), bars(77)
    begun = options.outset(model, PassContext(data=data))

    def gradients(step: int, parts: list[tuple[int, int]]) -> tuple[dict[str, np.ndarray], Told]:
        batches, told = Batches(options, begun.net, begun.objective, data, 3), Told()
        for p in begun.net.parameters.values():
            p.grad = None
        for share, count in parts:
            told += batches.gradient(1, step, share, count)
        return {name: p.grad.numpy().copy() for name, p in begun.net.parameters.items() if p.grad is not None}, told

    for step in (2, 0):
        whole, told = gradients(step, [(0, 1)])
        summed, together = gradients(step, [(i, shares) for i in range(shares)])
        assert (told.samples, told.right) == (together.samples, together.right) == ((3 if step else 37), told.right)
        assert told.loss == pytest.approx(together.loss, rel=1e-5)
        for name in whole:
            np.testing.assert_allclose(summed[name], whole[name], **SUMMED)


def test_what_is_exchanged_arrives_in_its_place(tmp_path: Path) -> None:
    options, model = Finetune(), cnn()
    ours, theirs = (options.outset(model, PassContext(data=bars())) for _ in range(2))
    extra = {"p": torch.arange(6.0).reshape(2, 3)}
    other = {"p": torch.zeros(2, 3)}
    here = Exchange(tmp_path, 2, ours.net, extra, create=True)
    there = Exchange(tmp_path, 2, theirs.net, other)
    assert here.layout == there.layout != Exchange(tmp_path, 2, theirs.net, {}).layout
    with torch.no_grad():
        ours.net.parameters["k"] += 1
    ours.net.running["mean"] = torch.full((6,), 5.0)
    here.publish(1)
    there.fetch(1)
    assert torch.equal(theirs.net.parameters["k"], ours.net.parameters["k"])
    assert torch.equal(other["p"], extra["p"])
    assert theirs.net.running["mean"].tolist() == [5.0] * 6
    theirs.net.parameters["w"].grad = torch.full((6, 2), 2.0)
    missing = there.hand_in(1)
    theirs.net.parameters["w"].grad = torch.full((6, 2), 3.0)
    theirs.net.running["mean"] = torch.full((6,), 1.0)
    here.collect([0, 1], [there.hand_in(0), missing], [1, 3])
    assert ours.net.parameters["w"].grad.tolist() == [[5.0, 5.0]] * 6
    assert ours.net.parameters["k"].grad is None
    assert ours.net.running["mean"].tolist() == [4.0] * 6


def test_two_workers_give_what_one_process_does_even_if_one_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Augmented images; the first worker is killed while the second epoch begins, and the one that replaces it computes the same.

    All in a folder with a ``numpy.py``, which nobody imports.
    """
    for name in ("numpy.py", "torch.py", "gatewright.py"):
        (tmp_path / name).write_text("import os; os.makedirs('harm', exist_ok=True)")
    monkeypatch.chdir(tmp_path)
    made: list[Crew] = []
    begin = Crew.__init__
    monkeypatch.setattr(Crew, "__init__", lambda self, *given: (made.append(self), begin(self, *given))[1])

    def killing(what: str, done: int | None = None, total: int | None = None) -> None:
        if "epoch 1 of" in what and made and not made[0].replaced:
            made[0].workers[0].process.send_signal(signal.SIGKILL)

    text = "epochs=3,lr=0.05,optimizer=sgd,batch=33,shift=1,l2=0.01,clip=0.5"
    alone, notes = trained(Finetune(epochs=3, lr=0.05, optimizer="sgd", batch=33, shift=1, l2=0.01, clip=0.5), cnn())
    (item,) = Pipeline.parse(f"finetune{{{text},workers=2}}")
    assert isinstance(item, Finetune)
    together, told = trained(item, cnn(), progress=killing)
    for name, array in weights(alone).items():
        np.testing.assert_allclose(weights(together)[name], array, **SUMMED)
    assert told[0] == notes[0]
    assert told[-2].startswith("2 workers, each on its share of every batch: the same seed gives the same weights")
    assert told[-1] == "1 of them died and were replaced"
    assert not made[0]._folder.exists()
    assert not (tmp_path / "harm").exists()


def test_workers_that_do_not_wait_learn_all_the_same() -> None:
    model, notes = trained(Finetune(epochs=8, lr=0.01, batch=16, workers=2, sync=False), mlp())
    assert accuracy(model, clusters(seed=1)) > 0.95
    assert "do not wait for one another" in notes[-1]
    assert "gradients 0.00 steps old" not in notes[-1], "one is applied while the other is computed"


@pytest.mark.slow
@pytest.mark.parametrize("text", [
    "distil{width=0.5,features=h:h,epochs=2,optimizer=sgd,workers=2}", "qat{bits=4,epochs=2,optimizer=sgd,workers=2}",
    "cluster{bits=2,finetune=finetune{epochs=2,optimizer=sgd,workers=2}}",
])  # fmt: skip
def test_whatever_trains_can_share_the_work(text: str) -> None:
    """Teachers, projections, grids and tied weights reach the workers, or are applied where their gradients come together."""
    shared, alone = (Pipeline.parse(t).run(mlp(), PassContext(data=clusters(120))) for t in (text, text.replace(",workers=2", "")))
    for name, array in weights(alone).items():
        np.testing.assert_allclose(weights(shared)[name].astype(np.float64), array.astype(np.float64), rtol=1e-3, atol=1e-5)


def test_workers_that_keep_dying_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "python", lambda *words: ["/bin/false"])
    with pytest.raises(PassError, match=r"worker \d of 2 died \(exit code 1\), and 3 before it; its last words: none"):
        trained(Finetune(epochs=1, workers=2), mlp())


def test_a_worker_with_another_network_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data, options = clusters(), Finetune(epochs=1, workers=2)
    begun = options.outset(mlp(), PassContext(data=data))
    with pytest.raises(PassError, match="did not get the network that is trained"):
        Trainer(options, begun, Origin(options, mlp(seed=1), data, 0)).fit()


def test_a_worker_says_what_is_wrong_and_cleans_up_behind_a_training_that_was_killed(tmp_path: Path) -> None:
    """Its input ends without a word: nobody else is left to remove the files."""
    folder = tmp_path / "job"
    folder.mkdir()
    data, options = clusters(), Distil(epochs=1, workers=2, width=0.5)
    begun = options.outset(mlp(8), PassContext(data=data), [mlp()])
    Origin(options, mlp(8), data, 0, [mlp()]).write(folder)
    exchange = Exchange(folder, 2, begun.net, begun.extra, create=True)
    exchange.publish(1)
    with open(tmp_path / "asked", "w+") as requests, open(tmp_path / "said", "w+") as answers:
        requests.write("[0, 1, 1, 2]\n")
        requests.seek(0)
        worker.main(folder, 1, requests, answers)
        answers.seek(0)
        said = answers.read()
    assert exchange.layout in said
    assert '"samples": 32' in said
    assert not folder.exists()


@pytest.mark.parametrize("text", ["workers=0", "workers=1000", "sync=false", "workers=two"])
def test_wrong_options(text: str) -> None:
    with pytest.raises(UsageError, match=r"workers|sync"):
        Pipeline.parse(f"finetune{{{text}}}")

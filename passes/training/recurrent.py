"""LSTM, GRU and RNN, unrolled over time (ONNX operator specification, opset 14).

X [T, N, I], W [D, gates·H, I], R [D, gates·H, H], B [D, 2·gates·H], states [D, N, H] for D directions; Y [T, D, N, H].
With layout = 1 the samples' axis comes first: X [N, T, I], states [N, D, H], Y [N, T, D, H].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .site import Function, Maker, Site

Step = Callable[[Tensor, tuple[Tensor, ...], "Weights"], tuple[Tensor, ...]]
"""From x·W [N, gates·H] and the states to the states; the first one is what the layer gives."""


class Weights:
    """Of one direction: the recurrent matrix, the biases, the peepholes."""

    def __init__(self, r: Tensor, b_w: Tensor, b_r: Tensor, peepholes: Tensor | None) -> None:
        self.r, self.b_w, self.b_r, self.peepholes = r, b_w, b_r, peepholes


def _lstm(x: Tensor, states: tuple[Tensor, ...], w: Weights) -> tuple[Tensor, ...]:
    h, c = states
    i, o, f, g = (x + h @ w.r.T + w.b_w + w.b_r).chunk(4, dim=-1)
    p_i, p_o, p_f = (0, 0, 0) if w.peepholes is None else w.peepholes.chunk(3)
    new = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
    return torch.sigmoid(o + p_o * new) * torch.tanh(new), new


def _gru(linear_before_reset: bool) -> Step:
    def step(x: Tensor, states: tuple[Tensor, ...], w: Weights) -> tuple[Tensor, ...]:
        (h,) = states
        size = h.shape[-1]
        x = x + w.b_w
        z, r = torch.sigmoid(x[..., : 2 * size] + h @ w.r[: 2 * size].T + w.b_r[: 2 * size]).chunk(2, dim=-1)
        matrix, bias = w.r[2 * size :].T, w.b_r[2 * size :]
        inner = r * (h @ matrix + bias) if linear_before_reset else (r * h) @ matrix + bias
        return ((1 - z) * torch.tanh(x[..., 2 * size :] + inner) + z * h,)

    return step


def _rnn(activation: Callable[[Tensor], Tensor]) -> Step:
    return lambda x, states, w: (activation(x + states[0] @ w.r.T + w.b_w + w.b_r),)


def _step(site: Site) -> Step:
    directions = 2 if site.get("direction", "forward") == "bidirectional" else 1
    given = [name.lower() for name in site.get("activations", ())]
    if site.node.op_type == "RNN":
        if len(set(given)) > 1 or not set(given) <= {"tanh", "relu"}:
            raise site.refused(f"activations {given} are not supported")
        return _rnn(torch.relu if given[:1] == ["relu"] else torch.tanh)
    usual = ["sigmoid", "tanh", "tanh"] if site.node.op_type == "LSTM" else ["sigmoid", "tanh"]
    if given and given != usual * directions:
        raise site.refused(f"activations {given} are not supported")
    return _lstm if site.node.op_type == "LSTM" else _gru(bool(site.get("linear_before_reset", 0)))


def _recurrent(site: Site) -> Function:
    step, direction, first = _step(site), site.get("direction", "forward"), site.get("layout", 0)
    for name in ("clip", "input_forget"):
        if site.get(name, 0):
            raise site.refused(f"{name} is not supported")
    if site.given(4):
        raise site.refused("sequence_lens is not supported", hint="pad the sequences to one length")
    states = 2 if site.node.op_type == "LSTM" else 1

    def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, _: Tensor | None = None, *rest: Tensor | None) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if first else x
        hidden, results, ends = r.shape[-1], [], []
        peepholes = rest[2] if len(rest) > 2 else None
        for d in range(w.shape[0]):
            b_w, b_r = (x.new_zeros(r.shape[1]),) * 2 if b is None else b[d].chunk(2)
            weights = Weights(r[d], b_w, b_r, None if peepholes is None else peepholes[d])
            held = tuple(
                x.new_zeros(x.shape[1], hidden) if i >= len(rest) or (start := rest[i]) is None else (start[:, d] if first else start[d])
                for i in range(states)
            )
            backwards = direction == "reverse" or d == 1
            projected = x @ w[d].T
            steps = []
            for t in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
                held = step(projected[t], held, weights)
                steps.append(held[0])
            results.append(torch.stack(steps[::-1] if backwards else steps))
            ends.append(held)
        y = torch.stack(results, dim=1)
        last = [torch.stack([held[i] for held in ends], dim=1 if first else 0) for i in range(states)]
        return (y.permute(2, 0, 1, 3) if first else y, *last)

    return run


MAKERS: dict[str, Maker] = dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent)

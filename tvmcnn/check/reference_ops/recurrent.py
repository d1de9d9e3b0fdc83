"""Recurrent layers, sequence by sequence: the steps that it has, in the order of its direction. Sequences of which all
have all steps are taken together.

T is the number of steps, N the batch, I the input's size, D the number of directions, H the hidden size, G the gates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tvmcnn.check.reference_ops.registry import Array, op

Function = Callable[[Array], Array]
Step = Callable[..., tuple[Array, ...]]  # (x, states) -> states


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


PLAIN: dict[str, Function] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Sigmoid": _sigmoid,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.logaddexp(0, x),
}
WITH_ALPHA: dict[str, tuple[float, Callable[..., Array]]] = {
    "LeakyRelu": (0.01, lambda x, a: np.where(x >= 0, x, a * x)),
    "ThresholdedRelu": (1.0, lambda x, a: np.where(x >= a, x, 0)),
    "Elu": (1.0, lambda x, a: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0)))),
}
WITH_BOTH: dict[str, tuple[tuple[float | None, float | None], Callable[..., Array]]] = {
    "Affine": ((None, None), lambda x, a, b: a * x + b),
    "ScaledTanh": ((None, None), lambda x, a, b: a * np.tanh(b * x)),
    "HardSigmoid": ((0.2, 0.5), lambda x, a, b: np.clip(a * x + b, 0, 1)),
}


def _functions(names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None) -> list[Function]:
    """The activation functions; each that has parameters takes the next ones of the lists, or ONNX's defaults."""
    alpha, beta = iter(alphas or ()), iter(betas or ())
    return [_function(name, alpha, beta) for name in names]


def _function(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Function:
    if name in PLAIN:
        return PLAIN[name]
    if name in WITH_ALPHA:
        alpha, one = WITH_ALPHA[name]
        return functools.partial(one, a=next(alphas, alpha))
    if name in WITH_BOTH:
        both, two = WITH_BOTH[name]
        first, second = (next(each, usual) for each, usual in zip((alphas, betas), both, strict=True))
        if first is None or second is None:
            raise ValueError(f"activation {name} without alpha or beta")
        return functools.partial(two, a=first, b=second)
    raise ValueError(f"activation {name}")


def _run(
    x: Array, layers: Sequence[Step], starts: Sequence[Array], lengths: Array | None, direction: str, layout: int
) -> tuple[Array, ...]:
    """Y and the last states of `layers`, one a direction. A state is D x N x H; those of no step at all are zero."""
    if layout:
        x, starts = np.swapaxes(x, 0, 1), [np.swapaxes(start, 0, 1) for start in starts]
    times, batch = x.shape[:2]
    y = np.zeros((times, *starts[0].shape))
    lasts = [np.zeros(start.shape) for start in starts]
    for d, step in enumerate(layers):
        backwards = direction == "reverse" or d == 1
        for n in [slice(None)] if lengths is None else range(batch):
            length = times if lengths is None else min(int(lengths[n]), times)
            states = tuple(start[d, n] for start in starts)
            for t in reversed(range(length)) if backwards else range(length):
                states = step(x[t, n], *states)
                y[t, d, n] = states[0]
            for last, state in zip(lasts, states, strict=True):
                last[d, n] = state if length > 0 else 0
    if layout:
        return np.transpose(y, (2, 0, 1, 3)), *(np.swapaxes(last, 0, 1) for last in lasts)
    return y, *lasts


def _start(state: Array | None, x: Array, w: Array, r: Array, layout: int) -> Array:
    """The initial state, or zeros in its place."""
    batch = x.shape[0 if layout else 1]
    shape = (batch, len(w), r.shape[2]) if layout else (len(w), batch, r.shape[2])
    return np.zeros(shape) if state is None else state


def _clipped(clip: float | None) -> Function:
    """The bounds on what a gate's activation is given."""
    return (lambda x: x) if clip is None else lambda x: np.clip(x, -clip, clip)


@op("RNN", 7)
def rnn(
    x: Array, w: Array, r: Array, b: Array | None = None, sequence_lens: Array | None = None,
    initial_h: Array | None = None, *, activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None, activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None, direction: str = "forward", hidden_size: int | None = None, layout: int = 0,
) -> tuple[Array, ...]:  # fmt: skip
    """RNN: Ht = f(Xt*Wi^T + Ht-1*Ri^T + Wbi + Rbi)."""
    functions, bound = _functions(activations, activation_alpha, activation_beta), _clipped(clip)
    biases = np.zeros((len(w), 2 * r.shape[2])) if b is None else b

    def layer(d: int) -> Step:
        f, (wb, rb) = functions[d], np.split(biases[d], 2)
        return lambda xt, h: (f(bound(xt @ w[d].T + h @ r[d].T + wb + rb)),)

    starts = [_start(initial_h, x, w, r, layout)]
    return _run(x, [layer(d) for d in range(len(w))], starts, sequence_lens, direction, layout)


@op("GRU", 7)
def gru(
    x: Array, w: Array, r: Array, b: Array | None = None, sequence_lens: Array | None = None,
    initial_h: Array | None = None, *, activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None, activations: Sequence[str] | None = None,
    clip: float | None = None, direction: str = "forward", hidden_size: int | None = None, layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Array, ...]:  # fmt: skip
    """GRU: Ht = (1 - zt) . ht + zt . Ht-1, with zt, rt and ht as on the operator page."""
    names = activations or ("Sigmoid", "Tanh") * len(w)
    functions, bound = _functions(names, activation_alpha, activation_beta), _clipped(clip)
    biases = np.zeros((len(w), 6 * r.shape[2])) if b is None else b

    def layer(d: int) -> Step:
        f, g = functions[2 * d : 2 * d + 2]
        (wz, wr, wh), (rz, rr, rh) = np.split(w[d], 3), np.split(r[d], 3)
        wbz, wbr, wbh, rbz, rbr, rbh = np.split(biases[d], 6)

        def step(xt: Array, h: Array) -> tuple[Array]:
            zt = f(bound(xt @ wz.T + h @ rz.T + wbz + rbz))
            rt = f(bound(xt @ wr.T + h @ rr.T + wbr + rbr))
            if linear_before_reset:
                ht = g(bound(xt @ wh.T + rt * (h @ rh.T + rbh) + wbh))
            else:
                ht = g(bound(xt @ wh.T + (rt * h) @ rh.T + rbh + wbh))
            return ((1 - zt) * ht + zt * h,)

        return step

    starts = [_start(initial_h, x, w, r, layout)]
    return _run(x, [layer(d) for d in range(len(w))], starts, sequence_lens, direction, layout)


@op("LSTM", 7)
def lstm(
    x: Array, w: Array, r: Array, b: Array | None = None, sequence_lens: Array | None = None,
    initial_h: Array | None = None, initial_c: Array | None = None, p: Array | None = None, *,
    activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None, clip: float | None = None, direction: str = "forward",
    hidden_size: int | None = None, input_forget: int = 0, layout: int = 0,
) -> tuple[Array, ...]:  # fmt: skip
    """LSTM: Ct = ft . Ct-1 + it . ct and Ht = ot . h(Ct), with the gates as on the operator page.

    What h is given is not clipped, as in onnxruntime.
    """
    names = activations or ("Sigmoid", "Tanh", "Tanh") * len(w)
    functions, bound = _functions(names, activation_alpha, activation_beta), _clipped(clip)
    biases = np.zeros((len(w), 8 * r.shape[2])) if b is None else b
    peepholes = np.zeros((len(w), 3 * r.shape[2])) if p is None else p

    def layer(d: int) -> Step:
        f, g, h = functions[3 * d : 3 * d + 3]
        wi, wo, wf, wc = np.split(w[d], 4)
        ri, ro, rf, rc = np.split(r[d], 4)
        wbi, wbo, wbf, wbc, rbi, rbo, rbf, rbc = np.split(biases[d], 8)
        pi, po, pf = np.split(peepholes[d], 3)

        def step(xt: Array, before: Array, cell: Array) -> tuple[Array, Array]:
            it = f(bound(xt @ wi.T + before @ ri.T + pi * cell + wbi + rbi))
            ft = 1 - it if input_forget else f(bound(xt @ wf.T + before @ rf.T + pf * cell + wbf + rbf))
            ct = g(bound(xt @ wc.T + before @ rc.T + wbc + rbc))
            new = ft * cell + it * ct
            ot = f(bound(xt @ wo.T + before @ ro.T + po * new + wbo + rbo))
            return ot * h(new), new

        return step

    starts = [_start(state, x, w, r, layout) for state in (initial_h, initial_c)]
    return _run(x, [layer(d) for d in range(len(w))], starts, sequence_lens, direction, layout)

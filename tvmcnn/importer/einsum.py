"""Einsum: sums of products in index notation become MatMul, with moves before and behind it that need no shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from tvmcnn.importer.spelling import New, Spell, Spelled, Steps


@dataclass(frozen=True)
class _Term:
    """A tensor with an index for each of its axes."""

    name: str
    indices: str


class _Steps(Steps):
    """Moves and sums of terms."""

    def ordered(self, term: _Term, indices: str) -> _Term:
        """The tensor with its axes in another order."""
        if term.indices == indices:
            return term
        return _Term(self.add("Transpose", term.name, perm=[term.indices.index(i) for i in indices]), indices)

    def summed(self, term: _Term, kept: str) -> _Term:
        """The tensor summed over what is not kept."""
        gone = [axis for axis, index in enumerate(term.indices) if index not in kept]
        if not gone:
            return term
        name = self.add("ReduceSum", term.name, self.constant(gone), keepdims=0)
        return _Term(name, "".join(index for index in term.indices if index in kept))

    def unsqueezed(self, name: str, axes: Sequence[int]) -> str:
        """The tensor with axes of extent 1 at places of the result."""
        return self.add("Unsqueeze", name, self.constant(axes)) if axes else name


def _einsum(node: onnx.NodeProto, new: New) -> Spelled:
    """y = Einsum(a, b, equation="byhwc,hkc->byhwk")
      -->
    y = Transpose(MatMul(a as h b y w c, b as h 1 1 c k), to b y h w k)

    Indices that both operands and the result have are axes before the matrices, as are all but the last of those that
    only one operand has; those that only both operands have are summed as one. Of several operands two at a time are
    multiplied, from the left.

    Raises ValueError for an ellipsis, for an index twice in one operand, and for an equation that has no meaning.
    """
    equation = next((a.s.decode(errors="replace") for a in node.attribute if a.name == "equation"), "")
    terms, result = _read(equation, list(node.input))
    steps = _Steps(node, new)
    first, *others = terms
    for place, other in enumerate(others):
        later = result + "".join(term.indices for term in others[place + 1 :])
        first = _product(steps, first, other, later)
    last = steps.ordered(steps.summed(first, result), result)
    yield from steps.nodes
    yield onnx.helper.make_node("Identity", [last.name], [node.output[0]], name=node.name)


def _read(equation: str, names: list[str]) -> tuple[list[_Term], str]:
    """The operands with their indices, and the result's. Raises ValueError."""
    text = "".join(equation.split())
    if "." in text:
        raise ValueError(f"its equation '{equation}' has an ellipsis; write an index for each axis")
    left, arrow, result = text.partition("->")
    operands = left.split(",")
    counts = Counter(left.replace(",", ""))
    if not arrow:
        result = "".join(sorted(index for index, count in counts.items() if count == 1))
    letters = set(left.replace(",", "") + result)
    if len(operands) != len(names) or not all(letter.isalpha() for letter in letters) or not set(result) <= set(counts):
        raise ValueError(f"its equation '{equation}' does not fit its {len(names)} operands")
    for indices in (*operands, result):
        if len(set(indices)) < len(indices):
            raise ValueError(f"its equation '{equation}' has an index twice in '{indices}', which is not supported")
    return [_Term(*pair) for pair in zip(names, operands, strict=True)], result


def _product(steps: _Steps, a: _Term, b: _Term, later: str) -> _Term:
    """The product of two tensors, summed over the indices that only they have; `later` has the others."""
    a = steps.summed(a, b.indices + later)
    b = steps.summed(b, a.indices + later)
    both = [index for index in a.indices if index in b.indices]
    batch = "".join(index for index in both if index in later)
    terms = "".join(index for index in both if index not in later)
    rows, columns = ("".join(i for i in x.indices if i not in y.indices) for x, y in ((a, b), (b, a)))
    if not rows + columns + terms:
        return _Term(steps.add("Mul", a.name, steps.ordered(b, a.indices).name), a.indices)
    # Batch, all rows but the last, all columns but the last, the last row, the last column
    outer = batch + rows[:-1] + columns[:-1]
    left = _matrix(steps, a, batch, rows, terms, len(batch + rows[:-1]), len(columns[:-1]))
    right = _matrix(steps, b, batch, columns, terms, len(batch), len(rows[:-1]))
    turned = [*range(len(outer)), len(outer) + 1, len(outer)]
    name = steps.add("MatMul", left, steps.add("Transpose", right, perm=turned))
    ones = [len(outer) + place for place, own in enumerate((rows, columns)) if not own]
    name = steps.add("Squeeze", name, steps.constant(ones)) if ones else name
    return _Term(name, outer + rows[-1:] + columns[-1:])


def _matrix(steps: _Steps, term: _Term, batch: str, own: str, terms: str, at: int, ones: int) -> str:
    """The operand as batch, its own indices with `ones` axes of extent 1 at the place `at`, and one axis of terms."""
    name = steps.ordered(term, batch + own + terms).name
    if len(terms) > 1:
        name = steps.add("Reshape", name, steps.constant([0] * len(batch + own) + [-1]))
    axes = [at + one for one in range(ones)]
    outer = len(batch) + max(0, len(own) - 1) + ones
    axes += [] if own else [outer]
    axes += [] if terms else [outer + 1]
    return steps.unsqueezed(name, axes)


SPELLINGS: Mapping[tuple[str, str], Spell] = {("", "Einsum"): _einsum}

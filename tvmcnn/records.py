"""Records: measured configs, one JSON line a kernel, and the lookup that turns them into choices."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmcnn.configs import CONFIGS
from tvmcnn.errors import TvmcnnError
from tvmcnn.network import Kernel, Network, Node, dims
from tvmcnn.targets import Target

SCHEDULES = Path(__file__).parent / "schedules"  # in the wheel; a source checkout has it beside the package


@dataclass(frozen=True)
class Records:
    """Configs with their µs by (kernel in words, rule, target's name)."""

    configs: Mapping[tuple[str, str, str], tuple[Any, float]]

    def find(self, kernel: str, rule: str, target: Target) -> Any:
        """The config recorded for the kernel under the rule on this ISA, or None."""
        found = self.configs.get((kernel, rule, target.name))
        return None if found is None else found[0]

    def fastest(self, kernel: str, rules: Iterable[str], target: Target) -> str | None:
        """The rule of the fastest record of the kernel on this ISA, or None if there is none of these rules."""
        times = {rule: self.configs.get((kernel, rule, target.name), (None, math.inf))[1] for rule in rules}
        best = min(times, key=lambda rule: times[rule])
        return best if times[best] < math.inf else None


def schedules_folder() -> Path:
    """Where the shipped records lie: inside the installed package, or at the top of a source checkout."""
    return SCHEDULES if SCHEDULES.is_dir() else Path(__file__).parent.parent / "schedules"


def load_records(extra: Iterable[Path] = (), *, shipped: bool = True) -> Records:
    """The records of `extra` and, behind them, the shipped ones. Raises TvmcnnError for a line that is no record."""
    configs: dict[tuple[str, str, str], tuple[Any, float]] = {}
    for path in [*(sorted(schedules_folder().glob("*.jsonl")) if shipped else ()), *extra]:
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise TvmcnnError(f"cannot read the records {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise TvmcnnError(f"{path} is no file of records: it is not UTF-8 text") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                config = CONFIGS[record["rule"]](**record["config"])
                key = (record["kernel"], record["rule"], record["target"]["isa"])
                configs[key] = (config, float(record.get("time_us", 0.0)))
            except (ValueError, KeyError, TypeError) as error:
                raise TvmcnnError(f"{path}, line {number} is not a record of tvmcnn: {error!r}") from error
    return Records(configs)


def kernel_words(network: Network, kernel: Kernel) -> str:
    """What a kernel computes, in words that outlive a TVM release.

    conv 1x6x14x14 16x6x5x5 s1,1 p0,0,0,0 d1,1 g1 float32 +add +relu +maxpool2,2/2,2
    """
    words = [kernel.anchor.op.lower(), *(dims(tensor.shape) for tensor in kernel.inputs[:1])]
    weights = {name: network.constants[name].shape for name in kernel.constants}
    words += [dims(shape) for shape in list(weights.values())[:1]]
    words += _window_words(kernel.anchor)
    words.append("float32")
    words += [f"{node.op.lower()}+" for node in kernel.prologue]
    words += ["+bias"] if len(kernel.anchor.inputs) > 2 else []
    for node in kernel.nodes[1:]:
        words.append(f"+{node.op.lower()}" + "/".join(_window_words(node)))
    return " ".join(words)


def _window_words(node: Node) -> list[str]:
    letters = {"kernel_shape": "k", "strides": "s", "pads": "p", "dilations": "d"}
    found = [f"{letter}{','.join(map(str, node[name]))}" for name, letter in letters.items() if name in node.attributes]
    return found + ([f"g{node['group']}"] if "group" in node.attributes else [])

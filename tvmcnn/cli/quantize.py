"""The command that quantises a network."""

from __future__ import annotations

import argparse

from tvmcnn.cli.options import one_size
from tvmcnn.cli.output import print_json, reporter
from tvmcnn.progress import bar


def do_quantize(options: argparse.Namespace) -> int:
    """A float32 model becomes one of 8-bit integers, and what that costs is shown."""
    import tvmcnn

    say = reporter(options)
    with bar() as progress:
        result = tvmcnn.quantize(
            options.model,
            options.data,
            options.output,
            one_size(options),
            labels=options.labels,
            calibrate=options.calibrate,
            evaluate=options.evaluate,
            method=options.method,
            activations=options.activations,
            per_channel=not options.per_tensor,
            keep=options.keep,
            mean=options.mean,
            std=options.std,
            bgr=options.bgr,
            report=say,
            progress=progress,
            external_data=options.external_data,
        )
    if options.json:
        print_json(result.as_json())
        return 0
    for line in str(result).splitlines():
        say(line)
    say(f"wrote {result.path}")
    return 0

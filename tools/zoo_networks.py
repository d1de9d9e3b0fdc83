"""Today's networks as ONNX files: timm's families and torchvision's, with weights that PyTorch draws from its seed.

Needs tvmcnn[zoo].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPSET = 18  # of TorchScript's exporter; dynamo's chooses its own
EXPORTERS = ("torchscript", "dynamo")
# The smallest network of each module of timm 1.0, by its number of parameters
_TIMM = """
beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240
cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c
dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0
ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050
gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception levit_128s
lowformer_b0 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap
nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m
rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100 sam2_hiera_tiny
samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext
test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_dinov3_qkvb
vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224
"""
VIDEO_SHAPE = (1, 3, 16, 112, 112)  # frames of r3d_18's paper; the transformers fix theirs
TORCHVISION_SHAPES = {
    "inception_v3": (1, 3, 299, 299),
    "mvit_v1_b": (1, 3, 16, 224, 224),
    "mvit_v2_s": (1, 3, 16, 224, 224),
}
IMAGE_SHAPE = (1, 3, 224, 224)


@dataclass(frozen=True)
class Entry:
    """A network: where it comes from, its name there, and what writes its file."""

    source: str  # "timm" or "torchvision"
    name: str
    exporter: str  # one of EXPORTERS

    def __str__(self) -> str:
        return f"{self.source}:{self.name}:{self.exporter}"

    @property
    def file(self) -> str:
        """The name of its ONNX file."""
        return f"{self.source}-{self.name}-{self.exporter}.onnx"


def entries(exporters: tuple[str, ...]) -> Iterator[Entry]:
    """All, in the order of the table."""
    for exporter in exporters:
        yield from (Entry("timm", name, exporter) for name in _TIMM.split())
        yield from (Entry("torchvision", name, exporter) for name in _torchvision())


def _torchvision() -> list[str]:
    """Classification, segmentation and video; quantised networks are others' task."""
    import torchvision.models as models

    modules = (models, models.segmentation, models.video)
    return [name for module in modules for name in models.list_models(module=module)]


def export(entry: Entry, path: Path) -> None:
    """Write the ONNX file of a network at `path`; its weights may lie beside it.

    Raises whatever PyTorch's exporter raises.
    """
    import torch

    torch.manual_seed(0)
    model, shape = _model(entry)
    x = torch.randn(shape)
    model = model.eval()
    names: dict[str, Any] = {"input_names": ["x"]}
    with torch.no_grad():
        if entry.exporter == "dynamo":
            torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False, **names)
        else:
            torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=OPSET, **names)


def _model(entry: Entry) -> tuple[Any, tuple[int, ...]]:
    """The PyTorch module of an entry, and the shape of its input."""
    if entry.source == "timm":
        import timm

        model = timm.create_model(entry.name, pretrained=False, exportable=True)
        return model, (1, *model.default_cfg["input_size"])
    import torchvision.models as models

    model = models.get_model(entry.name, weights=None, **_untrained(entry.name))
    video = entry.name in models.list_models(module=models.video)
    return model, TORCHVISION_SHAPES.get(entry.name, VIDEO_SHAPE if video else IMAGE_SHAPE)


def _untrained(name: str) -> dict[str, Any]:
    """What keeps a network from downloading the weights of its backbone, or from drawing them for minutes."""
    import torchvision.models as models

    if name in models.list_models(module=models.segmentation):
        return {"weights_backbone": None}
    return {"init_weights": False} if name in ("inception_v3", "googlenet") else {}


def written(entry: Entry, path: Path) -> str:
    """Export a network; why that failed, in one sentence, or nothing."""
    try:
        export(entry, path)
    except Exception as error:  # whatever PyTorch raises
        path.unlink(missing_ok=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""

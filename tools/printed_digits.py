"""Rendering of machine-printed digits from the fonts installed on the system."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from tvmcnn.digits import IMAGE_SIDE, Digits
from tvmcnn.errors import ToolError

# Families by name, with the Debian package that provides each.
# Held out for the test: three sans, three serif and two monospaced families.
HELD_OUT = {
    "DejaVu Sans": "fonts-dejavu-core",
    "Liberation Sans": "fonts-liberation",
    "Open Sans": "fonts-open-sans",
    "C059": "fonts-urw-base35",
    "Liberation Serif": "fonts-liberation",
    "PT Serif": "fonts-paratype",
    "Fira Code": "fonts-firacode",
    "Liberation Mono": "fonts-liberation",
}
# Families used only to choose among the epochs of a training run.
VALIDATION = {
    "Agave": "fonts-agave",
    "Cabin": "fonts-cabin",
    "Caladea": "fonts-crosextra-caladea",
    "Manrope": "fonts-manrope",
}
# The training families are listed, and not "all the others", so that no look-alike of a held-out family gets in.
# Left out by name, as redrawings of one design or as relatives of the held-out family:
#   DejaVu Sans       Bitstream Vera, the other DejaVu families, Hack
#   Liberation Sans   Arial, Arimo, FreeSans, Nimbus Sans, TeX Gyre Heros, and their narrow forms
#   Open Sans         Droid Sans, Noto Sans, Noto Mono, Noto Sans Mono
#   C059              Century Schoolbook L, TeX Gyre Schola
#   Liberation Serif  Times New Roman, Tinos, FreeSerif, Nimbus Roman, TeX Gyre Termes, STIX
#   PT Serif          PT Serif Caption, PT Astra Serif
#   Fira Code         Fira Mono, Fira Sans
#   Liberation Mono   Cousine
TRAINING = {
    "Allerta": "fonts-allerta",
    "Andika": "fonts-sil-andika",
    "B612": "fonts-b612",
    "Bebas Neue": "fonts-bebas-neue",
    "CMU Sans Serif": "fonts-cmu",
    "Carlito": "fonts-crosextra-carlito",
    "Comfortaa": "fonts-comfortaa",
    "Dosis": "fonts-dosis",
    "GFS Neohellenic": "fonts-gfs-neohellenic",
    "Gillius ADF": "fonts-adf-gillius",
    "Go": "fonts-go",
    "Inter": "fonts-inter",
    "Jura": "fonts-jura",
    "Karla": "fonts-karla",
    "Lato": "fonts-lato",
    "League Spartan": "fonts-league-spartan",
    "Linux Biolinum O": "fonts-linuxlibertine",
    "National Park": "fonts-national-park",
    "OSP-DIN": "fonts-opendin",
    "Oxygen-Sans": "fonts-oxygen",
    "PT Sans": "fonts-paratype",
    "Play": "fonts-play",
    "Quicksand": "fonts-quicksand",
    "Roboto": "fonts-roboto-unhinted",
    "Sora": "fonts-sora",
    "Tuffy": "fonts-tuffy",
    "URW Gothic": "fonts-urw-base35",
    "Universalis ADF Std": "fonts-adf-universalis",
    "Arapey": "fonts-arapey",
    "CMU Serif": "fonts-cmu",
    "Charis SIL": "fonts-sil-charis",
    "GFS Artemisia": "fonts-gfs-artemisia",
    "GFS Didot": "fonts-gfs-didot",
    "Gentium Plus": "fonts-sil-gentiumplus",
    "Linux Libertine O": "fonts-linuxlibertine",
    "Noto Serif": "fonts-noto-core",
    "Old Standard TT": "fonts-oldstandard",
    "P052": "fonts-urw-base35",
    "Quattrocento": "fonts-quattrocento",
    "Roboto Slab": "fonts-roboto-slab",
    "URW Bookman": "fonts-urw-base35",
    "Yrsa": "fonts-yrsa-rasa",
    "Anonymous Pro": "fonts-anonymous-pro",
    "B612 Mono": "fonts-b612",
    "CMU Typewriter Text": "fonts-cmu",
    "Courier Prime": "fonts-courier-prime",
    "Fantasque Sans Mono": "fonts-fantasque-sans",
    "FreeMono": "fonts-freefont-ttf",
    "Go Mono": "fonts-go",
    "Hermit": "fonts-hermit",
    "Inconsolata": "fonts-inconsolata",
    "JetBrains Mono": "fonts-jetbrains-mono",
    "Monoid": "fonts-monoid",
    "Nimbus Mono PS": "fonts-urw-base35",
    "OCR B": "fonts-ocr-b",
    "OCRA": "fonts-ocr-a",
    "Oxygen Mono": "fonts-oxygen",
    "PT Mono": "fonts-paratype",
    "mononoki": "fonts-mononoki",
}
MIN_TRAINING_FAMILIES = 20

# Display styles that text is not set in; at the sizes below their strokes or counters vanish.
DISPLAY_STYLES = ("thin", "hairline", "extra", "black", "heavy", "cond", "outline", "stencil", "invert", "sharp")

# Ranges of the renderings, drawn evenly. MNIST digits are 20 pixels high, centred, upright to about 15 degrees.
SIZES = (14.0, 24.0)  # pixels of height: below 14 the counters close, above 24 a turned digit leaves the image
ANGLES = (-12.0, 12.0)  # degrees: a page held or scanned askew; beyond it a 7 starts to look like a 1
SHIFTS = (-2.0, 2.0)  # pixels: what a cropping box misses by
STRETCHES = (0.85, 1.15)  # width over the font's own: between narrow and wide faces
LEVELS = (140, 255)  # grey level of the ink: a poorly lit page is not stretched to full contrast
BLURS = (0.0, 0.7)  # pixels, standard deviation: the lens or the scanner

_SUPERSAMPLING = 4  # renderings are drawn this many times larger, then averaged, for even antialiasing
_MASTER_SIZE = 160  # pixels: font size of the glyphs that the renderings are scaled from
_UNASSIGNED = "\U0010fffe"  # a noncharacter: every font shows its .notdef glyph for it
# Connected parts minus enclosed holes. 0 is left out (it may be dotted or slashed), and 4 may be open or closed.
_EULER = {1: (1,), 2: (1,), 3: (1,), 4: (0, 1), 5: (1,), 6: (0,), 7: (1,), 8: (-1,), 9: (0,)}
# Heights of lining figures agree up to the overshoot of round ones. Text figures do not, and without neighbours
# on a common baseline a text figure 1 or 0 cannot be told from the letters I and o.
_MIN_HEIGHT_RATIO = 0.88
# Correlation of all ten digits above which a family counts as a look-alike of a held-out one, whatever its name.
# Noto Sans, which shares its drawings with Open Sans, has 0.998; plain grotesques of separate origin reach 0.91.
_LOOK_ALIKE = 0.92


@dataclass(frozen=True)
class Face:
    """One font file: its family and style names and its path."""

    family: str
    style: str
    path: Path


@dataclass(frozen=True)
class FontSet:
    """The usable faces of the training, validation and held-out families."""

    training: tuple[Face, ...]
    validation: tuple[Face, ...]
    held_out: tuple[Face, ...]


def families(faces: Iterable[Face]) -> list[str]:
    """Return the family names of `faces`, sorted, each once."""
    return sorted({face.family for face in faces})


@functools.cache
def _glyphs(path: Path) -> tuple[Image.Image, ...]:
    """Return the ten digits of a font at the master size, each cropped to its ink."""
    font = ImageFont.truetype(path, _MASTER_SIZE)
    return tuple(_draw(font, str(digit)) for digit in range(10))


def _draw(font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    """Return `text` in white on black, cropped to its ink, or an image of no pixels when there is no ink."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    image = Image.new("L", (max(right - left, 0) + 2, max(bottom - top, 0) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=255, font=font)
    return image.crop(image.getbbox() or (0, 0, 0, 0))


def euler_number(ink: NDArray[np.bool_]) -> int:
    """Return the number of connected parts minus the number of holes of `ink`, of shape (height, width).

    It is counted over the windows of 2x2 pixels with one, with three and with two diagonal ones of ink; pixels of
    ink that touch at a corner are joined.
    """
    ink = np.pad(ink, 1).astype(np.int64)
    a, b, c, d = ink[:-1, :-1], ink[:-1, 1:], ink[1:, :-1], ink[1:, 1:]
    total = a + b + c + d
    diagonal = (total == 2) & (a == d)
    return (int((total == 1).sum()) - int((total == 3).sum()) - 2 * int(diagonal.sum())) // 4


def has_plain_digits(path: Path) -> bool:
    """Return whether a font file has ten ordinary lining figures.

    It has not when a digit is missing (blank or the .notdef glyph), when two look the same, when the strokes do
    not enclose as many holes as the figure has (symbols, outlines, stencils) or when heights differ (text figures).
    """
    glyphs = _glyphs(path)
    if any(0 in glyph.size for glyph in glyphs):
        return False
    pixels = [glyph.tobytes() for glyph in glyphs]
    notdef = _draw(ImageFont.truetype(path, _MASTER_SIZE), _UNASSIGNED).tobytes()
    if len(set(pixels)) < 10 or notdef in pixels:
        return False
    heights = [glyph.height for glyph in glyphs]
    if min(heights) < _MIN_HEIGHT_RATIO * max(heights):
        return False
    return all(euler_number(_smoothed(glyphs[digit]) > 127) in allowed for digit, allowed in _EULER.items())


def _smoothed(glyph: Image.Image) -> NDArray[np.uint8]:
    """Return a glyph blurred by a third of a thin stroke: on slanted edges, notches of one pixel count as holes."""
    return np.asarray(ImageOps.expand(glyph, 8).filter(ImageFilter.GaussianBlur(2.0)))


def resemblance(face: Face, other: Face) -> float:
    """Return the mean correlation of two faces' ten digits, each stretched to one size: 1 for the same drawings."""
    return float((_unit_vectors(face.path) * _unit_vectors(other.path)).sum(axis=1).mean())


@functools.cache
def _unit_vectors(path: Path) -> NDArray[np.float64]:
    """Return the ten digits of a font as rows of mean 0 and length 1, of shape (10, 768)."""
    digits = np.stack([np.asarray(glyph.resize((24, 32)), np.float64).ravel() for glyph in _glyphs(path)])
    digits -= digits.mean(axis=1, keepdims=True)
    return np.asarray(digits / np.linalg.norm(digits, axis=1, keepdims=True))


def find_fonts(folders: Sequence[Path]) -> FontSet:
    """Return the usable faces of the listed families under `folders`; raise ToolError where too few are found."""
    for folder in folders:
        if not folder.is_dir():
            raise ToolError(f"the font folder {folder} does not exist")
    listed = {**TRAINING, **VALIDATION, **HELD_OUT}
    faces: dict[tuple[str, str], Face] = {}
    # Sorted, so that the same fonts give the same renderings whatever the order of the folder's entries.
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix.lower() not in (".ttf", ".otf"):
            continue
        try:
            family, style = ImageFont.truetype(path, 16).getname()
        except OSError:
            continue  # a bitmap-only or damaged font, of no use here
        if family not in listed or style is None or any(word in style.lower() for word in DISPLAY_STYLES):
            continue
        if (family, style) not in faces and has_plain_digits(path):
            faces[family, style] = Face(family, style, path)
    found = faces.values()
    tested = tuple(face for face in found if face.family in HELD_OUT)
    alike = {
        face.family
        for face in found
        if face.family not in HELD_OUT and any(resemblance(face, other) > _LOOK_ALIKE for other in tested)
    }
    learnt = tuple(face for face in found if face.family in TRAINING and face.family not in alike)
    chosen = tuple(face for face in found if face.family in VALIDATION and face.family not in alike)
    fonts = FontSet(learnt, chosen, tested)
    training, validation, held_out = families(learnt), families(chosen), families(tested)
    if len(training) < MIN_TRAINING_FAMILIES or len(validation) < len(VALIDATION) or len(held_out) < len(HELD_OUT):
        packages = sorted({listed[family] for family in set(listed) - set(training + validation + held_out)})
        raise ToolError(
            f"too few font families: found {len(training)} for training ({_listing(training)}) where "
            f"{MIN_TRAINING_FAMILIES} are needed, {len(validation)} for validation ({_listing(validation)}) where "
            f"{_listing(VALIDATION)} are needed, and {len(held_out)} held out ({_listing(held_out)}) where "
            f"{_listing(HELD_OUT)} are needed; the Debian packages {_listing(packages)} provide the missing ones"
        )
    return fonts


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def render_digit(
    digit: int,
    font_path: Path,
    size: float,
    *,
    angle: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    stretch: float = 1.0,
    level: int = 255,
    blur: float = 0.0,
) -> NDArray[np.uint8]:
    """Return a printed digit as a (32, 32) array of grey levels, 0 for the background and up to `level` for ink.

    `size` is the height of the font's tallest digit in pixels, `angle` a turn in degrees anticlockwise, `shift` the
    way of the digit's centre to the right and down in pixels, `stretch` a factor on its width, and `blur` the
    standard deviation of a Gaussian blur in pixels.
    """
    glyphs = _glyphs(font_path)
    glyph = glyphs[digit]
    scale = size * _SUPERSAMPLING / max(other.height for other in glyphs)
    width, height = max(1, round(glyph.width * scale * stretch)), max(1, round(glyph.height * scale))
    side = IMAGE_SIDE * _SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    corner = ((side - width) // 2, (side - height) // 2)
    canvas.paste(glyph.resize((width, height), Image.Resampling.LANCZOS), corner)
    move = (round(shift[0] * _SUPERSAMPLING), round(shift[1] * _SUPERSAMPLING))
    canvas = canvas.rotate(angle, Image.Resampling.BICUBIC, translate=move)
    if blur > 0.0:
        canvas = canvas.filter(ImageFilter.GaussianBlur(blur * _SUPERSAMPLING))
    pixels = np.asarray(canvas.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BOX), np.float64)
    return np.rint(pixels * (level / 255.0)).astype(np.uint8)


def render_set(faces: Sequence[Face], per_family: int, rng: np.random.Generator) -> Digits:
    """Return `per_family` random renderings of each family.

    Every family has the same number of images, however many faces it has, and every face every digit in turn.
    """
    images, labels = [], []
    for family in families(faces):
        styles = [face for face in faces if face.family == family]
        for index in range(per_family):
            image = render_digit(
                index % 10,
                styles[index // 10 % len(styles)].path,
                rng.uniform(*SIZES),
                angle=rng.uniform(*ANGLES),
                shift=(rng.uniform(*SHIFTS), rng.uniform(*SHIFTS)),
                stretch=rng.uniform(*STRETCHES),
                level=int(rng.integers(LEVELS[0], LEVELS[1], endpoint=True)),
                blur=rng.uniform(*BLURS),
            )
            images.append(image)
            labels.append(index % 10)
    return Digits(np.stack(images), np.array(labels, np.int64))

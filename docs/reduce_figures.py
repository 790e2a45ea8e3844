# SPDX-License-Identifier: Apache-2.0
"""Small copies for the gallery of the figures that examples saved (`make figures`)."""

from pathlib import Path

from PIL import Image

SIZE, COLOURS = (720, 340), 256
ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"

FIGURES.mkdir(exist_ok=True)
for file in sorted((ROOT / "examples" / "output").glob("*.png")):
    image = Image.open(file).convert("RGB")
    image.thumbnail(SIZE, Image.Resampling.LANCZOS)
    # The default method mixes the colours of thin lines with their neighbours.
    few = image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    copy = FIGURES / file.name
    few.save(copy, optimize=True)
    print(f"{copy.relative_to(ROOT)}: {copy.stat().st_size / 1000:.0f} kB")

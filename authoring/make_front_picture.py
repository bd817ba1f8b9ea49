"""Make ``authoring/front.gif``, the README's picture: lesson 00's registration, in motion.

    python -m authoring.make_front_picture

Run by hand when the registration or the picture changes, never in CI.
"""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from authoring.layout import write_atomically
from course_lib.classical.affine import pose_matrix, register_affine
from course_lib.datasets import Pair, brains
from course_lib.metrics import dice
from course_lib.optimise import refine
from course_lib.plotting import draw_grid, overlay
from course_lib.spatial import affine_displacement, compose, warp

PICTURE = Path(__file__).with_name("front.gif")
COLORS = 64
DPI = 80
MOVE, HOLD = 90, 1300  # milliseconds a frame is shown, in motion and at a halt
STEPS = 8  # frames of each motion


class Frame(NamedTuple):
    """One picture of the film: a displacement, what is being done, and for how long it shows."""

    displacement: Tensor
    caption: str
    milliseconds: int


def registered(pair: Pair) -> tuple[Tensor, Tensor]:
    """The affine displacement of lesson 00, and the bending that comes after it."""
    shape = pair.fixed.shape[2:]
    affine = affine_displacement(register_affine(pair.moving, pair.fixed), shape)
    aligned = warp(pair.moving, affine)
    return affine, refine(aligned, pair.fixed, smoothness=0, weight=2.5, progress=True)


def film(affine: Tensor, bend: Tensor) -> list[Frame]:
    """From nothing to the affine map, from there to the deformable one, a halt at each."""
    nothing = torch.zeros_like(affine)
    fractions = [(1 - np.cos(np.pi * step / STEPS)) / 2 for step in range(1, STEPS)]  # ease in, out
    bent = [compose(affine, float(fraction) * bend) for fraction in [*fractions, 1.0]]
    return [
        Frame(nothing, "before registration", HOLD),
        *(Frame(float(fraction) * affine, "affine …", MOVE) for fraction in fractions),
        Frame(affine, "affine: six numbers", HOLD),
        *(Frame(displacement, "deformable …", MOVE) for displacement in bent[:-1]),
        Frame(bent[-1], "deformable: an arrow for each of 43,008 voxels", 2 * HOLD),
    ]


def drawn(frame: Frame, pair: Pair) -> Image.Image:
    """The frame as three panels: the warped head, both heads in two colors, the grid."""
    figure = Figure(figsize=(8.6, 3.9))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1, top=0.92, wspace=0.04)
    left, middle, right = figure.subplots(1, 3)
    warped = warp(pair.moving, frame.displacement)
    left.imshow(warped[0, 0], cmap="gray", vmin=0, vmax=1)
    left.set_title("a person's brain, warped")
    middle.imshow(overlay(warped, pair.fixed))
    middle.set_title("on the template (magenta)")
    right.imshow(pair.moving[0, 0], cmap="gray", vmin=0, vmax=2)
    draw_grid(right, frame.displacement, step=12)
    right.set_title("where each voxel is fetched from")
    for ax in (left, middle, right):
        ax.set_axis_off()
    assert pair.moving_labels is not None and pair.fixed_labels is not None
    moved = warp(pair.moving_labels, frame.displacement, mode="nearest")
    overlap = dice(moved, pair.fixed_labels, values=[3]).item()
    caption = f"{frame.caption}   ·   overlap of white matter (Dice) {overlap:.2f}"
    figure.text(0.5, 0.035, caption, ha="center", fontsize=12)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return Image.open(buffer).convert("RGB")


def main() -> None:
    """Write the picture."""
    pair = brains.real_pair(pose=pose_matrix(degrees=14, scale=1.12, shift=(9, -7)))
    frames = film(*registered(pair))
    pages = [drawn(frame, pair) for frame in tqdm(frames, desc="frames")]
    # One palette for all frames, or colors would flicker.
    sheet = Image.new("RGB", (pages[0].width, sum(page.height for page in pages)))
    for number, page in enumerate(pages):
        sheet.paste(page, (0, number * page.height))
    palette = sheet.quantize(COLORS, kmeans=1)
    first, *rest = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages)
    buffer = BytesIO()
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=[frame.milliseconds for frame in frames],
        loop=0,
        optimize=True,
    )
    write_atomically(PICTURE, buffer.getvalue())
    print(f"{PICTURE}: {len(frames)} frames, {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

"""Pictures fast enough to follow a slider: a row of panels on a page, written as PNG.

A page holds one byte per pixel, an index into one palette: gray levels, then a diverging color map,
then two loud colors. That writes a PNG about five times as fast as red, green and blue would, and a
drag is smooth only if a picture takes a few milliseconds. Two indices of one ramp may be
interpolated, and the colors come out right; nothing is ever interpolated across ramps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

GRAYS, STEPS = 128, 121  # sizes of the ramps; an odd number of steps, so that one is the middle
BLACK, WHITE = 0, GRAYS - 1
FOLD, OUTLINE = GRAYS + STEPS, GRAYS + STEPS + 1  # indices of the loud colors

FOLD_RGB = (255, 0, 200)  # magenta: in no gray, nor anywhere near the blue and red of the map
OUTLINE_RGB = (255, 176, 0)  # amber: told from gray and from magenta with any color vision

_FONT_PX = 13
_LEFT, _TOP, _GAP, _BAR, _LINE, _LEAST = 40, 26, 16, 14, 22, 480  # pixels


@lru_cache(maxsize=1)
def _palette() -> bytes:
    """Red, green and blue of every index: the grays, the diverging map, the loud colors."""
    gray = np.linspace(0, 255, GRAYS).round()[:, None].repeat(3, axis=1)
    colors = matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, STEPS))[:, :3] * 255
    table = np.concatenate([gray, colors.round(), [FOLD_RGB, OUTLINE_RGB]])
    return table.astype(np.uint8).tobytes()


@lru_cache(maxsize=4)
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font: the same letters on every machine, → and ≥ among them."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), _FONT_PX)


@dataclass(frozen=True, eq=False)
class Page:
    """A row of panels for images of one shape, with titles, axes, a color bar and lines of text.

    Attributes:
        shape: ``(H, W)`` of the images, in voxels.
        titles: one for each panel.
        bar: ``(label, height)`` of the numbers on the color bar, which belongs to the last panel;
            heights from 0 (bottom) to 1 (top).
        lines: how many lines of text stand below the panels.
        room: largest ``(height, width)`` of a panel, in pixels; images are scaled to fit.
    """

    shape: tuple[int, int]
    titles: Sequence[str]
    bar: Sequence[tuple[str, float]]
    lines: int
    room: tuple[int, int] = (308, 264)

    @property
    def panel(self) -> tuple[int, int]:
        """Height and width of a panel, in pixels."""
        scale = min(room / n for room, n in zip(self.room, self.shape, strict=True))
        height, width = (max(1, round(scale * n)) for n in self.shape)
        return height, width

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Left and top of each panel, in pixels."""
        column = max([self.panel[1], *(self._width(title) for title in self.titles)]) + _GAP
        return [(_LEFT + column * k, _TOP) for k in range(len(self.titles))]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the page, in pixels."""
        numbers = max(self._width(label) for label, _ in self.bar) + 8
        width = self.corners[-1][0] + self.panel[1] + _GAP + _BAR + numbers
        return max(width, _LEAST), _TOP + self.panel[0] + _LINE * (1 + self.lines)

    def draw(
        self, panels: Sequence[Image.Image], lines: Sequence[str], alarm: bool = False
    ) -> Image.Image:
        """The page with these panels and lines; ``alarm`` marks the last line with a loud color."""
        page = self._frame.copy()
        for panel, corner in zip(panels, self.corners, strict=True):
            page.paste(panel, corner)
        pen = ImageDraw.Draw(page)
        for k, line in enumerate(lines):
            top = _TOP + self.panel[0] + _LINE * (k + 1)
            loud = alarm and k == len(lines) - 1
            if loud:
                pen.rectangle((_LEFT, top + 3, _LEFT + 26, top + 17), fill=FOLD)
            left = _LEFT + 34 * loud
            pen.text((left, top + 3), line, fill=BLACK, font=_font(bold=loud))
        return page

    @staticmethod
    def _width(text: str) -> int:
        """How wide ``text`` is in bold, in pixels."""
        return round(_font(bold=True).getlength(text))

    @cached_property
    def _frame(self) -> Image.Image:
        """Everything that does not change: titles, axes, color bar."""
        page = Image.new("L", self.size, WHITE)
        pen = ImageDraw.Draw(page)
        height, width = self.panel
        for title, (left, top) in zip(self.titles, self.corners, strict=True):
            pen.text((left, top - 21), title, fill=BLACK, font=_font(bold=True))
            pen.rectangle((left - 1, top - 1, left + width, top + height), outline=GRAYS // 2)
        self._axes(pen)
        left = self.corners[-1][0] + width + _GAP
        ramp = np.linspace(FOLD - 1, GRAYS, height).round().astype(np.uint8)
        page.paste(Image.fromarray(ramp[:, None].repeat(_BAR, axis=1)), (left, _TOP))
        pen.rectangle((left - 1, _TOP - 1, left + _BAR, _TOP + height), outline=GRAYS // 2)
        for label, at in self.bar:
            y = _TOP + (height - 1) * (1 - at)
            pen.text((left + _BAR + 5, y), label, fill=BLACK, font=_font(), anchor="lm")
        return page

    def _axes(self, pen: ImageDraw.ImageDraw) -> None:
        """Array axes of the first panel: ``i`` runs down, ``j`` to the right."""
        height, width = self.panel
        left, bottom = _LEFT - 6, _TOP + height - 1
        for text, y, anchor in (("0", _TOP, "ra"), (str(self.shape[0] - 1), bottom, "rs")):
            pen.text((left, y), text, fill=BLACK, font=_font(), anchor=anchor)
        pen.text((left, _TOP + height // 2), "i ↓", fill=BLACK, font=_font(), anchor="rm")
        end = str(self.shape[1] - 1)
        for text, x, anchor in (("0", 0, "la"), ("j →", width // 2, "ma"), (end, width, "ra")):
            pen.text((_LEFT + x, bottom + 4), text, fill=BLACK, font=_font(), anchor=anchor)


def gray(values: Tensor, low: float, high: float, panel: tuple[int, int]) -> Image.Image:
    """``values`` (H, W) as a gray panel: ``low`` is black, ``high`` is white."""
    return _ramp(values, low, high, 0, GRAYS, panel)


def diverging(values: Tensor, low: float, high: float, panel: tuple[int, int]) -> Image.Image:
    """``values`` (H, W) as a panel from blue (``low``) over white (the middle) to red."""
    return _ramp(values, low, high, GRAYS, STEPS, panel)


def _ramp(
    values: Tensor, low: float, high: float, first: int, count: int, panel: tuple[int, int]
) -> Image.Image:
    """``values`` (H, W) as indices of one ramp, then scaled to the size of the panel."""
    fraction = ((values - low) / (high - low)).clamp(0, 1)
    index = (fraction * (count - 1)).round().to(torch.uint8) + first
    return Image.fromarray(index.numpy()).resize(panel[::-1], Image.Resampling.BILINEAR)


def paint(panel: Image.Image, mask: Tensor, color: int) -> None:
    """Color in place what ``mask`` (H, W) selects: every such voxel is seen, at any scale."""
    seen = F.adaptive_max_pool2d(mask[None].float(), panel.size[::-1])[0]
    panel.paste(color, mask=Image.fromarray(seen.mul(255).byte().numpy()))


def paint_outlines(panel: Image.Image, labels: Tensor, color: int) -> None:
    """Draw in place, one pixel wide, where ``labels`` (H, W) change."""
    rows, columns = (
        (torch.arange(pixels) * n) // pixels
        for pixels, n in zip(panel.size[::-1], labels.shape, strict=True)
    )
    large = labels[rows][:, columns]
    change = torch.zeros(large.shape, dtype=torch.bool)
    change[:-1] |= large[:-1] != large[1:]
    change[:, :-1] |= large[:, :-1] != large[:, 1:]
    panel.paste(color, mask=Image.fromarray(change.byte().mul(255).numpy()))


def paint_path(panel: Image.Image, points: Tensor, shape: tuple[int, int], color: int) -> None:
    """Draw in place a line through ``points`` (N, 2), in voxels of ``shape``, a dot at each."""
    scale = torch.tensor(panel.size[::-1]) / torch.tensor(shape)
    # Pixel centers: voxel 0 covers the pixels from 0 to scale.
    places = [(x, y) for y, x in ((points + 0.5) * scale).tolist()]  # PIL wants x, y
    pen = ImageDraw.Draw(panel)
    pen.line(places, fill=color, width=1)
    for x, y in places:
        pen.rectangle((x - 1, y - 1, x + 1, y + 1), fill=color)


def curve(
    values: Sequence[float], span: int, high: float, panel: tuple[int, int], xlabel: str
) -> Image.Image:
    """``values`` as a line over their index, 0 to ``span``; 0 is at the bottom, ``high`` on top.

    Values outside are drawn on the edge.
    """
    height, width = panel
    paper = Image.new("L", (width, height), WHITE)
    pen = ImageDraw.Draw(paper)
    left, top, right, bottom = 32, 10, width - 8, height - 22
    pen.line((left, top, left, bottom, right, bottom), fill=GRAYS // 2)
    middle = (left + right) // 2
    for text, place, anchor in (
        (f"{high:g}", (left - 4, top), "rm"),
        ("0", (left - 4, bottom), "rm"),
        ("0", (left, bottom + 3), "la"),
        (f"{xlabel} →", (middle, bottom + 3), "ma"),
        (str(span), (right, bottom + 3), "ra"),
    ):
        pen.text(place, text, fill=BLACK, font=_font(), anchor=anchor)
    places = [
        (left + (right - left) * n / span, bottom - (bottom - top) * min(max(value / high, 0), 1))
        for n, value in enumerate(values)
    ]
    pen.line(places, fill=BLACK, width=2)
    end_x, end_y = places[-1]
    pen.ellipse((end_x - 3, end_y - 3, end_x + 3, end_y + 3), fill=BLACK)
    return paper


def grid_lines(points: Tensor, folded: Tensor, panel: tuple[int, int]) -> Image.Image:
    """Twenty grid lines or so where they end up, and the folded voxels where they end up.

    Args:
        points: ``(2, H, W)``: where each voxel goes, in voxels.
        folded: ``(H, W)`` bool.
        panel: height and width, in pixels.
    """
    shape = points.shape[1:]
    scale = torch.tensor(panel) / torch.tensor(shape)
    # Pixel centers: voxel 0 covers the pixels from 0 to scale.
    pixels = (points + 0.5) * scale.view(2, 1, 1)
    paper = Image.new("L", (2 * panel[1], 2 * panel[0]), WHITE)  # twice as fine, then averaged
    pen = ImageDraw.Draw(paper)
    lines = pixels.flip(0).mul(2).permute(1, 2, 0).numpy()  # (H, W, 2), as PIL wants it: x, y
    step = max(1, max(shape) // 20)
    # A hundred points make a smooth line, and drawing them is what takes most of the time.
    rows, columns = (np.linspace(0, n - 1, min(n, 100)).round().astype(int) for n in shape)
    for i in range(step // 2, shape[0], step):
        pen.line(lines[i, columns].ravel().tolist(), fill=BLACK, width=2)
    for j in range(step // 2, shape[1], step):
        pen.line(lines[rows, j].ravel().tolist(), fill=BLACK, width=2)
    drawn = np.array(paper.reduce(2))
    _splat(drawn, pixels[:, folded].numpy(), max(1, round(float(scale.max()))))
    return Image.fromarray(drawn)


def _splat(drawn: np.ndarray, pixels: np.ndarray, side: int) -> None:
    """Fill in place the square around each of the ``pixels`` (2, N)."""
    for down in range(side):
        for right in range(side):
            i = np.floor(pixels[0] + down - side / 2 + 0.5).astype(int)
            j = np.floor(pixels[1] + right - side / 2 + 0.5).astype(int)
            inside = (i >= 0) & (i < drawn.shape[0]) & (j >= 0) & (j < drawn.shape[1])
            drawn[i[inside], j[inside]] = FOLD


def write(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    anchor: str = "la",
    color: int = BLACK,
    bold: bool = False,
) -> None:
    """Write on a page or a panel, in the font of all pages; ``anchor`` as Pillow names them."""
    pen.text(place, text, fill=color, font=_font(bold=bold), anchor=anchor)


def stack(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages of one width, one below the other."""
    strip = Image.new("L", (pages[0].width, sum(page.height for page in pages)), WHITE)
    top = 0
    for page in pages:
        strip.paste(page, (0, top))
        top += page.height
    return strip


def png(page: Image.Image, *, small: bool = False) -> bytes:
    """``page`` as PNG; ``small`` takes longer over fewer bytes."""
    # "L" until here, not "P": text on a "P" image would have jagged edges.
    colored = page.copy()
    colored.putpalette(_palette())
    buffer = BytesIO()
    colored.save(buffer, "PNG", optimize=small, compress_level=9 if small else 1)
    return buffer.getvalue()

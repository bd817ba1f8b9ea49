"""Drive the course in JupyterLab, in a real browser, as a learner's hands would.

The browser test and `benchmarks/slider_latency.py` share this. It needs the ``dev`` extra and
Debian's ``chromium``; nothing is downloaded.
"""

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as TimedOut

from authoring.lab import ROOT

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
STARTING_TIMEOUT = 90.0  # seconds; a cold disk and a busy machine included
RUNNING_TIMEOUT = 300.0
WIDGET_TIMEOUT = 15.0
PICTURE_TIMEOUT = 30.0

# JupyterLab's objects say what its page shows only in part: cells out of sight are not on the page.
KERNEL_IS_IDLE = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.sessionContext?.session?.kernel?.status === "idle";
}"""
RUN_ALL = """() => {
    window.courseRan = false;
    window.jupyterapp.commands.execute("notebook:run-all-cells").then(
        () => { window.courseRan = true; });
    return 1;  // the promise itself would hang for ever
}"""
CODE_CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets.map((cell, index) => {
    if (cell.model.type !== "code") return null;
    const outputs = cell.model.outputs.toJSON();
    return {
        place: index,
        source: cell.model.sharedModel.getSource(),
        ran: cell.model.executionCount !== null,
        errors: outputs.filter(o => o.output_type === "error").map(o => `${o.ename}: ${o.evalue}`),
        widget: outputs.some(o => o.data && "application/vnd.jupyter.widget-view+json" in o.data),
    };
}).filter(cell => cell !== null)"""
NODE = "window.jupyterapp.shell.currentWidget.content.widgets[index].node"
SHOW_CELL = """index => {
    window.jupyterapp.shell.currentWidget.content.scrollToItem(index, "center");
    return 1;
}"""
# What a widget turned out to be, or false as long as it is still being drawn.
KIND = f"""index => {NODE}.isConnected && (
    {NODE}.querySelector(".noUi-handle") && {NODE}.querySelector("img.widget-image") ? "sliders"
    : {NODE}.querySelector(".widget-hprogress") ? "progress bar"
    : {NODE}.querySelector(".jp-OutputArea-output.lm-mod-hidden") ? "closed" : false)"""
LABELS = f"""index => [...{NODE}.querySelectorAll(".noUi-handle")].map(handle =>
    handle.closest(".jupyter-widgets.widget-inline-hbox")
        ?.querySelector(".widget-label")?.textContent.trim() || "slider")"""
# The handle's range, as the browser tells a screen reader: [now, lowest, highest].
RANGE = f"""([index, slider]) => {{
    const handle = {NODE}.querySelectorAll(".noUi-handle")[slider];
    return ["now", "min", "max"].map(name => Number(handle.getAttribute(`aria-value${{name}}`)));
}}"""
PIXELS = f"""index => [...{NODE}.querySelectorAll("img.widget-image")].map(image => {{
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}})"""
# The words of a cell's picture once it is decoded; false before that.
COVER = f"""index => {NODE}.isConnected &&
    [...{NODE}.querySelectorAll("img")].find(image => image.naturalWidth > 1)?.alt"""
# From the key's event to the moment the browser has decoded the last picture that it changed.
WATCH = f"""([index, slider]) => {{
    const images = [...{NODE}.querySelectorAll("img.widget-image")];
    const watch = window.courseWatch = {{pressed: null, changed: null}};
    document.addEventListener(
        "keydown", () => {{ watch.pressed = performance.now(); }}, {{capture: true, once: true}});
    for (const image of images)
        image.addEventListener("load", () => {{ watch.changed = performance.now(); }},
            {{once: true}});
    {NODE}.querySelectorAll(".noUi-handle")[slider].focus();
}}"""
PICTURE_CHANGED = "() => window.courseWatch.pressed !== null && window.courseWatch.changed !== null"
ELAPSED = "() => window.courseWatch.changed - window.courseWatch.pressed"
# What would stand between a learner and the lesson: a notification, a dialog, nbgrader's panel.
DISTRACTIONS = """() => [
    ...document.querySelectorAll(
        ".Toastify__toast, .jp-Dialog, [id*=nbgrader], [data-id*=nbgrader], [class*=nbgrader]"),
    ...[...document.querySelectorAll("li, button, [title]")].filter(e =>
        /create assignment|jupyter news/i.test(`${e.title} ${e.textContent}`)),
].map(e => (e.title || e.textContent || e.className || e.id).trim().slice(0, 100))"""


class Cell(NamedTuple):
    """A code cell after it ran."""

    place: int
    source: str
    ran: bool
    errors: list[str]
    widget: bool


class Slider(NamedTuple):
    """A slider that moves a picture: its cell, its place among the cell's sliders, its label."""

    cell: int
    place: int
    label: str


def find_chromium() -> str | None:
    """Return the path of a Chromium that is installed, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def served(folder: Path, course: Path = ROOT) -> Iterator[str]:
    """Serve ``course`` as `make lab` does, with all that is written kept inside ``folder``.

    Args:
        folder: Gets ``work/`` and Jupyter's own files.
        course: The folder with the built notebooks.

    Yields:
        The address that `authoring.lab` printed.

    Raises:
        RuntimeError: If no address is printed in time; its text is what was printed instead.
    """
    command = [sys.executable, "-m", "authoring.lab", "--no-browser", "--port", "0"]
    command += ["--work", str(folder / "work"), "--course", str(course)]
    command += ["--", "--LabApp.expose_app_in_browser=True"]
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **own, "IPYTHONDIR": str(folder / "ipython")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield printed_address(server)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def printed_address(server: "subprocess.Popen[str]") -> str:
    """Return the address that the server prints, and keep reading so that it never blocks."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in server.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    printed = []
    deadline = time.monotonic() + STARTING_TIMEOUT
    while (line := waiting_line(lines, deadline)) is not None:
        printed.append(line)
        if "http" in line:
            return line[line.index("http") :].strip()
    raise RuntimeError("JupyterLab did not start:\n" + "".join(printed))


def address_of(notebook: str, address: str) -> str:
    """Return where ``notebook`` opens in the JupyterLab that printed ``address``.

    >>> address_of("notebooks/11_fields.ipynb", "http://127.0.0.1:8888/lab?token=abc")
    'http://127.0.0.1:8888/lab/tree/notebooks/11_fields.ipynb?token=abc'
    """
    return urlsplit(address)._replace(path=f"/lab/tree/{notebook}").geturl()


def waiting_line(lines: "queue.Queue[str | None]", deadline: float) -> str | None:
    """Return the next line, or None if there is none until the deadline."""
    try:
        return lines.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        return None


@contextmanager
def opened(address: str, picture: Path | None = None) -> Iterator[Page]:
    """Open ``address`` in Chromium and wait until its notebook can be run.

    Args:
        address: A notebook's address in JupyterLab.
        picture: Where to leave a screenshot if what follows fails.
    """
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(STARTING_TIMEOUT * 1000)
        try:
            page.goto(address)
            page.wait_for_function(KERNEL_IS_IDLE)
            # JupyterLab tells nobody when its widget manager is connected, too.
            page.wait_for_timeout(1500)
            yield page
        except BaseException:
            if picture:
                page.screenshot(path=picture)
            raise
        finally:
            chromium.close()


def run_all(page: Page) -> list[Cell]:
    """Run all cells of the notebook and return how the code cells ended."""
    page.evaluate(RUN_ALL)
    page.wait_for_function("() => window.courseRan", timeout=RUNNING_TIMEOUT * 1000)
    page.wait_for_function(KERNEL_IS_IDLE)
    return [Cell(**cell) for cell in page.evaluate(CODE_CELLS)]


def cover(page: Page) -> str:
    """Return the alternative text of the picture under the title, once the browser shows it."""
    page.evaluate(SHOW_CELL, 0)
    alt: str = page.wait_for_function(COVER, arg=0, timeout=PICTURE_TIMEOUT * 1000).json_value()
    return alt


def sliders(page: Page, cells: list[Cell]) -> list[Slider]:
    """Return the sliders of all widgets that show a picture, in the notebook's order."""
    found = []
    for cell in cells:
        if not cell.widget:
            continue
        page.evaluate(SHOW_CELL, cell.place)
        try:
            kind = page.wait_for_function(KIND, arg=cell.place, timeout=WIDGET_TIMEOUT * 1000)
        except TimedOut:
            continue  # neither
        if kind.json_value() != "sliders":
            continue
        labels = page.evaluate(LABELS, cell.place)
        found += [Slider(cell.place, place, label) for place, label in enumerate(labels)]
    return found


def pixels(page: Page, slider: Slider) -> list[str]:
    """Return the pictures beside the slider as the browser shows them, losslessly encoded."""
    shown: list[str] = page.evaluate(PIXELS, slider.cell)
    return shown


def press(page: Page, slider: Slider, key: str) -> float:
    """Press ``key`` on the slider and wait for the changed picture.

    Returns:
        Milliseconds from the key press to the picture, on the browser's clock.
    """
    page.evaluate(WATCH, [slider.cell, slider.place])
    page.keyboard.press(key)
    page.wait_for_function(PICTURE_CHANGED, timeout=PICTURE_TIMEOUT * 1000)
    page.wait_for_function(KERNEL_IS_IDLE)
    elapsed: float = page.evaluate(ELAPSED)
    return elapsed


def back_and_forth(page: Page, slider: Slider, presses: int) -> list[float]:
    """Move the slider step by step, turning round at its ends, and return each step's time."""
    times, key = [], "ArrowRight"
    for _ in range(presses):
        now, lowest, highest = page.evaluate(RANGE, [slider.cell, slider.place])
        if now >= highest:
            key = "ArrowLeft"
        elif now <= lowest:
            key = "ArrowRight"
        times.append(press(page, slider, key))
    return times


def distractions(page: Page) -> list[str]:
    """Return what the page shows that is no business of a learner's."""
    found: list[str] = page.evaluate(DISTRACTIONS)
    return found

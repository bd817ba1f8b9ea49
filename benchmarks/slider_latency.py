"""Measure, in JupyterLab, the time from a key press on a slider to the changed picture.

    python -m benchmarks.slider_latency [NOTEBOOK ...] [--presses 24]

For each slider of each notebook that shows a picture: the median, the fastest and the slowest of
the key presses, in milliseconds on the browser's clock. Under 150 ms is good, under 60 ms is what
the course wants. The numbers are noisy: measure on an idle machine and compare within one run.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from authoring import browser
from authoring.lab import ROOT

NOTEBOOKS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "notebooks").glob("*.ipynb"))
WARM_UP = 2


def measure(notebook: str, presses: int) -> dict[str, list[float]]:
    """Run one notebook and return the times of each of its sliders, in milliseconds."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        browser.served(Path(folder)) as address,
        browser.opened(browser.address_of(notebook, address)) as page,
    ):
        cells = browser.run_all(page)
        times = {}
        for slider in browser.sliders(page, cells):
            measured = browser.back_and_forth(page, slider, WARM_UP + presses)
            times[f"cell {slider.cell} {slider.label}"] = measured[WARM_UP:]
        return times


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure key press to changed picture.")
    parser.add_argument("notebook", nargs="*", help="such as notebooks/00_start_here.ipynb")
    parser.add_argument("--presses", type=int, default=12, help="key presses a slider")
    arguments = parser.parse_args()
    if browser.find_chromium() is None:
        sys.exit("There is no Chromium here: on Debian, run `sudo apt install chromium`.")
    print(f"{'notebook and slider':<60}{'median':>8}{'min':>8}{'max':>8}  ms")
    for notebook in arguments.notebook or NOTEBOOKS:
        for slider, times in measure(notebook, arguments.presses).items():
            name = f"{Path(notebook).stem}, {slider}"
            print(f"{name:<60}{median(times):8.0f}{min(times):8.0f}{max(times):8.0f}", flush=True)


if __name__ == "__main__":
    main()

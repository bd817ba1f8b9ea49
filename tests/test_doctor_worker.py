"""The second process of the doctor turns every error into an answer."""

import json
from pathlib import Path

import pytest

from course_lib.doctor import worker
from course_lib.doctor.trials import WORKER
from tests.doctor_suite import run


def test_the_real_worker_turns_every_error_into_an_answer(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("raise SystemExit('bye')")
    (tmp_path / "chatty.py").write_text("print('hello', flush=True)")
    steps = ["course", "import nowhere", "import leaves", "import chatty", "import finding"]
    done = run(*WORKER, *steps, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step for step, _ in lines] == [*steps, "end"]
    assert lines[1][1]["error"] == "ModuleNotFoundError: No module named 'nowhere'"
    assert lines[2][1]["error"] == "SystemExit: bye" and lines[3][1] == {"value": "chatty"}
    assert "hello" in done.stderr
    assert "No module named 'finding'" in lines[4][1]["error"]  # its own folder is not searched


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    said = worker.brief("ImportError: " + "please read\n" * 100 + "invalid ELF header")
    assert said.startswith("ImportError: please") and said.endswith("invalid ELF header")
    assert len(said) < 320 and "\n" not in said
    assert worker.brief("short:\n one") == "short: one"


def test_a_wrong_warp_a_stiff_widget_and_a_blank_plot_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from course_lib import plotting, spatial, widgets

    honest = spatial.warp
    monkeypatch.setattr(spatial, "warp", lambda image, u: honest(image, u.flip(1)))
    with pytest.raises(ValueError, match="off from NumPy's"):
        worker.step_warp()
    frozen = widgets.deformation_explorer(torch.rand(1, 1, 48, 60))
    frozen.sliders["amplitude"].unobserve_all()
    monkeypatch.setattr(widgets, "deformation_explorer", lambda image: frozen)
    with pytest.raises(ValueError, match="its picture did not change"):
        worker.step_widget()

    class Blank:
        def savefig(self, file: object, format: str) -> None:
            pass

    monkeypatch.setattr(plotting, "images", lambda pictures: Blank())
    with pytest.raises(ValueError, match="did not draw"):
        worker.step_plot()

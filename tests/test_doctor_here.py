"""The doctor knows which Python this is, and how to mend its environment."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from course_lib.doctor import here


def test_what_setuptools_leaves_in_the_folder_is_no_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constraints.txt").write_text("")
    left = tmp_path / "registration_course.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: registration-course\nVersion: 1\n")
    monkeypatch.setattr(here, "ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not here.is_installed_here()
    elsewhere = tmp_path / "site-packages"
    shutil.copytree(left, elsewhere / left.name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(elsewhere)])
    assert here.is_installed_here()


def test_a_wheelhouse_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "ROOT", str(tmp_path))
    monkeypatch.setattr(here, "on_colab", lambda: False)
    monkeypatch.setattr(here, "in_environment", lambda: True)
    (tmp_path / "constraints.txt").write_text("")
    assert '-c constraints.txt -e ".[lab]"' in here.install_command()
    assert "--no-index" not in here.install_command()
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "wheelhouse" / "wheelhouse.json").write_text("{}")
    assert "--no-index --find-links wheelhouse -c" in here.install_command()
    assert "--no-index" in here.reinstall_command("torch")
    assert "make lab WHEELS=wheelhouse" in here.set_up_anew() or os.name == "nt"
    monkeypatch.setattr(here, "in_environment", lambda: False)  # where pip is often refused
    assert here.install_command() == here.set_up_anew() == here.reinstall_command("torch")

"""The second cell of every notebook: finds `course_lib`, installs it, or says what to do.

It runs before there is anything of the course, under any Python and in any front end. So it uses
the standard library only, and whatever is wrong ends in plain sentences, without a traceback.
"""

from __future__ import annotations

from authoring.layout import PLACEHOLDER

# How the `dependencies` of pyproject.toml are imported; a test holds the two together.
MODULES = (
    *("torch", "numpy", "matplotlib", "nibabel", "ipywidgets", "PIL", "scipy", "skimage"),
    *("sklearn", "tqdm", "pooch", "safetensors"),
)

# `bootstrap` fills in what stands in angle brackets; the braces belong to the cell.
HELPERS = """\
class Stop(Exception):  # plain sentences, no traceback
    def _render_traceback_(self):
        return [str(self)]
def lacking():
    importlib.invalidate_caches()
    names = ("course_lib <modules>")
    return ", ".join(name for name in names.split() if importlib.util.find_spec(name) is None)
kernel = f"This kernel's Python {sys.version.split()[0]} ({sys.executable})"
advice = ("In the course's folder, `make doctor` (or `python -m course_lib.doctor`) says what is "
          "wrong. Open notebooks by `make lab`, or with the Python in .venv as the kernel.")
if sys.version_info < (3, 11):
    raise Stop(f"{kernel} is too old: the course needs 3.11 or newer. {advice}")
"""

NOT_PUBLISHED = """\
# Finds the course's library, or says what to do where it is missing.
import importlib.util, sys
<helpers>\
if lacking():
    raise Stop(f"{kernel} lacks {lacking()}, and the course has no public address yet to install "
               f"from. {advice}")
<import>"""

PUBLISHED = """\
# Finds the course's library, or installs it where it is missing, as on Colab.
import importlib.util, os, pathlib, re, subprocess, sys
<helpers>\
if lacking() and any((p / "course_lib").is_dir() for p in pathlib.Path("_").absolute().parents):
    raise Stop(f"{kernel} lacks {lacking()}. {advice}")
if lacking():
    print("Installing the course: about a minute on Colab, longer where PyTorch is missing.")
    pip = [sys.executable, "-m", "pip", "install", "-q", "git+<address>"]
    plain = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    said = subprocess.run(pip, env=plain, capture_output=True, text=True).stderr.strip()
    error = (re.findall("(?:fatal|ERROR): (.*)", said) or [said[-200:] or "nothing"])[0]
    causes = {"No module named pip": "it has no pip", "'git'": "git is missing (git-scm.com)",
              "Permission|Read-only|externally-managed": "it does not let you install anything",
              "space left": "the disk is full", "resolve|onnect": "there is no network connection",
              "Username|not found": "its address is not public", "": f"pip says: {error}"}
    if lacking():
        why = next(words for sign, words in causes.items() if re.search(sign, said))
        raise Stop(f"{kernel} could not get the course: {why}. Mend it and run this again.")
    if "google.colab" in sys.modules:
        print("Done. Colab forgets what you change here; File > Save a copy in Drive keeps it.")
<import>"""

IMPORT = """\
try:
    import course_lib.runtime  # before torch: it sets how torch's threads wait for one another
except Exception as error:
    raise Stop(f"{kernel} has the course but cannot import it: {error!r}. Restart the kernel "
               f"and run this cell again. {advice}") from None"""


def bootstrap(address: str) -> str:
    """The source of the cell that finds or installs `course_lib`.

    Args:
        address: the repository's, as in `pyproject.toml`; the placeholder if there is none yet.
    """
    cell = NOT_PUBLISHED if address.startswith(PLACEHOLDER) else PUBLISHED
    modules = " ".join(MODULES).replace(" skimage", ' "\n             "skimage')
    parts = {"helpers": HELPERS, "import": IMPORT, "modules": modules, "address": address}
    for name, text in parts.items():
        cell = cell.replace(f"<{name}>", text)
    return cell

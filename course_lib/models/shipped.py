"""Weights that ship with the course, each with a card that says where it comes from."""

import json
from importlib.resources import as_file, files

from safetensors.torch import load_file

from course_lib.models.voxelmorph import VoxelMorph
from course_lib.validation import require_option

_WEIGHTS = files("course_lib") / "weights"


def pretrained(name: str) -> VoxelMorph:
    """A trained network, ready to use.

    Args:
        name: ``"voxelmorph2d-brains"`` (trained with local NCC) or ``"voxelmorph2d-brains-mse"``.

    Returns:
        The network in eval mode, on the CPU; its ``card`` tells recipe, seed, data and scores.

    Raises:
        ValueError: if there is no such name, or the file is damaged.

    ``course_lib/weights/README.md`` shows the cards; ``python -m authoring.train`` made them.
    Taught in lesson 30.
    """
    cards = {
        path.name.removesuffix(".json"): json.loads(path.read_text(encoding="utf-8"))
        for path in _WEIGHTS.iterdir()
        if path.name.endswith(".json")
    }
    # Other files hold fields for a picture, no network.
    require_option("name", name, sorted(key for key, card in cards.items() if "network" in card))
    card = cards[name]
    model = VoxelMorph(**card["network"])
    with as_file(_WEIGHTS / f"{name}.safetensors") as path:
        try:
            model.load_state_dict(load_file(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"name: {path} is damaged ({error}); this file came with the course: "
                "`make doctor` says how to mend it"
            ) from error
    model.card = card
    return model.eval()

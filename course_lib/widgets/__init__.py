"""Things to play with: pictures that follow sliders.

Each one is a pure function of its parameters first, ``render(...) -> PNG bytes``, and a set of
sliders second. Displaying it leaves a still picture too, a separate output, for readers on paper.
``playground`` ties sliders to a picture; the other files hold the widgets, a topic each.
"""

from course_lib.widgets.deformation import bump_displacement, deformation_explorer, warp_slider
from course_lib.widgets.descent import Descent, descent_explorer, fit_disc, soft_disc
from course_lib.widgets.playground import Playground
from course_lib.widgets.slices import slice_viewer
from course_lib.widgets.velocity import random_velocity, velocity_explorer

__all__ = [
    "Descent",
    "Playground",
    "bump_displacement",
    "deformation_explorer",
    "descent_explorer",
    "fit_disc",
    "random_velocity",
    "slice_viewer",
    "soft_disc",
    "velocity_explorer",
    "warp_slider",
]

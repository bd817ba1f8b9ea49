"""Things to play with: pictures that follow sliders.

Each one is a pure function of its parameters first, ``render(...) -> PNG bytes``, and a set of
sliders second. Displaying it leaves a still picture too, a separate output, for readers on paper.
``playground`` ties sliders to a picture; the other files hold the widgets, a topic each.
"""

from course_lib.widgets.deformation import bump_displacement, deformation_explorer, warp_slider
from course_lib.widgets.descent import Descent, descent_explorer, fit_disc, soft_disc
from course_lib.widgets.evaluation import disc_pair, evaluation_explorer
from course_lib.widgets.histogram import joint_histogram_explorer
from course_lib.widgets.playback import playback_explorer
from course_lib.widgets.playground import Playground
from course_lib.widgets.regularity import regularity_explorer
from course_lib.widgets.sampling import sampling_explorer
from course_lib.widgets.similarity import (
    corrupt,
    lowest_shifts,
    shift_losses,
    similarity_explorer,
)
from course_lib.widgets.slices import slice_viewer
from course_lib.widgets.velocity import random_velocity, velocity_explorer
from course_lib.widgets.weight import weight_explorer

__all__ = [
    "Descent",
    "Playground",
    "bump_displacement",
    "corrupt",
    "deformation_explorer",
    "descent_explorer",
    "disc_pair",
    "evaluation_explorer",
    "fit_disc",
    "joint_histogram_explorer",
    "lowest_shifts",
    "playback_explorer",
    "random_velocity",
    "regularity_explorer",
    "sampling_explorer",
    "shift_losses",
    "similarity_explorer",
    "slice_viewer",
    "soft_disc",
    "velocity_explorer",
    "warp_slider",
    "weight_explorer",
]

"""Registration networks: one file a paper, all returning a :class:`Prediction`."""

from course_lib.models.prediction import Prediction
from course_lib.models.shipped import pretrained
from course_lib.models.unet import UNet
from course_lib.models.voxelmorph import VoxelMorph

__all__ = ["Prediction", "UNet", "VoxelMorph", "pretrained"]

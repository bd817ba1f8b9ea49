"""Volumes on other grids: every value keeps its place in the world, and peers agree."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import nibabel.processing as processing
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from course_lib.io import Volume
from course_lib.spatial import smooth
from course_lib.volumes import (
    crop_or_pad,
    next_multiple,
    normalize,
    orientation,
    reorient,
    resample,
    resample_like,
    straighten,
    to_voxel,
    to_world,
)

CODES = [
    "".join(letters) for order in permutations(["LR", "PA", "IS"]) for letters in product(*order)
]
SHAPE, SPACING = (9, 12, 7), (1.5, 0.8, 3.0)


def affine_of(degrees=(0.0, 0.0, 0.0), spacing=SPACING, flips=(1, 1, 1), origin=(7, -20, 33.0)):
    matrix = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, :3] = turn * np.array(spacing) * np.array(flips)
    matrix[:3, 3] = origin
    return matrix


def volume_of(affine, shape=SHAPE, seed=0, dtype=torch.float32):
    """Values without any symmetry."""
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    spacing = tuple(np.linalg.norm(affine[:3, : len(shape)], axis=0).tolist())
    return Volume(image if dtype.is_floating_point else (image * 9).to(dtype), affine, spacing)


def smooth_volume(affine, shape=(20, 24, 18)):
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(3))
    return volume_of(affine, shape)._replace(image=10 * smooth(noise, 2.5))


def as_nibabel(volume):
    return nib.Nifti1Image(volume.image[0, 0].numpy(), volume.affine)


def as_itk(volume):
    """ITK counts LPS: the first two world axes change sign; its arrays are indexed k, j, i."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.image[0, 0].numpy().T))
    lps = np.diag([-1, -1, 1]) @ volume.affine[:3]
    image.SetSpacing(volume.spacing)
    image.SetDirection((lps[:, :3] / volume.spacing).flatten())
    image.SetOrigin(lps[:, 3])
    return image


def value_at(volume, mm):
    """The value of the voxel whose center is at ``mm``; None where there is none."""
    index = to_voxel(mm, volume.affine)
    whole = np.rint(index).astype(int)
    np.testing.assert_allclose(index, whole, atol=1e-6)
    if (whole < 0).any() or (whole >= volume.image.shape[2:]).any():
        return None
    return volume.image[(0, 0, *whole)].item()


AFFINES = {
    "straight": affine_of(),
    "flipped": affine_of(flips=(-1, 1, -1)),
    "left-handed": affine_of(flips=(1, -1, 1)),
    "permuted": affine_of()[:, [2, 0, 1, 3]],
    "oblique": affine_of((12, -20, 31)),
    "oblique, flipped, permuted": affine_of((-15, 8, 25), flips=(-1, -1, 1))[:, [1, 2, 0, 3]],
}
each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)


# ------------------------------------------------------------------------------ where a voxel lies


class TestPoints:
    @each_affine
    def test_nibabel_agrees(self, affine):
        points = np.random.default_rng(0).normal(scale=30, size=(4, 5, 3))
        np.testing.assert_allclose(to_world(points, affine), apply_affine(affine, points))

    @each_affine
    def test_itk_agrees_up_to_the_sign_of_two_axes(self, affine):
        itk = as_itk(volume_of(affine))
        for point in ((0, 0, 0), (3, 5, 2), (8.5, 0.25, -4)):
            lps = itk.TransformContinuousIndexToPhysicalPoint(point)
            ras = np.array(lps) * (-1, -1, 1)
            np.testing.assert_allclose(to_world(point, affine), ras, atol=1e-6)
            back = itk.TransformPhysicalPointToContinuousIndex(lps)
            np.testing.assert_allclose(to_voxel(ras, affine), back, atol=1e-6)

    @settings(max_examples=60, deadline=None)
    @given(
        st.tuples(*[st.floats(-80, 80)] * 3),
        st.tuples(*[st.floats(0.3, 6)] * 3),
        st.tuples(*[st.sampled_from([-1, 1])] * 3),
        st.tuples(*[st.floats(-200, 200)] * 3),
    )
    def test_there_and_back(self, degrees, spacing, flips, point):
        affine = affine_of(degrees, spacing, flips)
        np.testing.assert_allclose(to_voxel(to_world(point, affine), affine), point, atol=1e-9)

    def test_by_hand(self):
        affine = np.array([[-2.0, 0, 0, 90], [0, 1.5, 0, -120], [0, 0, 3, -60], [0, 0, 0, 1]])
        assert to_world([10, 20, 30], affine).tolist() == [70, -90, 30]
        assert to_voxel([30, -15, 45], affine).tolist() == [30, 70, 35]
        assert to_world(torch.tensor([1, 1, 1]), affine).dtype == np.float64

    def test_any_number_of_axes(self):
        for shape in ((3,), (0, 3), (2, 3), (2, 4, 3)):
            assert to_world(np.zeros(shape), np.eye(4)).shape == shape


class TestOrientation:
    @pytest.mark.parametrize("code", CODES)
    def test_every_code(self, code):
        assert orientation(reorient(volume_of(affine_of()), code).affine) == code

    @settings(max_examples=80, deadline=None)
    @given(
        st.tuples(*[st.floats(-24, 24)] * 3),
        st.permutations(range(3)),
        st.tuples(*[st.sampled_from([-1, 1])] * 3),
    )
    def test_nibabel_agrees(self, degrees, order, flips):
        affine = affine_of(degrees, flips=flips)[:, [*order, 3]]
        assert orientation(affine) == "".join(nib.aff2axcodes(affine))

    @pytest.mark.parametrize("degrees, code", [((57, 23, 33), "RSP"), ((47, 35, 24), "RAS")])
    def test_thick_slices_have_no_greater_say(self, degrees, code):
        affine = affine_of(degrees, spacing=(1, 1, 6))
        assert orientation(affine) == code == "".join(nib.aff2axcodes(affine))

    def test_no_direction_twice(self):
        # Two axes are both nearest to x: one has to give way.
        affine = affine_of((0, 0, 44))
        affine[:3, 1] = affine[:3, 0] + (0, 0.3, 0)
        assert sorted(orientation(affine)) == ["A", "R", "S"]


# ------------------------------------------------------------------------ without interpolation


class TestReorient:
    @each_affine
    def test_nibabel_agrees(self, affine):
        volume = volume_of(affine)
        ours, theirs = reorient(volume), nib.as_closest_canonical(as_nibabel(volume))
        np.testing.assert_array_equal(ours.image[0, 0].numpy(), np.asarray(theirs.dataobj))
        np.testing.assert_allclose(ours.affine, theirs.affine)
        np.testing.assert_allclose(ours.spacing, theirs.header.get_zooms(), rtol=1e-6)

    @pytest.mark.parametrize("code", CODES)
    def test_there_and_back_is_the_identity(self, code):
        for affine in AFFINES.values():
            volume = volume_of(affine)
            there = reorient(volume, code)
            back = reorient(there, orientation(affine))
            assert torch.equal(back.image, volume.image)
            np.testing.assert_allclose(back.affine, affine, atol=1e-12)
            assert back.spacing == pytest.approx(volume.spacing)

    @pytest.mark.parametrize("code", ["RAS", "PIL", "SLA", "IPR"])
    @each_affine
    def test_every_value_keeps_its_place(self, affine, code):
        volume = volume_of(affine)
        moved = reorient(volume, code)
        assert moved.image.is_contiguous()
        for index in product(*(range(0, n, 3) for n in SHAPE)):
            expected = volume.image[(0, 0, *index)].item()
            assert value_at(moved, to_world(index, affine)) == expected

    def test_labels_keep_their_dtype_and_nothing_is_shared(self):
        volume = volume_of(affine_of(), dtype=torch.int64)
        moved = reorient(volume, "RAS")  # nothing to do, and still a volume of its own
        assert moved.image.dtype == torch.int64
        moved.image.zero_()
        moved.affine[:] = 0
        assert volume.image.any() and volume.affine.any()


class TestCropOrPad:
    @pytest.mark.parametrize("shape", [(9, 12, 7), (12, 16, 16), (4, 5, 3), (10, 7, 9), (8, 13, 6)])
    @each_affine
    def test_every_value_keeps_its_place(self, affine, shape):
        volume = volume_of(affine)
        moved = crop_or_pad(volume, shape, value=-1)
        assert moved.image.shape[2:] == shape and moved.spacing == pytest.approx(volume.spacing)
        kept = 0
        for index in product(*(range(n) for n in shape)):
            before = value_at(volume, to_world(index, moved.affine))
            assert moved.image[(0, 0, *index)].item() == (-1 if before is None else before)
            kept += before is not None
        assert kept == np.prod(np.minimum(shape, SHAPE))

    @settings(max_examples=60, deadline=None)
    @given(st.tuples(*[st.integers(0, 9)] * 3))
    def test_padded_and_cropped_back_is_the_identity(self, more):
        volume = volume_of(AFFINES["oblique"])
        padded = crop_or_pad(volume, [n + m for n, m in zip(SHAPE, more, strict=True)])
        back = crop_or_pad(padded, SHAPE)
        assert torch.equal(back.image, volume.image)
        np.testing.assert_allclose(back.affine, volume.affine, atol=1e-12)

    def test_the_odd_voxel_is_at_the_end(self):
        volume = volume_of(np.eye(4), (3, 4, 5))
        padded = crop_or_pad(volume, (4, 5, 8))
        assert torch.equal(padded.image[0, 0, :3, :4, 1:6], volume.image[0, 0])
        assert padded.affine[:3, 3].tolist() == [0, 0, -1]
        cropped = crop_or_pad(volume, (2, 3, 2))
        assert torch.equal(cropped.image[0, 0], volume.image[0, 0, :2, :3, 1:3])
        assert cropped.affine[:3, 3].tolist() == [0, 0, 1]

    def test_two_dimensions(self):
        volume = volume_of(np.diag([2.0, 3, 1, 1]), (6, 5))
        moved = crop_or_pad(volume, (10, 3))
        assert moved.image.shape == (1, 1, 10, 3) and moved.spacing == (2.0, 3.0)
        assert moved.affine[:3, 3].tolist() == [-4, 3, 0]
        assert torch.equal(moved.image[0, 0, 2:8], volume.image[0, 0, :, 1:4])

    def test_labels(self):
        moved = crop_or_pad(volume_of(np.eye(4), dtype=torch.int64), (12, 12, 12))
        assert moved.image.dtype == torch.int64

    def test_the_given_volume_stays_as_it_was(self):
        volume = volume_of(affine_of())
        crop_or_pad(volume, SHAPE).image.zero_()
        assert volume.image.any()
        np.testing.assert_array_equal(volume.affine, affine_of())


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(2, 300)] * 3), st.integers(1, 64))
def test_next_multiple(shape, divisor):
    sizes = next_multiple(shape, divisor)
    assert all(
        n % divisor == 0 and 0 <= n - old < divisor for n, old in zip(sizes, shape, strict=True)
    )
    assert next_multiple(sizes, divisor) == sizes


def test_next_multiple_divides_by_two_four_times():
    assert next_multiple((63, 64, 65)) == (64, 64, 80) and next_multiple([5, 6], 4) == (8, 8)


# ------------------------------------------------------------------------------ with interpolation


class TestResample:
    @each_affine
    @pytest.mark.parametrize("spacing", [(3, 1.6, 3), (0.5, 0.8, 1), (2.0, 1.1, 4.5)])
    def test_the_field_of_view_stays(self, affine, spacing):
        volume = volume_of(affine)
        moved = resample(volume, spacing)
        assert moved.spacing == pytest.approx(spacing)
        np.testing.assert_allclose(
            moved.affine[:3, :3] / moved.spacing, affine[:3, :3] / volume.spacing, atol=1e-12
        )
        old, new = np.array(volume.image.shape[2:]), np.array(moved.image.shape[2:])
        middle = to_world((old - 1) / 2, affine)
        np.testing.assert_allclose(to_world((new - 1) / 2, moved.affine), middle, atol=1e-9)
        extra = new * spacing - old * volume.spacing
        assert (extra > -0.02).all() and (extra < np.array(spacing)).all()

    @each_affine
    def test_a_linear_image_stays_linear_in_the_world(self, affine):
        # Intensity = a plane through the world: linear interpolation is exact between centers.
        slope = np.array([0.3, -0.7, 0.5])
        shape = (24, 20, 18)
        index = np.moveaxis(np.indices(shape), 0, -1)
        plane = torch.from_numpy((to_world(index, affine) @ slope).astype(np.float32))
        volume = volume_of(affine, shape)._replace(image=plane[None, None])
        for factor in (0.6, 1.0, 2.0, 2.7):
            moved = resample(volume, [factor * s for s in volume.spacing])
            new = np.moveaxis(np.indices(moved.image.shape[2:]), 0, -1)
            expected = to_world(new, moved.affine) @ slope
            # The border value goes on outside, and the blur looks as far as 6 voxels.
            edge = int(np.ceil(6 / factor))
            cut = (slice(edge, -edge),) * 3
            found = moved.image[0, 0].numpy()[cut]
            assert found.size > 0
            np.testing.assert_allclose(found, expected[cut], atol=2e-3)

    def test_the_same_spacing_changes_nothing(self):
        volume = volume_of(AFFINES["oblique"])
        same = resample(volume, volume.spacing)
        torch.testing.assert_close(same.image, volume.image, rtol=0, atol=1e-4)
        np.testing.assert_allclose(same.affine, volume.affine, atol=1e-9)

    def test_twice_as_fine_by_hand(self):
        volume = Volume(torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]]), np.eye(4), (1.0, 1.0))
        fine = resample(volume, (1, 0.5))
        # Centers at -0.25, 0.25, 0.75, 1.25 of the old: the border value, quarters, the border.
        torch.testing.assert_close(
            fine.image[0, 0], torch.tensor([[0.0, 1, 3, 4], [8, 9, 11, 12]]), rtol=0, atol=1e-5
        )
        assert fine.affine[:3, 3].tolist() == [0, -0.25, 0] and fine.spacing == (1.0, 0.5)

    def test_a_constant_stays_constant_up_to_the_border(self):
        volume = volume_of(affine_of())._replace(image=torch.full((1, 1, *SHAPE), 7.0))
        coarse = resample(volume, (4, 2, 7)).image
        torch.testing.assert_close(coarse, torch.full_like(coarse, 7.0), rtol=0, atol=1e-4)

    def test_stripes_finer_than_the_new_voxels_vanish(self):
        stripes = 0.5 + 0.5 * torch.cos(2 * torch.pi * torch.arange(96) / 2.5)
        image = stripes.view(1, 1, 96, 1, 1).expand(1, 1, 96, 6, 5).contiguous()
        volume = Volume(image, np.eye(4), (1.0, 1.0, 1.0))
        coarse = resample(volume, (2, 1, 1)).image[0, 0, 4:-4, 3, 2]
        dropped = image[0, 0, ::2, 3, 2][4:-4]
        assert dropped.std() > 0.3 and coarse.std() < 0.05
        # Only along the axis that got coarser: detail of the others stays.
        other = resample(volume, (1, 2, 2)).image[0, 0, :, 1, 1]
        assert other.std() > 0.9 * stripes.std()

    def test_labels(self):
        volume = volume_of(affine_of(), dtype=torch.int64)
        moved = resample(volume, (1, 1, 1), mode="nearest")
        assert moved.image.dtype == torch.int64
        assert set(moved.image.unique().tolist()) <= set(volume.image.unique().tolist())


class TestResampleLike:
    def test_its_own_grid_changes_nothing(self):
        for affine in AFFINES.values():
            volume = volume_of(affine)
            same = resample_like(volume, volume)
            torch.testing.assert_close(same.image, volume.image, rtol=0, atol=1e-4)

    @each_affine
    @pytest.mark.parametrize("mode", ["linear", "nearest"])
    def test_itk_agrees(self, affine, mode):
        volume = smooth_volume(affine)
        # No coarser than the volume along any axis: ITK does not blur.
        fine = affine_of((4, 11, -9), (0.7, 0.6, 0.75), origin=to_world((4, 5, 6), affine))
        target = volume_of(fine, (11, 9, 13))
        ours = resample_like(volume, target, mode).image[0, 0].numpy()
        interpolator = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}[mode]
        resampled = sitk.Resample(as_itk(volume), as_itk(target), sitk.Transform(), interpolator)
        theirs = sitk.GetArrayFromImage(resampled).T
        known = theirs != 0  # outside by more than half a voxel, ITK gives 0 at once
        assert known.mean() > 0.2
        close = np.abs(ours - theirs)[known] < 2e-3
        # Nearest: where a place lies halfway, rounding decides. Linear: ITK goes on for half a
        # voxel beyond the outermost centers, where ours falls to 0.
        index = to_voxel(to_world(np.moveaxis(np.indices((11, 9, 13)), 0, -1), fine), affine)
        inside = ((index >= 0) & (index <= np.array(volume.image.shape[2:]) - 1)).all(-1)[known]
        assert inside.sum() > 200 and close[inside].mean() > 0.995

    def test_nibabel_agrees(self):
        volume = smooth_volume(AFFINES["oblique, flipped, permuted"])
        theirs = processing.resample_to_output(as_nibabel(volume), 0.7, order=1)
        target = Volume(torch.zeros(1, 1, *theirs.shape), theirs.affine, (0.7,) * 3)
        ours = resample_like(volume, target).image[0, 0].numpy()
        # Beyond the outermost centers theirs is 0 at once, where ours falls to 0.
        index = to_voxel(
            to_world(np.moveaxis(np.indices(ours.shape), 0, -1), theirs.affine), volume.affine
        )
        inside = ((index >= 0) & (index <= np.array(volume.image.shape[2:]) - 1)).all(-1)
        assert inside.mean() > 0.2
        np.testing.assert_allclose(ours[inside], theirs.get_fdata()[inside], atol=2e-3)

    def test_zero_where_the_volume_does_not_reach(self):
        volume = volume_of(np.eye(4))._replace(image=torch.ones(1, 1, *SHAPE))
        far = volume_of(affine_of(spacing=(1, 1, 1), origin=(100, 0, 0)))
        assert not resample_like(volume, far).image.any()

    @pytest.mark.parametrize("degrees", [(0, 0, 0), (0, 0, 45), (30, 20, 10)])
    def test_a_turn_alone_does_not_blur(self, degrees):
        noise = volume_of(np.eye(4), (30, 30, 30))
        turned = affine_of(degrees, (1, 1, 1), origin=(14.5, 14.5, 14.5))
        turned[:3, 3] -= turned[:3, :3] @ (2, 2, 2)
        target = volume_of(turned, (5, 5, 5))
        linear = resample_like(noise, target)
        by_itk = sitk.Resample(as_itk(noise), as_itk(target), sitk.Transform(), sitk.sitkLinear)
        np.testing.assert_allclose(
            linear.image[0, 0].numpy(), sitk.GetArrayFromImage(by_itk).T, atol=1e-4
        )

    def test_the_order_of_the_targets_axes_does_not_matter(self):
        volume = volume_of(affine_of())
        target = volume_of(affine_of(spacing=(6, 0.8, 3)), (3, 12, 7))  # coarser along x only
        expected = reorient(resample_like(volume, target), "PIL")
        found = resample_like(volume, reorient(target, "PIL"))
        torch.testing.assert_close(found.image, expected.image, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.affine, expected.affine)

    def test_coarser_blurs_as_the_docstring_says(self):
        impulse = torch.zeros(1, 1, 41, 5, 5)
        impulse[0, 0, 20] = 1
        volume = Volume(impulse, np.eye(4), (1.0, 1.0, 1.0))
        target = Volume(torch.zeros(1, 1, 14, 5, 5), np.diag([3.0, 1, 1, 1]), (3.0, 1.0, 1.0))
        line = resample_like(volume, target).image[0, 0, :, 2, 2].double()
        sigma = 0.5 * np.sqrt(8)
        expected = np.exp(-((np.arange(14) * 3 - 20) ** 2) / (2 * sigma**2))
        expected /= np.exp(-(np.arange(-20, 21) ** 2) / (2 * sigma**2)).sum()
        np.testing.assert_allclose(line.numpy(), expected, atol=1e-5)


class TestStraighten:
    @pytest.mark.parametrize("name", ["straight", "flipped", "left-handed", "permuted"])
    def test_what_flips_do_is_not_interpolated(self, name):
        volume = volume_of(AFFINES[name])
        straight, expected = straighten(volume), reorient(volume)
        assert torch.equal(straight.image, expected.image)
        np.testing.assert_array_equal(straight.affine, expected.affine)

    def test_rounding_in_a_header_is_no_rotation(self):
        affine = affine_of().astype(np.float32).astype(np.float64)
        affine[0, 1] += 1e-6
        volume = volume_of(affine)
        assert torch.equal(straighten(volume).image, volume.image)

    def test_nibabel_agrees_on_the_grid_of_an_oblique_volume(self):
        volume = smooth_volume(AFFINES["oblique"])
        theirs = processing.resample_to_output(as_nibabel(volume), volume.spacing, order=1)
        ours = straighten(volume)
        assert ours.image.shape[2:] == theirs.shape
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-9)
        assert orientation(ours.affine) == "RAS"
        assert np.abs(ours.affine[:3, :3] - np.diag(SPACING)).max() < 1e-12
        corners = list(product(*((0, n - 1) for n in volume.image.shape[2:])))
        inside = to_voxel(to_world(corners, volume.affine), ours.affine)
        assert (inside > -1e-6).all() and (inside < np.array(ours.image.shape[2:]) - 1 + 1e-6).all()

    def test_a_slight_tilt_is_straightened_too(self):
        straight = straighten(smooth_volume(affine_of((0.5, 0, 0))))
        assert np.abs(straight.affine[:3, :3] - np.diag(SPACING)).max() < 1e-12

    def test_labels_stay_labels(self):
        volume = volume_of(AFFINES["oblique"], dtype=torch.int64)
        straight = straighten(volume, "nearest")
        assert straight.image.dtype == torch.int64
        assert set(straight.image.unique().tolist()) == set(range(9))


# -------------------------------------------------------------------------------------- intensities


class TestNormalize:
    def test_each_item_and_channel_by_its_own_foreground(self):
        generator = torch.Generator().manual_seed(5)
        image = torch.rand(2, 3, 9, 8, generator=generator) * torch.rand(2, 3, 1, 1) * 500
        image[..., :4, :] = 0
        result = normalize(image, 0.9)
        for b, c in product(range(2), range(3)):
            one = image[b, c].numpy()
            expected = (one / np.quantile(one[one > 0], 0.9)).clip(0, 1)
            np.testing.assert_allclose(result[b, c].numpy(), expected, atol=1e-6)

    def test_the_background_does_not_matter(self):
        image = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(6)) + 0.1
        padded = torch.nn.functional.pad(image, (9, 9) * 3)
        cropped = normalize(padded)[..., 9:-9, 9:-9, 9:-9]
        torch.testing.assert_close(cropped, normalize(image))

    def test_the_unit_does_not_matter(self):
        image = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close(normalize(1e4 * image), normalize(image))

    def test_an_outlier_does_not_matter(self):
        image = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(8))
        with_outlier = image.clone()
        with_outlier[0, 0, 5, 5] = 1000
        difference = (normalize(with_outlier) - normalize(image)).abs()
        difference[0, 0, 5, 5] = 0
        assert difference.max() < 0.01

    def test_from_zero_to_one_and_the_input_stays(self):
        image = torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(9))
        kept = image.clone()
        result = normalize(image.requires_grad_())
        assert result.min() == 0 and result.max() == 1
        assert torch.equal(image, kept) and result.dtype == torch.float32
        assert normalize(image.double().detach(), 1).max() == 1
        result.sum().backward()
        assert image.grad is not None

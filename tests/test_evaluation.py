"""The results table: the right numbers in the right rows, the identity always in it."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from course_lib import evaluation, metrics
from course_lib.datasets import Pair, brains
from course_lib.evaluation import Cases, Table, over_cases, paired_comparison, table, warp_labels
from course_lib.spatial import affine_displacement, warp


@pytest.fixture(scope="module")
def pair() -> Pair:
    return brains.pair(3)


def test_numbers_are_those_of_the_metrics(pair: Pair) -> None:
    u = 0.5 * pair.displacement
    row = table({"half": u}, pair)["half"]
    brain = pair.fixed_labels > 0
    assert row["correlation"] == pytest.approx(
        float(metrics.correlation(warp(pair.moving, u), pair.fixed))
    )
    overlap = metrics.dice(warp_labels(pair.moving_labels, u), pair.fixed_labels, [1, 2, 3])[0]
    assert [row[f"Dice label {n}"] for n in (1, 2, 3)] == pytest.approx(overlap.tolist())
    error = metrics.endpoint_error(u, pair.displacement, pair.spacing, brain)
    assert row["error (mm)"] == pytest.approx(float(error))
    far = metrics.hausdorff95(warp_labels(pair.moving_labels, u), pair.fixed_labels, pair.spacing)
    assert row["HD95 (mm)"] == pytest.approx(float(far.mean()))
    assert row["SDlogJ"] == pytest.approx(float(metrics.sdlogj(u, brain)))
    assert row["folding (%)"] == pytest.approx(100 * float(metrics.folding_fraction(u, brain)))


def test_identity_is_first_and_truth_is_best(pair: Pair) -> None:
    result = table({"truth": pair.displacement}, pair)
    assert list(result.rows) == ["identity", "truth"]
    for column in result.columns[:4]:
        assert result["truth"][column] > result["identity"][column]
    assert result["truth"]["error (mm)"] == 0 < 2 < result["identity"]["error (mm)"]


def test_folding_is_counted_inside_the_labels_and_in_percent(pair: Pair) -> None:
    outside, inside = torch.zeros_like(pair.displacement), torch.zeros_like(pair.displacement)
    outside[:, 0, 5] = 9.0
    inside[:, 0, 110] = 9.0
    result = table({"outside": outside, "inside": inside}, pair)
    assert result["outside"]["folding (%)"] == 0 < result["inside"]["folding (%)"] < 100


def test_only_what_is_known_is_reported(pair: Pair) -> None:
    images_only = Pair(pair.moving, pair.fixed)
    assert table({}, images_only).columns == ["correlation", "SDlogJ", "folding (%)"]
    no_spacing = pair._replace(spacing=None)
    assert {"error (voxels)", "HD95 (voxels)"} <= set(table({}, no_spacing).columns)


def test_distances_are_in_mm(pair: Pair) -> None:
    stretched = table({}, pair._replace(spacing=(2.0, 2.0)))["identity"]
    for column in ("HD95 (mm)", "error (mm)"):
        assert stretched[column] == pytest.approx(2 * table({}, pair)["identity"][column])


def test_a_lost_structure_is_infinitely_far_and_an_absent_one_is_left_out(pair: Pair) -> None:
    gone = torch.full_like(pair.displacement, 1000.0)
    assert table({"gone": gone}, pair)["gone"]["HD95 (mm)"] == torch.inf
    row = table({}, pair, structures={3: "white", 99: "absent"})["identity"]
    assert row["HD95 (mm)"] == table({}, pair, structures={3: "white"})["identity"]["HD95 (mm)"]
    assert row["Dice absent"] != row["Dice absent"]


def test_structures_choose_and_name_the_columns(pair: Pair) -> None:
    columns = table({}, pair, structures={3: "white", 1: "fluid"}).columns
    assert columns[1:3] == ["Dice white", "Dice fluid"]


def test_identity_is_a_reserved_name(pair: Pair) -> None:
    with pytest.raises(ValueError, match="identity"):
        table({"identity": pair.displacement}, pair)


def test_text_and_html_show_every_number_and_escape_names(pair: Pair) -> None:
    result = table({"<b>": pair.displacement}, pair)
    text, html = repr(result), result._repr_html_()
    assert len({len(line) for line in text.splitlines()[1:]}) == 1
    assert "&lt;b&gt;" in html and "<b>" not in html
    for value in result["<b>"].values():
        assert f"{value:.3f}" in text and f"{value:.3f}" in html


def test_black_image_gives_nan_not_an_error(pair: Pair) -> None:
    away = torch.full_like(pair.displacement, 1000.0)
    row = table({"gone": away}, pair)["gone"]
    assert row["correlation"] != row["correlation"] and row["Dice label 2"] == 0


def test_warped_labels_keep_values_and_are_background_outside() -> None:
    labels = torch.tensor([[0, 7, 7], [2**40, 2**40, 0]])[None, None]
    shift = torch.zeros(1, 2, 2, 3)
    assert torch.equal(warp_labels(labels, shift), labels)
    shift[:, 1] = 2
    assert warp_labels(labels, shift)[0, 0].tolist() == [[7, 0, 0], [0, 0, 0]]


def test_warped_labels_are_smoother_than_nearest() -> None:
    grid = torch.linspace(-1, 1, 60)
    disc = ((grid[:, None] ** 2 + grid[None] ** 2) < 0.5).long()[None, None]
    turn = torch.tensor([[[0.96, -0.28, 0.3], [0.28, 0.96, 0.2]]])
    u = affine_displacement(turn, (60, 60))
    edges = [
        sum(int((labels.diff(dim=axis) != 0).sum()) for axis in (2, 3))
        for labels in (warp_labels(disc, u), warp(disc, u, mode="nearest"))
    ]
    assert edges[0] < edges[1]


def test_without_structures_there_is_no_dice_column(pair: Pair) -> None:
    columns = table({}, pair, structures={}).columns
    assert columns[1] == "error (mm)" and "HD95 (mm)" not in columns


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int64])
def test_warped_labels_keep_their_dtype(dtype: torch.dtype) -> None:
    labels = torch.tensor([[0, 7, 7], [3, 3, 0]]).to(dtype)[None, None]
    assert torch.equal(warp_labels(labels, torch.zeros(1, 2, 2, 3)), labels)


# ------------------------------------------------------------------------------------ over cases


SHIFTS = {"seed 3": 3, "seed 4": 4, "seed 5": 5}


@pytest.fixture(scope="module")
def small_pairs() -> dict[str, Pair]:
    """Squares of labels 1 and, in one case only, 7, moved by so many columns."""
    pairs = {}
    for case, shift in SHIFTS.items():
        labels = torch.zeros(1, 1, 20, 24, dtype=torch.long)
        labels[..., 5:12, 4:11] = 1
        if shift == 5:
            labels[..., 14:17, 4:9] = 7
        truth = torch.zeros(1, 2, 20, 24)
        truth[:, 1] = -shift
        moved = labels.roll(shift, 3)
        pairs[case] = Pair(labels / 7, moved / 7, labels, moved, truth, (1.0, 2.0))
    return pairs


def zeros(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, 2, *fixed.shape[2:])


def left(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    field = zeros(moving, fixed)
    field[:, 1] = -4
    return field


def test_over_cases_are_the_tables_of_the_pairs(small_pairs: dict[str, Pair]) -> None:
    cases = over_cases({"left": left}, small_pairs)
    assert cases.methods == ["identity", "left"] and list(cases.tables) == list(SHIFTS)
    for case, pair in small_pairs.items():
        field = left(pair.moving, pair.fixed)
        alone = table({"left": field}, pair, {1: "label 1", 7: "label 7"})
        assert repr(cases.tables[case]) == repr(alone)
    # 4 columns of 2 mm, where 3, 4 and 5 were asked for.
    assert cases.values("left", "error (mm)").tolist() == pytest.approx([2, 0, 2])
    assert cases.values("identity", "error (mm)").tolist() == pytest.approx([6, 8, 10])


def test_a_method_gets_the_images_of_the_pair_and_nothing_else(
    small_pairs: dict[str, Pair],
) -> None:
    got = []

    def spy(*arguments: torch.Tensor) -> torch.Tensor:
        got.append(arguments)
        return zeros(*arguments)

    over_cases({"spy": spy}, small_pairs)
    assert [len(arguments) for arguments in got] == [2, 2, 2]
    for (moving, fixed), pair in zip(got, small_pairs.values(), strict=True):
        assert moving is pair.moving and fixed is pair.fixed


def test_a_case_that_lacks_a_structure_is_left_out_and_counted(
    small_pairs: dict[str, Pair],
) -> None:
    cases = over_cases({"left": left}, small_pairs)
    head, identity, _ = cases._cells()
    cell = dict(zip(head, identity, strict=True))
    assert head[0] == "3 cases, mean ± sd"
    assert cell["Dice label 7"].endswith("(1 of 3)") and "±" not in cell["Dice label 7"]
    assert cell["error (mm)"] == "8.000 ± 2.000"


def test_infinity_is_not_averaged_away() -> None:
    rows = [{"m": {"HD95 (mm)": value}} for value in (1.0, float("inf"), 3.0)]
    cases = Cases({str(n): Table(row) for n, row in enumerate(rows)})
    assert cases._cells()[1] == ["m", "inf"]


def test_one_case_has_no_spread() -> None:
    cases = Cases({"only": Table({"m": {"x": 0.5}})})
    assert cases._cells() == [["1 case", "x"], ["m", "0.500"]]


def test_cases_as_text_and_html(small_pairs: dict[str, Pair]) -> None:
    cases = over_cases({"<b>": left}, small_pairs)
    text, html = repr(cases), cases._repr_html_()
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "&lt;b&gt;" in html and "<b>" not in html
    for row in cases._cells():
        for cell in row[1:]:
            assert cell in text and cell in html


def test_cases_refuse_what_does_not_belong_together(small_pairs: dict[str, Pair]) -> None:
    one, two = (table({}, pair, {1: "a"}) for pair in list(small_pairs.values())[:2])
    other = table({"x": torch.zeros(1, 2, 20, 24)}, small_pairs["seed 3"], {1: "a"})
    with pytest.raises(ValueError, match=r"^tables\['b'\]"):
        Cases({"a": one, "b": other})
    with pytest.raises(ValueError, match=r"^tables"):
        Cases({})
    cases = Cases({"a": one, "b": two})
    with pytest.raises(ValueError, match=r"^method: .*identity"):
        cases.values("nobody", "correlation")
    with pytest.raises(ValueError, match=r"^column: .*correlation"):
        cases.compare("identity", "identity", "beauty")


# ---------------------------------------------------------------------------- paired comparison


def test_differences_are_first_minus_second_case_by_case(small_pairs: dict[str, Pair]) -> None:
    cases = over_cases({"left": left}, small_pairs)
    compared = cases.compare("left", "identity", "error (mm)")
    assert compared.differences.tolist() == pytest.approx([-4, -8, -8])
    assert compared.mean == pytest.approx(-20 / 3)
    assert "left minus identity, error (mm)" in repr(compared)
    assert "3 cases: 0 up, 3 down" in repr(compared)


def test_p_is_the_exact_one_by_counting_all_signs() -> None:
    differences = np.array([0.9, -0.3, 1.7, 2.4, -0.5, 3.1, 1.2])
    ranks = np.abs(differences).argsort().argsort() + 1
    signs = np.array(list(itertools.product([0, 1], repeat=7)))
    sums, seen = signs @ ranks, ranks[differences > 0].sum()
    expected = min(1, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
    compared = paired_comparison(differences, np.zeros(7))
    assert compared.p_value == pytest.approx(expected)


def test_the_interval_is_about_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0.3, 1, 400)
    compared = paired_comparison(first, np.zeros(400))
    reach = 1.96 * first.std(ddof=1) / 20
    assert compared.low == pytest.approx(first.mean() - reach, abs=0.01)
    assert compared.high == pytest.approx(first.mean() + reach, abs=0.01)


def test_what_the_docstring_says_about_five_cases() -> None:
    rng = np.random.default_rng(1)
    inside = []
    for n in range(600):
        c = paired_comparison(rng.normal(0, 1, 5), np.zeros(5), resamples=500, seed=n)
        inside.append(c.low <= 0 <= c.high)
    assert 0.77 < np.mean(inside) < 0.89


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(2).normal(size=(2, 9))
    one, two = (paired_comparison(*scores, seed=4) for _ in range(2))
    assert (one.low, one.high) == (two.low, two.high)
    assert paired_comparison(*scores, seed=5).low != one.low


def test_no_difference_at_all_is_p_1() -> None:
    compared = paired_comparison([1, 2, 3], [1, 2, 3])
    assert (compared.p_value, compared.low, compared.high) == (1, 0, 0)


def test_ties_and_zeros_are_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < paired_comparison([1, 2, 3, 5, 5], [1, 1, 2, 3, 3]).p_value <= 1


@pytest.mark.parametrize(("count", "said"), [(5, True), (6, False)])
def test_few_cases_are_said_to_be_few(count: int, said: bool) -> None:
    compared = paired_comparison(np.arange(1, count + 1), np.zeros(count))
    assert compared.p_value == pytest.approx(2 / 2**count)
    assert ("cannot give p below" in repr(compared)) == said
    assert "&lt;b&gt;" in paired_comparison([1, 2], [0, 0], name="<b>")._repr_html_()


@pytest.mark.parametrize(
    ("differences", "counted", "least"),
    [
        ([1, 2, 3, 0, 0], "5 cases: 3 up, 0 down, 2 equal", "3 cases that differ"),
        ([1, 2, 3, -4, 5, 6, 0], "7 cases: 5 up, 1 down, 1 equal", None),
        ([0, 2], "2 cases: 1 up, 0 down, 1 equal", "1 case that differs cannot"),
        ([0, 0, 0], "3 cases: 0 up, 0 down, 3 equal", None),
        ([1, 2, 3], "3 cases: 3 up, 0 down\n", "3 cases cannot give p below 0.25"),
    ],
)
def test_cases_that_do_not_differ_are_counted(
    differences: list[float], counted: str, least: str | None
) -> None:
    compared = paired_comparison(differences, [0] * len(differences))
    differ = sum(d != 0 for d in differences)
    assert counted in repr(compared)
    assert ("cannot give p below" in repr(compared)) == (least is not None)
    assert least is None or least in repr(compared)
    assert compared.p_value >= min(1, 2 / 2**differ) - 1e-9


def test_a_lost_structure_is_not_averaged() -> None:
    with pytest.raises(ValueError, match=r"^first: .*1 NaN or infinite"):
        paired_comparison([1.0, np.inf], [1.0, 2.0])


def test_every_public_name_says_where_it_is_taught() -> None:
    for name in ("table", "over_cases", "paired_comparison", "warp_labels"):
        assert "Taught in lesson" in getattr(evaluation, name).__doc__


def test_what_a_benchmark_recorded_is_there_for_lessons() -> None:
    found = evaluation.recorded("task2d")
    assert {"date", "machine", "threads", "seeds", "rows", "oasis"} <= set(found)
    rows = found["rows"]
    assert {"identity", "OpenCV DIS", "DIPY SyN-CC", "ANTs SyN-CC", "refine"} <= set(rows)
    for row in rows.values():
        assert set(row) == {"error_mm", "dice_gray", "dice", "folding_percent", "seconds"}
    assert rows["identity"]["error_mm"] > 2 > rows["OpenCV DIS"]["error_mm"]
    for row in found["oasis"].values():
        assert set(row) == {"lncc", "folding_percent", "seconds"}


def test_recorded_numbers_are_of_pairs_that_nothing_was_tuned_on() -> None:
    found = evaluation.recorded("task2d")
    if found["seeds"] == list(range(10)):
        pytest.skip("preliminary numbers: run python -m benchmarks.task --record")
    assert found["seeds"] == list(range(100, 110))
    assert {"network", "network + refine"} <= set(found["rows"])


def test_what_was_not_recorded_is_named() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of 'task2d', got 'task3d'"):
        evaluation.recorded("task3d")

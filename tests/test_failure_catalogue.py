"""The catalogue of known failures of such programs: what each is, and the tests which show that it does not happen here.

Rows that other tests cover well name them; the others have a test below. ``limit`` says what is not shown.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from apps.cli import main
from datamodules import Classes, DataError, Satellite, open_image
from datamodules.check import check
from datamodules.division import Division
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder
from tasks.evaluation import evaluate
from tasks.model_file import Description, save_model
from tests.small import predict
from tests.synthetic import ellipsoid, make_mri_dataset


@dataclass(frozen=True)
class Row:
    """One failure: what goes wrong, the tests ``file::function`` that show it handled, and what they do not show."""

    what: str
    shown_by: tuple[str, ...]
    limit: str = ""


def row(what: str, *tests: str, limit: str = "") -> Row:
    return Row(what, tests, limit)


HERE = "failure_catalogue"

CATALOGUE: Mapping[int, Row] = {
    1: row(
        "a truncated volume: named in one line, exit code not 0, the others are done",
        "damaged_files::test_cut_off",
        "damaged_files::test_cut_off_and_compressed_again",
        "prediction::test_bad_files_are_named_and_the_rest_done",
        "check::test_a_fault_in_a_volume_is_named_and_nothing_else",
    ),
    2: row(
        "a flipped bit in a compressed volume is an error, never wrong voxels",
        "damaged_files::test_a_flipped_bit_in_gzip_never_gives_wrong_voxels",
        "check::test_a_flipped_bit_is_found",
        limit="formats without a checksum of their own (.nii, .tif) cannot tell",
    ),
    3: row(
        "empty, junk, header only",
        "damaged_files::test_empty",
        "damaged_files::test_junk",
        "damaged_files::test_head_without_body",
        "damaged_files::test_unknown_content_is_named",
        "dicom::test_no_image",
    ),
    4: row("a truncated TIFF", "damaged_files::test_cut_off", "geotiff::test_cut_off"),
    5: row(
        "a header that promises more than can be held: refused before anything is read",
        "damaged_files::test_header_bomb_volume",
        "damaged_files::test_header_bomb_tiff",
        "damaged_files::test_giant_png",
        "damaged_files::test_the_limit_is_checked_before_anything_is_read",
        "damaged_files::test_a_gzip_stream_is_not_followed_beyond_what_its_header_declares",
        "damaged_files::test_data_that_begin_far_away_are_not_looked_for",
        "geotiff::test_more_than_fits_is_refused_when_it_is_read_not_when_it_is_opened",
        "dicom::test_header_bomb",
        limit="the limit is a fixed number of elements; what memory the machine has is not looked at",
    ),
    6: row(
        "image and mask of different shapes: both paths, both shapes, before training",
        f"{HERE}::test_both_files_and_both_shapes_are_named",
        "cache_datasets::test_a_mask_off_the_grid_is_refused_with_both_names",
    ),
    7: row(
        "image and mask at different places, left and right swapped",
        "labels::test_a_mask_elsewhere_is_refused",
        "check::test_a_fault_in_a_volume_is_named_and_nothing_else",
        "world_identity::test_in_the_body",
        "images::test_mask_keeps_qform_sform_and_codes_in_every_orientation",
    ),
    8: row(
        "a singular, sheared or not finite affine",
        "damaged_files::test_unusable_affine",
        "damaged_files::test_sheared_affine_warns",
        "check::test_the_affine_of_the_image_may_be_the_wrong_one",
    ),
    9: row(
        "values that are not finite: counted, said, replaced by the smallest",
        "damaged_files::test_values_that_are_not_finite",
        "preprocessing::test_values_that_are_not_finite_become_the_smallest",
        limit="what takes their place cannot be configured",
    ),
    10: row(
        "a constant image: said, and predicted all the same",
        "damaged_files::test_constant_image_warns_and_gives_zeros",
        f"{HERE}::test_a_constant_image_is_predicted_with_a_warning",
    ),
    11: row(
        "16-bit PNG that would saturate: its values are kept",
        f"{HERE}::test_a_ramp_of_16_bits_is_read_as_it_is",
        "images::test_contract",
    ),
    12: row("signed DICOM with rescaling: always Hounsfield units", "dicom::test_rescaling_is_always_applied"),
    13: row(
        "MONOCHROME1: the same picture as MONOCHROME2",
        "dicom::test_the_same_picture_in_both_kinds_of_gray",
        limit="that it was inverted is not noted in the image's meta",
    ),
    14: row("multi-frame DICOM: frames are the third axis", "dicom::test_frames_are_the_third_axis"),
    15: row(
        "a slice missing in a series: refused with the places, or allowed by a flag",
        "dicom::test_missing_slices_are_named",
        "dicom_prediction::test_gaps_are_refused_and_allowed_when_asked",
    ),
    16: row(
        "compressed DICOM: decoded, or the package that decodes is named",
        "dicom::test_lossless_compression",
        "dicom::test_a_missing_decoder_is_named",
        "dicom::test_pydicom_is_not_installed",
    ),
    17: row(
        "anisotropic spacing: volumes by the affine",
        f"{HERE}::test_the_volume_of_a_sphere_of_anisotropic_voxels",
        "planning::test_coarse_axes_wait_and_have_kernel_1",
        limit="patch and spacing stand in the run's config.yaml and in the plan, not in the log",
    ),
    18: row(
        "bands missing, in another order, or too many",
        "channels::test_three_bands_for_a_network_of_four_are_refused_by_name",
        "channels::test_reordered_bands_are_put_in_order",
        "channels::test_names_that_agree_in_part_are_never_taken_by_position",
        f"{HERE}::test_a_scene_that_lacks_a_band_fails_alone_and_is_told_which",
    ),
    19: row(
        "nodata in, nodata out; in no loss, score or area",
        "geotiff::test_nodata_in_nodata_out",
        "labels::test_nodata_of_the_image_and_of_the_mask_are_unknown",
        "losses::test_ignored_positions_count_neither_in_value_nor_in_gradient",
        "evaluation::test_nodata_of_either_mask_is_left_out_of_the_measurement",
        "area::test_classes_share_the_area_and_what_is_not_valid_is_in_none",
        "datamodules::test_nodata_counts_in_no_loss_and_no_score",
    ),
    20: row(
        "no reference system, or another one than the mask's",
        "geotiff::test_without_a_reference_system_an_image_lies_in_pixels",
        "geotiff::test_a_picture_has_no_place_and_its_mask_neither",
        "area::test_millimetres_and_pixels",
        "labels::test_another_reference_system_is_refused_or_brought_over",
        "check::test_a_mask_in_another_coordinate_system",
    ),
    21: row(
        "a huge raster: memory is bounded",
        "geotiff::test_windows_of_a_huge_raster_need_little_memory",
        f"{HERE}::test_training_windows_of_a_huge_scene_need_little_memory",
        "datamodules::test_windows_are_drawn_from_the_scene_itself",
        limit="training: with division.scene_block (without it, the mask of a scene is held whole, several times). "
        "Prediction reads windows, but holds the scores of all classes whole: streaming them is a later issue",
    ),
    22: row(
        "no foreground in a patch or a case: a documented rule, and a count",
        "cache_datasets::test_a_case_without_foreground_gives_background",
        "overlap::test_scores_follow_the_rule_for_empty_masks",
        "evaluation::test_scores_volumes_and_summary_are_those_of_a_brute_force",
        "check::test_all_masks_empty_is_an_error_and_some_are_a_note",
    ),
    23: row(
        "labels out of range, 255",
        "check::test_undeclared_values_are_errors_where_classes_are_declared",
        "cache_datasets::test_masks_that_are_none",
        "cache_datasets::test_ignore_value_becomes_ignore",
        "evaluation::test_ignored_positions_do_not_count",
    ),
    24: row("a patch that is ignored everywhere costs 0", "losses::test_a_batch_of_nothing_but_ignored_positions_is_zero"),
    29: row(
        "a kill or a full disk while an output is written: no half file, and the next run goes on",
        "batch::test_killed_and_started_again",
        "batch::test_killed_at_ten_random_moments",
        "batch::test_a_full_disk_is_said_and_leaves_nothing_half",
        "batch::test_leftovers_of_the_living_and_of_strangers_are_left",
        "batch::test_an_interruption_ends_after_the_image",
    ),
    30: row(
        "two runs into one folder",
        "batch::test_two_runs_share_a_folder",
        "batch::test_what_another_run_has_in_hand_is_elsewhere_and_taken_over_when_it_dies",
        limit="locks are the file system's; several machines were not tried",
    ),
    31: row(
        "spaces and letters of all alphabets in paths",
        "damaged_files::test_any_name_that_the_system_allows",
        "geotiff::test_any_name_that_the_system_allows",
        "prediction::test_bad_files_are_named_and_the_rest_done",
        "dicom_prediction::test_a_study_gives_a_mask_per_series_on_its_grid",
        limit="Linux only",
    ),
    32: row(
        "one stem twice: the tree is kept, collisions are refused",
        "prediction::test_two_inputs_of_one_output_name_are_refused_not_overwritten",
        "prediction::test_inputs_are_collected_with_their_tree_and_their_channels",
        "layouts::test_the_same_stem_twice_is_refused",
        "layouts::test_the_same_stem_in_two_folders_is_two_cases",
        "dicom_prediction::test_one_stem_twice_is_said",
    ),
    33: row(
        "finished, nothing written",
        "prediction::test_nothing_to_do_is_exit_code_two",
        f"{HERE}::test_how_many_were_written_and_where_is_said",
    ),
    36: row(
        "files that point elsewhere (VRT, WMS), addresses as names",
        "geotiff::test_a_pointer_named_tif_is_refused",
        "geotiff::test_pointers_whoever_imported_rasterio_first",
        "geotiff::test_files_beside_the_image_change_nothing",
        "damaged_files::test_only_local_files",
        "guard::test_addresses",
        f"{HERE}::test_a_description_of_a_server_is_no_image",
    ),
    38: row("a path that somebody typed leads out of the data folder", "guard::test_nothing_outside_the_data_folder",
            limit="there is no server yet; guard.inside is what it will ask"),
    40: row(
        "a patient's name in outputs, logs or caches",
        "dicom_prediction::test_no_patient_in_anything_that_is_written",
        "dicom::test_nothing_of_the_patient_is_kept",
        "images::test_free_text_does_not_travel",
        "formats_contract::test_nothing_of_the_patient_travels",
        limit="names in the names of files and folders are the user's own, and stand in status.csv",
    ),
}  # fmt: skip


@cache
def functions_of(name: str) -> frozenset[str]:
    """The functions ``test_*`` of one test file, without importing it."""
    tree = ast.parse((Path(__file__).parent / f"test_{name}.py").read_text("utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_every_row_is_here() -> None:
    assert sorted(CATALOGUE) == [*range(1, 25), *range(29, 34), 36, 38, 40]
    # A test that is written here is shown by some row.
    named = {test for entry in CATALOGUE.values() for test in entry.shown_by}
    own = {f"{HERE}::{test}" for test in functions_of(HERE) if not test.startswith("test_every_row")}
    assert own <= named


@pytest.mark.parametrize("number", CATALOGUE)
def test_every_row_names_tests_that_exist(number: int) -> None:
    assert CATALOGUE[number].shown_by
    for test in CATALOGUE[number].shown_by:
        file, _, function = test.partition("::")
        assert function in functions_of(file), f"row {number}: {test} does not exist"


# ----------------------------------------------------------------------------------------- what was missing


def model(folder: Path, channels: tuple[str, ...] = ("image",), ndim: int = 3, **preparation: object) -> Path:
    """A small network that was never trained, ready to predict."""
    network = EncoderDecoder(len(channels), 2, ndim=ndim, encoder={"name": "plain", "widths": [2, 4]}).eval()
    how = Preprocessing(channels, **{"normalization": "percentile", **preparation})  # type: ignore[arg-type]
    file = folder / "model.safetensors"
    save_model(file, network, Description(how, Patch((8,) * ndim), Classes(["background", "organ"])))
    return file


def test_both_files_and_both_shapes_are_named(tmp_path: Path) -> None:
    """Row 6."""
    root = make_mri_dataset(tmp_path / "mri", cases=3)
    mask = root / "labels" / "case_01.nii.gz"
    stored = nib.load(mask)
    nib.Nifti1Image(np.asarray(stored.dataobj)[:20], stored.affine).to_filename(mask)
    (finding,) = check(root).errors
    assert finding.kind == "shape mismatch"
    assert finding.files == ("labels/case_01.nii.gz", "images/case_01.nii.gz")
    assert "20 x 20 x 12" in finding.message
    assert "24 x 20 x 12" in finding.message


def test_a_constant_image_is_predicted_with_a_warning(tmp_path: Path) -> None:
    """Row 10."""
    (tmp_path / "in").mkdir()
    nib.Nifti1Image(np.ones((9, 8, 7), np.int16), np.eye(4)).to_filename(tmp_path / "in" / "flat.nii.gz")
    with pytest.warns(UserWarning, match=r"flat\.nii\.gz: every value of image is 1"):
        code, _ = predict(model(tmp_path), tmp_path / "out", tmp_path / "in")
    assert code == 0
    assert nib.load(tmp_path / "out" / "flat.nii.gz").shape == (9, 8, 7)


def test_a_ramp_of_16_bits_is_read_as_it_is(tmp_path: Path) -> None:
    """Row 11: Pillow's conversion to RGB makes nearly all of it white."""
    ramp = np.arange(1, 3001, dtype=np.uint16).reshape(50, 60)
    PIL.Image.fromarray(ramp).save(tmp_path / "ramp.png")
    with PIL.Image.open(tmp_path / "ramp.png") as picture:
        assert (
            np.asarray(picture.convert("RGB")) == 255
        ).mean() > 0.9  # so there is something to guard against
    image = open_image(tmp_path / "ramp.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image.read()[0], ramp)
    prepared = Preprocessing(("gray",), normalization="percentile").image(image)
    assert len(np.unique(prepared)) > 2900
    assert np.corrcoef(prepared.ravel(), ramp.ravel())[0, 1] > 0.999


def test_the_volume_of_a_sphere_of_anisotropic_voxels(tmp_path: Path) -> None:
    """Row 17: 1 x 1 x 5 mm, radius 30 mm."""
    ball = ellipsoid((70, 70, 16), (34.7, 35.2, 7.6), (30, 30, 6)).astype(np.uint8)
    file = tmp_path / "ball.nii.gz"
    turned = np.array([[0, 0, 5, -3], [-1, 0, 0, 9], [0, 1, 0, 2], [0, 0, 0, 1]], dtype=float)
    nib.Nifti1Image(ball, turned).to_filename(file)
    (line,) = evaluate(file, file, classes=Classes(["background", "ball"])).rows()
    assert line.unit == "ml"
    assert line.reference_size == pytest.approx(4 / 3 * np.pi * 3**3, rel=0.02)


def test_a_scene_that_lacks_a_band_fails_alone_and_is_told_which(tmp_path: Path) -> None:
    """Row 18, through the whole of predict."""
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "in").mkdir()
    bands = np.random.default_rng(0).integers(1, 3000, (4, 12, 10)).astype(np.uint16)
    for name, order in (
        ("four", (0, 1, 2, 3)),
        ("reversed", (3, 2, 1, 0)),
        ("three", (0, 1, 2)),
        ("five", (0, 1, 2, 3, 0)),
    ):
        profile = {"driver": "GTiff", "width": 10, "height": 12, "dtype": "uint16", "crs": "EPSG:32633"}
        place = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
        with rasterio.open(
            tmp_path / "in" / f"{name}.tif", "w", count=len(order), transform=place, **profile
        ) as file:
            file.write(bands[list(order)])
            file.descriptions = tuple(
                ("B02", "B03", "B04", "B08", "B11")[b if i < 4 else 4] for i, b in enumerate(order)
            )
    network = model(
        tmp_path, ("blue", "green", "red", "nir"), 2, sensor="sentinel2", normalization="reflectance"
    )
    code, rows = predict(network, tmp_path / "out", tmp_path / "in")
    assert code == 1
    (failed,) = [line for line in rows if line["status"] == "failed"]
    assert Path(failed["path"]).name == "three.tif"
    assert (
        "has 3 channel(s) (B02, B03, B04); wanted are 4 (blue, green, red, nir), of which nir is missing"
        in failed["error"]
    )
    masks = [open_image(tmp_path / "out" / f"{name}.tif").read() for name in ("four", "reversed", "five")]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def memory(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in kilobytes."""
    text = Path("/proc/self/status").read_text("utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field))


def test_training_windows_of_a_huge_scene_need_little_memory(tmp_path: Path) -> None:
    """Row 21: 20000 x 20000 x 3, 2.4 GB as it is stored; windows are drawn from blocks of it, polygons are the mask."""
    rasterio = pytest.importorskip("rasterio")
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    profile = {"driver": "GTiff", "width": 20000, "height": 20000, "count": 3, "dtype": "uint16", "crs": "EPSG:32633",
               "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), "tiled": True, "blockxsize": 256, "blockysize": 256,
               "SPARSE_OK": True, "compress": "deflate"}  # fmt: skip
    with rasterio.open(tmp_path / "data" / "images" / "s.tif", "w", **profile) as file:
        file.write(np.ones((3, 256, 256), np.uint16), window=((4096, 4352), (7168, 7424)))
    left, top = 5e5 + 10 * 7200, 5e6 - 10 * 4120
    ring = [[left + x, top - y] for x, y in ((0, 0), (1000, 0), (1000, 1000), (0, 1000), (0, 0))]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    drawn = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    (tmp_path / "data" / "masks" / "s.geojson").write_text(json.dumps(drawn))
    data = Satellite(
        str(tmp_path / "data"), classes=["rest", "field"], channels=["a", "b", "c"], patch=[64, 64], foreground=1.0,
        normalization="reflectance", cache_dir=str(tmp_path / "cache"),
        division=Division(scene_block=2500, fractions=(0.0, 0.0)),
    )  # fmt: skip
    patches: Any = data.train_dataloader().dataset
    assert len(patches.cases) == 64
    patches.cases = tuple(case for case in patches.cases if case.key.endswith(("r1c2", "r5c5")))
    try:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak is forgotten
    except OSError:
        pytest.skip("the peak of memory cannot be measured here")
    before = memory("VmRSS")
    shown = [int((patches[number].mask == 1).sum()) for number in range(4)]
    assert sum(n > 0 for n in shown) == 2  # one of the two blocks has a field, and is shown with it
    # A process that has loaded the libraries has about 0.9 GB, so that this keeps within 1.5 GB.
    assert memory("VmHWM") - before < 500_000


def test_how_many_were_written_and_where_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 33."""
    root = make_mri_dataset(tmp_path / "mri", cases=2)
    code, rows = predict(model(tmp_path), tmp_path / "out", root / "images")
    assert code == 0
    assert f"2 of 2 predicted into {tmp_path / 'out'}" in capsys.readouterr().out
    assert sorted(line["output"] for line in rows) == ["case_00.nii.gz", "case_01.nii.gz"]
    assert all((tmp_path / "out" / line["output"]).is_file() for line in rows)
    (root / "images" / "case_00.nii.gz").write_bytes(b"x")
    (root / "images" / "case_01.nii.gz").unlink()
    code, _ = predict(model(tmp_path), tmp_path / "none", root / "images")
    assert code == 2
    said = capsys.readouterr()
    assert f"0 of 1 predicted into {tmp_path / 'none'}" in said.out
    assert "case_00.nii.gz" in said.err
    assert not list((tmp_path / "none").glob("*.nii.gz"))
    assert main(["check", "-q", str(tmp_path / "out")]) == 2  # a folder that is no dataset


def test_a_description_of_a_server_is_no_image(tmp_path: Path) -> None:
    """Row 36: GDAL alone would ask the server."""
    text = '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/${z}/${x}/${y}</ServerUrl></Service></GDAL_WMS>'
    for name in ("scene.tif", "scene.xml.tiff"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="not an image that can be read"):
            open_image(tmp_path / name)

"""Areas on earth against geodesic polygons, which are computed in another way."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules import Classes, DataError, Geometry
from datamodules.area import area_by_class, cell_areas
from datamodules.formats.geotiff import affine_of

pyproj = pytest.importorskip("pyproj")

UTM = (10.0, 0.0, 5e5, 0.0, -10.0, 5.5e6)


def geodesic(geometry: Geometry, rows: slice, columns: slice) -> float:
    """The area of a block of pixels: its outline in small steps, in longitude and latitude, on the ellipsoid."""
    top, bottom, left, right = rows.start - 0.5, rows.stop - 0.5, columns.start - 0.5, columns.stop - 0.5
    steps = np.linspace(0, 1, 200, endpoint=False)[:, None]
    corners = np.array([(top, left), (top, right), (bottom, right), (bottom, left)])
    outline = np.concatenate(
        [a + steps * (b - a) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)]
    )
    x, y = geometry.to_world(outline).T
    crs = pyproj.CRS.from_user_input(geometry.frame)
    lon, lat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
    return abs(crs.get_geod().polygon_area_perimeter(lon, lat)[0])


def total(areas: np.ndarray | None, rows: slice, columns: slice, shape: tuple[int, ...]) -> float:
    assert areas is not None
    return float(np.broadcast_to(areas, shape)[rows, columns].sum())


def turned(transform: tuple[float, ...], angle: float) -> tuple[float, ...]:
    a, _, c, _, e, f = transform
    co, si = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return a * co, -e * si, c, a * si, e * co, f


GRIDS = {
    "UTM": ("EPSG:32633", UTM, (400, 300)),
    "UTM far from its meridian": ("EPSG:32633", (30, 0, 1.2e5, 0, -30, 7.4e6), (700, 900)),
    "UTM, south-up": ("EPSG:32633", (10, 0, 5e5, 0, 10, 5.5e6), (200, 300)),
    "UTM, rotated": ("EPSG:32633", turned(UTM, 33), (200, 300)),
    "one pixel": ("EPSG:32633", UTM, (1, 1)),
    "Web Mercator, metres": ("EPSG:3857", (10, 0, 1.2e6, 0, -10, 8.4e6), (300, 300)),
    "Web Mercator, drone": ("EPSG:3857", (0.07, 0, 1.2e6, 0, -0.07, 8.4e6), (256, 256)),
    "Web Mercator, continent": ("EPSG:3857", (9000, 0, -2e6, 0, -9000, 9e6), (500, 500)),
    "Web Mercator, world": ("EPSG:3857", (156543.03392804097, 0, -20037508.342789244, 0, -156543.03392804097, 20037508.342789244), (256, 256)),
    "degrees": ("EPSG:4326", (1e-4, 0, 11.0, 0, -1e-4, 61.0), (300, 200)),
    "degrees, south-up": ("EPSG:4326", (0.01, 0, 11.0, 0, 0.01, -61.0), (300, 200)),
    "degrees, rotated": ("EPSG:4326", turned((1e-4, 0, 11.0, 0, -1e-4, 61.0), 20), (300, 200)),
    "degrees, over the date line": ("EPSG:4326", (0.01, 0, 179.0, 0, -0.01, 10.0), (100, 200)),
    "polar stereographic, over the pole": ("EPSG:3413", (1000, 0, -1e5, 0, -1000, 1e5), (200, 200)),
    "feet": ("EPSG:2263", (1, 0, 980000, 0, -1, 190000), (300, 300)),
    "Lambert conformal": ("EPSG:2154", (20, 0, 6.5e5, 0, -20, 6.9e6), (300, 300)),
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_areas_are_geodesic_ones(name: str) -> None:
    frame, transform, shape = GRIDS[name]
    geometry = Geometry(affine_of(transform), shape, frame)
    areas = cell_areas(geometry)
    blocks = [(slice(0, n // 2 or 1), slice(m // 3, m)) for n, m in [shape]]
    blocks += [(slice(n - 1 - n // 5, n), slice(0, max(1, m // 5))) for n, m in [shape]]
    for rows, columns in blocks:
        wanted = geodesic(geometry, rows, columns)
        assert total(areas, rows, columns, shape) == pytest.approx(wanted, rel=1e-3)
    part = cell_areas(geometry, slice(shape[0] // 2, shape[0]))
    np.testing.assert_allclose(
        np.broadcast_to(part, (shape[0] - shape[0] // 2, shape[1])),  # type: ignore[arg-type]
        np.broadcast_to(areas, shape)[shape[0] // 2 :],  # type: ignore[arg-type]
    )


def test_the_earth_has_its_surface() -> None:
    """510,065,622 km2 on WGS 84: 4 pi times the square of the authalic radius, 6371.0071809 km."""
    geometry = Geometry(affine_of((0.25, 0, -180, 0, -0.25, 90.0)), (720, 1440), "EPSG:4326")
    areas = cell_areas(geometry)
    assert areas is not None
    assert areas.shape == (720, 1)
    assert areas.sum() * 1440 == pytest.approx(4 * np.pi * 6371007.1809**2, rel=1e-8)


def test_web_mercator_is_not_inflated() -> None:
    """At 60 degrees north a pixel of Web Mercator is a quarter of what its spacing says (0.2512 on WGS 84)."""
    y = 8399737.889818357  # of latitude 60
    geometry = Geometry(affine_of((10, 0, 0, 0, -10, y + 500)), (100, 100), "EPSG:3857")
    inside = area_by_class(np.ones((100, 100), np.uint8), geometry, Classes(["a", "b"]))
    lon, lat = np.array([0, 1000, 1000, 0]) / 6378137, np.array([y + 500, y + 500, y - 500, y - 500])
    lat = np.rad2deg(2 * np.arctan(np.exp(lat / 6378137)) - np.pi / 2)
    wanted = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(np.rad2deg(lon), lat)[0])
    assert inside["b"]["m2"] == pytest.approx(wanted, rel=1e-4)
    assert 0.24e6 < wanted < 0.26e6
    assert inside["b"]["ha"] == pytest.approx(wanted / 1e4, rel=1e-4)
    assert inside["a"] == {"pixels": 0, "m2": 0, "ha": 0}


@pytest.mark.parametrize("frame", ["EPSG:32633", "EPSG:4326"])
def test_classes_share_the_area_and_what_is_not_valid_is_in_none(frame: str) -> None:
    transform = UTM if frame == "EPSG:32633" else (1e-3, 0, 11.0, 0, -1e-3, 61.0)
    geometry = Geometry(affine_of(transform), (40, 30), frame)
    mask = np.zeros((40, 30), np.uint16)
    mask[:, 10:] = 300
    valid = np.ones((40, 30), bool)
    valid[:, 25:] = False
    areas = np.broadcast_to(cell_areas(geometry), (40, 30))  # type: ignore[arg-type]
    found = area_by_class(mask, geometry, Classes({"sea": 0, "land": 300}), valid)
    assert found["sea"]["pixels"] == 400
    assert found["land"]["pixels"] == 600
    assert found["sea"]["m2"] == pytest.approx(areas[:, :10].sum())
    assert found["land"]["m2"] == pytest.approx(areas[:, 10:25].sum())


def test_millimetres_and_pixels() -> None:
    classes = Classes(["background", "lesion"])
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 2:4, 1:5] = 1
    volume = Geometry(np.diag([0.5, 2.0, 3.0, 1]), mask.shape, "RAS+ mm")
    assert area_by_class(mask, volume, classes)["lesion"] == pytest.approx(
        {"pixels": 16, "mm3": 48, "ml": 0.048}
    )
    slice_ = Geometry(np.diag([0.5, 2.0, 1]), (4, 5), "RAS+ mm")
    assert area_by_class(mask[:, :, 2], slice_, classes)["lesion"] == {"pixels": 4, "mm2": 4}
    assert area_by_class(mask[:, :, 2], Geometry.identity((4, 5)), classes)["lesion"] == {"pixels": 4}
    assert cell_areas(Geometry.identity((4, 5))) is None
    assert cell_areas(volume) is None


def test_a_well_known_text_is_a_frame_too() -> None:
    frame = pyproj.CRS.from_epsg(32633).to_wkt()
    one = cell_areas(Geometry(affine_of(UTM), (9, 9), frame))
    two = cell_areas(Geometry(affine_of(UTM), (9, 9), "EPSG:32633"))
    np.testing.assert_allclose(one, two)  # type: ignore[arg-type]
    assert one.mean() == pytest.approx(100, rel=1e-3)  # type: ignore[union-attr]
    assert one.mean() != 100  # type: ignore[union-attr]


@pytest.mark.parametrize("frame", ["EPSG:1", "nowhere", "GEOGCS[broken"])
def test_frames_that_are_nowhere(frame: str) -> None:
    with pytest.raises(DataError, match=r"areas in .*not known"):
        cell_areas(Geometry(affine_of(UTM), (9, 9), frame))


def test_a_system_that_is_not_tied_to_the_earth_has_no_areas() -> None:
    geometry = Geometry(affine_of(UTM), (9, 9), 'LOCAL_CS["site grid",UNIT["metre",1]]')
    assert cell_areas(geometry) is None
    found = area_by_class(np.zeros((9, 9), np.uint8), geometry, Classes(["a", "b"]))
    assert found["a"] == {"pixels": 81}


def test_shapes_must_fit() -> None:
    with pytest.raises(DataError, match=r"\(3, 4\).*\(4, 3\)"):
        area_by_class(np.zeros((3, 4), np.uint8), Geometry.identity((4, 3)), Classes(["a", "b"]))

"""How each kind of image is shown. One table: kind -> what shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from apps.viewer.session.opened import Kind
from apps.viewer.session.session import Session
from apps.viewer.views import scene, volume

VIEWS: Mapping[Kind, Callable[[Session], None]] = {
    "volume": volume.show,
    "picture": volume.show,
    "scene": scene.show,
}

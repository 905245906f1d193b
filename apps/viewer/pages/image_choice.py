"""Where an image comes from: a sample, an upload, or the data folder."""

from __future__ import annotations

import streamlit as st

from apps.viewer.pages import model_choice
from apps.viewer.samples import SAMPLES
from apps.viewer.session.session import Session
from apps.viewer.session.uploads import Upload
from apps.viewer.state import said
from datamodules.open import SUFFIXES

_SAMPLE, _UPLOAD, _FOLDER = "Sample", "Upload", "Data folder"
_SUGGESTED = "suggested sample"


def show(current: Session) -> None:
    """The choice, and a button that opens it."""
    st.markdown("#### Image")
    ways = [_SAMPLE, _UPLOAD, *([_FOLDER] if current.options.data_root is not None else [])]
    way = st.segmented_control(
        "Where from",
        ways,
        default=_SAMPLE,
        required=True,
        key="way",
        label_visibility="collapsed",
        width="stretch",
    )
    {_SAMPLE: _sample, _UPLOAD: _upload, _FOLDER: _folder}[way or _SAMPLE](current)


def suggest(sample: str) -> None:
    """Let the list show the sample that was opened elsewhere on the page."""
    st.session_state[_SUGGESTED] = sample


def _sample(current: Session) -> None:
    # A widget's value can only be set before it is drawn.
    if (suggested := st.session_state.pop(_SUGGESTED, None)) is not None:
        st.session_state["sample"] = suggested
    name = st.selectbox(
        "Sample",
        list(SAMPLES),
        format_func=lambda n: SAMPLES[n].title,
        key="sample",
        label_visibility="collapsed",
    )
    if st.button("Open sample", width="stretch", icon=":material/image:"):
        with said(), st.spinner("Opening ..."):
            current.open_sample(name)
            model_choice.suggest(current)


def _upload(current: Session) -> None:
    files = st.file_uploader(
        "Image file, or all slices of a DICOM series",
        accept_multiple_files=True,
        key="upload",
        max_upload_size=current.options.upload_mb,
        help=f"{', '.join(SUFFIXES)}. Several DICOM files are one series, several others are channels of one image. They "
        "are kept on the machine that runs this page, and removed when you leave.",
    )
    if st.button("Open files", width="stretch", icon=":material/image:", disabled=not files):
        with said(), st.spinner("Opening ..."):
            current.open_uploads([Upload(file.name, file) for file in files])


def _folder(current: Session) -> None:
    with said():
        root = current.data_root
        assert root is not None
        names = root.images()
        if not names:
            st.info("The data folder holds no image that can be read.")
            return
        name = st.selectbox(
            "Image in the data folder", names, key="name in root", label_visibility="collapsed"
        )
        if st.button("Open image", width="stretch", icon=":material/image:"):
            with st.spinner("Opening ..."):
                current.open_from_root(name)

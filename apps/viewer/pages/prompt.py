"""The panel that asks for objects: clicks, boxes, corrections, candidates, and what comes of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import streamlit as st

from apps.viewer.exchange import Mark, PlanesEvent
from apps.viewer.pages import follow, review
from apps.viewer.session.labelled import LabelledFolder
from apps.viewer.session.prompted_models import prompt_store
from apps.viewer.session.prompting import TOOLS, Prompting
from apps.viewer.session.session import Session
from apps.viewer.state import plain
from apps.viewer.views.held import hold, holder, release
from apps.viewer.views.volume import ASKED, Asked

PANEL, _PART, _MASK = "prompt", "prompting", "prompting mask"
_MASK_SUFFIX = {"volume": ".nii.gz", "picture": ".png"}
_MEDIA = {".nii.gz": "application/gzip", ".png": "image/png"}
_ADD, _TAKE = "Belongs to it", "Does not"


def fits(current: Session) -> bool:
    """Whether there is an image that can be clicked on."""
    return current.opened is not None and current.opened.kind in _MASK_SUFFIX


def show(current: Session) -> None:
    """The model and ``Start``; then the tools, the candidates and the objects."""
    work = current.parts.get(_PART)
    if not isinstance(work, Prompting):
        _start(current)
        return
    if holder(current) != PANEL:
        st.caption("The image shows something else at the moment.")
        if st.button("Go on prompting", type="primary", icon=":material/touch_app:"):
            _held(current, work)
        return
    left, middle, right = st.columns([5, 4, 4], gap="large")
    with left:
        _tools(work)
    with middle:
        _candidates(work)
        if current.opened is not None and current.opened.kind == "volume":
            follow.show(work)
    with right:
        _objects(current, work)
    if work.problem:
        st.error(plain(current.words(ValueError(work.problem))), icon=":material/error:")
    _save(current, work)
    _held(current, work)


# ----------------------------------------------------------------------------------------------- beginning


def _start(current: Session) -> None:
    entries = {str(entry.file): entry for entry in current.prompt_models()}
    if not entries:
        st.info("There is no model that takes prompts. Start the viewer with --models FOLDER that holds one.")
        return
    st.caption(
        "Click on what you want, and the model draws it. More clicks and corrections mend what it drew."
    )
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    file = left.selectbox(
        "Model that is asked", list(entries), format_func=lambda f: entries[f].name, key="prompt model"
    )
    if not right.button("Start", type="primary", width="stretch", icon=":material/touch_app:"):
        return
    opened = current.opened
    assert opened is not None
    with st.spinner("Loading the model ..."):
        work = Prompting(
            opened, prompt_store(current.store).get(entries[file].file), current.new_folder("embeddings")
        )
    bar = st.progress(0.0, "Looking at the image, once ...")
    try:
        work.encode(lambda share: bar.progress(min(share, 1.0), "Looking at the image, once ..."))
    finally:
        bar.empty()
    current.parts[_PART] = work
    _held(current, work)


def _held(current: Session, work: Prompting) -> None:
    def heard(event: PlanesEvent) -> None:
        # Slices of a volume are looked at for the first time here: encoding them takes a while.
        with st.spinner("Drawing ..."):
            work.heard(event)
        current.parts[ASKED] = _asked(current, work, heard)

    hold(current, PANEL, _asked(current, work, heard))


def _asked(current: Session, work: Prompting, heard: Callable[[PlanesEvent], None]) -> Asked:
    # The same objects until something changes, so that pictures are kept.
    kept = current.parts.get(_MASK)
    if kept is None or kept[0] != work.version:
        kept = current.parts[_MASK] = (work.version, work.mask, work.classes)
    return Asked(
        heard,
        work.tool,
        work.label,
        work.radius,
        tuple(Mark(*mark) for mark in work.marks()),
        kept[1],
        kept[2],
        str(work.version),
    )


# ----------------------------------------------------------------------------------------------- prompts


def _tools(work: Prompting) -> None:
    st.markdown("**Tool**")
    tool = st.segmented_control(
        "Tool",
        list(TOOLS),
        default=work.tool,
        format_func=lambda t: TOOLS[t],
        required=True,
        key="prompt tool",
        label_visibility="collapsed",
    )
    work.tool = tool or work.tool
    if work.tool != "box":
        side = st.radio(
            "What is marked", [_ADD, _TAKE], key="prompt side", horizontal=True, label_visibility="collapsed"
        )
        work.adding = side == _ADD
    if work.tool == "brush":
        work.radius = float(st.slider("Radius in pixels", 1, 60, int(work.radius), key="prompt radius"))
    st.caption(
        {
            "point": "Click. Right-click or Shift + click: does not belong to it.",
            "box": "Drag from corner to corner.",
            "brush": "Drag to add. With the right button or Shift: to erase.",
            "polygon": "Click corner after corner; Enter or a double-click closes it.",
        }[work.tool]
    )
    undo, redo, clear = st.columns(3)
    _button(undo, "Undo", "undo", work, work.work.undo, work.work.can_undo)
    _button(redo, "Redo", "redo", work, work.work.redo, work.work.can_redo)
    _button(clear, "Clear", "ink_eraser", work, work.work.clear, bool(work.work.prompts()))


def _button(
    where: st.delta_generator.DeltaGenerator,
    title: str,
    icon: str,
    work: Prompting,
    act: Callable[[], object],
    possible: bool,
) -> None:
    # Before the page is drawn, so that it shows what came of it at once.
    where.button(
        title,
        icon=f":material/{icon}:",
        width="stretch",
        disabled=not possible,
        on_click=work.changed,
        args=(act,),
        key=f"prompt {title}",
    )


def _candidates(work: Prompting) -> None:
    st.markdown("**Candidates**")
    found = work.work.candidates()
    if not found:
        st.caption("Nothing is asked here yet. Click on the image.")
        return
    for number, candidate in enumerate(found):
        chosen = number == work.work.chosen
        score = "as given" if math.isnan(candidate.quality) else f"score {candidate.quality:.2f}"
        share = 100 * float(candidate.mask.mean())
        st.button(
            f"{number + 1}: {score}, {share:.1f} % of the view",
            type="primary" if chosen else "secondary",
            icon=":material/check:" if chosen else ":material/radio_button_unchecked:",
            width="stretch",
            key=f"candidate {number}",
            on_click=work.changed,
            args=(lambda n=number: work.work.choose(n),),
        )
    if len(found) > 1:
        st.caption("Scores are the model's own guess of the overlap, not measured.")


# ----------------------------------------------------------------------------------------------- objects


def _objects(current: Session, work: Prompting) -> None:
    st.markdown("**Objects**")
    names = work.work.objects
    if names:
        chosen = st.selectbox(
            "Object",
            names,
            names.index(work.work.current),
            key=f"object {work.version}",
            label_visibility="collapsed",
        )
        if chosen != work.work.current:
            work.changed(lambda: setattr(work.work, "current", chosen))
            st.rerun()
    with st.form("prompt object", border=False, clear_on_submit=True):
        name = st.text_input("Name", key="object name", max_chars=60, placeholder="Name, e.g. left lung")
        add, rename = st.columns(2)
        added = add.form_submit_button("Add object", width="stretch", icon=":material/add:")
        renamed = rename.form_submit_button("Rename", width="stretch", disabled=not names)
    if added or renamed:
        work.changed(
            (lambda: work.work.add_object(name.strip()))
            if added
            else (lambda: work.work.rename_object(work.work.current, name.strip()))
        )
        st.rerun()
    if names:
        st.button(
            "Remove object",
            icon=":material/delete:",
            width="stretch",
            on_click=work.changed,
            args=(lambda: work.work.remove_object(work.work.current),),
        )
    _from_result(current, work)


def _from_result(current: Session, work: Prompting) -> None:
    """Begin with what a model predicted, and mend it."""
    result = current.result
    if result is None or not result.classes.exclusive:
        return
    with st.popover("Begin with the prediction", width="stretch"):
        classes = [result.classes[k] for k in result.classes.foreground]
        picked = st.selectbox(
            "Class", range(len(classes)), format_func=lambda i: classes[i].name, key="begin with"
        )
        st.button(
            "Take it",
            on_click=work.changed,
            args=(lambda: work.begin_with(result.mask == classes[picked].value, classes[picked].name),),
        )


# ----------------------------------------------------------------------------------------------- keeping


def _save(current: Session, work: Prompting) -> None:
    opened = current.opened
    assert opened is not None
    with st.expander("Save, load, and the next case", icon=":material/save:"):
        mask, prompts, load = st.columns(3, gap="medium")
        some = bool(work.work.objects)
        suffix = _MASK_SUFFIX[opened.kind]
        with mask:
            st.download_button(
                "Mask of the objects",
                lambda: _mask_file(current, work, suffix),
                file_name=f"{opened.stem}.objects{suffix}",
                mime=_MEDIA[suffix],
                disabled=not some,
                on_click="ignore",
                icon=":material/download:",
                width="stretch",
            )
            _labels(current, work, some)
        with prompts:
            st.download_button(
                "Prompts (JSON)",
                work.record,
                file_name=f"{opened.stem}.prompts.json",
                mime="application/json",
                disabled=not some,
                on_click="ignore",
                icon=":material/download:",
                width="stretch",
            )
        with load:
            _load(work)
        review.show(current)
    if st.button("Stop prompting", icon=":material/close:"):
        release(current, PANEL)


def _mask_file(current: Session, work: Prompting, suffix: str) -> bytes:
    path = current.new_folder("objects") / f"objects{suffix}"
    try:
        work.work.save(path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _labels(current: Session, work: Prompting, some: bool) -> None:
    if current.options.output is None:
        st.caption("Start the viewer with --output FOLDER to collect labels for training.")
        return
    folder = LabelledFolder(current.options.output / "labels")
    if st.button("Save as labels", icon=":material/label:", width="stretch", disabled=not some):
        assert current.opened is not None
        name = folder.save(current.opened, work.mask, work.classes)
        st.success(plain(f"Saved as {name} in the folder labels."), icon=":material/check:")


def _load(work: Prompting) -> None:
    file = st.file_uploader("Load prompts", type=["json"], key="prompt file", max_upload_size=20)
    if st.button("Ask again what it says", disabled=file is None, width="stretch"):
        assert file is not None
        bar = st.progress(0.0, "Asking again ...")
        try:
            work.restore(file.getvalue(), lambda share: bar.progress(min(share, 1.0), "Asking again ..."))
        finally:
            bar.empty()
        st.rerun()

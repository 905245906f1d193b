"""The cache of embeddings: what is kept, for how long, and what happens to damaged files."""

from __future__ import annotations

import os
import time

import pytest
import torch

from tasks.interactive.embeddings import EmbeddingCache


def features(value, count=1000):
    return [torch.full((1, 2, count // 2), float(value)), torch.full((3,), float(value))]


def same(found, value):
    return found is not None and all((a == b).all() for a, b in zip(found, features(value), strict=True))


def test_what_is_put_is_found_in_memory_and_on_disk(tmp_path):
    cache = EmbeddingCache(tmp_path / "e")
    assert cache.get("a") is None
    cache.put("a", features(1))
    assert same(cache.get("a"), 1)
    cache.clear_memory()
    assert same(cache.get("a"), 1)
    assert same(EmbeddingCache(tmp_path / "e").get("a"), 1)
    assert not list((tmp_path / "e").glob(".part-*"))
    if os.name == "posix":
        assert (tmp_path / "e").stat().st_mode & 0o077 == 0  # other people may not look


def test_nothing_is_written_where_no_folder_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = EmbeddingCache(False)
    cache.put("a", features(1))
    assert same(cache.get("a"), 1)
    assert not list(tmp_path.iterdir())
    assert EmbeddingCache().folder == tmp_path / "delineate" / "embeddings"


def test_the_file_that_was_used_longest_ago_goes_first(tmp_path):
    cache = EmbeddingCache(tmp_path, disk=3 * 4200, memory=0)
    for number, key in enumerate("abc"):
        cache.put(key, features(number))
        os.utime(tmp_path / f"{key}.safetensors", (number + 1, number + 1))
    cache.clear_memory()
    assert same(cache.get("a"), 0)  # used now
    cache.put("d", features(3))
    assert {file.stem for file in tmp_path.iterdir()} == {"a", "c", "d"}
    cache.clear_memory()
    assert cache.get("b") is None


def test_memory_keeps_the_one_in_use_and_what_fits(tmp_path):
    cache = EmbeddingCache(False, memory=2 * 4100)
    for number, key in enumerate("abc"):
        cache.put(key, features(number))
    assert cache.get("a") is None
    assert same(cache.get("b"), 1)
    tiny = EmbeddingCache(False, memory=0)
    tiny.put("a", features(1))
    assert same(tiny.get("a"), 1)


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}", b"no tensors at all"])
def test_damaged_files_are_removed_and_made_again(tmp_path, damage):
    cache = EmbeddingCache(tmp_path)
    cache.put("a", features(1))
    file = tmp_path / "a.safetensors"
    file.write_bytes(damage)
    cache.clear_memory()
    assert cache.get("a") is None
    cache.put("a", features(1))
    cache.clear_memory()
    assert same(cache.get("a"), 1)


def test_files_that_are_cut_off_are_removed(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put("a", features(1))
    file = tmp_path / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    cache.clear_memory()
    assert cache.get("a") is None
    assert not file.exists()


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    old, new = tmp_path / ".part-1-a.safetensors", tmp_path / ".part-2-b.safetensors"
    for file, age in ((old, 2 * 24 * 3600), (new, 60)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    EmbeddingCache(tmp_path).put("a", features(1))
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_written_costs_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = EmbeddingCache(tmp_path / "file" / "e")
    cache.put("a", features(1))
    assert same(cache.get("a"), 1)
    cache.clear_memory()
    assert cache.get("a") is None

"""The folder of compiled programs does not grow for ever, and keeps nothing that is broken."""

import os
import time
import zlib

from tests import compile_cache


def test_what_is_cut_short_old_or_too_much_goes_and_the_newest_stay(tmp_path, monkeypatch):
    whole = zlib.compress(os.urandom(1000))
    folder = tmp_path / "jax-1"
    folder.mkdir()

    def names() -> set[str]:
        compile_cache.prune(tmp_path)
        return {path.name.removesuffix("-cache") for path in folder.iterdir()}

    now = time.time()
    contents = {"new": whole, "used": whole, "old": whole, "cut": whole[:500], "empty": b""}
    for days, (name, content) in enumerate(contents.items()):
        path = folder / f"{name}-cache"
        path.write_bytes(content)
        age = 24 * 3600 * (40 if name == "old" else days)
        os.utime(path, (now - age, now - age))
    assert names() == {"new", "used"}
    monkeypatch.setattr(compile_cache, "_BYTES", 1500)
    assert names() == {"new"}


def test_processors_and_releases_do_not_share_programs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = compile_cache.folder()
    assert one.parent.parent == tmp_path
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    assert compile_cache.folder() != one == compile_cache.folder().with_name(one.name)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tmp_path not in compile_cache.folder().parents

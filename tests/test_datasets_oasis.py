"""OASIS from a server on this computer: whole, broken off, changed, wrong, hostile, absent."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import socket
import tarfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from course_lib.datasets import Pair, collate, download, oasis
from course_lib.datasets.cohort import Recombined
from course_lib.datasets.download import extract, fetch, require_space
from course_lib.datasets.oasis import OASIS, RELEASES, split_of

NUMBERS = range(1, 13)


@dataclass
class Server:
    """What is served and how, and what was asked."""

    content: bytes = b""
    url: str = ""
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    status: int = 200
    cut_after: int | None = None  # bytes of an answer, of which the rest never comes
    asked: list[str] = field(default_factory=list)  # the Range of each request
    sent: list[int] = field(default_factory=list)  # the bytes of each answer
    agents: list[str] = field(default_factory=list)

    def part(self, headers) -> tuple[int, int]:
        """Status and first byte of the answer."""
        wanted, version = headers.get("Range", ""), headers.get("If-Range", "")
        if not (self.ranges and wanted) or version not in (self.etag, self.modified):
            return 200, 0
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        return (206, start) if start < len(self.content) else (416, 0)


@pytest.fixture
def server(monkeypatch):
    known = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known.asked.append(self.headers.get("Range", ""))
            known.agents.append(self.headers["User-Agent"])
            status, start = known.part(self.headers)
            status = status if known.status == 200 else known.status
            body = known.content[start:] if status < 300 else b"no such thing"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if known.etag:
                self.send_header("ETag", known.etag)
            if known.modified:
                self.send_header("Last-Modified", known.modified)
            if status == 206:
                last = len(known.content)
                self.send_header("Content-Range", f"bytes {start}-{last - 1}/{last}")
            self.end_headers()
            body = body[: known.cut_after]
            self.wfile.write(body)
            known.sent.append(len(body))
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        known.url = f"http://127.0.0.1:{http.server_port}/release.tar"
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield known
        http.shutdown()
        thread.join()


def nifti(values: np.ndarray) -> bytes:
    return nib.Nifti1Image(values, np.eye(4)).to_bytes()


def person(number: int, ndim: int) -> dict[str, bytes]:
    """The files of one person in the release's layout, small and uncompressed."""
    shape = (16, 32, 16)[:ndim] if ndim == 3 else (16, 32, 1)  # slices may have a third axis
    image = np.random.default_rng(number).uniform(0, 1, shape).astype(np.float32)
    image[:2] = 0
    labels = (image * number).astype(np.uint8)
    kind, many = ("slice", 24) if ndim == 2 else ("aligned", 35)
    files = {
        f"{kind}_norm.nii.gz": image,
        f"{kind}_orig.nii.gz": image + 1,
        f"{kind}_seg4.nii.gz": (image > 0).astype(np.uint8) + 1,
        f"{kind}_seg{many}.nii.gz": labels + np.uint8(1) * (image > 0),
    }
    # Without a time, so that the archive has one hash.
    return {name: gzip.compress(nifti(values), mtime=0) for name, values in files.items()}


def tar_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def release(ndim: int = 2, top: str = "") -> bytes:
    files = {f"{top}subjects.txt": b"text", f"{top}seg4_labels.txt": b"text"}
    for number in NUMBERS:
        for name, content in person(number, ndim).items():
            files[f"{top}OASIS_OAS1_{number:04d}_MR1/{name}"] = content
    return tar_of(files)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """No test asks this computer for gigabytes."""
    tiny = {ndim: known._replace(size=10_000) for ndim, known in RELEASES.items()}
    monkeypatch.setattr(oasis, "RELEASES", tiny)


# -------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("top", ["", "./", "neurite-oasis/"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_pairs_of_the_release(server, tmp_path, ndim, top, capsys):
    server.content = release(ndim, top)
    known = OASIS("all", ndim=ndim, folder=tmp_path, url=server.url)
    assert known.subjects == [f"OASIS_OAS1_{n:04d}_MR1" for n in NUMBERS] and len(known) == 12
    pair = known[2]
    shape = (16, 32, 16)[:ndim]
    assert isinstance(pair, Pair) and pair.displacement is None and pair.spacing == (1.0,) * ndim
    for image in (pair.moving, pair.fixed):
        assert image.shape == (1, 1, *shape) and image.dtype == torch.float32
        assert image.min() == 0 and image.max() == 1
    for labels, most in ((pair.moving_labels, 4), (pair.fixed_labels, 3)):
        assert labels.shape == (1, 1, *shape) and labels.dtype == torch.int64
        assert int(labels.max()) == most  # person 4 moves, person 3 is fixed
    assert torch.equal(known[-1].moving, known[0].fixed)  # the first one after the last
    tissues = OASIS("all", ndim=ndim, labels=4, folder=tmp_path, url=server.url)[0].fixed_labels
    assert set(tissues.unique().tolist()) == {1, 2}
    assert server.asked == [""], "unpacked once"
    said = capsys.readouterr().out
    assert said.count("Data Use Agreement") == 1 and "needed there" in said


def test_only_what_is_used_is_unpacked_and_the_archive_is_deleted(server, tmp_path):
    server.content = release()
    known = OASIS("all", folder=tmp_path, url=server.url)
    names = {file.name for file in known.folder.rglob("*.nii.gz")}
    assert names == {"slice_norm.nii.gz", "slice_seg4.nii.gz", "slice_seg24.nii.gz"}
    assert (known.folder / "seg4_labels.txt").exists()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["release", "release.tar.sha256"]


def test_people_are_split_once_and_for_all(server, tmp_path):
    server.content = release()
    parts = {}
    for split in ("train", "validation", "test"):
        try:
            parts[split] = OASIS(split, folder=tmp_path, url=server.url).subjects
        except ValueError as error:  # of twelve people, a tenth may be none
            assert "at least two people" in str(error) and split in str(error)
    assert len(parts["train"]) >= 5
    everybody = [name for names in parts.values() for name in names]
    assert len(set(everybody)) == len(everybody)
    names = [f"OASIS_OAS1_{n:04d}_MR1" for n in range(1, 458)]
    shares = {s: sum(split_of(n) == s for n in names) for s in ("train", "validation", "test")}
    assert 340 < shares["train"] < 390 and min(shares.values()) > 30
    assert all(split_of(n) == split_of(n.replace("MR1", "MR2")) for n in names)


def test_an_unpacked_release_is_read_where_it_lies(server, tmp_path):
    (tmp_path / "a.tar").write_bytes(release(top="mine/"))
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    known = OASIS("all", folder=tmp_path / "mine")
    assert len(known) == 12 and known.folder == tmp_path / "mine" and server.asked == []


def test_it_goes_through_a_loader_and_recombines(server, tmp_path):
    server.content = release()
    known = OASIS("all", folder=tmp_path, url=server.url)
    batch = next(iter(DataLoader(known, batch_size=3, num_workers=1, collate_fn=collate)))
    assert batch.fixed_labels.shape == (3, 1, 16, 32)
    assert len(Recombined(known, 7)) == 7 and Recombined(known, 7)[6].displacement is None
    with pytest.raises(IndexError):
        known[12]


def test_a_file_that_broke_later_says_what_to_do(server, tmp_path):
    server.content = release()
    known = OASIS("all", folder=tmp_path, url=server.url)
    (known.folder / known.subjects[0] / "slice_norm.nii.gz").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"(?s)slice_norm.*Delete .*release"):
        known[0]


# --------------------------------------------------------------------------- what may go wrong


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.content = release()
    whole = len(server.content)
    digest = "md5:" + hashlib.md5(server.content).hexdigest()
    server.cut_after = whole // 2
    with pytest.raises(ConnectionError, match=rf"broke off; {whole // 2:,} bytes.*goes on"):
        OASIS("all", folder=tmp_path, url=server.url, known_hash=digest)
    assert (tmp_path / "release.tar.part").stat().st_size == whole // 2
    assert not (tmp_path / "release.tar").exists() and not (tmp_path / "release").exists()
    server.cut_after = None
    assert len(OASIS("all", folder=tmp_path, url=server.url, known_hash=digest)) == 12
    assert server.asked == ["", f"bytes={whole // 2}-"]
    assert server.sent == [whole // 2, whole - whole // 2]  # only the rest came again


def test_it_breaks_off_many_times_and_arrives(server, tmp_path):
    server.content, server.cut_after = bytes(range(256)) * 40, 3000
    server.etag, server.modified = 'W/"weak"', "Sun, 22 Nov 2026 20:00:00 GMT"
    file = tmp_path / "release.tar"
    for _ in range(3):
        with pytest.raises(ConnectionError, match="broke off"):
            fetch(server.url, file, None, progress=False)
    fetch(server.url, file, None, progress=False)
    assert file.read_bytes() == server.content and server.sent == [3000, 3000, 3000, 1240]


@pytest.mark.parametrize("change", ["no ranges", "new version", "no version", "other address"])
def test_it_begins_anew_where_it_cannot_go_on(server, tmp_path, change):
    server.content, server.cut_after = bytes(range(256)) * 40, 3000
    if change == "no version":
        server.etag = ""
    with pytest.raises(ConnectionError):
        fetch(server.url, tmp_path / "a", None, progress=False)
    server.cut_after = None
    url = server.url
    if change == "no ranges":
        server.ranges = False
    elif change == "new version":
        server.content, server.etag = server.content[::-1], '"two"'
    elif change == "other address":
        server.content, url = server.content[::-1], server.url.replace("release", "other")
    fetch(url, tmp_path / "a", None, progress=False)
    assert (tmp_path / "a").read_bytes() == server.content and server.sent[-1] == 10_240


def test_a_part_that_is_already_whole_is_not_trusted(server, tmp_path):
    server.content, server.cut_after = bytes(range(256)) * 40, 3000
    with pytest.raises(ConnectionError):
        fetch(server.url, tmp_path / "a", None, progress=False)
    (tmp_path / "a.part").write_bytes(b"x" * 10_240)  # nothing is left to ask for: 416
    server.cut_after = None
    fetch(server.url, tmp_path / "a", None, progress=False)
    assert (tmp_path / "a").read_bytes() == server.content


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_wrong_hash_is_refused_and_the_file_removed(server, tmp_path, kind):
    server.content = release()
    wrong = f"{kind}:{hashlib.new(kind, b'another').hexdigest()}"
    with pytest.raises(ValueError, match=r"known_hash.*not the expected file.*does not match"):
        OASIS("all", folder=tmp_path, url=server.url, known_hash=wrong)
    assert list(tmp_path.iterdir()) == []
    right = f"{kind}:{hashlib.new(kind, server.content).hexdigest()}"
    assert len(OASIS("all", folder=tmp_path, url=server.url, known_hash=right)) == 12


def test_the_publishers_hash_guards_their_address(server, tmp_path, monkeypatch):
    server.content = release()
    moved = {n: r._replace(url=server.url) for n, r in oasis.RELEASES.items()}
    monkeypatch.setattr(oasis, "RELEASES", moved)
    with pytest.raises(ValueError, match="c9ae5864f250c7e4b8d83a104e51ae8e"):
        OASIS("all", folder=tmp_path)
    with pytest.raises(ValueError, match="081392a8150ff99ab7a64a9ded377835"):
        OASIS("all", ndim=3, folder=tmp_path)
    assert not any(tmp_path.glob("release*"))


def test_without_a_hash_the_first_download_is_what_later_ones_must_be(server, tmp_path):
    server.content = release()
    known = OASIS("all", folder=tmp_path, url=server.url)
    note = (tmp_path / "release.tar.sha256").read_text()
    assert note == f"{hashlib.sha256(server.content).hexdigest()}  release.tar\n"
    shutil.rmtree(known.folder)
    assert len(OASIS("all", folder=tmp_path, url=server.url)) == 12  # the same again
    shutil.rmtree(known.folder)
    server.content += b"\0"
    with pytest.raises(ValueError, match="not the expected file"):
        OASIS("all", folder=tmp_path, url=server.url)
    assert not (tmp_path / "release.tar").exists()


@pytest.mark.parametrize("status", [404, 403, 503])
def test_a_server_that_refuses_is_quoted(server, tmp_path, status):
    server.content, server.status = release(), status
    with pytest.raises(ConnectionError, match=rf"release.tar answers {status} ") as caught:
        OASIS("all", folder=tmp_path, url=server.url)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())
    assert "registration-course" in server.agents[0]


def test_no_network_is_one_plain_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]  # bound, and nobody listens
        with pytest.raises(ConnectionError, match=r"cannot be reached: is this computer") as caught:
            OASIS("all", folder=tmp_path, url=f"http://127.0.0.1:{port}/release.tar")
    assert "\n" not in str(caught.value) and "urllib3" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../evil.txt", "../../evil.txt", "a/../../evil.txt"])
def test_a_path_that_leads_out_is_refused(server, tmp_path, name):
    files = {"OASIS_OAS1_0001_MR1/slice_norm.nii.gz": b"x", name: b"evil"}
    server.content = tar_of(files)
    home = tmp_path / "home"
    with pytest.raises(ValueError, match=r"archive: .* is refused, nothing is unpacked"):
        OASIS("all", folder=home, url=server.url)
    assert not list(tmp_path.rglob("evil*")) and not (home / "release").exists()


def test_an_absolute_path_stays_inside(tmp_path):
    evil = tmp_path / "evil.txt"
    (tmp_path / "a.tar").write_bytes(tar_of({str(evil): b"evil"}))
    extract(tmp_path / "a.tar", tmp_path / "out", lambda path: True)
    assert not evil.exists()
    assert [f.name for f in (tmp_path / "out").rglob("*") if f.is_file()] == ["evil.txt"]


def test_a_link_that_leads_out_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("OASIS_OAS1_0001_MR1/slice_norm.nii.gz")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../etc/passwd"
        tar.addfile(link)
    with pytest.raises(ValueError, match="refused"):
        extract(tmp_path / "a.tar", tmp_path / "out", lambda path: True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>403</html>" * 100, "no readable tar"),
        (release()[:3000], "no readable tar|none of the expected"),
        (tar_of({"a/b.txt.gz": b"x"}), "none of the expected files"),
    ],
    ids=["HTML", "cut", "other"],
)
def test_what_is_no_release_leaves_nothing_behind(server, tmp_path, content, words):
    server.content = content
    with pytest.raises(ValueError, match=words):
        OASIS("all", folder=tmp_path, url=server.url)
    assert not (tmp_path / "release").exists()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_room_is_looked_for_before_anything_is_written(server, tmp_path, monkeypatch):
    huge = {n: r._replace(size=10**17) for n, r in RELEASES.items()}
    monkeypatch.setattr(oasis, "RELEASES", huge)
    with pytest.raises(OSError, match=r"needs 200000000\.00 GB.*are free"):
        OASIS("all", folder=tmp_path / "new" / "place", url=server.url)
    assert not any(tmp_path.iterdir()) and server.asked == []
    (tmp_path / "a.part").write_bytes(b"x" * 100)
    assert download.missing_bytes(tmp_path / "a", 1000) == 900
    assert require_space(tmp_path, 1) is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"split": "training"}, "split"),
        ({"ndim": 4}, "ndim"),
        ({"ndim": True}, "ndim"),
        ({"labels": 35}, "labels: expected 24 or 4"),
        ({"ndim": 3, "labels": 24}, "labels: expected 35 or 4"),
    ],
)
def test_options_that_are_none(tmp_path, options, word):
    with pytest.raises(ValueError, match=word):
        OASIS(**{"split": "all", "folder": tmp_path} | options)


def test_a_name_without_a_number_has_no_split():
    for name in ("anna", "OAS1_12", None, 3):
        with pytest.raises(ValueError, match="subject"):
            split_of(name)

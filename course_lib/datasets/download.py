"""Files from the network: resumed where they broke off, checked by a hash, unpacked with care.

``pooch`` keeps and checks the files; it does not resume a download, so that part stands here.
"""

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pooch
import requests
from tqdm.auto import tqdm

_CHUNK = 2**16  # bytes; of a connection that breaks, at most so many are lost
# Users report that the server of OASIS refuses programs of some names, curl's among them.
_AGENT = "Mozilla/5.0 (compatible; registration-course)"
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces


def fetch(url: str, file: Path, known_hash: str | None, *, progress: bool = True) -> Path:
    """Download a file unless it is there; go on where an earlier download broke off.

    What has arrived lies in ``NAME.part`` until it is whole and its hash is right; a wrong one is
    deleted. To go on, the server must know parts of files (HTTP Range) and say which version it has
    (ETag or Last-Modified): otherwise the download begins anew. Not for two processes at once.

    Args:
        url: the address.
        file: where it goes; its folder is made.
        known_hash: such as ``"md5:…"`` or ``"sha256:…"``. None: the SHA-256 of the first download
            is written to ``NAME.sha256`` beside the file, and later ones must agree. That tells a
            changed file, not whether the first one was right.
        progress: whether to show a bar.

    Returns:
        ``file``.

    Raises:
        ConnectionError: if the server cannot be reached, refuses, or breaks off, in one sentence.
        ValueError: if the hash is wrong.
    """
    note = file.with_name(file.name + ".sha256")
    expected = known_hash
    if known_hash is None and note.exists():
        expected = f"sha256:{note.read_text(encoding='utf-8').split()[0]}"
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # what it would say is said by whoever calls
    try:
        pooch.retrieve(url, expected, file.name, file.parent, downloader=_Resuming(file, progress))
    except ValueError as error:
        message = f"known_hash: what came from {url} is not the expected file. {error}"
        raise ValueError(message) from error
    finally:
        logger.setLevel(level)
    if known_hash is None and not note.exists():
        note.write_text(f"{pooch.file_hash(str(file))}  {file.name}\n", encoding="utf-8")
    return file


def missing_bytes(file: Path, size: int) -> int:
    """How much of a file of ``size`` bytes is still to come."""
    part = _part(file)
    return size - (part.stat().st_size if part.exists() else 0)


def _part(file: Path) -> Path:
    return file.with_name(file.name + ".part")


class _Resuming:
    """A downloader for ``pooch`` that keeps what has arrived."""

    def __init__(self, file: Path, progress: bool) -> None:
        self.part, self.progress = _part(file), progress
        self.note = file.with_name(file.name + ".part.json")
        self.receiving = False

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Fill ``output_file``, where pooch looks at the hash."""
        try:
            self._download(url)
        except requests.RequestException as error:
            raise ConnectionError(self._why(url)) from error
        os.replace(self.part, output_file)
        self.note.unlink(missing_ok=True)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _why(self, url: str) -> str:
        kept = f"{self._arrived():,} bytes have arrived and are kept"
        if self.receiving:
            return f"{url} broke off; {kept}: the same call again goes on from there"
        return (
            f"{url} cannot be reached: is this computer online? "
            f"Nothing is lost ({kept}), and no lesson needs the network."
        )

    def _download(self, url: str) -> None:
        start, tag = self._arrived(), self._tag(url)
        if start and tag and self._receive(url, start, tag):
            return
        self.part.unlink(missing_ok=True)
        self._receive(url, 0, "")

    def _tag(self, url: str) -> str:
        """The server's name for the version of which a part has arrived."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return str(note["tag"]) if note["url"] == url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _receive(self, url: str, start: int, tag: str) -> bool:
        """Ask for the file from ``start``; False if the server has no such part."""
        # Compressed on the way, bytes could not be counted.
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": tag}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            if start and answer.status_code == 416:
                return False
            if answer.status_code not in (200, 206):
                raise ConnectionError(
                    f"{url} answers {answer.status_code} {answer.reason}: the file may have moved"
                )
            if answer.status_code == 200:  # all of it, whatever was asked
                start = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return False
            self.receiving = True
            # Where an answer ends early, take what has come: its length is compared below.
            answer.raw.enforce_content_length = False
            self._remember(url, answer)
            self._write(answer, start)
        return True

    def _remember(self, url: str, answer: requests.Response) -> None:
        tag = answer.headers.get("ETag", "")
        if not tag or tag.startswith("W/"):  # a weak one may stand for other bytes
            tag = answer.headers.get("Last-Modified", "")
        self.note.write_text(json.dumps({"url": url, "tag": tag}), encoding="utf-8")

    def _write(self, answer: requests.Response, start: int) -> None:
        rest = answer.headers.get("Content-Length")
        total = None if rest is None else start + int(rest)
        bar = tqdm(
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=not self.progress,
            leave=False,
        )
        with open(self.part, "ab" if start else "wb") as stream, bar:
            for chunk in answer.iter_content(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
        if total is not None and self._arrived() != total:
            raise requests.ConnectionError("fewer bytes than announced")


def extract(archive: Path, folder: Path, wanted: Callable[[PurePosixPath], bool]) -> None:
    """Unpack files of a tar into a new folder, in one step: it is there whole or not at all.

    Args:
        archive: the tar.
        folder: must not exist yet.
        wanted: which files, by their path inside the archive.

    Raises:
        ValueError: if the file is no tar, holds nothing that is wanted, or holds a path that leads
            out of the folder, wanted or not: then nothing of it is unpacked.
        RuntimeError: on a Python older than 3.11.4, which cannot tell such paths.
    """
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError("archive: unpacking with care needs Python 3.11.4 or newer")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            for member in members:
                tarfile.data_filter(member, str(draft))  # raises where a path leads out
            chosen = [m for m in members if m.isfile() and wanted(PurePosixPath(m.name))]
            if not chosen:
                raise ValueError(f"archive: {archive} holds none of the expected files")
            tar.extractall(draft, chosen, filter="data")
        os.replace(draft, folder)
    except tarfile.FilterError as error:
        raise ValueError(f"archive: {archive} is refused, nothing is unpacked: {error}") from error
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"archive: {archive} is no readable tar: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_space(folder: Path, size: int) -> None:
    """Check that a disk has room before anything is written.

    Args:
        folder: on that disk; it need not exist yet.
        size: in bytes.

    Raises:
        OSError: if there is less.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise OSError(
            f"{folder} needs {size / 1e9:.2f} GB while files are unpacked, and {free / 1e9:.2f} GB "
            "are free; folder=… names another place"
        )

"""The folder of a prepared corpus: the tensors in one file, and a manifest that says what they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from curvlab.errors import DataError
from curvlab_speech.alignment import PARTS
from curvlab_speech.corpus import Corpus

DATA, MANIFEST = "speech.safetensors", "manifest.json"

#: of the folder; one that this code does not know is refused
VERSION = 1

#: below it in CURVLAB_DATA
NAME = "speech-frames"


@dataclass(frozen=True)
class Manifest:
    """What a folder holds, and what it was made from; ``asked`` are the options of the command."""

    asked: Mapping[str, Any]
    made_by: str  #: synthesizer and version
    text: str  #: SHA-256 of the sentences it could choose from
    phonemes: tuple[str, ...]
    features: int
    frames: int
    utterances: int
    sha256: str = ""  #: of the data file
    version: int = VERSION
    kind: str = "synthetic speech"

    @property
    def classes(self) -> tuple[str, ...]:
        """Phonemes by their parts: class 3 p + k is the k-th third of phoneme p."""
        return tuple(f"{phoneme} {k + 1}/{PARTS}" for phoneme in self.phonemes for k in range(PARTS))


def find(root: str | None) -> Path:
    """The folder that a task reads: ``root``, else ``speech-frames`` in ``CURVLAB_DATA``."""
    if root is not None:
        return Path(root).expanduser()
    base = os.environ.get("CURVLAB_DATA")
    if base:
        return Path(base).expanduser() / NAME
    raise DataError(
        "the folder of the synthetic speech is not known. Name it in the task's setting `root`, or put it "
        f"into CURVLAB_DATA as {NAME}. {how_to_make('DIR')}"
    )


def how_to_make(folder: Path | str) -> str:
    """The command, in a sentence."""
    return f"`curvlab tasks prepare speech-frames --minutes 10 --to {folder}` makes it"


def read_manifest(folder: Path) -> Manifest:
    """What a folder says that it holds; raises ``DataError`` if there is nothing, or nothing known."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no synthetic speech in {folder}: {how_to_make(folder)}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise DataError(f"{path}: version {version}, expected {VERSION}; prepare the data again")
    try:
        return Manifest(**{**document, "phonemes": tuple(document["phonemes"])})
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a manifest of speech-frames: {error}; prepare the data again"
        ) from error


def read(folder: Path) -> Corpus:
    """The corpus of a folder; raises ``DataError`` if data and manifest are not of one making."""
    manifest, path = read_manifest(folder), folder / DATA
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}; prepare the data again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.sha256:
        raise DataError(
            f"{path} has SHA-256 {found[:12]}…; {MANIFEST} expects {manifest.sha256[:12]}…: "
            "damaged, or prepared by another version; prepare the data again"
        )
    tensors = load(data)
    return Corpus(tensors["frames"], tensors["labels"].long(), tensors["bounds"], manifest.classes)


def write(folder: Path, corpus: Corpus, manifest: Manifest) -> Manifest:
    """Both files, the manifest last, so that a folder with a manifest is whole; returns the manifest.

    Equal corpora give equal bytes.
    """
    tensors = {
        "frames": corpus.frames.float().contiguous(),
        "labels": corpus.labels.to(torch.int16),
        "bounds": corpus.bounds.long(),
    }
    data = save(tensors)
    document = {**asdict(manifest), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((DATA, data), (MANIFEST, (json.dumps(document, indent=2) + "\n").encode())):
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return Manifest(**document)

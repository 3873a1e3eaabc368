"""A process that speaks: runs libespeak-ng on what standard input says and writes sound to standard output.

It is run as a file, in an interpreter of its own, and imports nothing but the standard library.  The
library keeps state from one utterance to the next (echoes, phases, random breath), so the same text
sounds alike but not equal twice; a fresh process that is given the same list gives the same bytes.

Input: a JSON list of {"text", "voice", "rate", "pitch"}.
Output: a line of JSON, {"version", "sample_rate"} or {"error"}; then per utterance a line of JSON,
{"samples": n, "phonemes": [[name, first sample], …], "end": sample}, and n 16-bit samples, little-endian.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any, BinaryIO

LIBRARY = "libespeak-ng.so.1"

# from espeak-ng's speak_lib.h
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DO_NOT_EXIT = 0x0001, 0x8000
_RATE, _PITCH = 1, 3
_UTF8, _FROM_CHARACTER = 1, 1
_END_OF_LIST, _END, _PHONEME = 0, 5, 7


class Event(ctypes.Structure):
    """``espeak_EVENT``; ``name`` is its union, read as a phoneme's name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
)


class Unable(Exception):
    """What keeps the library from speaking, in words for the user."""


class Speaker:
    """The library, ready to speak into memory."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Unable(f"{LIBRARY} cannot be loaded ({error}); run `apt-get install espeak-ng`") from error
        self.sample_rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _DO_NOT_EXIT
        )
        if self.sample_rate <= 0:
            raise Unable(f"{LIBRARY} does not find its data; run `apt-get install espeak-ng-data`")
        self._sound: list[bytes] = []
        self._phonemes: list[tuple[str, int]] = []
        self._end = 0
        self._callback = _Callback(self._take)  # kept: the library holds a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    @property
    def version(self) -> str:
        """The library's version."""
        info = self._library.espeak_Info
        info.restype = ctypes.c_char_p
        return str((info(None) or b"").decode())

    def say(self, text: str, voice: str, rate: int, pitch: int) -> tuple[list[tuple[str, int]], int, bytes]:
        """Phonemes with their first samples, the sample after the last, and the sound."""
        self._sound, self._phonemes, self._end = [], [], 0
        library, encoded = self._library, text.encode()
        if library.espeak_SetVoiceByName(voice.encode()):
            raise Unable(
                f'espeak-ng has no voice "{voice}": `espeak-ng --voices=en` and `--voices=variant` list them'
            )
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        size = ctypes.c_size_t(len(encoded) + 1)
        status = library.espeak_Synth(encoded, size, 0, _FROM_CHARACTER, 0, _UTF8, None, None)
        if status:
            raise Unable(f"espeak-ng cannot speak {text!r}: status {status}")
        return self._phonemes, self._end, b"".join(self._sound)

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._sound.append(ctypes.string_at(samples, 2 * count))
        i = 0
        while events[i].type != _END_OF_LIST:
            if events[i].type == _PHONEME:
                self._phonemes.append((events[i].name.decode(), events[i].sample))
            elif events[i].type == _END:  # one for every clause: the last counts
                self._end = events[i].sample
            i += 1
        return 0


def main(given: BinaryIO, out: BinaryIO) -> None:
    """Speak what is given, in order."""

    def line(document: dict[str, Any]) -> None:
        out.write(json.dumps(document).encode() + b"\n")

    try:
        utterances = json.load(given)
        speaker = Speaker()
        spoken = [speaker.say(**utterance) for utterance in utterances]
    except Unable as error:
        line({"error": str(error)})
        return
    line({"version": speaker.version, "sample_rate": speaker.sample_rate})
    for phonemes, end, sound in spoken:
        line({"samples": len(sound) // 2, "phonemes": phonemes, "end": end})
        out.write(sound)


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)

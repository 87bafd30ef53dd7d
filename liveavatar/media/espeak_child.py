"""Speaks, in a process of its own with the standard library alone.

espeak-ng carries state from one utterance to the next: only a fresh process says the same thing the same way twice.

Standard input: JSON, a list of {text, voice, rate, pitch, range}. Standard output: one line of JSON, a list of
{rate, samples, phonemes: [[sample, IPA], ...]} or {error}, then all samples as 16-bit integers.
"""

import ctypes
import json
import sys

_RETRIEVE, _PHONEMES_IN_IPA, _UTF8, _PHONEME = 1, 1 | 2, 1, 7
_RATE, _PITCH, _RANGE = 1, 3, 4


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


def _say(library: ctypes.CDLL, rate: int, wanted: dict) -> tuple[dict, bytes]:
    sound, phonemes = bytearray(), []

    def heard(samples: int | None, count: int, events) -> int:
        if samples and count > 0:
            sound.extend(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type:
            if events[index].type == _PHONEME:
                phonemes.append([events[index].sample, events[index].name.decode("utf-8", "ignore")])
            index += 1
        return 0

    callback = _CALLBACK(heard)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(wanted["voice"].encode()):
        return {"error": f"it has no voice {wanted['voice']!r}"}, b""
    for parameter, name in ((_RATE, "rate"), (_PITCH, "pitch"), (_RANGE, "range")):
        library.espeak_SetParameter(parameter, int(wanted[name]), 0)
    text = wanted["text"].encode()
    library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return {"rate": rate, "samples": len(sound) // 2, "phonemes": phonemes}, bytes(sound)


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    rate = library.espeak_Initialize(_RETRIEVE, 0, None, _PHONEMES_IN_IPA)
    said = [_say(library, rate, wanted) for wanted in json.load(sys.stdin)]
    sys.stdout.buffer.write(json.dumps([head for head, _ in said]).encode() + b"\n" + b"".join(pcm for _, pcm in said))


if __name__ == "__main__":
    main()

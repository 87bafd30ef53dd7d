"""The voice, from samples to the features that the DiT listens to, block by block."""

from liveavatar.models.speech.blocks import (
    MAX_RIGHT_S,
    FullAudio,
    PcmBuffer,
    PcmSource,
    StateEncoder,
    WindowAudio,
)
from liveavatar.models.speech.encoder import (
    STATE_FIELD,
    STATE_STRIDE,
    SpeechEncoder,
    bucket,
    feature_index,
    normalise,
    to_30hz,
)

__all__ = [
    "MAX_RIGHT_S",
    "STATE_FIELD",
    "STATE_STRIDE",
    "FullAudio",
    "PcmBuffer",
    "PcmSource",
    "SpeechEncoder",
    "StateEncoder",
    "WindowAudio",
    "bucket",
    "feature_index",
    "normalise",
    "to_30hz",
]

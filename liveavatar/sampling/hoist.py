"""Conditioning of a stream, made ready once per run, prompt and block instead of in every cell."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.dit.prepared import KINDS, Prepared, PreparedPrompt, PreparedSteps, PreparedVoice
from liveavatar.models.dit.state import CellState


class Hoist:
    """What the cells of one stream take ready made, in rooms that are used again.

    One pass over the parts of units that prepare conditioning serves all that a round needs and, with `dit.hoist` above
    1, the voices of so many blocks at once, as far as there are blocks (`end`; None: for ever); `audio` gives a block's
    speech features. A stage without `embed` is given text, voice and tone by the stage before it, and makes its own
    layers' keys and values from them.
    """

    def __init__(self, dit: AvatarDiT, timesteps: Sequence[float], audio: Callable[[int], Tensor]) -> None:
        self.dit, self.audio = dit, audio
        self.end: int | None = None
        self.steps = PreparedSteps(tuple(dict.fromkeys((*timesteps, 0.0))))
        self.prompts: list[PreparedPrompt] = []
        self.voices: dict[int, PreparedVoice] = {}
        self._spare: list[PreparedVoice] = []

    def equip(self, taken: Sequence[tuple[int, list[CellState]]], texts: Collection[Tensor]) -> None:
        """Hand the cells of a round, by block, what they need, and make ready what is not there yet.

        `texts` are the prompts that blocks under way still read: their rooms are not written over.
        """
        due: list[Prepared] = []
        if self._embeds and not self.steps.tensors:
            due.append(self.steps)
        for block, states in taken:
            for state in states:
                state.prompt = self._prompt_for(state, texts, due)
                if not state.is_sink:
                    state.sound = self._voice_for(state, block, due)
        if due:
            due.sort(key=lambda one: KINDS.index(one.kind))
            self.dit.prepare(due, then=list(self.dit.units()))
        if self._embeds:
            for state in (state for _, states in taken for state in states):
                self._fill(state)

    def coming(self, blocks: Mapping[int, Tensor]) -> list[str]:
        """The units, and parts of units, that a round begins with, from the prompts of its blocks."""
        wants = {
            PreparedSteps.kind: self._embeds and not self.steps.tensors,
            PreparedPrompt.kind: any(self._prompt_of(text) is None for text in blocks.values()),
            PreparedVoice.kind: any(block not in self.voices for block in blocks),
        }
        return self.dit.preparing(kind for kind in KINDS if wants[kind]) + list(self.dit.units())

    def audio_of(self, block: int) -> Tensor:
        """The speech features of a block, asked for once."""
        found = self.voices[block].source if block in self.voices else None
        return self.audio(block) if found is None else found

    def let_go(self, block: int) -> None:
        """A block has left: the rooms of its voice are free."""
        self._spare.append(self.voices.pop(block))

    def clear(self) -> None:
        """No block is under way."""
        for block in list(self.voices):
            self.let_go(block)

    @property
    def tensors(self) -> list[Tensor]:
        made = [self.steps, *self.prompts, *self.voices.values(), *self._spare]
        return [tensor for one in made for tensor in one.tensors]

    @property
    def _embeds(self) -> bool:
        return 0 in self.dit.stage

    def _prompt_of(self, text: Tensor) -> PreparedPrompt | None:
        return next((made for made in self.prompts if made.source is text), None)

    def _prompt_for(self, state: CellState, texts: Collection[Tensor], due: list[Prepared]) -> PreparedPrompt:
        text = state.inputs.text
        found = self._prompt_of(text)
        if found is None:
            found = next((made for made in self.prompts if all(made.source is not t for t in texts)), None)
            if found is None:
                found = PreparedPrompt(text)
                self.prompts.append(found)
            found.source = text
            if not self._embeds:
                assert state.text is not None
                found.keep("text", state.text)
            due.append(found)
        return found

    def _voice_for(self, state: CellState, block: int, due: list[Prepared]) -> PreparedVoice:
        if block not in self.voices:
            made = self._room_for(block, state.cell.audio, state, due)
            if self._embeds:
                stop = block + self.dit.hoist if self.end is None else min(block + self.dit.hoist, self.end)
                for later in range(block + 1, stop):
                    self._room_for(later, self.audio(later), state, due)
            else:
                assert state.voice is not None
                assert state.tone is not None
                made.keep("voice", state.voice)
                made.keep("tone", state.tone)
        return self.voices[block]

    def _room_for(self, block: int, audio: Tensor, like: CellState, due: list[Prepared]) -> PreparedVoice:
        made = self.voices[block] = self._spare.pop() if self._spare else PreparedVoice()
        made.source, made.frames = audio, like.cell.latents.shape[2]
        due.append(made)
        return made

    def _fill(self, state: CellState) -> None:
        """What `embed` would compute for this state."""
        assert state.prompt is not None
        state.time, state.modulation = self.steps.row(state.inputs.timestep)
        state.text = state.prompt.take("text")
        if state.sound is not None:
            state.voice, state.tone = state.sound.take("voice"), state.sound.take("tone")
